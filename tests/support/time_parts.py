"""Computes one example whose time is divided over up to eight virtual devices; tests run it as a program.

    python time_parts.py SETTINGS CASES FOLDER

A case is a name and the fields that replace those of SETTINGS. Each prints a line of JSON, and writes gradients, stems
and features to FOLDER. The padding is loud, so that any leak of it into the results is noticed.
"""

import dataclasses
import json
import sys
from pathlib import Path

import jax
import numpy as np

SETTINGS, CASES, FOLDER = sys.argv[1:]
jax.config.update("jax_num_cpu_devices", 8)

from jax.sharding import PartitionSpec

from wroformer_jax.config.training import TrainingConfig
from wroformer_jax.model.params import init_params
from wroformer_jax.model.roformer import RoFormer
from wroformer_jax.parallel.mesh import SAMPLES, make_mesh
from wroformer_jax.parallel.sharding import replicated, to_global
from wroformer_jax.planning.hlo import collectives
from wroformer_jax.separation.arrays import separate
from wroformer_jax.training.state import batch_shapes, model_shardings, time_of
from wroformer_jax.training.step import loss_and_gradients

PADDING = 7.0


def batch(config, mesh):
    shapes, rng = batch_shapes(config, mesh), np.random.default_rng(0)
    targets = 0.1 * rng.standard_normal((config.batch_size, 1, 2, config.crop_samples), dtype=np.float32)
    mixture = targets[:, 0] + 0.1 * rng.standard_normal(targets[:, 0].shape, dtype=np.float32)
    missing = shapes["mixture"][-1] - config.crop_samples
    padded = {
        name: np.pad(whole, [*[(0, 0)] * (whole.ndim - 1), (0, missing)], constant_values=PADDING)
        for name, whole in (("targets", targets), ("mixture", mixture))
    }
    return to_global(padded, mesh, shapes)


def features(config, mesh, params, mixture):
    """Returns the stems, and the inputs of the mask estimators: frames, and the sinks of every part."""
    model = RoFormer(config.model, time_of(config, mesh))

    def both(params, mixture):
        x = model.apply({"params": params}, mixture, method="features", keep_sinks=True)
        return model.apply({"params": params}, mixture), x

    specs = PartitionSpec(None, None, None, SAMPLES), PartitionSpec(None, SAMPLES)
    cut = jax.shard_map(
        both,
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec(None, None, SAMPLES)),
        out_specs=specs,
        check_vma=False,
    )
    stems, x = jax.jit(cut)(params, mixture)
    parts = np.split(np.asarray(x), mesh.shape[SAMPLES], axis=1)
    sinks, num_hops = config.model.num_sinks, parts[0].shape[1] - config.model.num_sinks - 1
    # The last frame of a part is the first of the next.
    frames = [part[:, sinks : sinks + num_hops] for part in parts[:-1]] + [parts[-1][:, sinks:]]
    return {
        "stems": np.asarray(stems)[..., : config.crop_samples],
        "sinks": np.stack([part[:, :sinks] for part in parts]),
        "frames": np.concatenate(frames, axis=1)[:, : 1 + config.crop_samples // config.model.stft_hop_length],
    }


def run(config):
    sizes = list(config.mesh.values())
    mesh = make_mesh(config.mesh, jax.devices()[: int(np.prod(sizes))])
    model, given, teacher, teacher_params = RoFormer(config.model), batch(config, mesh), None, None
    params = jax.device_put(init_params(model, 0), model_shardings(model, mesh))
    if config.teacher:
        teacher = RoFormer(dataclasses.replace(config.model, time_mixer="full", num_sinks=0))
        teacher_params = init_params(teacher, 1)
    step = jax.jit(loss_and_gradients(config, mesh, teacher)).lower(params, given, teacher_params).compile()
    teacher_params = jax.device_put(teacher_params, replicated(mesh))
    (loss, parts), gradients = jax.device_get(step(params, given, teacher_params))
    sent = [one for one in collectives(step.as_text()) if one.kind == "collective-permute"]
    assert all(one.is_exact for one in sent)
    leaves = jax.tree_util.tree_leaves_with_path(gradients)
    arrays = {jax.tree_util.keystr(path): leaf for path, leaf in leaves}
    if not config.teacher and config.mesh["data"] == config.mesh["fsdp"] == 1:
        arrays |= features(config, mesh, params, given["mixture"])
    if config.mesh["seq"] == len(jax.devices()):
        # The stems that `separate` returns for one pass over all devices.
        song = np.asarray(given["mixture"])[0, :, : config.crop_samples]
        rate = config.model.sample_rate
        arrays["one pass"] = separate(RoFormer(config.model), params, song, sample_rate=rate, chunk_seconds=None)[
            "vocals"
        ]
    measured = {"loss": float(loss), **{name: float(value) for name, value in parts.items()}}
    return measured, sum(one.size * one.executions for one in sent), arrays


def main():
    for name, changed in json.loads(CASES).items():
        config = TrainingConfig.from_dict(json.loads(SETTINGS)).with_changes(**changed)
        measured, sent, arrays = run(config)
        np.savez(Path(FOLDER) / f"{name}.npz", **arrays)
        print(json.dumps({"case": name, "measured": measured, "sent": sent}), flush=True)


if __name__ == "__main__":
    main()
