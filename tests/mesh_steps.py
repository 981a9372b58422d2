"""Run as a program by test_sharding.py: training steps on meshes of virtual devices against those on one device.

Prints a line of JSON for each mesh: how far loss, gradients and a trace of losses are from those of one device.
"""

import json
import sys

import jax
import numpy as np

from wroformer_jax.sharding import batch_sharding, bytes_per_device, make_mesh, replicated, to_global
from wroformer_jax.train_step import (
    abstract_state,
    build_train_step,
    initial_state,
    loss_and_gradients,
    state_shardings,
)
from wroformer_jax.training_config import TrainingConfig

STEPS = 20


def batch(config: TrainingConfig, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    targets = 0.1 * rng.standard_normal((config.batch_size, 1, 2, config.crop_samples), dtype=np.float32)
    return {"targets": targets, "mixture": targets[:, 0] + 0.1 * rng.standard_normal(targets[:, 0].shape, np.float32)}


def run(config: TrainingConfig, params: dict | None) -> tuple[dict, float, dict, list[float], int]:
    """Initial parameters, first loss and gradients, the losses of all steps, and the bytes of the state on a device."""
    mesh = make_mesh(config.mesh, jax.devices()[: int(np.prod(list(config.mesh.values())))])
    state = initial_state(config, mesh, params)
    params = jax.device_get(state.params)
    shardings = state_shardings(config, mesh)
    train_step, gradients_of = build_train_step(config), loss_and_gradients(config)
    step = jax.jit(
        lambda state, batch: (train_step(state, batch, None), gradients_of(state.params, batch, None)[1]),
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=((shardings, replicated(mesh)), shardings.params),
    )
    losses, first = [], None
    for number in range(STEPS):
        (state, metrics), gradients = step(state, to_global(batch(config, number), mesh))
        first = first or jax.device_get(gradients)
        losses.append(float(metrics["loss"]))
    return params, losses[0], first, losses, bytes_per_device(abstract_state(config, mesh))


def main() -> None:
    jax.config.update("jax_num_cpu_devices", 4)
    settings, meshes = json.loads(sys.argv[1]), json.loads(sys.argv[2])
    params = reference = None
    for sizes, accumulate in meshes:
        mesh = dict(zip(("data", "fsdp", "seq"), sizes, strict=True))
        config = TrainingConfig.from_dict({**settings, "mesh": mesh, "accumulate": accumulate})
        params, loss, gradients, losses, num_bytes = run(config, params)
        reference = reference or (loss, gradients, losses, num_bytes)
        apart = jax.tree.map(lambda a, b: float(abs(a - b).max() / max(abs(a).max(), 1e-12)), reference[1], gradients)
        row = {
            "mesh": sizes,
            "accumulate": accumulate,
            "loss": abs(loss / reference[0] - 1),
            "gradients": max(jax.tree.leaves(apart)),
            "trace": max(abs(a / b - 1) for a, b in zip(losses, reference[2], strict=True)),
            "learnt": losses[0] - losses[-1],
            "bytes": num_bytes / reference[3],
        }
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
