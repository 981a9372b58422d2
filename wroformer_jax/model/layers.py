"""The layers of the model: Flax modules that can each be read alone.

Parameters are float32 and initialised as torch initialises its layers. Matrix products take inputs of `config.dtype`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from wroformer_jax.config.model import ModelConfig
from wroformer_jax.model.activations import gelu
from wroformer_jax.model.precision import product
from wroformer_jax.model.rotary import rotary_frequencies, rotary_tables, rotate
from wroformer_jax.parallel.time_axis import Count

# Cosines and sines of the rotary angles.
Tables = tuple[Float[Array, "position 1 head_dim"], Float[Array, "position 1 head_dim"]]


class Rotary(nn.Module):
    """Rotary tables from the frequencies that every checkpoint contains. They are constants, never trained."""

    dim_head: int

    @nn.compact
    def __call__(self, num_tokens: int, *, num_sinks: int = 0, first_frame: Count = 0) -> Tables:
        """Returns tables of positions 0 .. num_tokens - 1; first_frame is added to those after the sinks."""

        def initial(_key: Array, shape: tuple[int, ...]) -> Array:
            return jnp.asarray(rotary_frequencies(self.dim_head)).reshape(shape)

        freqs = self.param("freqs", named(initial, "pair"), (self.dim_head // 2,))
        positions = jnp.arange(num_tokens)
        positions = jnp.where(positions < num_sinks, positions, positions + first_frame)
        return rotary_tables(jax.lax.stop_gradient(freqs), positions)


class Attention(nn.Module):
    """Gated multi-head attention with rotary embedding. `attend` maps queries, keys and values to outputs."""

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
    def __call__(self, x: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        config = self.config
        x = RMSNorm(name="norm")(x)
        x = Linear(config, config.dim_feed_forward, ("embed", "mlp"), name="up")(x)
        x = gelu(x, config.dtype)
        return Linear(config, config.dim, ("mlp", "embed"), name="down")(x)


class BandLinear(nn.Module):
    """A Linear for each stem and band. Outputs that are not `present` are padding and stay zero."""

    config: ModelConfig
    size: int
    bands: int
    present: np.ndarray | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "stem band row hidden"]) -> Float[Array, "stem band row out"]:
        fan_in = x.shape[-1]
        present = np.ones((self.bands, self.size), bool) if self.present is None else self.present
        uniform = torch_uniform(fan_in)
        axes = ("stem", "band")
        kernel = self.param(
            "kernel",
            named(masked(uniform, present[:, None]), *axes, "mask_in", "mask_out"),
            (x.shape[0], self.bands, fan_in, self.size),
        )
        bias = self.param(
            "bias",
            named(masked(uniform, present), *axes, "mask_out"),
            (x.shape[0], self.bands, self.size),
        )
        return matmul("skni,skio->skno", x, kernel, self.config) + bias[:, :, None]


class Linear(nn.Module):
    """`x @ kernel + bias`, initialised as torch.nn.Linear."""

    config: ModelConfig
    size: int
    axes: tuple[str, str]
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "*batch dim"]) -> Float[Array, "*batch out"]:
        uniform = torch_uniform(x.shape[-1])
        kernel = self.param("kernel", named(uniform, *self.axes), (x.shape[-1], self.size))
        y = matmul("...i,io->...o", x, kernel, self.config)
        if self.use_bias:
            y = y + self.param("bias", named(uniform, self.axes[1]), (self.size,))
        return y


class RMSNorm(nn.Module):
    """x / max(||x||, 1e-12) * sqrt(dim) * gamma, in float32."""

    @nn.compact
    def __call__(self, x: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        gamma = self.param("gamma", named(nn.initializers.ones, "embed"), (x.shape[-1],))
        return unit_norm(x) * (gamma * np.float32(np.sqrt(x.shape[-1])))


def unit_norm(x: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
    """Returns x / max(||x||, 1e-12)."""
    # The bound is applied before the root, so that the gradient at digital silence is finite, not 0 * infinity.
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-24))


def matmul(equation: str, x: Array, kernel: Array, config: ModelConfig) -> Array:
    """Rounds the inputs to config.dtype and multiplies them; the result is float32."""
    return product(equation, x.astype(config.dtype), kernel.astype(config.dtype))


def named(initializer: Callable, *axes: str) -> Callable:
    """Returns an initialiser that names the axes of its parameter (parallel/sharding.py uses the names)."""
    return nn.with_logical_partitioning(initializer, axes)


def torch_uniform(fan_in: Any) -> Callable:
    """Returns torch.nn.Linear's initialiser: uniform in +-1 / sqrt(fan_in), where fan_in may be an array."""
    bound = 1.0 / np.sqrt(fan_in, dtype=np.float32)
    return lambda key, shape: jax.random.uniform(key, shape, jnp.float32, -1.0, 1.0) * bound


def masked(initializer: Callable, present: np.ndarray) -> Callable:
    """Returns an initialiser that sets padding to zero. It stays zero, since it gets no gradient."""
    return lambda key, shape: jnp.where(present, initializer(key, shape), 0.0)


Params = dict[str, Any]
