"""Attention as NVIDIA GPUs want it: cuDNN's fused kernels, and which form is taken where.

cuDNN keeps the scores on the chip, where the scan form (attention.py) writes them to memory, in float32, and reads them
again. It takes bfloat16 and float16 only.

| attention                                | cuDNN                                 | scan                              |
|------------------------------------------|---------------------------------------|-----------------------------------|
| over bands, and full attention in time   | bfloat16, head sizes that it has      | float32, other head sizes         |
| windowed, frames                         | the same, windows up to 2 * MAX_REACH | also wider windows, and time that |
|                                          |                                       | is cut over devices               |
| windowed, queries of the sinks           | as for frames                         | as for frames                     |

No GPU was at hand when this table was written. It follows from the bytes that each form moves, about a third of the
scan form's for cuDNN, not from a measurement. `trial.py` compares the numbers on the GPU before they are used.

cuDNN has no window with two sides, and no gradient through the logarithm of a softmax's sum, with which a window and
the sinks could be merged. So frames go in blocks, as in the scan form, with the sinks among the keys of each block:

    keys of a block   [ sinks | halo | block | halo | padding ]

All blocks are rows of one call. They share one mask, but for those at the ends of the recording, which go in calls of
their own. A mask that all rows share is the one that all versions of cuDNN take in the backward pass.
"""

from __future__ import annotations

import itertools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from wroformer_jax.config.model import ModelConfig
from wroformer_jax.model import attention
from wroformer_jax.parallel.time_axis import WHOLE, TimeAxis

Implementation = Literal["cudnn", "xla"]

TILE = 128  # queries, and keys, that cuDNN's kernels work on at a time
MAX_REACH = 128  # frames on each side; the keys of wider windows would be copied too often
MAX_HEAD_DIM = 128  # GPUs before Hopper have no more
HEAD_DIM_MULTIPLE = 8


def cudnn_serves(config: ModelConfig) -> str | None:
    """Returns None if cuDNN serves a model, else what it does not serve."""
    if config.time_mixer == "naive":
        return "time_mixer 'naive'"
    if config.dtype != "bfloat16":
        return f"dtype {config.dtype!r}"
    if config.dim_head % HEAD_DIM_MULTIPLE or config.dim_head > MAX_HEAD_DIM:
        return f"dim_head {config.dim_head}"
    return None


def full_attention(
    q: Float[Array, "batch query head head_dim"],
    k: Float[Array, "batch token head head_dim"],
    v: Float[Array, "batch token head head_dim"],
    num_keys: int | None = None,
    *,
    implementation: Implementation = "cudnn",
) -> Float[Array, "batch query head head_dim"]:
    """`attention.full_attention` by cuDNN, or by XLA without blocks (`implementation`), for tests."""
    num_queries, num_keys = q.shape[1], k.shape[1] if num_keys is None else min(num_keys, k.shape[1])
    # JAX takes no odd numbers of queries or keys for gradients by cuDNN.
    q = _pad(q, 0, num_queries % 2)
    k, v = (_pad(x[:, :num_keys], 0, num_keys % 2) for x in (k, v))
    lengths = jnp.full(len(q), num_keys, jnp.int32) if num_keys % 2 else None
    out = jax.nn.dot_product_attention(q, k, v, key_value_seq_lengths=lengths, implementation=implementation)
    return out[:, :num_queries]


def windowed_sink_attention(
    q: Float[Array, "batch token head head_dim"],
    k: Float[Array, "batch token head head_dim"],
    v: Float[Array, "batch token head head_dim"],
    *,
    window: int,
    num_sinks: int,
    num_hops: int | None = None,
    time: TimeAxis = WHOLE,
    implementation: Implementation = "cudnn",
) -> Float[Array, "batch token head head_dim"]:
    """`attention.windowed_sink_attention` by cuDNN, or by XLA (`implementation`), for tests.

    Windows of more than 2 * MAX_REACH frames, and time that is cut over devices, go to the scan form.
    """
    num_tokens, reach = q.shape[1], window // 2
    if reach > MAX_REACH or not time.is_whole:
        return attention.windowed_sink_attention(
            q, k, v, window=window, num_sinks=num_sinks, num_hops=num_hops, time=time
        )
    num_hops = num_tokens - num_sinks - 1 if num_hops is None else num_hops
    end = min(num_tokens, num_sinks + num_hops + 1)
    if reach >= num_hops or num_sinks >= num_tokens:
        return full_attention(q, k, v, end, implementation=implementation)
    frames = _frame_attention(
        q[:, num_sinks:],
        (k[:, num_sinks:], k[:, :num_sinks]),
        (v[:, num_sinks:], v[:, :num_sinks]),
        reach=reach,
        end=end - num_sinks,
        implementation=implementation,
    )
    if not num_sinks:
        return frames
    sinks = full_attention(q[:, :num_sinks], k, v, end, implementation=implementation)
    return jnp.concatenate([sinks, frames], axis=1)


class Blocks(NamedTuple):
    """How frames are cut into blocks.

    Attributes:
      frames: frames of a block.
      keys: keys of a block: sinks, two halos, the block, padding.
      reach: frames of a halo.
      sinks: number of sinks.
      count: number of blocks.
    """

    frames: int
    keys: int
    reach: int
    sinks: int
    count: int

    @classmethod
    def of(cls, num_frames: int, reach: int, num_sinks: int) -> Blocks:
        """Chooses blocks whose keys fill whole tiles, and that are no shorter than what lies around them."""
        around = num_sinks + 2 * reach
        keys = max(-(-2 * around // TILE), 1) * TILE
        # Even, see `full_attention`.
        frames = (keys - around) // 2 * 2
        if frames >= num_frames:
            frames = num_frames + num_frames % 2
            keys = -(-(frames + around) // 8) * 8
        return cls(frames, keys, reach, num_sinks, -(-num_frames // frames))

    def seen(self, block: int, end: int) -> tuple[int, int]:
        """Returns the first frame that a block sees and the one after the last, counted from its left halo's first."""
        first = block * self.frames - self.reach
        return max(0, -first), max(0, min(self.frames + 2 * self.reach, end - first))

    def mask(self, seen: tuple[int, int]) -> Bool[Array, "query key"]:
        """Returns which keys the queries of a block see."""
        query = jnp.arange(self.frames)[:, None] + self.reach
        key = jnp.arange(self.keys) - self.sinks
        in_window = (abs(query - key) <= self.reach) & (key >= seen[0]) & (key < seen[1])
        return in_window | (key < 0)


def _frame_attention(
    q: Float[Array, "batch frame head head_dim"],
    k: tuple[Float[Array, "batch frame head head_dim"], Float[Array, "batch sink head head_dim"]],
    v: tuple[Float[Array, "batch frame head head_dim"], Float[Array, "batch sink head head_dim"]],
    *,
    reach: int,
    end: int,
    implementation: Implementation,
) -> Float[Array, "batch frame head head_dim"]:
    """Frames see `reach` frames on each side and all sinks, in one softmax.

    Args:
      q: queries of frames.
      k: keys of frames, and of sinks.
      v: values of frames, and of sinks.
      reach: frames on each side that a frame sees, fewer than there are frames.
      end: frames from this one on are padding.
      implementation: "cudnn" or "xla".
    """
    batch, num_frames, heads, head_dim = q.shape
    blocks = Blocks.of(num_frames, reach, k[1].shape[1])
    missing = blocks.count * blocks.frames - num_frames
    q = _pad(q, 0, missing)
    (k_wide, k_sinks), (v_wide, v_sinks) = ((_pad(x, reach, missing + reach), sinks) for x, sinks in (k, v))

    def attend(first: int, count: int, seen: tuple[int, int]) -> Array:
        """Blocks that see the same: `count` of them, from number `first` on."""
        start, stop = first * blocks.frames, (first + count) * blocks.frames
        keys, values = (
            _keys_of_blocks(x[:, start : stop + 2 * reach], sinks, blocks, count)
            for x, sinks in ((k_wide, k_sinks), (v_wide, v_sinks))
        )
        queries = q[:, start:stop].reshape(batch * count, blocks.frames, heads, head_dim)
        mask = jnp.broadcast_to(blocks.mask(seen), (1, heads, blocks.frames, blocks.keys))
        out = jax.nn.dot_product_attention(queries, keys, values, mask=mask, implementation=implementation)
        return out.reshape(batch, count * blocks.frames, heads, head_dim)

    alike = itertools.groupby(range(blocks.count), key=lambda block: blocks.seen(block, end))
    parts = [(seen, list(numbers)) for seen, numbers in alike]
    out = [attend(numbers[0], len(numbers), seen) for seen, numbers in parts]
    return jnp.concatenate(out, axis=1)[:, :num_frames]


def _keys_of_blocks(
    wide: Float[Array, "batch wider head head_dim"],
    sinks: Float[Array, "batch sink head head_dim"],
    blocks: Blocks,
    count: int,
) -> Float[Array, "rows key head head_dim"]:
    """Lays the keys of each block side by side.

    Args:
      wide: keys of `count` blocks of frames between two halos.
      sinks: keys of the sinks.
      blocks: sizes.
      count: number of blocks.
    """
    batch, _, *head = wide.shape
    frames, reach = blocks.frames, blocks.reach

    def from_frame(first: int) -> Array:
        return wide[:, first : first + count * frames].reshape(batch, count, frames, *head)

    # Through float32, in which the gradient then adds up over the blocks.
    of_blocks = jnp.broadcast_to(sinks[:, None].astype(jnp.float32), (batch, count, *sinks.shape[1:]))
    parts = [
        of_blocks.astype(wide.dtype),
        from_frame(0)[:, :, :reach],
        from_frame(reach),
        from_frame(2 * reach)[:, :, frames - reach :],
    ]
    keys = jnp.concatenate(parts, axis=2).reshape(batch * count, -1, *head)
    return _pad(keys, 0, blocks.keys - keys.shape[1])


def _pad(x: Float[Array, "batch token head head_dim"], before: int, after: int) -> Array:
    """Adds zeros before and after the tokens."""
    return jnp.pad(x, ((0, 0), (before, after), (0, 0), (0, 0)))
