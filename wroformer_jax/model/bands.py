"""Which frequency bins belong to which band, and how bands of different width are stacked into arrays.

Bands are kept in a few groups of consecutive bands with similar width. Inside a group every band is padded to the
group's widest, so that the bands' own weights stack into one array and one batched matrix product serves them all.
Planes are the real and imaginary parts of the channels: (left re, left im, right re, right im) for stereo.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from wroformer_jax.config.model import ModelConfig
from wroformer_jax.errors import InputError

MAX_GROUPS = 6


@dataclasses.dataclass(frozen=True, eq=False)
class BandGroup:
    """Consecutive bands, padded to one width.

    Attributes:
      bands: which bands these are.
      bins: the bin of each place; padding points at bin 0.
      present: which places are real.
    """

    bands: range
    bins: Int[np.ndarray, "band width"]
    present: Bool[np.ndarray, "band width"]

    @property
    def size(self) -> int:
        """Number of bands."""
        return self.bins.shape[0]

    @property
    def width(self) -> int:
        """Bins of the widest band."""
        return self.bins.shape[1]


@dataclasses.dataclass(frozen=True, eq=False)
class BandLayout:
    """The bands of a model, their groups, and the way back from bands to bins.

    Attributes:
      bins: the bins of each band, ascending.
      groups: the bands in groups of similar width.
      bin_of_place: for each place of all groups laid end to end, padding included, its bin.
      present: which of these places are real.
      places_of_bin: the places that hold a bin; a bin in fewer bands repeats a place with weight 0.
      weight: 1 / (number of bands with that bin), or 0 where `places_of_bin` repeats.
    """

    bins: tuple[Int[np.ndarray, " _"], ...]
    groups: tuple[BandGroup, ...]
    bin_of_place: Int[np.ndarray, " place"]
    present: Bool[np.ndarray, " place"]
    places_of_bin: Int[np.ndarray, "overlap bin"]
    weight: Float[np.ndarray, "overlap bin"]

    @property
    def widths(self) -> tuple[int, ...]:
        """Bins of each band."""
        return tuple(len(b) for b in self.bins)


def band_layout(config: ModelConfig) -> BandLayout:
    """The bands of a model.

    Raises:
      InputError: a bin is in no band, or a band has no bin, with these sizes.
    """
    return _layout(config.band_scheme, config.num_bands, config.freqs_per_bands, config.sample_rate, config.stft_n_fft)


@functools.cache
def _layout(
    scheme: str, num_bands: int, freqs_per_bands: tuple[int, ...] | None, sample_rate: int, n_fft: int
) -> BandLayout:
    num_bins = n_fft // 2 + 1
    if scheme == "mel":
        bins = _mel_bands(num_bands, sample_rate, n_fft)
    else:
        edges = np.cumsum((0, *freqs_per_bands))
        bins = tuple(np.arange(low, high) for low, high in itertools.pairwise(edges))

    groups = tuple(_stack(bins, bands) for bands in _similar_widths([len(b) for b in bins]))
    bin_of_place = np.concatenate([g.bins.reshape(-1) for g in groups])
    present = np.concatenate([g.present.reshape(-1) for g in groups])

    places = [np.flatnonzero(present & (bin_of_place == b)) for b in range(num_bins)]
    overlap = max(map(len, places))
    places_of_bin = np.stack([np.resize(p, overlap) for p in places], axis=1)
    count = np.array([len(p) for p in places])
    weight = (np.arange(overlap)[:, None] < count) / count
    return BandLayout(bins, groups, bin_of_place, present, places_of_bin, weight.astype(np.float32))


def _mel_bands(num_bands: int, sample_rate: int, n_fft: int) -> tuple[Int[np.ndarray, " _"], ...]:
    """Bins in which a librosa mel filter is not zero, the first and the last bin added (arXiv 2310.01809)."""
    from librosa import filters

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of bands without a bin, which are refused below
        bank = filters.mel(sr=sample_rate, n_fft=n_fft, n_mels=num_bands) > 0
    bank[0, 0] = bank[-1, -1] = True
    sizes = f"{num_bands} mel bands at {sample_rate} Hz with stft_n_fft = {n_fft}"
    if not bank.any(axis=1).all():
        raise InputError(f"{sizes}: band {int(np.argmin(bank.any(axis=1)))} has no bin, use fewer bands")
    if not bank.any(axis=0).all():
        raise InputError(f"{sizes}: bin {int(np.argmin(bank.any(axis=0)))} is in no band, use more bands")
    return tuple(np.flatnonzero(row) for row in bank)


def _similar_widths(widths: list[int]) -> list[range]:
    """Cuts the bands into at most MAX_GROUPS runs with as little padding as possible (dynamic programme)."""
    n = len(widths)
    best: dict[tuple[int, int], tuple[int, list[range]]] = {(0, 0): (0, [])}
    for end in range(1, n + 1):
        for groups in range(1, min(MAX_GROUPS, end) + 1):
            best[end, groups] = min(
                (
                    (cost + max(widths[start:end]) * (end - start), [*runs, range(start, end)])
                    for start in range(end)
                    if (start, groups - 1) in best
                    for cost, runs in (best[start, groups - 1],)
                ),
                key=lambda candidate: candidate[0],
            )
    return min((best[n, g] for g in range(1, min(MAX_GROUPS, n) + 1)), key=lambda c: (c[0], len(c[1])))[1]


def _stack(bins: tuple[Int[np.ndarray, " _"], ...], bands: range) -> BandGroup:
    width = max(len(bins[b]) for b in bands)
    stacked = np.zeros((len(bands), width), np.int32)
    present = np.zeros((len(bands), width), bool)
    for row, band in enumerate(bands):
        stacked[row, : len(bins[band])] = bins[band]
        present[row, : len(bins[band])] = True
    return BandGroup(bands, stacked, present)


def split_bins(
    planes: Float[Array, "batch plane frame bin"], group: BandGroup
) -> Float[Array, "batch frame band feature"]:
    """The bins of a group's bands, zero where there is padding; a band's features are plane-major, then bin."""
    picked = jnp.where(group.present, planes[..., group.bins], 0.0)
    batch, num_planes, frames, bands, width = picked.shape
    return picked.transpose(0, 2, 3, 1, 4).reshape(batch, frames, bands, num_planes * width)


def average_bins(places: Float[Array, "*batch place"], layout: BandLayout) -> Float[Array, "*batch bin"]:
    """Mean over the bands that share a bin.

    Args:
      places: values of all groups' places laid end to end, padding included.
      layout: the bands.
    """
    return _average(layout, places)


# XLA's transpose of a gather is a scatter, slow on every backend. Here the transpose is known to be a gather too.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _average(layout: BandLayout, places: Array) -> Array:
    weights = jnp.asarray(layout.weight)
    return sum(weight * places[..., index] for weight, index in zip(weights, layout.places_of_bin, strict=True))


def _average_forward(layout: BandLayout, places: Array) -> tuple[Array, None]:
    return _average(layout, places), None


def _average_backward(layout: BandLayout, _: None, cotangent: Array) -> tuple[Array]:
    share = jnp.asarray(layout.weight[0])  # the first place of a bin is always real
    return (jnp.where(layout.present, (cotangent * share)[..., layout.bin_of_place], 0.0),)


_average.defvjp(_average_forward, _average_backward)
