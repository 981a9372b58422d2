"""A training run small enough for a test: a tiny model, short songs and few steps; and runs that are disturbed."""

import importlib.util
import itertools
from pathlib import Path

from wroformer_jax.config.training import TrainingConfig
from wroformer_jax.training.step import make_train_step
from wroformer_jax.training.trainer import train

CONFIGS = Path(__file__).parents[2] / "configs"

QUICKLY_COMPILED = {"band_scheme": "band_split", "freqs_per_bands": (43, 43, 43), "depth": 1}  # fields of a model
TINY = TrainingConfig().with_changes(
    model={
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
    },
    seed=3,
    steps=8,
    batch_size=2,
    seconds=0.1,
    mesh={"data": 1},
    augment={"remix": 0.5},
    loading={"workers": 0, "prefetch": 2},
    synthetic={"train_songs": 2, "song_seconds": 0.5},
    loss={"windows": (256, 64), "hop": 64},
    optimizer={"learning_rate": 3e-3, "warmup": 0.1, "ema": 0.0, "max_skipped": 3},
    validation={"songs": 2, "chunk_seconds": 0.0, "every": 4},
    checkpoints={"every": 2, "keep": 2},
    logging={"every": 2},
)


def tiny_run(model=None, **fields):
    """The settings of a tiny run, with changes; of a group, the fields that change are enough."""
    return TINY.with_changes(model=model or {}, **fields)


def fields_of(name):
    """The fields of a file in configs/ as plain values."""
    spec = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config().to_dict()


def train_on(change, config, workdir):
    """Trains on batches that go through `change(batch, number)`, which may raise or do something else on the way.

    The number counts the batches of this run from 1.
    """

    def make_step(*args):
        step, numbers = make_train_step(*args), itertools.count(1)
        return lambda state, batch: step(state, change(batch, next(numbers)))

    return train(config, workdir, make_step=make_step)
