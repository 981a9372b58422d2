"""The groups of settings in a `TrainingConfig`. All defaults suit a model of the published size on a set of songs.

Each class raises an InputError that names the field where a value is impossible.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from wroformer_jax.config.checks import (
    check_choice,
    check_number,
    check_whole_number,
    checked_tuple,
)
from wroformer_jax.errors import InputError

SCHEDULES = ("cosine", "constant")


@dataclass(frozen=True)
class LoadingConfig:
    """How batches are loaded; changes no batch."""

    workers: int = 1  # processes that load on each host; 0 loads in the training process
    prefetch: int = 4  # batches that each worker keeps ready

    def __post_init__(self) -> None:
        check_whole_number("loading.workers", self.workers, minimum=0)
        check_whole_number("loading.prefetch", self.prefetch, minimum=1)


@dataclass(frozen=True)
class SyntheticConfig:
    """The songs that are synthesised in the workdir where `data` names no set."""

    train_songs: int = 64  # number of songs to train on; `validation.songs` more are for validation
    song_seconds: float = 30.0  # length of each

    def __post_init__(self) -> None:
        check_whole_number("synthetic.train_songs", self.train_songs, minimum=1)
        check_number("synthetic.song_seconds", self.song_seconds, above=0)


@dataclass(frozen=True)
class LossWeights:
    """Weights of the parts of the loss."""

    l1: float = 1.0  # mean absolute difference of the waveforms
    stft: float = 1.0  # mean modulus of the difference of complex spectra, summed over `loss.windows`
    masks: float = 0.0  # mean modulus of the difference to the teacher's masks

    def __post_init__(self) -> None:
        for name in (one.name for one in fields(self)):
            check_number(f"loss.weights.{name}", getattr(self, name), minimum=0)
        if not any((self.l1, self.stft, self.masks)):
            raise InputError("loss.weights are all 0: there is nothing to learn from")


@dataclass(frozen=True)
class LossConfig:
    """The loss; the defaults are those of the public recipe."""

    weights: LossWeights = field(default_factory=LossWeights)
    windows: tuple[int, ...] = (4096, 2048, 1024, 512, 256)  # lengths of the STFT windows, in samples
    hop: int = 147  # samples from one STFT frame to the next

    def __post_init__(self) -> None:
        object.__setattr__(self, "windows", checked_tuple("loss.windows", self.windows, "lengths in samples"))
        for window in self.windows:
            check_whole_number("loss.windows", window, minimum=1)
        if not self.windows:
            raise InputError("loss.windows is empty, expected at least one length in samples")
        check_whole_number("loss.hop", self.hop, minimum=1)


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW, its schedule, and which parameters it moves."""

    learning_rate: float = 2e-4  # the peak
    schedule: str = "cosine"  # "cosine" falls to zero at the last step; "constant" suits a run whose end is open
    warmup: float = 0.02  # share of the steps in which the learning rate rises to its peak, 0 to 1
    b1: float = 0.9  # AdamW beta 1: decay per step of the mean of gradients
    b2: float = 0.99  # AdamW beta 2: decay per step of the mean of squared gradients
    weight_decay: float = 0.01  # AdamW weight decay, of matrices only; multiplied by the learning rate
    clip_norm: float = 1.0  # gradients with a larger global norm are scaled down to this norm
    ema: float = 0.999  # decay per step of the moving average of the weights; 0 keeps no average
    freeze: tuple[str, ...] = ()  # regular expressions; parameters whose names match stay as they are
    learning_rate_scales: tuple[
        tuple[str, float], ...
    ] = ()  # (regular expression, factor) pairs; the last match counts
    accumulate: int = 1  # parts into which a batch is cut and that run one after the other, to save memory
    max_skipped: int = 10  # steps in a row with a loss or gradient that is not finite, after which the run ends

    def __post_init__(self) -> None:
        check_number("optimizer.learning_rate", self.learning_rate, above=0)
        check_choice("optimizer.schedule", self.schedule, SCHEDULES)
        check_number("optimizer.warmup", self.warmup, minimum=0, maximum=1)
        for name in ("b1", "b2", "ema"):
            check_number(f"optimizer.{name}", getattr(self, name), minimum=0, below=1)
        check_number("optimizer.weight_decay", self.weight_decay, minimum=0)
        check_number("optimizer.clip_norm", self.clip_norm, above=0)
        check_whole_number("optimizer.accumulate", self.accumulate, minimum=1)
        check_whole_number("optimizer.max_skipped", self.max_skipped, minimum=1)
        for name, items in (
            ("freeze", "patterns of names of parameters"),
            ("learning_rate_scales", "pairs of a pattern and a factor"),
        ):
            object.__setattr__(self, name, checked_tuple(f"optimizer.{name}", getattr(self, name), items))
        for entry in self.learning_rate_scales:
            if not isinstance(entry, tuple) or len(entry) != 2 or not isinstance(entry[0], str):
                raise InputError(
                    f"optimizer.learning_rate_scales has {entry!r}, expected pairs of a pattern and a factor"
                )
            check_number(f"optimizer.learning_rate_scales of {entry[0]!r}", entry[1], minimum=0)


@dataclass(frozen=True)
class ValidationConfig:
    """Scores on songs that are never trained on."""

    songs: int = 14  # whole songs: the first of the set's validation songs, or of its test songs if it has none
    chunk_seconds: float = 8.0  # the model separates chunks of this length; 0 for whole songs in one pass
    every: int = 1000  # steps from one validation to the next

    def __post_init__(self) -> None:
        check_whole_number("validation.songs", self.songs, minimum=0)
        check_number("validation.chunk_seconds", self.chunk_seconds, minimum=0)
        check_whole_number("validation.every", self.every, minimum=1)


@dataclass(frozen=True)
class CheckpointsConfig:
    """When the state of a run is saved."""

    every: int = 500  # steps, a multiple of `logging.every`; a crash loses at most that many
    keep: int = 3  # the newest checkpoints that are kept, beside the best one

    def __post_init__(self) -> None:
        check_whole_number("checkpoints.every", self.every, minimum=1)
        check_whole_number("checkpoints.keep", self.keep, minimum=1)


@dataclass(frozen=True)
class LoggingConfig:
    """When loss, gradient norm, learning rate and speed are logged."""

    every: int = 50  # steps; what is logged is the mean over them

    def __post_init__(self) -> None:
        check_whole_number("logging.every", self.every, minimum=1)
