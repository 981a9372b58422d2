"""Takes training steps on meshes of virtual devices, in one process or as one of two; tests run it as a program.

    python mesh_steps.py SETTINGS MESHES FOLDER [PORT PROCESS]

The first process prints a line of JSON for each mesh and writes the gradients of its first step into FOLDER.
"""

import json
import sys
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

SETTINGS, MESHES, FOLDER, *SEVERAL = sys.argv[1:]
jax.config.update("jax_num_cpu_devices", 2 if SEVERAL else 4)

from wroformer_jax.config.training import TrainingConfig
from wroformer_jax.parallel.mesh import make_mesh
from wroformer_jax.parallel.processes import connect, is_first, whole_here
from wroformer_jax.parallel.sharding import batch_shardings, bytes_per_device, local_part, replicated, to_global
from wroformer_jax.training.state import abstract_state, batch_shapes, initial_state, state_shardings
from wroformer_jax.training.step import build_update, loss_and_gradients

STEPS = 20


def batch(config: TrainingConfig, mesh: Mesh, seed: int) -> dict[str, np.ndarray]:
    """Returns this process's part of a batch, padded at the end if time is divided over devices."""
    rng = np.random.default_rng(seed)
    targets = 0.1 * rng.standard_normal((config.batch_size, 1, 2, config.crop_samples), dtype=np.float32)
    mixture = targets[:, 0] + 0.1 * rng.standard_normal(targets[:, 0].shape, np.float32)
    shapes = batch_shapes(config, mesh)
    rows, samples = local_part(mesh, shapes["mixture"])
    missing = shapes["mixture"][-1] - config.crop_samples
    return {
        name: np.pad(whole, [*[(0, 0)] * (whole.ndim - 1), (0, missing)])[list(rows)][..., samples.start : samples.stop]
        for name, whole in (("targets", targets), ("mixture", mixture))
    }


def run(config: TrainingConfig) -> tuple[list[float], dict, int]:
    """Returns the losses of all steps, the gradients of the first, and the bytes of the state on one device."""
    mesh = make_mesh(config.mesh, jax.devices()[: int(np.prod(list(config.mesh.values())))])
    state, shardings = initial_state(config, mesh), state_shardings(config, mesh)
    gradients_of, updated = loss_and_gradients(config, mesh), build_update(config)

    def step(state, batch):
        (loss, parts), gradients = gradients_of(state.params, batch, None)
        return updated(state, {"loss": loss, **parts}, gradients), gradients

    step = jax.jit(
        step,
        in_shardings=(shardings, batch_shardings(mesh)),
        out_shardings=((shardings, replicated(mesh)), shardings.params),
    )
    losses, first = [], None
    for number in range(STEPS):
        (state, metrics), gradients = step(
            state, to_global(batch(config, mesh, number), mesh, batch_shapes(config, mesh))
        )
        first = first or jax.device_get(whole_here(gradients, mesh))
        losses.append(float(metrics["loss"]))
    return losses, first, bytes_per_device(abstract_state(config, mesh))


def main() -> None:
    if SEVERAL:
        connect(f"localhost:{SEVERAL[0]}", 2, int(SEVERAL[1]))
    for sizes, accumulate in json.loads(MESHES):
        mesh = dict(zip(("data", "fsdp", "seq"), sizes, strict=True))
        losses, gradients, num_bytes = run(
            TrainingConfig.from_dict(json.loads(SETTINGS)).with_changes(mesh=mesh, optimizer={"accumulate": accumulate})
        )
        if is_first():
            name = f"gradients-{jax.process_count()}-{'x'.join(map(str, sizes))}-{accumulate}.npz"
            leaves = jax.tree_util.tree_leaves_with_path(gradients)
            np.savez(Path(FOLDER) / name, **{jax.tree_util.keystr(path): leaf for path, leaf in leaves})
            row = {"mesh": sizes, "accumulate": accumulate, "losses": losses, "bytes": num_bytes, "file": name}
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
