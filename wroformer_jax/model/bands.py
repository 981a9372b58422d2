"""Which frequency bins belong to which band, and how bands of different width are stacked into arrays.

Consecutive bands of similar width form a group, at most MAX_GROUPS of them. Inside a group every band is padded to
the widest one, so that the bands' weights stack into one array and one batched matrix product serves them all. A group
has (band, width) slots; a slot holds a bin or padding. Planes are the real and imaginary parts of the channels:
(left re, left im, right re, right im) for stereo.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float64, Int

from wroformer_jax.config.model import ModelConfig
from wroformer_jax.errors import InputError

MAX_GROUPS = 6


@dataclasses.dataclass(frozen=True, eq=False)
class BandGroup:
    """Consecutive bands, padded to one width.

    Attributes:
      bands: numbers of the bands.
      bins: the bin of each slot; padding has bin 0.
      present: False for padding.
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
    """The bands of a model, their groups, and which slots hold a bin.

    Attributes:
      bins: the bins of each band, ascending.
      groups: the bands in groups of similar width.
      bin_of_slot: the bin of each slot of all groups, laid end to end, padding included.
      present: for each of these slots, False if it is padding.
      slots_of_bin: the slots that hold a bin. A bin that fewer bands share repeats a slot with weight 0.
      weight: 1 / (number of bands with that bin), or 0 where `slots_of_bin` repeats.
    """

    bins: tuple[Int[np.ndarray, " _"], ...]
    groups: tuple[BandGroup, ...]
    bin_of_slot: Int[np.ndarray, " slot"]
    present: Bool[np.ndarray, " slot"]
    slots_of_bin: Int[np.ndarray, "overlap bin"]
    weight: Float[np.ndarray, "overlap bin"]

    @property
    def widths(self) -> tuple[int, ...]:
        """Bins of each band."""
        return tuple(len(b) for b in self.bins)


def band_layout(config: ModelConfig) -> BandLayout:
    """Returns the bands of a model.

    Raises:
      InputError: with these sizes a bin is in no band, or a band has no bin.
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
        assert freqs_per_bands is not None  # ModelConfig fills it in for "band_split"
        edges = np.cumsum((0, *freqs_per_bands))
        bins = tuple(np.arange(low, high) for low, high in itertools.pairwise(edges))

    groups = tuple(_stack(bins, bands) for bands in _similar_widths([len(b) for b in bins]))
    bin_of_slot = np.concatenate([g.bins.reshape(-1) for g in groups])
    present = np.concatenate([g.present.reshape(-1) for g in groups])

    slots = [np.flatnonzero(present & (bin_of_slot == b)) for b in range(num_bins)]
    overlap = max(map(len, slots))
    slots_of_bin = np.stack([np.resize(p, overlap) for p in slots], axis=1)
    count = np.array([len(p) for p in slots])
    weight = (np.arange(overlap)[:, None] < count) / count
    return BandLayout(bins, groups, bin_of_slot, present, slots_of_bin, weight.astype(np.float32))


def _mel_bands(num_bands: int, sample_rate: int, n_fft: int) -> tuple[Int[np.ndarray, " _"], ...]:
    """Returns the bins where each mel filter is not zero, with the first and last bin added (2310.01809)."""
    # A filter is a triangle over three edges, so it is positive strictly between the first and the third of them.
    edges, bins = _mel_edges(num_bands, sample_rate), np.fft.rfftfreq(n_fft, 1.0 / sample_rate)
    bank = (edges[:-2, None] < bins) & (bins < edges[2:, None])
    bank[0, 0] = bank[-1, -1] = True
    sizes = f"{num_bands} mel bands at {sample_rate} Hz with stft_n_fft = {n_fft}"
    if not bank.any(axis=1).all():
        raise InputError(f"{sizes}: band {int(np.argmin(bank.any(axis=1)))} has no bin, use fewer bands")
    if not bank.any(axis=0).all():
        raise InputError(f"{sizes}: bin {int(np.argmin(bank.any(axis=0)))} is in no band, use more bands")
    return tuple(np.flatnonzero(row) for row in bank)


def _mel_edges(num_bands: int, sample_rate: int) -> Float64[np.ndarray, " edge"]:
    """Returns the edges of mel bands in Hz, evenly spaced from 0 to half the sample rate on Slaney's mel scale.

    The scale is linear up to 1 kHz and logarithmic above (Slaney, Auditory Toolbox, 1998). A bin can lie on an edge, so
    every rounding is that of `librosa.mel_frequencies`. The reason not to call it is that importing librosa takes more
    than a second, mostly for scipy.signal and numba.
    """
    hz_per_mel, log_from, log_step = 200.0 / 3, 1000.0, np.log(6.4) / 27.0
    first_log_mel = log_from / hz_per_mel
    highest = sample_rate / 2
    top = highest / hz_per_mel if highest < log_from else first_log_mel + np.log(highest / log_from) / log_step
    mels = np.linspace(0.0, top, num_bands + 2)
    edges, is_log = hz_per_mel * mels, mels >= first_log_mel
    edges[is_log] = log_from * np.exp(log_step * (mels[is_log] - first_log_mel))
    return edges


def _similar_widths(widths: list[int]) -> list[range]:
    """Cuts the bands into at most MAX_GROUPS runs with the least padding, by dynamic programming."""
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
    """Returns the bins of a group's bands, zero for padding. A band's features are plane-major, then bin."""
    picked = jnp.where(group.present, planes[..., group.bins], 0.0)
    batch, num_planes, frames, bands, width = picked.shape
    return picked.transpose(0, 2, 3, 1, 4).reshape(batch, frames, bands, num_planes * width)


def average_bins(slots: Float[Array, "*batch slot"], layout: BandLayout) -> Float[Array, "*batch bin"]:
    """Returns the mean over the bands that share a bin.

    Args:
      slots: values of all groups' slots laid end to end, padding included.
      layout: the bands.
    """
    return _average(layout, slots)


# XLA's transpose of a gather is a scatter, which is slow on every backend. This transpose is a gather, too.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _average(layout: BandLayout, slots: Array) -> Array:
    weights = jnp.asarray(layout.weight)
    shares = (weight * slots[..., index] for weight, index in zip(weights, layout.slots_of_bin, strict=True))
    return functools.reduce(jnp.add, shares)


def _average_forward(layout: BandLayout, slots: Array) -> tuple[Array, None]:
    return _average(layout, slots), None


def _average_backward(layout: BandLayout, _: None, cotangent: Array) -> tuple[Array]:
    share = jnp.asarray(layout.weight[0])  # the first slot of a bin is never padding
    return (jnp.where(layout.present, (cotangent * share)[..., layout.bin_of_slot], 0.0),)


_average.defvjp(_average_forward, _average_backward)
