"""The band-split RoFormer: Mel-Band RoFormer (arXiv 2310.01809) and BS-RoFormer (arXiv 2309.02612).

One song's way: `RoFormer.__call__` takes the STFT, `BandSplit` turns the bins of each band into a feature vector,
`Block`s of a time and a frequency transformer work on (batch, time, band, dim), `MaskEstimator` turns features into
complex masks, and the masked spectrum goes back to samples. Time is the frames with the sinks in front.

All per-band weights are stacked (see bands.py). Parameters are float32; products take `config.dtype`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta
from jaxtyping import Array, Float

from wroformer_jax.attention import full_attention, windowed_sink_attention
from wroformer_jax.bands import BandGroup, average_bins, band_layout, split_bins
from wroformer_jax.config import ModelConfig
from wroformer_jax.errors import InputError
from wroformer_jax.products import product
from wroformer_jax.rotary import rotary_frequencies, rotary_tables, rotate
from wroformer_jax.stft import inverse_stft, stft

Params = dict[str, Any]
# Cosines and sines of every position: (position, 1, head_dim) each.
Tables = tuple[Float[Array, "position 1 head_dim"], Float[Array, "position 1 head_dim"]]
MakeMixer = Callable[..., nn.Module]

_REMAT_POLICIES = {"block": None, "dots": jax.checkpoint_policies.dots_saveable}

# Standard deviation of fresh sink tokens: small beside the features, whose entries are of the order of 1.
SINK_STD = 0.02


def time_mixer(config: ModelConfig) -> MakeMixer:
    """The module that mixes along time, chosen by `config.time_mixer`.

    A mixer is called with (batch, token, dim) and rotary tables and returns what is added to the residual stream.
    Only this function knows the mixers by name.
    """
    attend = {
        "windowed_sink": functools.partial(windowed_sink_attention, window=config.window, num_sinks=config.num_sinks),
        "full": full_attention,
    }[config.time_mixer]
    return functools.partial(Attention, config=config, attend=attend)


class RoFormer(nn.Module):
    """Separates stems by complex masks on the mixture's spectrum.

    `model.apply({"params": params}, audio)` as `__call__`; `method="masks"` gives the masks themselves.
    """

    config: ModelConfig

    def setup(self) -> None:
        config = self.config
        self.band_split = BandSplit(config)
        self.time_rotary, self.freq_rotary = Rotary(config.dim_head), Rotary(config.dim_head)
        if config.num_sinks:
            self.sink_tokens = self.param(
                "sink_tokens",
                _named(nn.initializers.normal(SINK_STD), "sink", "band", "embed"),
                (config.num_sinks, config.num_bands, config.dim),
            )
        block = Block
        if config.remat != "none":
            block = nn.remat(Block, prevent_cse=False, policy=_REMAT_POLICIES[config.remat])
        self.blocks = nn.scan(
            block,
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
        return self.stems_and_masks(audio)[0]

    def stems_and_masks(
        self, audio: Float[Array | np.ndarray, "batch channel sample"]
    ) -> tuple[
        Float[Array, "batch stem channel out_sample"],
        Float[Array, "batch stem channel frame bin"],
        Float[Array, "batch stem channel frame bin"],
    ]:
        """What `__call__` gives, with the real and imaginary part of the masks."""
        self._check(audio)
        real, imag = stft(audio, **_stft_sizes(self.config))
        mask_real, mask_imag = self._masks(real, imag)
        real, imag = real[:, None], imag[:, None]
        stem_real = real * mask_real - imag * mask_imag
        stem_imag = real * mask_imag + imag * mask_real
        if self.config.zero_dc:
            keep = jnp.arange(self.config.num_bins) > 0
            stem_real, stem_imag = jnp.where(keep, stem_real, 0.0), jnp.where(keep, stem_imag, 0.0)
        return inverse_stft(stem_real, stem_imag, **_stft_sizes(self.config)), mask_real, mask_imag

    def masks(
        self, audio: Float[Array | np.ndarray, "batch channel sample"]
    ) -> tuple[
        Float[Array, "batch stem channel frame bin"],
        Float[Array, "batch stem channel frame bin"],
    ]:
        """Real and imaginary part of the complex masks, averaged over the bands that share a bin."""
        self._check(audio)
        return self._masks(*stft(audio, **_stft_sizes(self.config)))

    def band_features(
        self, audio: Float[Array | np.ndarray, "batch channel sample"]
    ) -> Float[Array, "batch frame band dim"]:
        """What the first block sees, without sinks."""
        self._check(audio)
        return self.band_split(_planes(*stft(audio, **_stft_sizes(self.config))))

    def features(
        self, audio: Float[Array | np.ndarray, "batch channel sample"], *, keep_sinks: bool = False
    ) -> Float[Array, "batch token band dim"]:
        """What the mask estimators see; with the sinks in front when `keep_sinks`."""
        return self._transform(self.band_features(audio), keep_sinks)

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

    def _masks(self, real: Array, imag: Array) -> tuple[Array, Array]:
        return self.mask_estimator(self._transform(self.band_split(_planes(real, imag)), keep_sinks=False))

    def _transform(
        self, x: Float[Array, "batch frame band dim"], keep_sinks: bool
    ) -> Float[Array, "batch token band dim"]:
        config = self.config
        if config.num_sinks:
            sinks = jnp.broadcast_to(self.sink_tokens, (x.shape[0], *self.sink_tokens.shape))
            x = jnp.concatenate([sinks, x], axis=1)
        earlier = jnp.zeros_like(x) if config.skip_connection else None
        tables = self.time_rotary(x.shape[1]), self.freq_rotary(x.shape[2])
        (x, _), _ = self.blocks((x, earlier), *tables)
        if config.band_scheme == "band_split":
            x = self.final_norm(x)
        return x if keep_sinks else x[:, config.num_sinks :]


class BandSplit(nn.Module):
    """Each band's bins, normalised, through the band's own Linear."""

    config: ModelConfig

    @nn.compact
    def __call__(self, planes: Float[Array, "batch plane frame bin"]) -> Float[Array, "batch frame band dim"]:
        layout = band_layout(self.config)
        return jnp.concatenate(
            [
                BandGroupSplit(self.config, group, name=f"group_{i}")(split_bins(planes, group))
                for i, group in enumerate(layout.groups)
            ],
            axis=2,
        )


class BandGroupSplit(nn.Module):
    """RMSNorm and Linear of the bands of one group."""

    config: ModelConfig
    group: BandGroup

    @nn.compact
    def __call__(self, x: Float[Array, "batch frame band feature"]) -> Float[Array, "batch frame band dim"]:
        dim, planes = self.config.dim, 2 * self.config.channels
        present = np.tile(self.group.present, (1, planes))
        widths = present.sum(axis=1)
        axes = ("band", "band_feature")
        gamma = self.param("gamma", _named(_masked(nn.initializers.ones, present), *axes), present.shape)
        kernel = self.param(
            "kernel",
            _named(_masked(_torch_uniform(widths[:, None, None]), present[..., None]), *axes, "embed"),
            (*present.shape, dim),
        )
        bias = self.param("bias", _named(_torch_uniform(widths[:, None]), "band", "embed"), (len(widths), dim))
        x = _unit_norm(x) * np.sqrt(widths, dtype=np.float32)[:, None] * gamma
        return _product("btki,kid->btkd", x, kernel, self.config) + bias


class Rotary(nn.Module):
    """Holds the frequencies that a checkpoint came with; they are constants, never trained."""

    dim_head: int

    @nn.compact
    def __call__(self, num_tokens: int) -> Tables:
        def initial(_key: Array, shape: tuple[int, ...]) -> Array:
            return jnp.asarray(rotary_frequencies(self.dim_head)).reshape(shape)

        freqs = self.param("freqs", _named(initial, "pair"), (self.dim_head // 2,))
        return rotary_tables(jax.lax.stop_gradient(freqs), num_tokens)


class Block(nn.Module):
    """A transformer along time for each band, then one along the bands of each frame."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        carry: tuple[Float[Array, "batch token band dim"], Float[Array, "batch token band dim"] | None],
        time_tables: tuple[Float[Array, "token 1 head_dim"], Float[Array, "token 1 head_dim"]],
        freq_tables: tuple[Float[Array, "band 1 head_dim"], Float[Array, "band 1 head_dim"]],
    ) -> tuple[tuple[Float[Array, "batch token band dim"], Any], None]:
        """The carry is the residual stream and, with skip connections, the sum of the earlier blocks' outputs."""
        config = self.config
        x, earlier = carry
        if earlier is not None:
            x = x + earlier
        freq_mixer = functools.partial(Attention, config=config, attend=full_attention)

        x = x.swapaxes(1, 2)
        time = Transformer(config, config.time_transformer_depth, time_mixer(config), name="time")
        x = _on_last_two_axes(time, x, time_tables)
        x = x.swapaxes(1, 2)
        freq = Transformer(config, config.freq_transformer_depth, freq_mixer, name="freq")
        x = _on_last_two_axes(freq, x, freq_tables)

        return (x, None if earlier is None else earlier + x), None


class Transformer(nn.Module):
    """Layers of x += mixer(x); x += feed_forward(x). Mel-Band RoFormer ends each transformer with a norm."""

    config: ModelConfig
    depth: int
    make_mixer: MakeMixer

    @nn.compact
    def __call__(self, x: Float[Array, "batch token dim"], tables: Tables) -> Float[Array, "batch token dim"]:
        for i in range(self.depth):
            x = x + self.make_mixer(name=f"mixer_{i}")(x, tables)
            x = x + FeedForward(self.config, name=f"feed_forward_{i}")(x)
        return RMSNorm(name="norm")(x) if self.config.band_scheme == "mel" else x


class Attention(nn.Module):
    """Gated multi-head attention with rotary embedding; `attend` maps q, k, v to outputs."""

    config: ModelConfig
    attend: Callable[[Array, Array, Array], Array]

    @nn.compact
    def __call__(self, x: Float[Array, "batch token dim"], tables: Tables) -> Float[Array, "batch token dim"]:
        config = self.config
        inner = config.heads * config.dim_head
        x = RMSNorm(name="norm")(x)
        qkv = Linear(config, 3 * inner, ("embed", "qkv"), use_bias=False, name="to_qkv")(x)
        qkv = qkv.astype(config.dtype).reshape(*x.shape[:2], 3, config.heads, config.dim_head)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        out = self.attend(rotate(q, *tables), rotate(k, *tables), v)
        gates = Linear(config, config.heads, ("embed", "heads"), name="to_gates")(x)
        out = out * nn.sigmoid(gates)[..., None]
        return Linear(config, config.dim, ("heads", "embed"), use_bias=False, name="to_out")(
            out.reshape(*x.shape[:2], inner)
        )


class FeedForward(nn.Module):
    """RMSNorm, Linear, exact GELU, Linear."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: Float[Array, "batch token dim"]) -> Float[Array, "batch token dim"]:
        config = self.config
        x = RMSNorm(name="norm")(x)
        x = Linear(config, config.dim_feed_forward, ("embed", "mlp"), name="up")(x)
        x = nn.gelu(x, approximate=False)
        return Linear(config, config.dim, ("mlp", "embed"), name="down")(x)


class MaskEstimator(nn.Module):
    """Per stem and band: Linear, tanh, ... , Linear, GLU; then the mean over the bands that share a bin."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch frame band dim"]
    ) -> tuple[
        Float[Array, "batch stem channel frame bin"],
        Float[Array, "batch stem channel frame bin"],
    ]:
        config, layout = self.config, band_layout(self.config)
        batch, frames, bands, _ = x.shape
        # Bands lead: the batched products need them there, and (batch, frame) becomes one long row axis.
        x = x.transpose(2, 0, 1, 3).reshape(1, bands, batch * frames, -1)
        x = jnp.broadcast_to(x, (config.num_stems, *x.shape[1:]))
        for i in range(config.mask_layers - 1):
            x = nn.tanh(BandLinear(config, config.dim_mask, bands, name=f"hidden_{i}")(x))

        places = jnp.concatenate(
            [
                BandMask(config, group, name=f"group_{i}")(x[:, group.bands.start : group.bands.stop])
                for i, group in enumerate(layout.groups)
            ],
            axis=-1,
        )
        planes = average_bins(places, layout)
        planes = planes.reshape(config.num_stems, batch, frames, config.channels, 2, config.num_bins)
        planes = planes.transpose(4, 1, 0, 3, 2, 5)
        return planes[0], planes[1]


class BandMask(nn.Module):
    """The last Linear and the GLU of one group's bands: the masks at the group's places, padding included."""

    config: ModelConfig
    group: BandGroup

    @nn.compact
    def __call__(self, x: Float[Array, "stem band row hidden"]) -> Float[Array, "stem row plane place"]:
        planes, (bands, width) = 2 * self.config.channels, self.group.present.shape
        present = np.tile(self.group.present, (1, 2 * planes))
        x = BandLinear(self.config, present.shape[1], bands, present, name="out")(x)
        stems, _, rows, _ = x.shape
        value, gate = x.reshape(stems, bands, rows, 2, planes, width).transpose(3, 0, 2, 4, 1, 5)
        return (value * nn.sigmoid(gate)).reshape(stems, rows, planes, bands * width)


class BandLinear(nn.Module):
    """A Linear of its own for each stem and band; outputs that are not `present` are padding."""

    config: ModelConfig
    size: int
    bands: int
    present: np.ndarray | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "stem band row hidden"]) -> Float[Array, "stem band row out"]:
        fan_in = x.shape[-1]
        present = np.ones((self.bands, self.size), bool) if self.present is None else self.present
        uniform = _torch_uniform(fan_in)
        axes = ("stem", "band")
        kernel = self.param(
            "kernel",
            _named(_masked(uniform, present[:, None]), *axes, "mask_in", "mask_out"),
            (x.shape[0], self.bands, fan_in, self.size),
        )
        bias = self.param(
            "bias",
            _named(_masked(uniform, present), *axes, "mask_out"),
            (x.shape[0], self.bands, self.size),
        )
        return _product("skni,skio->skno", x, kernel, self.config) + bias[:, :, None]


class Linear(nn.Module):
    """`x @ kernel + bias`, initialised as torch.nn.Linear."""

    config: ModelConfig
    size: int
    axes: tuple[str, str]
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "*batch dim"]) -> Float[Array, "*batch out"]:
        uniform = _torch_uniform(x.shape[-1])
        kernel = self.param("kernel", _named(uniform, *self.axes), (x.shape[-1], self.size))
        y = _product("...i,io->...o", x, kernel, self.config)
        if self.use_bias:
            y = y + self.param("bias", _named(uniform, self.axes[1]), (self.size,))
        return y


class RMSNorm(nn.Module):
    """x / max(||x||, 1e-12) * sqrt(dim) * gamma, in float32."""

    @nn.compact
    def __call__(self, x: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        gamma = self.param("gamma", _named(nn.initializers.ones, "embed"), (x.shape[-1],))
        return _unit_norm(x) * (gamma * np.float32(np.sqrt(x.shape[-1])))


def init_params(model: RoFormer, seed: int) -> Params:
    """Random parameters as torch initialises its layers: a plain nested dict of float32 arrays.

    Args:
      model: the model.
      seed: the same seed gives the same parameters on any number of devices.
    """
    return _initial_params(model, jax.random.key(seed, impl="threefry2x32"))  # "rbg" would depend on the sharding


@functools.partial(jax.jit, static_argnums=0)
def _initial_params(model: RoFormer, key: Array) -> Params:
    # Under jit the forward pass that `init` traces is dead code, so that only the parameters are computed.
    return meta.unbox(_init(model, key))


def abstract_params(model: RoFormer) -> Params:
    """Shapes and dtypes of the parameters, as a nested dict of `jax.ShapeDtypeStruct`; computes nothing."""
    return meta.unbox(jax.eval_shape(lambda: _init(model, jax.random.key(0))))


def logical_axes(model: RoFormer) -> Params:
    """Names of the axes of each parameter, as a nested dict of `jax.sharding.PartitionSpec`."""
    return nn.get_partition_spec(jax.eval_shape(lambda: _init(model, jax.random.key(0))))


def trainable_mask(params: Params) -> Params:
    """A tree like `params`, False for the constants in it (rotary frequencies), True for the rest."""
    return {name: jax.tree.map(lambda _, name=name: not name.endswith("_rotary"), sub) for name, sub in params.items()}


def _init(model: RoFormer, key: Array) -> Params:
    audio = jnp.zeros((1, model.config.channels, model.config.min_samples), jnp.float32)
    return model.init(key, audio)["params"]


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


def _on_last_two_axes(transformer: Transformer, x: Array, tables: Tables) -> Array:
    return transformer(x.reshape(-1, *x.shape[-2:]), tables).reshape(x.shape)


def _unit_norm(x: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
    # The bound is under the root, so that the gradient at digital silence is finite, not 0 * infinity.
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-24))


def _product(equation: str, x: Array, kernel: Array, config: ModelConfig) -> Array:
    """Matrix product with inputs rounded to config.dtype and a float32 result."""
    return product(equation, x.astype(config.dtype), kernel.astype(config.dtype))


def _named(initializer: Callable, *axes: str) -> Callable:
    return nn.with_logical_partitioning(initializer, axes)


def _torch_uniform(fan_in: Any) -> Callable:
    """Uniform in +-1 / sqrt(fan_in), as torch.nn.Linear starts weights and biases; fan_in broadcasts."""
    bound = 1.0 / np.sqrt(fan_in, dtype=np.float32)
    return lambda key, shape: jax.random.uniform(key, shape, jnp.float32, -1.0, 1.0) * bound


def _masked(initializer: Callable, present: np.ndarray) -> Callable:
    """Zero where there is padding; it then stays zero, since it gets no gradient."""
    return lambda key, shape: jnp.where(present, initializer(key, shape), 0.0)
