"""Attention as TPUs want it: heads side by side on the last axis, in weights that are prepared once.

A TPU tiles the last axis of an array to 128 lanes, so that an axis of 64 (a head) is half padding, and every change
between (token, head, head_dim) and (token, dim) moves all data. Here queries, keys, values and outputs stay (row,
token, lane) from one product to the next, and the kernels (kernels/) work on 128 lanes, which are one or several heads.

Three things become part of the weights (`folded`): the gain of the norm, the scale of the scores, and the rotary
embedding's turn. The embedding of q = y W is q cos + (q R) sin, where R turns each pair of entries by a right angle. So
it is (y W) cos + (y W R) sin, whose second weights W R are as large as the first.

Heads whose size does not fit 128 lanes are padded with zeros in the weights.
"""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from wroformer_jax.config.model import ModelConfig
from wroformer_jax.model.attention import HIDDEN, full_attention
from wroformer_jax.model.kernels.dense import dense_lanes, serves_dense
from wroformer_jax.model.kernels.sizes import LANES, ROW_MULTIPLE, round_up
from wroformer_jax.model.kernels.windowed import aligned_tokens, serves_windowed, windowed_lanes
from wroformer_jax.model.layers import Params, Tables, matmul, unit_norm
from wroformer_jax.model.precision import product
from wroformer_jax.parallel.time_axis import Count, TimeAxis

LANE_IMPLS = ("pallas", "interpret")  # values of `config.attention_impl` that mean this form

Attend = Callable[[Array, Array, Array], Array]  # queries, keys and values to outputs
LaneTables = tuple[Float[Array, "token lane"], Float[Array, "token lane"]]


def in_lanes(config: ModelConfig) -> bool:
    """Whether the settings, once settled, name the form that keeps heads side by side."""
    return config.attention_impl in LANE_IMPLS


def kernels_serve(config: ModelConfig) -> str | None:
    """Returns None if the kernels serve a model, else what they do not serve."""
    sizes = {"num_lanes": num_lanes(config), "head_dim": padded_head_dim(config.dim_head)}
    if config.time_mixer == "naive":
        return "time_mixer 'naive'"
    if config.time_mixer == "windowed_sink" and not serves_windowed(reach=config.window // 2, **sizes):
        return f"a window of {config.window} frames with dim_head {config.dim_head}"
    if not serves_dense(num_tokens=config.num_bands, **sizes):
        return f"{config.num_bands} bands with dim_head {config.dim_head}"
    return None


def padded_head_dim(dim_head: int) -> int:
    """Returns the lanes of a head: the least number from dim_head on that divides 128 or is a multiple of it."""
    return next(size for size in (8, 16, 32, 64, round_up(dim_head, LANES)) if size >= dim_head)


def num_lanes(config: ModelConfig) -> int:
    """Returns the lanes of all heads together: a multiple of 128."""
    return round_up(config.heads * padded_head_dim(config.dim_head), LANES)


class LaneAttention(nn.Module):
    """`layers.Attention` in lanes. Its parameters are folded (`folded`); `attend` works on (row, token, lane)."""

    config: ModelConfig
    attend: Attend

    @nn.compact
    def __call__(self, x: Float[Array, "row token dim"], tables: LaneTables) -> Float[Array, "row token dim"]:
        return gated_attention(self.config, dict(self.variables["params"]), x, tables, self.attend)


def gated_attention(
    config: ModelConfig, params: Params, x: Float[Array, "row token dim"], tables: LaneTables, attend: Attend
) -> Float[Array, "row token dim"]:
    """Gated multi-head attention with rotary embedding.

    Args:
      config: the settings.
      params: see `folded`.
      x: the residual stream.
      tables: see `lane_tables`. Their length is that of the rows with padding, whose keys `attend` must hide.
      attend: maps queries, keys and values to outputs.
    """
    cos, sin = tables
    rows, given, dim = x.shape
    tokens = len(cos)
    y = jnp.pad(unit_norm(x).astype(config.dtype), ((0, 0), (0, tokens - given), (0, 0)))
    # Two axes leave no doubt that the long one is tiled; the reshapes are free where `tokens` is a multiple of a tile.
    y = y.reshape(-1, dim)

    def into(name: str) -> Float[Array, "row token lane"]:
        return matmul("ni,io->no", y, params[name], config).reshape(rows, tokens, -1)

    q, k = (into(name) * cos + into(f"{name}_turned") * sin for name in ("q", "k"))
    out = attend(q.astype(config.dtype), k.astype(config.dtype), into("v").astype(config.dtype))
    gates = nn.sigmoid(matmul("ni,io->no", y, params["gates"], config) + params["gates_bias"])
    # A product with zeros and ones repeats a head's gate over its lanes.
    heads = np.repeat(np.eye(gates.shape[-1], dtype=np.float32), padded_head_dim(config.dim_head), axis=1)
    out = out.reshape(rows * tokens, -1) * matmul("nh,hl->nl", gates, jnp.asarray(heads), config).astype(out.dtype)
    return matmul("nl,lo->no", out, params["out"], config).reshape(rows, tokens, dim)[:, :given]


def folded(config: ModelConfig, params: Params) -> Params:
    """Returns the parameters of a block with those of its mixers in the form that `gated_attention` takes.

    The gradient of the original parameters goes through this function, so that nothing else has to know the form.
    """

    def transformer(params: Params) -> Params:
        return {
            name: _folded_attention(config, own) if name.startswith("mixer") else own for name, own in params.items()
        }

    return {name: transformer(own) for name, own in params.items()}


def _folded_attention(config: ModelConfig, params: Params) -> Params:
    dim, heads, size = config.dim, config.heads, config.dim_head
    lanes, padded = num_lanes(config), padded_head_dim(size)
    spare = lanes // padded - heads

    def widen(heads_last: Float[Array, "dim heads head_dim"]) -> Float[Array, "dim lane"]:
        """Pads heads and their sizes with zeros."""
        return jnp.pad(heads_last, ((0, 0), (0, spare), (0, padded - size))).reshape(dim, lanes)

    gain = (params["norm"]["gamma"] * np.float32(np.sqrt(dim)))[:, None]
    kernels = (params["to_qkv"]["kernel"] * gain).reshape(dim, 3, heads, size)
    q, k, v = (widen(kernels[:, i]) for i in range(3))
    q = q * np.float32(size**-0.5)
    turn = _turn(lanes)
    out = params["to_out"]["kernel"].reshape(heads, size, dim)
    return {
        "q": q,
        "q_turned": product("io,ol->il", q, turn),
        "k": k,
        "k_turned": product("io,ol->il", k, turn),
        "v": v,
        "gates": jnp.pad(params["to_gates"]["kernel"] * gain, ((0, 0), (0, spare))),
        "gates_bias": jnp.pad(params["to_gates"]["bias"], (0, spare)),
        "out": jnp.pad(out, ((0, spare), (0, padded - size), (0, 0))).reshape(lanes, dim),
    }


def _turn(lanes: int) -> Float[Array, "lane lane"]:
    """The matrix that takes (a, b) to (-b, a) for each pair of lanes."""
    row, column = jnp.arange(lanes)[:, None], jnp.arange(lanes)
    is_even = column % 2 == 0
    return jnp.where(is_even & (row == column + 1), -1.0, jnp.where(~is_even & (row == column - 1), 1.0, 0.0))


def lane_tables(config: ModelConfig, tables: Tables) -> LaneTables:
    """Repeats the rotary tables of one head for all lanes."""
    padded = padded_head_dim(config.dim_head)

    def repeated(table: Float[Array, "token 1 head_dim"]) -> Float[Array, "token lane"]:
        one = jnp.pad(table[:, 0], ((0, 0), (0, padded - config.dim_head)))
        return jnp.tile(one, (1, num_lanes(config) // padded))

    return repeated(tables[0]), repeated(tables[1])


def aligned_length(config: ModelConfig, num_tokens: int) -> int:
    """Returns the least number of tokens, from num_tokens on, that the kernels take without a padded copy."""
    return aligned_tokens(num_tokens, padded_head_dim(config.dim_head))


def aligned_bands(config: ModelConfig) -> int:
    """Returns the bands of a token with padding, so that whole tiles hold them."""
    return round_up(config.num_bands, ROW_MULTIPLE)


def attend_to_all(config: ModelConfig, *, num_keys: int | None = None) -> Attend:
    """Returns the attention of every token to the first `num_keys`, all of them if None."""
    interpret = config.attention_impl == "interpret"
    head_dim = padded_head_dim(config.dim_head)

    def attend(q: Array, k: Array, v: Array) -> Array:
        if not serves_dense(num_tokens=k.shape[1], num_lanes=k.shape[2], head_dim=head_dim):  # too many keys for VMEM
            return _by_scan(q, k, v, head_dim, num_keys)
        return dense_lanes(q, k, v, head_dim=head_dim, num_keys=num_keys, interpret=interpret)

    return attend


def _by_scan(q: Array, k: Array, v: Array, head_dim: int, num_keys: int | None) -> Float[Array, "row token lane"]:
    q = q * np.asarray(head_dim**0.5, q.dtype)  # `full_attention` scales queries itself
    q, k, v = (x.reshape(*x.shape[:2], -1, head_dim) for x in (q, k, v))
    return full_attention(q, k, v, num_keys).reshape(*q.shape[:2], -1)


def attend_in_window(config: ModelConfig, num_hops: int | None, time: TimeAxis) -> Attend:
    """Returns the attention within `config.window`, and from and to the sinks. The sinks are the first tokens.

    Args:
      config: the settings.
      num_hops: hops of the audio; tokens after the sinks and num_hops + 1 frames are padding. None: no padding.
      time: the time axis.
    """
    reach, num_sinks = config.window // 2, config.num_sinks
    sizes = {"reach": reach, "head_dim": padded_head_dim(config.dim_head)}
    interpret = config.attention_impl == "interpret"

    def attend(q: Array, k: Array, v: Array) -> Array:
        hops = q.shape[1] - num_sinks - 1 if num_hops is None else num_hops
        k_sinks, v_sinks = k[:, :num_sinks], v[:, :num_sinks]
        if time.is_whole:
            # The sinks' own rows are computed like all others, which costs nothing, and replaced below.
            bounds = jnp.array([num_sinks, num_sinks + hops + 1], jnp.int32)
            out = windowed_lanes(q, k, v, k_sinks, v_sinks, bounds, **sizes, interpret=interpret)
        else:
            frames = _between_neighbours(q, k, v, num_sinks, reach, hops, time, sizes["head_dim"])
            bounds = reach + jnp.stack([time.first_frame(hops), time.end_frame(hops)]).astype(jnp.int32)
            bounds = jnp.clip(bounds, 0, frames[0].shape[1])
            out = windowed_lanes(*frames, k_sinks, v_sinks, bounds, **sizes, interpret=interpret)
            out = jnp.pad(out[:, reach : reach + q.shape[1] - num_sinks], ((0, 0), (num_sinks, 0), (0, 0)))
        if not num_sinks:
            return out
        end = num_sinks + hops + 1 if time.is_whole else num_sinks + time.owned_end_frame(hops)
        sinks = _sink_rows(q[:, :num_sinks], k, v, head_dim=sizes["head_dim"], num_sinks=num_sinks, end=end, time=time)
        return out.at[:, :num_sinks].set(sinks)

    return attend


def _between_neighbours(
    q: Array, k: Array, v: Array, num_sinks: int, reach: int, num_hops: int, time: TimeAxis, head_dim: int
) -> tuple[Array, Array, Array]:
    """Returns this device's frames between `reach` frames of each neighbour, in a length that suits the kernel."""
    k, v = (time.pad_with_neighbours(x[:, num_sinks:], reach, num_hops) for x in (k, v))
    missing = aligned_tokens(k.shape[1], head_dim) - k.shape[1]
    k, v = (jnp.pad(x, ((0, 0), (0, missing), (0, 0))) for x in (k, v))
    return jnp.pad(q[:, num_sinks:], ((0, 0), (reach, reach + missing), (0, 0))), k, v


def _sink_rows(
    q: Float[Array, "row sink lane"],
    k: Float[Array, "row token lane"],
    v: Float[Array, "row token lane"],
    *,
    head_dim: int,
    num_sinks: int,
    end: Count,
    time: TimeAxis,
) -> Float[Array, "row sink lane"]:
    """The outputs of the sinks, which see each other and the frames of all devices, in one softmax.

    Args:
      q: queries of the sinks, scaled.
      k: keys of sinks and frames.
      v: their values.
      head_dim: lanes of a head.
      num_sinks: number of first tokens that are sinks. All devices have the same.
      end: number after the last token that belongs to this device and is no padding.
      time: the time axis.
    """
    rows, _, lanes = q.shape
    heads = lanes // head_dim
    own = jnp.asarray(np.repeat(np.eye(heads, dtype=np.float32), head_dim, axis=1))
    # One row per head and sink, zero in the lanes of other heads: a product over all lanes gives the head's scores.
    apart = (q[:, None] * own[:, None].astype(q.dtype)).reshape(rows, heads * num_sinks, lanes)
    scores = product("rql,rtl->rqt", apart, k)
    token = jnp.arange(k.shape[1])
    # Where time is cut, every device has the sinks, and only one may count them.
    first = 0 if time.is_whole else jnp.where(time.first_frame(1) == 0, 0, num_sinks)
    scores = jnp.where((token >= first) & (token < end), scores, HIDDEN)
    greatest = jax.lax.stop_gradient(time.max(jax.lax.stop_gradient(scores.max(-1, keepdims=True))))
    weights = jnp.exp(scores - greatest)
    total = time.sum(weights.sum(-1, keepdims=True))
    mixed = time.sum(product("rqt,rtl->rql", weights.astype(v.dtype), v)) / total
    return (mixed.reshape(rows, heads, num_sinks, lanes) * own[:, None]).sum(1).astype(q.dtype)
