"""The band-split RoFormer: Mel-Band RoFormer (arXiv 2310.01809) and BS-RoFormer (arXiv 2309.02612).

One song's way: `RoFormer.__call__` takes the STFT, `BandSplit` turns the bins of each band into a feature vector,
`Block`s of a time and a frequency transformer work on the residual stream, `MaskEstimator` turns features into complex
masks, and the masked spectrum goes back to samples. Time is the frames with the sinks in front.

The residual stream, (batch, band, token, dim), is the one long array. With `config.places_at_once` all work on it is
done piece by piece (chunks.py): groups of bands where tokens mix along time, runs of frames everywhere else, from
samples to features at the start and from features to samples at the end.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from wroformer_jax.config.model import ModelConfig
from wroformer_jax.errors import InputError
from wroformer_jax.model.band_layers import BandSplit, MaskEstimator
from wroformer_jax.model.blocks import Block, Stream
from wroformer_jax.model.layers import Params, RMSNorm, Rotary, Tables, named
from wroformer_jax.model.pieces import Cut, walk
from wroformer_jax.model.stft import overlap_add, overlapped, pieces_of_frames, spectrum, window_envelope
from wroformer_jax.parallel.time_axis import WHOLE, TimeAxis

# Standard deviation of fresh sink tokens: small beside the features, whose entries are of the order of 1.
SINK_STD = 0.02

_RESIDUAL = "residual"  # the name of what is kept of a block
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


class RoFormer(nn.Module):
    """Separates stems by complex masks on the mixture's spectrum.

    `model.apply({"params": params}, audio)` as `__call__`; `method="masks"` gives the masks themselves.

    Attributes:
      config: the settings.
      time_axis: what lies beyond the audio that the model is given; see context_parallel.py.
    """

    config: ModelConfig
    time_axis: TimeAxis = WHOLE

    def setup(self) -> None:
        config = self.config
        self.band_split = BandSplit(config)
        self.time_rotary, self.freq_rotary = Rotary(config.dim_head), Rotary(config.dim_head)
        if config.num_sinks:
            self.sink_tokens = self.param(
                "sink_tokens",
                named(nn.initializers.normal(SINK_STD), "sink", "band", "embed"),
                (config.num_sinks, config.num_bands, config.dim),
            )
        self.blocks = nn.scan(
            Block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=config.depth,
            metadata_params={nn.PARTITION_NAME: "depth"},
        )(config)
        if config.band_scheme == "band_split":
            self.final_norm = RMSNorm()
        self.mask_estimator = MaskEstimator(config)

    def __call__(
        self, audio: Float[Array | np.ndarray, "batch channel sample"]
    ) -> Float[Array, "batch stem channel out_sample"]:
        """Separates a batch of mixtures.

        Args:
          audio: float32 samples at config.sample_rate, at least config.min_samples of them.

        Returns:
          The stems in the order of config.stems, hop * (samples // hop) samples each.

        Raises:
          InputError: the shape does not fit the model.
        """
        if self.is_initializing():
            self.initialise()
        return self._separate(audio, with_masks=False)[0]

    def stems_and_masks(
        self, audio: Float[Array | np.ndarray, "batch channel sample"]
    ) -> tuple[
        Float[Array, "batch stem channel out_sample"],
        Float[Array, "batch stem channel frame bin"],
        Float[Array, "batch stem channel frame bin"],
    ]:
        """What `__call__` gives, with the real and imaginary part of the masks."""
        stems, masks = self._separate(audio, with_masks=True)
        return stems, *masks

    def masks(
        self, audio: Float[Array | np.ndarray, "batch channel sample"]
    ) -> tuple[
        Float[Array, "batch stem channel frame bin"],
        Float[Array, "batch stem channel frame bin"],
    ]:
        """Real and imaginary part of the complex masks, averaged over the bands that share a bin."""
        return self._separate(audio, with_masks=True)[1]

    def band_features(
        self, audio: Float[Array | np.ndarray, "batch channel sample"]
    ) -> Float[Array, "batch frame band dim"]:
        """What the first block sees, without sinks."""
        x, sizes, _ = self._split(audio)
        return x[:, :, sizes.num_sinks : sizes.num_tokens].swapaxes(1, 2)

    def features(
        self, audio: Float[Array | np.ndarray, "batch channel sample"], *, keep_sinks: bool = False
    ) -> Float[Array, "batch token band dim"]:
        """What the mask estimators see; with the sinks in front when `keep_sinks`."""
        x, sizes, _ = self._split(audio)
        x = self._transform(x, sizes)
        if self.config.band_scheme == "band_split":
            x = self.final_norm(x)
        return x[:, :, 0 if keep_sinks else sizes.num_sinks : sizes.num_tokens].swapaxes(1, 2)

    def initialise(self) -> None:
        """Makes all parameters; nothing that it computes is used."""
        config = self.config
        shape = (1, config.channels, config.stft_n_fft)
        features = self.band_split(_planes(*spectrum(jnp.zeros(shape), **_stft_sizes(config))))
        tables = self.time_rotary(features.shape[1]), self.freq_rotary(features.shape[2])
        x, _ = self.blocks(features.swapaxes(1, 2), *tables)
        if config.band_scheme == "band_split":
            x = self.final_norm(x)
        self.mask_estimator(x.swapaxes(1, 2))

    def _separate(
        self, audio: Float[Array | np.ndarray, "batch channel sample"], *, with_masks: bool
    ) -> tuple[Float[Array, "batch stem channel out_sample"], tuple[Array, Array] | None]:
        config, time = self.config, self.time_axis
        x, sizes, pieces = self._split(audio)
        x = self._transform(x, sizes)

        def work(params: Params, part: Array, given: tuple[Array, Array]) -> tuple[Array, Any]:
            piece, counts = given
            return part, _stems_of_piece(config, params, part, piece, counts, with_masks)

        params = {name: self._params(name) for name in ("mask_estimator", "final_norm") if name in self._params()}
        row = sizes.frames * jnp.arange(sizes.count)[:, None] + jnp.arange(sizes.frames)
        counts = (row < time.owned_end_frame(sizes.num_hops)).astype(jnp.float32)
        _, (signals, masks) = walk(work, sizes.frame_cut(sizes.num_sinks), params, x, (pieces, counts))

        hop, margin = config.stft_hop_length, config.stft_n_fft // 2
        signal = overlap_add(jnp.moveaxis(signals, 0, -2), sizes.frames * hop)
        signal = signal[..., : signal.shape[-1] // hop * hop]
        samples = sizes.num_hops * hop
        there = time.first_frame(sizes.num_hops), time.end_frame(sizes.num_hops)
        envelope = window_envelope(-(-(margin + samples) // hop), *there, **_stft_sizes(config))
        envelope = envelope[margin : margin + samples]
        stems = time.fold_margins(signal, margin, samples) / jnp.where(envelope > 0, envelope, 1)
        if with_masks:  # (piece, batch, stem, channel, frame, bin)
            masks = tuple(
                jnp.moveaxis(mask, 0, 3).reshape(*mask.shape[1:4], -1, mask.shape[-1])[..., : sizes.num_hops + 1, :]
                for mask in masks
            )
        return stems, masks

    def _split(self, audio: Array | np.ndarray) -> tuple[Stream, _Sizes, Float[Array, "piece batch channel sample"]]:
        """The residual stream before the first block, its sizes, and the samples of the frames of each piece."""
        config = self.config
        self._check(audio)
        num_hops = audio.shape[-1] // config.stft_hop_length
        sizes = _Sizes.of(config, num_hops)
        pieces = self._pieces(audio, sizes)

        def work(params: Params, part: Array, piece: Array) -> tuple[Array, None]:
            features = BandSplit(config, parent=None).apply(
                {"params": params}, _planes(*spectrum(piece, **_stft_sizes(config)))
            )
            return features.swapaxes(1, 2).astype(part.dtype), None

        shape = (audio.shape[0], config.num_bands, sizes.padded_tokens, config.dim)
        x = jnp.zeros(shape, config.stream_dtype)
        if config.num_sinks:
            sinks = self.sink_tokens.swapaxes(0, 1).astype(x.dtype)
            x = x.at[:, :, : config.num_sinks].set(sinks)
        x, _ = walk(work, sizes.frame_cut(sizes.num_sinks), self._params("band_split"), x, pieces)
        return x, sizes, pieces

    def _pieces(self, audio: Array | np.ndarray, sizes: _Sizes) -> Float[Array, "piece batch channel sample"]:
        """The samples that the frames of each piece need."""
        config = self.config
        hop, n_fft = config.stft_hop_length, config.stft_n_fft
        padded = self.time_axis.pad_audio(jnp.asarray(audio), n_fft // 2)
        return jnp.moveaxis(pieces_of_frames(padded, sizes.count, sizes.frames, n_fft, hop), -2, 0)

    def _transform(self, x: Stream, sizes: _Sizes) -> Stream:
        """All blocks. What each keeps for the backward pass is `config.remat`'s choice."""
        config, time = self.config, self.time_axis
        first_frame = -time.first_frame(sizes.num_hops)
        tables = (
            self.time_rotary(x.shape[2], num_sinks=config.num_sinks, first_frame=first_frame),
            self.freq_rotary(x.shape[1]),
        )
        block = functools.partial(_block, config, sizes, time)

        def run(carry: tuple[Stream, Stream | None], params: Params) -> tuple[Any, None]:
            """A few blocks, of which only the input is kept."""
            x, earlier = jax.tree.map(lambda stream: checkpoint_name(stream, _RESIDUAL), carry)
            for i in range(config.blocks_per_save):
                own = jax.tree.map(lambda leaf, i=i: leaf[i], params)
                one = jax.checkpoint(block, prevent_cse=False) if config.blocks_per_save > 1 else block
                x, earlier = one(x, earlier, own, *tables)
            return (x, earlier), None

        if config.remat != "none":
            run = jax.checkpoint(run, prevent_cse=False, policy=_REMAT_POLICIES[config.remat])
        grouped = jax.tree.map(
            lambda leaf: leaf.reshape(-1, config.blocks_per_save, *leaf.shape[1:]), self._params("blocks")
        )
        earlier = jnp.zeros_like(x) if config.skip_connection else None
        (x, _), _ = jax.lax.scan(run, (x, earlier), grouped)
        return x

    def _params(self, name: str | None = None) -> Params:
        params = self.variables["params"]
        return params if name is None else params[name]

    def _check(self, audio: Array | np.ndarray) -> None:
        config = self.config
        if audio.ndim != 3 or audio.shape[1] != config.channels:
            raise InputError(
                f"audio has the shape {audio.shape}, expected (batch, {config.channels} channels, samples)"
            )
        if audio.shape[2] < config.min_samples:
            raise InputError(
                f"audio has {audio.shape[2]} samples, expected at least {config.min_samples} "
                f"(half an STFT window of {config.stft_n_fft} and one)"
            )


class _Sizes(NamedTuple):
    """How the residual stream is cut: pieces of frames, and groups of bands."""

    num_hops: int  # hops of the audio; it has num_hops + 1 frames
    num_sinks: int
    count: int  # of pieces
    frames: int  # of a piece, where frames are what is worked on; the last piece's may be padding
    tokens: int  # of a piece, where tokens are
    bands: int  # of a group
    groups: int

    @classmethod
    def of(cls, config: ModelConfig, num_hops: int) -> _Sizes:
        at_once = config.places_at_once or (num_hops + 1 + config.num_sinks) * config.num_bands
        # A piece of fewer frames than overlap would be mostly overlap.
        least = -(-config.stft_n_fft // config.stft_hop_length)
        count = -(-(num_hops + 1) // max(least, at_once // config.num_bands))
        frames = -(-(num_hops + 1) // count)
        tokens = frames + -(-config.num_sinks // count)
        fitting = max(1, at_once // (count * tokens))
        bands = max(size for size in range(1, config.num_bands + 1) if config.num_bands % size == 0 and size <= fitting)
        return cls(num_hops, config.num_sinks, count, frames, tokens, bands, config.num_bands // bands)

    @property
    def num_tokens(self) -> int:
        """Sinks and frames."""
        return self.num_sinks + self.num_hops + 1

    @property
    def padded_tokens(self) -> int:
        """Tokens of the stream, which pieces divide."""
        return self.count * self.tokens

    def frame_cut(self, first: int) -> Cut:
        """Pieces of frames, which stand behind `first` tokens."""
        return Cut(2, self.count, self.frames, first)


def _block(
    config: ModelConfig,
    sizes: _Sizes,
    time: TimeAxis,
    x: Stream,
    earlier: Stream | None,
    params: Params,
    time_tables: tuple[Float[Array, "token 1 head_dim"], Float[Array, "token 1 head_dim"]],
    freq_tables: tuple[Float[Array, "band 1 head_dim"], Float[Array, "band 1 head_dim"]],
) -> tuple[Stream, Stream | None]:
    """One block, piece by piece; `earlier` is the sum of the outputs of the blocks before, with skip connections."""
    module = Block(config, sizes.num_hops, time, parent=None)

    def half(name: str) -> Callable:
        def work(given: tuple[Params, Tables], part: Array, _: None) -> tuple[Array, None]:
            own, tables = given
            result = module.apply({"params": own}, part.astype(jnp.float32), tables, method=name)
            return result.astype(part.dtype), None

        return work

    if earlier is not None:
        x = x + earlier
    x, _ = walk(half("mix_time"), Cut(1, sizes.groups, sizes.bands), (params, time_tables), x)
    x, _ = walk(half("rest"), Cut(2, sizes.count, sizes.tokens), (params, freq_tables), x)
    return x, None if earlier is None else earlier + x


def _stems_of_piece(
    config: ModelConfig,
    params: Params,
    features: Stream,
    audio: Float[Array, "batch channel sample"],
    counts: Float[Array, " frame"],
    with_masks: bool,
) -> tuple[Float[Array, "batch stem channel out_sample"], tuple[Array, Array] | None]:
    """Features and samples of some frames to what these frames add to the stems' signals, before it is normalised.

    Frames that do not count add nothing.
    """
    x = features.astype(jnp.float32)
    if config.band_scheme == "band_split":
        x = RMSNorm(parent=None).apply({"params": params["final_norm"]}, x)
    estimator = MaskEstimator(config, parent=None)
    masks = mask_real, mask_imag = estimator.apply({"params": params["mask_estimator"]}, x.swapaxes(1, 2))
    real, imag = (part[:, None] * counts[:, None] for part in spectrum(audio, **_stft_sizes(config)))
    stem_real = real * mask_real - imag * mask_imag
    stem_imag = real * mask_imag + imag * mask_real
    if config.zero_dc:
        keep = jnp.arange(config.num_bins) > 0
        stem_real, stem_imag = jnp.where(keep, stem_real, 0.0), jnp.where(keep, stem_imag, 0.0)
    return overlapped(stem_real, stem_imag, **_stft_sizes(config)), masks if with_masks else None


def _stft_sizes(config: ModelConfig) -> dict[str, int]:
    return {
        "n_fft": config.stft_n_fft,
        "hop_length": config.stft_hop_length,
        "win_length": config.stft_win_length,
    }


def _planes(
    real: Float[Array, "batch channel frame bin"], imag: Float[Array, "batch channel frame bin"]
) -> Float[Array, "batch plane frame bin"]:
    batch, channels, *rest = real.shape
    return jnp.stack([real, imag], axis=2).reshape(batch, 2 * channels, *rest)
