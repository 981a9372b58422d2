"""The settings of a model: one frozen dataclass, validated once, that travels with every checkpoint."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from wroformer_jax.config import checks
from wroformer_jax.config.checks import check_choice, check_flag, check_whole_number, checked_tuple
from wroformer_jax.errors import InputError

BAND_SCHEMES = ("mel", "band_split")
TIME_MIXERS = ("windowed_sink", "full", "naive")
DTYPES = ("float32", "bfloat16")
# Forms in which attention is computed (model/implementations.py chooses).
ATTENTION_IMPLS = ("auto", "scan", "pallas", "cudnn", "interpret")
# Fields that say how a model is computed, not what it is. All but the last change numbers by rounding only.
MEMORY_FIELDS = ("remat", "blocks_per_save", "places_at_once", "frames_at_once", "attention_impl", "stream_dtype")
REMATS = ("none", "block", "dots", "offload")
# Names that fields had when earlier models and runs were saved.
FORMER_NAMES = {"blocks_a_save": "blocks_per_save"}

# BS-RoFormer (arXiv 2309.02612), table 1 as the public implementations have it: 62 bands, 1,025 bins.
DEFAULT_FREQS_PER_BANDS = (2,) * 24 + (4,) * 12 + (12,) * 8 + (24,) * 8 + (48,) * 8 + (128, 129)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Everything that decides what a model computes; hashable, so that it can be a static argument.

    The defaults are the published windowed-sink Mel-Band RoFormer (arXiv 2510.25745).

    Raises:
      InputError: a field has an impossible value, or two fields contradict each other.
    """

    band_scheme: str = "mel"  # "mel" (overlapping, with a norm after each transformer) or "band_split" (disjoint)
    num_bands: int = 60
    freqs_per_bands: tuple[int, ...] | None = None  # bins of each band, for "band_split" only
    stems: tuple[str, ...] = ("vocals",)  # the sources estimated, in the order of the mask estimators
    channels: int = 2  # audio channels: 1 mono, 2 stereo
    sample_rate: int = 44100  # Hz
    stft_n_fft: int = 2048  # samples
    stft_hop_length: int = 441  # samples
    stft_win_length: int = 2048  # samples
    dim: int = 384  # width of the residual stream
    depth: int = 6  # blocks; a block is a time transformer and a frequency transformer
    time_transformer_depth: int = 1  # layers per time transformer
    freq_transformer_depth: int = 1  # layers per frequency transformer
    heads: int = 8
    dim_head: int = 64
    dim_feed_forward: int = 1536  # hidden width of the feed-forward layers
    mask_layers: int = 3  # Linear layers of a mask estimator, the last one included
    dim_mask: int = 1536  # hidden width of the mask estimators
    # "windowed_sink", "full", or "naive": full attention that lays out all its scores, for comparison
    time_mixer: str = "windowed_sink"
    window: int = 10  # frames that a frame sees around itself: window // 2 on each side
    num_sinks: int = 8  # learned tokens in front of the frames
    skip_connection: bool = False  # add the outputs of all earlier blocks before each block
    zero_dc: bool = True  # zero bin 0 of the result
    dtype: str = "float32"  # of matrix products; parameters, norms, softmax and STFT are float32 always
    # Memory and speed (MEMORY_FIELDS).
    # What is kept for the backward pass: "none" keeps everything and recomputes nothing, "block" keeps only the
    # residual stream between blocks, "dots" the results of matrix products, too, and "offload" the residual stream in
    # the host's memory.
    remat: str = "block"
    blocks_per_save: int = 1  # the residual stream is kept after every so many blocks; divides `depth`
    # Frames x bands of an example that are worked on at a time, which bounds all memory but that of the residual
    # stream; 0 for all of them, None for as many as suit the device. The tokens of a band are not cut, so one band is
    # the least.
    places_at_once: int | None = None
    # STFT frames that are worked on at a time where features are made from samples, and samples from features; 0 for
    # places_at_once // num_bands, None for as many as suit the device.
    frames_at_once: int | None = None
    # How attention is computed: "scan" (jax.lax.scan, on every device), "pallas" (kernels for TPUs), "cudnn" (NVIDIA
    # GPUs), "interpret" (the TPU's kernels on any device, slowly, for tests), or "auto": what suits the device.
    attention_impl: str = "auto"
    stream_dtype: str = "float32"  # of the residual stream; "bfloat16" halves its memory, and rounds

    def __post_init__(self) -> None:
        if isinstance(self.stems, str):
            raise InputError(f"stems must be a list of names, not the text {self.stems!r}")
        # JSON and YAML give lists where a hashable config needs tuples.
        object.__setattr__(self, "stems", tuple(self.stems))
        if self.freqs_per_bands is not None:
            bands = checked_tuple("freqs_per_bands", self.freqs_per_bands, "numbers of bins")
            object.__setattr__(self, "freqs_per_bands", bands)
        elif self.band_scheme == "band_split":
            object.__setattr__(self, "freqs_per_bands", DEFAULT_FREQS_PER_BANDS)
        if self.band_scheme == "band_split" and self.freqs_per_bands is not None:
            object.__setattr__(self, "num_bands", len(self.freqs_per_bands))
        if isinstance(self.remat, bool):  # as models were saved before there was a choice
            object.__setattr__(self, "remat", "block" if self.remat else "none")
        self._validate()

    def _validate(self) -> None:
        for name, allowed in _CHOICES.items():
            check_choice(name, getattr(self, name), allowed)
        for name in _POSITIVE:
            check_whole_number(name, getattr(self, name), minimum=1)
        for name in ("window", "num_sinks"):
            check_whole_number(name, getattr(self, name), minimum=0)
        for name in ("places_at_once", "frames_at_once"):
            if getattr(self, name) is not None:
                check_whole_number(name, getattr(self, name), minimum=0)
        for name in ("skip_connection", "zero_dc"):
            check_flag(name, getattr(self, name))
        if self.dim_head % 2:
            raise InputError(f"dim_head is {self.dim_head}, but rotary embeddings turn pairs: it must be even")
        if not self.stems or not all(isinstance(s, str) and s for s in self.stems):
            raise InputError(f"stems is {self.stems!r}, expected at least one name")
        if len(set(self.stems)) != len(self.stems):
            raise InputError(f"stems names a stem twice: {', '.join(self.stems)}")
        self._check_memory()
        self._check_stft()
        self._check_bands()

    def _check_memory(self) -> None:
        if self.depth % self.blocks_per_save:
            raise InputError(f"blocks_per_save is {self.blocks_per_save}, which does not divide depth = {self.depth}")
        if self.blocks_per_save > 1 and self.remat not in ("block", "offload"):
            raise InputError(
                f"blocks_per_save is {self.blocks_per_save}, which goes with remat 'block' or 'offload', "
                f"not {self.remat!r}"
            )
        if self.places_at_once and self.remat == "dots":
            raise InputError(
                "places_at_once computes products again, but remat 'dots' keeps them: set only one of the two"
            )

    def _check_stft(self) -> None:
        if self.stft_win_length > self.stft_n_fft:
            raise InputError(f"stft_win_length is {self.stft_win_length}, longer than stft_n_fft, {self.stft_n_fft}")
        if not _invertible(self.stft_hop_length, self.stft_win_length):
            raise InputError(
                f"stft_hop_length is {self.stft_hop_length}, too long for stft_win_length = {self.stft_win_length}: "
                "some samples would be in no frame, or be lost at the zero ends of the windows"
            )

    def _check_bands(self) -> None:
        if self.freqs_per_bands is None:
            return
        if self.band_scheme == "mel":
            raise InputError("freqs_per_bands belongs to band_scheme 'band_split', but band_scheme is 'mel'")
        if sum(self.freqs_per_bands) != self.num_bins:
            raise InputError(
                f"freqs_per_bands adds up to {sum(self.freqs_per_bands)} bins, "
                f"but stft_n_fft = {self.stft_n_fft} has {self.num_bins}"
            )

    @property
    def num_stems(self) -> int:
        """Number of sources estimated."""
        return len(self.stems)

    @property
    def num_bins(self) -> int:
        """Frequency bins of the one-sided STFT."""
        return self.stft_n_fft // 2 + 1

    @property
    def min_samples(self) -> int:
        """Shortest audio, in samples, that the reflecting STFT accepts."""
        return self.stft_n_fft // 2 + 1

    def to_dict(self) -> dict[str, Any]:
        """A dict of plain JSON types; `from_dict` reads it back."""
        return checks.to_dict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> ModelConfig:
        """Builds a config from plain values. A field may have its former name (FORMER_NAMES).

        Raises:
          InputError: a field is unknown (the nearest known name is suggested), has an impossible value, or is given
            under its present and its former name.
        """
        for former, name in FORMER_NAMES.items():
            if former in fields and name in fields:
                raise InputError(f"model has both {name!r} and {former!r}, its former name: give {name!r} only")
        fields = {FORMER_NAMES.get(name, name): value for name, value in fields.items()}
        return checks.from_dict(cls, fields, what="model field")


_CHOICES = {
    "band_scheme": BAND_SCHEMES,
    "time_mixer": TIME_MIXERS,
    "dtype": DTYPES,
    "remat": REMATS,
    "attention_impl": ATTENTION_IMPLS,
    "stream_dtype": DTYPES,
    "channels": (1, 2),
}
_POSITIVE = (
    "num_bands",
    "sample_rate",
    "stft_n_fft",
    "stft_hop_length",
    "stft_win_length",
    "dim",
    "depth",
    "blocks_per_save",
    "time_transformer_depth",
    "freq_transformer_depth",
    "heads",
    "dim_head",
    "dim_feed_forward",
    "mask_layers",
    "dim_mask",
)


def _invertible(hop: int, win: int) -> bool:
    """Whether overlapped squared Hann windows are above 1e-11 everywhere, as torch.istft demands."""

    def overlapped(sample: int) -> float:
        return sum(math.sin(math.pi * n / win) ** 4 for n in range(sample, win, hop))

    return hop <= win and all(overlapped(sample) > 1e-11 for sample in range(hop))


def forward_only(config: ModelConfig, places_at_once: int | None) -> ModelConfig:
    """Returns the settings of the same model for a forward pass only, without what is kept for gradients.

    Args:
      config: the settings with which the model was trained.
      places_at_once: frames x bands to work on at a time, 0 for all, None for as many as suit the device.
    """
    return dataclasses.replace(config, places_at_once=places_at_once, remat="none", blocks_per_save=1)
