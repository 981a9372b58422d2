"""The settings of a training run: one frozen dataclass, validated once, kept as config.json in the workdir."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import field
from typing import Any

from wroformer_jax.config import checks
from wroformer_jax.config.augmentation import Augmentation
from wroformer_jax.config.checks import (
    FrozenMapping,
    check_known,
    check_number,
    check_text,
    check_whole_number,
    checked_tuple,
    merged,
)
from wroformer_jax.config.former_names import nearest_field, with_current_names
from wroformer_jax.config.groups import (
    CheckpointsConfig,
    LoadingConfig,
    LoggingConfig,
    LossConfig,
    OptimizerConfig,
    SyntheticConfig,
    ValidationConfig,
)
from wroformer_jax.config.model import ModelConfig
from wroformer_jax.errors import InputError
from wroformer_jax.stems import INSTRUMENTAL, SYNTHETIC_STEMS

LONGEST_CROP = 3600.0  # seconds; an hour of a stem is 1.3 GB
MESH_AXES = ("data", "fsdp", "seq")  # axes of the device mesh; parallel/sharding.py says what is cut over which
_WHOLE_MESH = {"data": -1, "fsdp": 1, "seq": 1}


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """Everything that decides what a training run computes. Every field has a default.

    At the top are the fields that most runs set; the others are in groups (groups.py).

    Raises:
      InputError: a field has an impossible value, or two fields contradict each other.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    # Where the weights start: a checkpoint as `wroformer separate` takes it; "" for random ones. A full-attention
    # checkpoint gets windowed sinks as model.time_mixer, window and num_sinks say.
    init: str = ""
    # A frozen model, whose masks the model learns where loss.weights.masks is above 0; it separates windows of
    # `teacher_seconds`, since its cost grows with the square of their length.
    teacher: str = ""
    teacher_seconds: float = 8.0
    # A set made by `wroformer prepare`: a folder or gs://BUCKET/SET; "" synthesises songs in the workdir.
    data: str = ""
    stems: tuple[str, ...] = ()  # the mixture is the sum of these stems; () for all stems of the set
    seconds: float = 8.0  # length of a training example, a random crop of a song
    batch_size: int = 16  # examples per step, on all devices together
    steps: int = 50_000  # optimiser steps of the whole run
    seed: int = 0  # of parameters, sinks, synthetic songs, crops and augmentation: the same seed, the same numbers
    # Devices: copies of the model ("data"), parts of its parameters and optimiser state ("fsdp"), parts of time
    # ("seq"); -1 for all devices that are left.
    mesh: Mapping[str, int] = field(default_factory=lambda: FrozenMapping(_WHOLE_MESH))
    profile_steps: tuple[int, ...] = ()  # the first and the last step of a trace in WORKDIR/profile; () for none
    augment: Augmentation = field(default_factory=Augmentation)
    loading: LoadingConfig = field(default_factory=LoadingConfig)
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    checkpoints: CheckpointsConfig = field(default_factory=CheckpointsConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)

    def __post_init__(self) -> None:
        object.__setattr__(self, "stems", checked_tuple("stems", self.stems, "names of stems"))
        steps = checked_tuple("profile_steps", self.profile_steps, "two steps, the first and the last")
        object.__setattr__(self, "profile_steps", steps)
        self._check_mesh()
        for name in ("steps", "batch_size"):
            check_whole_number(name, getattr(self, name), minimum=1)
        check_whole_number("seed", self.seed, minimum=0, maximum=2**32 - 1)
        check_number("seconds", self.seconds, above=0, maximum=LONGEST_CROP)
        check_number("teacher_seconds", self.teacher_seconds, above=0)
        check_text("data", self.data, "the path of a set made by `wroformer prepare`")
        for name in ("init", "teacher"):
            check_text(name, getattr(self, name), "a checkpoint as `wroformer separate` takes it")
        if self.profile_steps:
            self._check_profile_steps()
        self._check_length()
        if not self.data:
            self._check_synthetic_songs()
        if self.loss.weights.masks and not self.teacher:
            raise InputError(
                "loss.weights.masks is above 0, but there is no teacher: name one, as in teacher='kim-melband'"
            )
        if self.checkpoints.every % self.logging.every:
            raise InputError(
                f"checkpoints.every is {self.checkpoints.every}, expected a multiple of logging.every, "
                f"{self.logging.every}"
            )

    def _check_mesh(self) -> None:
        if not isinstance(self.mesh, Mapping):
            raise InputError(f"mesh is {self.mesh!r}, expected the sizes of its axes {', '.join(MESH_AXES)}")
        check_known("config field", [f"mesh.{axis}" for axis in self.mesh], [f"mesh.{axis}" for axis in MESH_AXES])
        object.__setattr__(self, "mesh", FrozenMapping({**_WHOLE_MESH, **self.mesh}))
        for axis, size in self.mesh.items():
            if size != -1:
                check_whole_number(f"mesh.{axis}", size, minimum=1)

    def _check_profile_steps(self) -> None:
        if len(self.profile_steps) != 2:
            raise InputError(f"profile_steps is {self.profile_steps!r}, expected the first and the last step, or ()")
        first, last = self.profile_steps
        check_whole_number("the first of profile_steps", first, minimum=1, maximum=self.steps)
        check_whole_number("the last of profile_steps", last, minimum=first, maximum=self.steps)

    def _check_length(self) -> None:
        needed = max(*self.loss.windows, self.model.stft_n_fft) // 2 + 1
        if self.crop_samples < needed:
            raise InputError(
                f"seconds is {self.seconds}, which is {self.crop_samples} samples in whole hops; "
                f"the longest window of the loss or the model needs {needed}"
            )

    def _check_synthetic_songs(self) -> None:
        if self.model.sample_rate < 16000:
            raise InputError(
                f"model.sample_rate is {self.model.sample_rate}, expected at least 16000 Hz: songs are synthesised "
                "at no lower rate"
            )
        for name, stems in (("stems", self.stems), ("model.stems", self.model.stems)):
            for stem in stems:
                if stem.lower() not in (*SYNTHETIC_STEMS, INSTRUMENTAL):
                    raise InputError(f"{name} has {stem!r}, but synthetic songs have {', '.join(SYNTHETIC_STEMS)} only")
        if self.synthetic.song_seconds < self.seconds:
            raise InputError(
                f"synthetic.song_seconds is {self.synthetic.song_seconds}, shorter than a crop of {self.seconds} s"
            )

    @property
    def teacher_samples(self) -> int:
        """Length of the windows that the teacher separates, in samples: whole hops."""
        hop = self.model.stft_hop_length
        return max(1, round(self.teacher_seconds * self.model.sample_rate) // hop) * hop

    @property
    def crop_samples(self) -> int:
        """Length of a training crop in samples: whole hops, so that the model's output is as long."""
        hop = self.model.stft_hop_length
        return round(self.seconds * self.model.sample_rate) // hop * hop

    def with_changes(self, **fields: Any) -> TrainingConfig:
        """Returns the same settings with other values; a group takes a mapping of only the fields that change.

        Raises:
          InputError: as for `from_dict`.
        """
        return self.from_dict(merged(self.to_dict(), with_current_names(fields)))

    def to_dict(self) -> dict[str, Any]:
        """A dict of plain JSON types, the groups as dicts; `from_dict` reads it back."""
        return checks.to_dict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> TrainingConfig:
        """Builds a config from plain values; each group is a mapping of its fields. Former names are accepted, too.

        Raises:
          InputError: a field is unknown (the nearest known name is suggested) or has an impossible value.
        """
        if not isinstance(fields, Mapping):
            raise InputError(f"the settings of a run are {fields!r}, expected fields and their values")
        fields = with_current_names(fields)
        for name in fields:
            if name not in _NAMES:
                raise InputError(unknown_field(name))
        return checks.from_dict(cls, fields, what="config field")


_NAMES = [one.name for one in dataclasses.fields(TrainingConfig)]


def unknown_field(name: str) -> str:
    """Returns a sentence that a run has no field of this name, with the field that may be meant."""
    nearest = nearest_field(name, TrainingConfig().to_dict())
    if nearest == name:
        return f"the config has no field {name!r}: files that start from default_config() have it"
    return f"unknown config field {name!r}" + (f", did you mean {nearest!r}?" if nearest else "")
