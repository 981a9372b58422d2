"""The settings of a training run: one frozen dataclass, validated once, kept as config.json in the workdir."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from wroformer_jax.config.augmentation import Augmentation
from wroformer_jax.config.checks import FrozenMapping
from wroformer_jax.config.model import ModelConfig
from wroformer_jax.errors import InputError, suggestion
from wroformer_jax.stems import INSTRUMENTAL, SYNTHETIC_STEMS

SCHEDULES = ("cosine", "constant")
LOSSES = ("l1", "stft", "masks")


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
    init: str
    teacher: str
    teacher_seconds: float
    mesh: Mapping[str, int]
    steps: int
    batch_size: int
    accumulate: int
    learning_rate: float
    schedule: str
    warmup: float
    b1: float
    b2: float
    weight_decay: float
    clip_norm: float
    ema: float
    freeze: tuple[str, ...]
    learning_rate_scales: tuple[tuple[str, float], ...]
    max_skipped: int
    loss_weights: Mapping[str, float]
    loss_windows: tuple[int, ...]
    loss_hop: int
    log_every: int
    validate_every: int
    checkpoint_every: int
    keep_checkpoints: int
    profile_steps: tuple[int, ...]

    def __post_init__(self) -> None:
        for name in _COUNTS:
            _check(name, getattr(self, name), int, minimum=1)
        _check("seed", self.seed, int, minimum=0, maximum=2**32 - 1)
        for name in ("validation_songs", "workers"):
            _check(name, getattr(self, name), int, minimum=0)
        _check("seconds", self.seconds, float, above=0, maximum=LONGEST_CROP)
        for name in ("song_seconds", "learning_rate", "clip_norm", "teacher_seconds"):
            _check(name, getattr(self, name), float, above=0)
        for name in ("b1", "b2", "ema"):
            _check(name, getattr(self, name), float, minimum=0, below=1)
        for name in ("validation_chunk_seconds", "weight_decay"):
            _check(name, getattr(self, name), float, minimum=0)
        _check("warmup", self.warmup, float, minimum=0, maximum=1)
        for name in ("data", "init", "teacher"):
            if not isinstance(getattr(self, name), str):
                raise InputError(f"{name} is {getattr(self, name)!r}, expected {_TEXTS[name]}")
        if self.schedule not in SCHEDULES:
            raise InputError(f"schedule is {self.schedule!r}, expected one of {', '.join(map(repr, SCHEDULES))}")
        self._check_mappings()
        for window in self.loss_windows:
            _check("loss_windows", window, int, minimum=1)
        if not self.loss_windows:
            raise InputError("loss_windows is empty, expected at least one length in samples")
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
                if stem.lower() not in (*SYNTHETIC_STEMS, INSTRUMENTAL):
                    raise InputError(f"{name} has {stem!r}, but synthetic songs have {', '.join(SYNTHETIC_STEMS)} only")
        if not self.data and self.song_seconds < self.seconds:
            raise InputError(f"song_seconds is {self.song_seconds}, shorter than a crop of {self.seconds} s")
        if self.checkpoint_every % self.log_every:
            raise InputError(
                f"checkpoint_every is {self.checkpoint_every}, expected a multiple of log_every, {self.log_every}"
            )
        if self.profile_steps:
            self._check_profile_steps()

    def _check_profile_steps(self) -> None:
        if len(self.profile_steps) != 2:
            raise InputError(f"profile_steps is {self.profile_steps!r}, expected the first and the last step, or ()")
        first, last = self.profile_steps
        _check("the first of profile_steps", first, int, minimum=1, maximum=self.steps)
        _check("the last of profile_steps", last, int, minimum=first, maximum=self.steps)

    def _check_mappings(self) -> None:
        for name, known in (("mesh", MESH_AXES), ("loss_weights", LOSSES)):
            there = getattr(self, name)
            for key in there:
                if key not in known:
                    raise InputError(f"unknown field {name}.{key}{suggestion(key, list(known))}")
            for key in known:
                if key not in there:
                    raise InputError(f"{name} has no field {key!r}, expected {', '.join(known)}")
        for axis, size in self.mesh.items():
            if size != -1:
                _check(f"mesh.{axis}", size, int, minimum=1)
        for loss, weight in self.loss_weights.items():
            _check(f"loss_weights.{loss}", weight, float, minimum=0)
        if not any(self.loss_weights.values()):
            raise InputError("loss_weights are all 0: there is nothing to learn from")
        if self.loss_weights["masks"] and not self.teacher:
            raise InputError(
                "loss_weights.masks is above 0, but there is no teacher: name one, as in teacher='kim-melband'"
            )
        for entry in self.learning_rate_scales:
            if not isinstance(entry, tuple) or len(entry) != 2 or not isinstance(entry[0], str):
                raise InputError(f"learning_rate_scales has {entry!r}, expected pairs of a pattern and a factor")
            _check(f"learning_rate_scales of {entry[0]!r}", entry[1], float, minimum=0)

    @property
    def teacher_samples(self) -> int:
        """What the teacher hears at once in samples, whole hops."""
        hop = self.model.stft_hop_length
        return max(1, round(self.teacher_seconds * self.model.sample_rate) // hop) * hop

    @property
    def crop_samples(self) -> int:
        """Length of a training crop in samples: whole hops, so that the model's output is as long."""
        hop = self.model.stft_hop_length
        return round(self.seconds * self.model.sample_rate) // hop * hop

    def to_dict(self) -> dict[str, Any]:
        """A dict of plain JSON types; `from_dict` reads it back."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        lists = {name: list(fields[name]) for name in _LISTS}
        lists["learning_rate_scales"] = [list(pair) for pair in self.learning_rate_scales]
        mappings = {name: dict(fields[name]) for name in ("mesh", "loss_weights")}
        parts = {"model": self.model.to_dict(), "augment": self.augment.to_dict()}
        return {**fields, **lists, **mappings, **parts}

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
        for name, what in _MAPPINGS.items():
            if not isinstance(fields[name], Mapping):
                raise InputError(f"{name} is {fields[name]!r}, expected the fields of {what}")
        for name, what in _LISTS.items():
            if not isinstance(fields[name], list | tuple):
                raise InputError(f"{name} is {fields[name]!r}, expected a list of {what}")
        # A whole number is as good as any where a fraction is expected (--config.seconds=4).
        floats = {
            field.name: float(fields[field.name])
            for field in dataclasses.fields(cls)
            if field.type == "float" and type(fields[field.name]) is int
        }
        tuples = {name: tuple(fields[name]) for name in _LISTS}
        tuples["learning_rate_scales"] = tuple(
            tuple(pair) if isinstance(pair, list | tuple) else pair for pair in fields["learning_rate_scales"]
        )
        parts = {
            "mesh": FrozenMapping(fields["mesh"]),
            "loss_weights": FrozenMapping(fields["loss_weights"]),
            "model": ModelConfig.from_dict(fields["model"]),
            "augment": Augmentation.from_dict(fields["augment"]),
        }
        return cls(**{**fields, **floats, **tuples, **parts})


_MAPPINGS = {
    "model": "a model",
    "augment": "the augmentation",
    "mesh": "the sizes of the mesh",
    "loss_weights": "the weights of the losses",
}
_LISTS = {
    "loss_windows": "lengths in samples",
    "stems": "names of stems",
    "freeze": "patterns of names of parameters",
    "learning_rate_scales": "pairs of a pattern and a factor",
    "profile_steps": "two steps, the first and the last",
}
_TEXTS = {
    "data": "the path of a set made by `wroformer prepare`",
    "init": "a checkpoint as `wroformer separate` takes it",
    "teacher": "a checkpoint as `wroformer separate` takes it",
}
_COUNTS = (
    "accumulate",
    "max_skipped",
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
    below: float | int = math.inf,
) -> None:
    kinds = (int,) if kind is int else (int, float)
    is_number = not isinstance(value, bool) and isinstance(value, kinds) and math.isfinite(value)
    if not is_number or not minimum <= value <= maximum or not above < value < below:
        number = "a whole number" if kind is int else "a number"
        bounds = [
            f"{word} {bound:g}"
            for word, bound in (("above", above), ("of at least", minimum), ("of at most", maximum), ("below", below))
            if math.isfinite(bound)
        ]
        raise InputError(f"{name} is {value!r}, expected {number} {' and '.join(bounds)}")


MESH_AXES = ("data", "fsdp", "seq")  # of devices; sharding.py says what is cut over which
