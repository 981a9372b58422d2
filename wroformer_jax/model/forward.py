"""How a RoFormer is computed: in pieces, in little memory, and with time cut over devices.

These functions compute `RoFormer.plain` (roformer.py). They take the settings, the time axis, the model's
parameters and the audio, and apply the model's layers to the parameters' subtrees.

The residual stream, (batch, band, token, dim), is the only array of the length of the audio times the width of the
model. `split` makes it, `transform` runs the blocks over it, and `separate` turns it into stems. With
`config.places_at_once` each of them works on one piece of it at a time (pieces.py): on groups of bands where tokens
mix along time, on runs of frames everywhere else, from samples to features at the start and from features to samples
at the end. `config.remat` decides what the backward pass keeps of the blocks.
"""

from __future__ import annotations

import functools
from typing import Any, Literal, NamedTuple, cast, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from wroformer_jax.config.model import ModelConfig
from wroformer_jax.errors import InputError
from wroformer_jax.model.band_layers import BandSplit, MaskEstimator
from wroformer_jax.model.blocks import Block
from wroformer_jax.model.lanes import aligned_bands, aligned_length, folded, in_lanes, lane_tables
from wroformer_jax.model.layers import Params, RMSNorm, Rotary, Tables
from wroformer_jax.model.pieces import Cut, Sizes, walk
from wroformer_jax.model.stft import (
    overlap_add,
    overlapped,
    pieces_of_frames,
    spectrum,
    stack_planes,
    stft_sizes,
    window_envelope,
)
from wroformer_jax.parallel.time_axis import TimeAxis

Stream = Float[Array, "batch band token dim"]
Masks = tuple[Float[Array, "batch stem channel frame bin"], Float[Array, "batch stem channel frame bin"]]

_RESIDUAL = "residual"  # the name under which remat policies know the residual stream
_REMAT_POLICIES = {
    "block": None,
    "dots": jax.checkpoint_policies.dots_saveable,
    "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[_RESIDUAL],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}


class Split(NamedTuple):
    """The input of the first block.

    Attributes:
      stream: the residual stream: sinks, frames, padding.
      sizes: how it is cut into pieces.
      audio: the samples under the frames of each piece.
    """

    stream: Stream
    sizes: Sizes
    audio: Float[Array, "piece batch channel sample"]


@overload
def separate(
    config: ModelConfig, time: TimeAxis, params: Params, audio: Array | np.ndarray, *, with_masks: Literal[True]
) -> tuple[Array, Masks]: ...


@overload
def separate(
    config: ModelConfig, time: TimeAxis, params: Params, audio: Array | np.ndarray, *, with_masks: Literal[False] = ...
) -> tuple[Array, None]: ...


def separate(
    config: ModelConfig,
    time: TimeAxis,
    params: Params,
    audio: Float[Array | np.ndarray, "batch channel sample"],
    *,
    with_masks: bool = False,
) -> tuple[Float[Array, "batch stem channel out_sample"], Masks | None]:
    """The whole model. Returns the stems, and the masks if they are asked for.

    Raises:
      InputError: the shape of the audio does not fit the model.
    """
    x, sizes, pieces = split(config, time, params, audio)
    x = transform(config, time, params, x, sizes)

    def work(params: Params, part: Array, given: tuple[Array, Array]) -> tuple[Array, Any]:
        piece, counts = given
        return part, _stems_of_piece(config, params, part, piece, counts, with_masks)

    head = {name: params[name] for name in ("mask_estimator", "final_norm") if name in params}
    row = sizes.frames * jnp.arange(sizes.frame_runs)[:, None] + jnp.arange(sizes.frames)
    counts = (row < time.owned_end_frame(sizes.num_hops)).astype(jnp.float32)
    _, (signals, masks) = walk(work, sizes.frame_cut(sizes.num_sinks), head, x, (pieces, counts))
    if with_masks:  # (piece, batch, stem, channel, frame, bin)
        masks = tuple(
            jnp.moveaxis(mask, 0, 3).reshape(*mask.shape[1:4], -1, mask.shape[-1])[..., : sizes.num_hops + 1, :]
            for mask in masks
        )
    return _joined(config, time, signals, sizes), cast(Masks | None, masks)


def band_features(
    config: ModelConfig, time: TimeAxis, params: Params, audio: Float[Array | np.ndarray, "batch channel sample"]
) -> Float[Array, "batch frame band dim"]:
    """Returns the input of the first block, without the sinks."""
    x, sizes, _ = split(config, time, params, audio)
    return x[:, :, sizes.num_sinks : sizes.num_tokens].swapaxes(1, 2)


def features(
    config: ModelConfig,
    time: TimeAxis,
    params: Params,
    audio: Float[Array | np.ndarray, "batch channel sample"],
    *,
    keep_sinks: bool,
) -> Float[Array, "batch token band dim"]:
    """Returns the input of the mask estimators; with the sinks in front of the frames if `keep_sinks`."""
    x, sizes, _ = split(config, time, params, audio)
    x = transform(config, time, params, x, sizes)
    if config.band_scheme == "band_split":
        x = _final_norm(params, x)
    return x[:, :, 0 if keep_sinks else sizes.num_sinks : sizes.num_tokens].swapaxes(1, 2)


def split(config: ModelConfig, time: TimeAxis, params: Params, audio: Array | np.ndarray) -> Split:
    """Turns samples into the input of the first block, piece by piece."""
    check_audio(config, audio)
    num_hops = audio.shape[-1] // config.stft_hop_length
    length = aligned_length(config, num_hops + 1 + config.num_sinks) if in_lanes(config) else None
    sizes = Sizes.of(config, num_hops, length=length)
    hop, n_fft = config.stft_hop_length, config.stft_n_fft
    with jax.named_scope("stft"):
        padded = time.pad_audio(jnp.asarray(audio), n_fft // 2)
        pieces = jnp.moveaxis(pieces_of_frames(padded, sizes.frame_runs, sizes.frames, n_fft, hop), -2, 0)

    def work(params: Params, part: Array, piece: Array) -> tuple[Array, None]:
        module = BandSplit(config, parent=None)
        with jax.named_scope("stft"):
            planes = stack_planes(*spectrum(piece, **stft_sizes(config)))
        with jax.named_scope("band_split"):
            bands = cast(Array, module.apply({"params": params}, planes))
        return bands.swapaxes(1, 2).astype(part.dtype), None

    shape = (audio.shape[0], config.num_bands, sizes.padded_tokens, config.dim)
    x = jnp.zeros(shape, config.stream_dtype)
    if config.num_sinks:
        sinks = params["sink_tokens"].swapaxes(0, 1).astype(x.dtype)
        x = x.at[:, :, : config.num_sinks].set(sinks)
    x, _ = walk(work, sizes.frame_cut(sizes.num_sinks), params["band_split"], x, pieces)
    return Split(x, sizes, pieces)


def transform(config: ModelConfig, time: TimeAxis, params: Params, x: Stream, sizes: Sizes) -> Stream:
    """Runs all blocks as a scan over their stacked parameters; `config.remat` decides what the backward pass keeps."""
    rotary = Rotary(config.dim_head, parent=None)
    first_frame = -time.first_frame(sizes.num_hops)
    variables = {name: {"params": params[name]} for name in ("time_rotary", "freq_rotary")}
    tables: Any = rotary.apply(
        variables["time_rotary"], x.shape[2], num_sinks=config.num_sinks, first_frame=first_frame
    )
    time_tables: Tables = tables
    tables = rotary.apply(variables["freq_rotary"], aligned_bands(config) if in_lanes(config) else x.shape[1])
    freq_tables: Tables = tables
    if in_lanes(config):
        time_tables, freq_tables = lane_tables(config, time_tables), lane_tables(config, freq_tables)
    run_block = functools.partial(_run_block, config, sizes, time)

    def block(x: Stream, earlier: Stream | None, params: Params) -> tuple[Stream, Stream | None]:
        """`earlier` is the sum of the outputs of the blocks before, with skip connections."""
        if earlier is not None:
            x = x + earlier
        x = run_block(x, params, time_tables, freq_tables)
        return x, None if earlier is None else earlier + x

    def run(carry: tuple[Stream, Stream | None], params: Params) -> tuple[Any, None]:
        """config.blocks_per_save blocks; only the first one's input is kept."""
        x, earlier = jax.tree.map(lambda stream: checkpoint_name(stream, _RESIDUAL), carry)
        for i in range(config.blocks_per_save):
            own = jax.tree.map(lambda leaf, i=i: leaf[i], params)
            one = jax.checkpoint(block, prevent_cse=False) if config.blocks_per_save > 1 else block
            x, earlier = one(x, earlier, own)
        return (x, earlier), None

    if config.remat != "none":
        run = jax.checkpoint(run, prevent_cse=False, policy=_REMAT_POLICIES[config.remat])
    grouped = jax.tree.map(lambda leaf: leaf.reshape(-1, config.blocks_per_save, *leaf.shape[1:]), params["blocks"])
    earlier = jnp.zeros_like(x) if config.skip_connection else None
    (x, _), _ = jax.lax.scan(run, (x, earlier), grouped)
    return x


def _run_block(
    config: ModelConfig,
    sizes: Sizes,
    time: TimeAxis,
    x: Stream,
    params: Params,
    time_tables: Tables,
    freq_tables: Tables,
) -> Stream:
    """Runs one block: up to its last time mixer on groups of bands, and the rest of it on runs of tokens."""
    if in_lanes(config):  # once for all pieces
        params = folded(config, params)
    module = Block(config, sizes.num_hops, time, parent=None)

    def half(method: Any) -> Any:
        def work(given: tuple[Params, Tables], part: Array, _: None) -> tuple[Array, None]:
            own, tables = given
            result = module.apply({"params": own}, part.astype(jnp.float32), tables, method=method)
            return cast(Array, result).astype(part.dtype), None

        return work

    x, _ = walk(half(_until_last_time_mixer), Cut(1, sizes.groups, sizes.bands), (params, time_tables), x)
    x, _ = walk(half(_after_last_time_mixer), Cut(2, sizes.token_runs, sizes.tokens), (params, freq_tables), x)
    return x


def _until_last_time_mixer(block: Block, x: Stream, tables: Tables) -> Stream:
    """The time transformer without its last feed-forward layer and its norm."""
    *earlier, last = block.time.mixer
    flat = x.reshape(-1, *x.shape[2:])
    for mixer, feed_forward in zip(earlier, block.time.feed_forward, strict=False):
        with jax.named_scope("time_attention"):
            flat = flat + mixer(flat, tables)
        with jax.named_scope("time_feed_forward"):
            flat = flat + feed_forward(flat)
    with jax.named_scope("time_attention"):
        return (flat + last(flat, tables)).reshape(x.shape)


def _after_last_time_mixer(block: Block, x: Stream, tables: Tables) -> Stream:
    """The rest of the time transformer, which needs no other place, and the frequency transformer."""
    with jax.named_scope("time_feed_forward"):
        x = x + block.time.feed_forward[-1](x)
        if block.config.band_scheme == "mel":
            x = block.time.norm(x)
    x = x.swapaxes(1, 2)
    x = block.freq(x.reshape(-1, *x.shape[2:]), tables).reshape(x.shape)
    return x.swapaxes(1, 2)


def _stems_of_piece(
    config: ModelConfig,
    params: Params,
    x: Stream,
    audio: Float[Array, "batch channel sample"],
    counts: Float[Array, " frame"],
    with_masks: bool,
) -> tuple[Float[Array, "batch stem channel out_sample"], Masks | None]:
    """Returns the signal that the frames of a piece add to each stem, not yet normalised, and the masks if asked for.

    Args:
      config: the settings.
      params: parameters of the mask estimator and the final norm.
      x: features of the frames.
      audio: samples under the frames.
      counts: 1, or 0 for frames that belong to another device or are padding: they add nothing.
      with_masks: whether to return the masks.
    """
    with jax.named_scope("masks"):
        x = x.astype(jnp.float32)
        if config.band_scheme == "band_split":
            x = _final_norm(params, x)
        estimator = MaskEstimator(config, parent=None)
        masks = cast(Masks, estimator.apply({"params": params["mask_estimator"]}, x.swapaxes(1, 2)))
    with jax.named_scope("stft"):
        real, imag = (part[:, None] * counts[:, None] for part in spectrum(audio, **stft_sizes(config)))
    with jax.named_scope("inverse_stft"):
        return _signal_of_stems(config, real, imag, *masks), masks if with_masks else None


def _signal_of_stems(
    config: ModelConfig,
    real: Float[Array, "batch 1 channel frame bin"],
    imag: Float[Array, "batch 1 channel frame bin"],
    mask_real: Float[Array, "batch stem channel frame bin"],
    mask_imag: Float[Array, "batch stem channel frame bin"],
) -> Float[Array, "batch stem channel out_sample"]:
    """Returns the signal of the spectrum times the masks, not yet normalised."""
    stem_real = real * mask_real - imag * mask_imag
    stem_imag = real * mask_imag + imag * mask_real
    if config.zero_dc:
        keep = jnp.arange(config.num_bins) > 0
        stem_real, stem_imag = jnp.where(keep, stem_real, 0.0), jnp.where(keep, stem_imag, 0.0)
    return overlapped(stem_real, stem_imag, **stft_sizes(config))


@jax.named_scope("inverse_stft")
def _joined(
    config: ModelConfig, time: TimeAxis, signals: Float[Array, "piece batch stem channel sample"], sizes: Sizes
) -> Float[Array, "batch stem channel out_sample"]:
    """Adds up the signals of all pieces and divides them by the overlapped squared windows."""
    hop, margin = config.stft_hop_length, config.stft_n_fft // 2
    signal = overlap_add(jnp.moveaxis(signals, 0, -2), sizes.frames * hop)
    signal = signal[..., : signal.shape[-1] // hop * hop]
    samples = sizes.num_hops * hop
    first, end = time.first_frame(sizes.num_hops), time.end_frame(sizes.num_hops)
    envelope = window_envelope(-(-(margin + samples) // hop), first, end, **stft_sizes(config))
    envelope = envelope[margin : margin + samples]
    return time.fold_margins(signal, margin, samples) / jnp.where(envelope > 0, envelope, 1)


def _final_norm(params: Params, x: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
    return cast(Array, RMSNorm(parent=None).apply({"params": params["final_norm"]}, x))


def check_audio(config: ModelConfig, audio: Array | np.ndarray) -> None:
    """Raises an InputError if the audio is not (batch, channel, sample), or too short."""
    if audio.ndim != 3 or audio.shape[1] != config.channels:
        raise InputError(f"audio has the shape {audio.shape}, expected (batch, {config.channels} channels, samples)")
    if audio.shape[2] < config.min_samples:
        raise InputError(
            f"audio has {audio.shape[2]} samples, expected at least {config.min_samples} "
            f"(half an STFT window of {config.stft_n_fft} and one)"
        )
