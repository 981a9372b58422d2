"""A training run small enough for a test: configs/quickstart.py with a tiny model, short songs and few steps."""

import contextlib
import functools
import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest

from wroformer_jax.config.training import TrainingConfig
from wroformer_jax.training import loop, trainer
from wroformer_jax.training.state import initial_state

CONFIGS = Path(__file__).parents[2] / "configs"

MODEL = {
    "num_bands": 6,
    "sample_rate": 16000,
    "stft_n_fft": 256,
    "stft_hop_length": 128,
    "stft_win_length": 256,
    "dim": 8,
    "heads": 1,
    "dim_head": 4,
    "dim_feed_forward": 8,
    "dim_mask": 8,
    "window": 4,
    "num_sinks": 2,
}
QUICKLY_COMPILED = {"band_scheme": "band_split", "freqs_per_bands": (43, 43, 43), "depth": 1}  # fields of a model
TRAINING = {
    "steps": 4,
    "batch_size": 2,
    "seconds": 0.1,
    "song_seconds": 0.5,
    "train_songs": 2,
    "validation_songs": 1,
    "workers": 0,
    "mesh": {"data": 1, "fsdp": 1, "seq": 1},
    "loss_windows": (256, 64),
    "loss_hop": 64,
    "log_every": 2,
    "checkpoint_every": 2,
}


def fields_of(name):
    """The fields of a file in configs/ as plain values."""
    spec = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config().to_dict()


def tiny_run(model=None, **fields):
    quickstart = TrainingConfig.from_dict(fields_of("quickstart"))
    return quickstart.with_changes(**TRAINING, model=MODEL).with_changes(**fields, model=model or {})


@contextlib.contextmanager
def compiled_once():
    """What runs of a config compile is compiled for all tests together: that takes longer than all else."""
    with pytest.MonkeyPatch.context() as patch:
        make_state = functools.cache(lambda *args: jax.device_get(initial_state(*args)))
        for module, name in ((loop, "make_train_step"), (trainer, "abstract_state")):
            patch.setattr(module, name, functools.cache(getattr(module, name)))

        def copied_state(config, mesh, params):
            if params is not None:
                return initial_state(config, mesh, params)
            shardings = jax.tree.map(lambda leaf: leaf.sharding, trainer.abstract_state(config, mesh))
            return jax.device_put(jax.tree.map(np.array, make_state(config, mesh, None)), shardings)

        patch.setattr(trainer, "initial_state", copied_state)
        yield


LEAST_MODEL = {
    "num_bands": 6,
    "sample_rate": 16000,
    "stft_n_fft": 256,
    "stft_hop_length": 128,
    "stft_win_length": 256,
    "dim": 8,
    "depth": 1,
    "heads": 1,
    "dim_head": 4,
    "dim_feed_forward": 8,
    "mask_layers": 2,
    "dim_mask": 8,
    "window": 4,
    "num_sinks": 2,
    "remat": "none",
}
LEAST_TRAINING = {
    "seed": 3,
    "steps": 8,
    "batch_size": 2,
    "data": "",
    "stems": (),
    "seconds": 0.1,
    "augment": {"remix": 0.5},
    "validation_songs": 2,
    "validation_chunk_seconds": 0,
    "workers": 0,
    "prefetch": 2,
    "train_songs": 2,
    "song_seconds": 0.5,
    "init": "",
    "teacher": "",
    "teacher_seconds": 8,
    "mesh": {"data": 1, "fsdp": 1, "seq": 1},
    "accumulate": 1,
    "schedule": "cosine",
    "b1": 0.9,
    "b2": 0.99,
    "ema": 0,
    "freeze": (),
    "learning_rate_scales": (),
    "max_skipped": 3,
    "profile_steps": (),
    "loss_weights": {"l1": 1, "stft": 1, "masks": 0},
    "learning_rate": 3e-3,
    "warmup": 0.1,
    "weight_decay": 0.01,
    "clip_norm": 1.0,
    "loss_windows": (256, 64),
    "loss_hop": 64,
    "log_every": 2,
    "validate_every": 4,
    "checkpoint_every": 2,
    "keep_checkpoints": 2,
}


def tiny(model=None, **fields):
    return TrainingConfig().with_changes(**LEAST_TRAINING, model=LEAST_MODEL).with_changes(**fields, model=model or {})
