"""The settings of a training run: one frozen dataclass, validated once, kept as config.json in the workdir."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from wroformer_jax.config import ModelConfig, suggestion
from wroformer_jax.data.augment import Augmentation
from wroformer_jax.data.crops import INSTRUMENTAL
from wroformer_jax.data.synthetic import STEMS
from wroformer_jax.errors import InputError

LONGEST_CROP = 3600.0  # seconds; an hour of a stem is 1.3 GB


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """Everything that decides what a training run computes; configs/quickstart.py explains each field.

    Raises:
      InputError: a field has an impossible value, or two fields contradict each other.
    """

    model: ModelConfig
    seed: int
    data: str
    stems: tuple[str, ...]
    seconds: float
    augment: Augmentation
    validation_songs: int
    validation_chunk_seconds: float
    workers: int
    prefetch: int
    train_songs: int
    song_seconds: float
    steps: int
    batch_size: int
    learning_rate: float
    warmup: float
    weight_decay: float
    clip_norm: float
    loss_windows: tuple[int, ...]
    loss_hop: int
    log_every: int
    validate_every: int
    checkpoint_every: int
    keep_checkpoints: int

    def __post_init__(self) -> None:
        for name in _COUNTS:
            _check(name, getattr(self, name), int, minimum=1)
        _check("seed", self.seed, int, minimum=0, maximum=2**32 - 1)
        for name in ("validation_songs", "workers"):
            _check(name, getattr(self, name), int, minimum=0)
        _check("seconds", self.seconds, float, above=0, maximum=LONGEST_CROP)
        for name in ("song_seconds", "learning_rate", "clip_norm"):
            _check(name, getattr(self, name), float, above=0)
        for name in ("validation_chunk_seconds", "weight_decay"):
            _check(name, getattr(self, name), float, minimum=0)
        _check("warmup", self.warmup, float, minimum=0, maximum=1)
        for window in self.loss_windows:
            _check("loss_windows", window, int, minimum=1)
        if not self.loss_windows:
            raise InputError("loss_windows is empty, expected at least one length in samples")
        if not isinstance(self.data, str):
            raise InputError(f"data is {self.data!r}, expected the path of a set made by `wroformer prepare`")
        if not self.data and self.model.sample_rate < 16000:
            raise InputError(
                f"model.sample_rate is {self.model.sample_rate}, expected at least 16000 Hz: songs are synthesised "
                "at no lower rate"
            )
        needed = max(*self.loss_windows, self.model.stft_n_fft) // 2 + 1
        if self.crop_samples < needed:
            raise InputError(
                f"seconds is {self.seconds}, which is {self.crop_samples} samples in whole hops; "
                f"the longest window of the loss or the model needs {needed}"
            )
        for name, stems in (("stems", self.stems), ("model.stems", self.model.stems)):
            for stem in stems if not self.data else ():
                if stem.lower() not in (*STEMS, INSTRUMENTAL):
                    raise InputError(f"{name} has {stem!r}, but synthetic songs have {', '.join(STEMS)} only")
        if not self.data and self.song_seconds < self.seconds:
            raise InputError(f"song_seconds is {self.song_seconds}, shorter than a crop of {self.seconds} s")
        if self.checkpoint_every % self.log_every:
            raise InputError(
                f"checkpoint_every is {self.checkpoint_every}, expected a multiple of log_every, {self.log_every}"
            )

    @property
    def crop_samples(self) -> int:
        """Length of a training crop in samples: whole hops, so that the model's output is as long."""
        hop = self.model.stft_hop_length
        return round(self.seconds * self.model.sample_rate) // hop * hop

    def to_dict(self) -> dict[str, Any]:
        """A dict of plain JSON types; `from_dict` reads it back."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        lists = {name: list(fields[name]) for name in ("stems", "loss_windows")}
        return {**fields, **lists, "model": self.model.to_dict(), "augment": self.augment.to_dict()}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> TrainingConfig:
        """Builds a config from plain values, `model` and `augment` being mappings of the fields of their own classes.

        Raises:
          InputError: a field is unknown (the nearest known name is suggested), missing or impossible.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        for name in fields:
            if name not in known:
                raise InputError(f"unknown config field {name!r}{suggestion(name, known)}")
        for name in known:
            if name not in fields:
                raise InputError(f"the config has no field {name!r}; configs/quickstart.py shows them all")
        for name, what in (("model", "a model"), ("augment", "the augmentation")):
            if not isinstance(fields[name], Mapping):
                raise InputError(f"{name} is {fields[name]!r}, expected the fields of {what}")
        for name, what in (("loss_windows", "lengths in samples"), ("stems", "names of stems")):
            if not isinstance(fields[name], list | tuple):
                raise InputError(f"{name} is {fields[name]!r}, expected a list of {what}")
        # A whole number is as good as any where a fraction is expected (--config.seconds=4).
        floats = {
            field.name: float(fields[field.name])
            for field in dataclasses.fields(cls)
            if field.type == "float" and type(fields[field.name]) is int
        }
        tuples = {name: tuple(fields[name]) for name in ("stems", "loss_windows")}
        parts = {
            "model": ModelConfig.from_dict(fields["model"]),
            "augment": Augmentation.from_dict(fields["augment"]),
        }
        return cls(**{**fields, **floats, **tuples, **parts})


_COUNTS = (
    "steps",
    "batch_size",
    "prefetch",
    "train_songs",
    "loss_hop",
    "log_every",
    "validate_every",
    "checkpoint_every",
    "keep_checkpoints",
)


def _check(
    name: str,
    value: Any,
    kind: type,
    *,
    minimum: float | int = -math.inf,
    maximum: float | int = math.inf,
    above: float | int = -math.inf,
) -> None:
    kinds = (int,) if kind is int else (int, float)
    is_number = not isinstance(value, bool) and isinstance(value, kinds) and math.isfinite(value)
    if not is_number or not minimum <= value <= maximum or not value > above:
        number = "a whole number" if kind is int else "a number"
        bounds = [
            f"{word} {bound:g}"
            for word, bound in (("above", above), ("of at least", minimum), ("of at most", maximum))
            if math.isfinite(bound)
        ]
        raise InputError(f"{name} is {value!r}, expected {number} {' and '.join(bounds)}")
