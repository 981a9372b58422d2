"""Windows of tokens in a kernel: which keys a block of queries has, where they lie, and which of them a query sees.

    keys of a block    [ sinks | halo | block of queries | halo ]

Rows of registers come by 8 or 16, so a halo is longer than what queries reach. If the sinks fit into the rows of the
first halo that no query reaches, they lie there.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from wroformer_jax.model.kernels.blocks import HIDDEN, join_rows
from wroformer_jax.model.kernels.sizes import LANES, MAX_LANE_BYTES, ROW_MULTIPLE, Heads, lanes_at_once, round_up

MAX_REACH = 32  # tokens
TILE = 1216  # tokens: the most that a grid step works on
TOKENS_AT_ONCE = 512  # of all rows in a grid step, if rows are short


class Windows(NamedTuple):
    """Sizes of the windowed kernel."""

    heads: Heads
    reach: int
    num_rows: int
    num_tokens: int  # padded to whole tiles
    num_lanes: int
    num_sinks: int
    halo: int
    rows: int  # rows of a grid step
    tile: int  # tokens of a grid step
    lanes: int  # lanes of a grid step
    interpret: bool

    @property
    def tiles(self) -> int:
        return self.num_tokens // self.tile

    @property
    def blocks(self) -> int:
        return self.tile // self.heads.block

    @property
    def sinks_in_halo(self) -> bool:
        """True if the sinks fit into the first rows of the halo, which no query sees."""
        return self.num_sinks <= self.halo - self.reach

    @property
    def sinks(self) -> int:
        """Sinks, filled up to whole registers."""
        return self.halo if self.sinks_in_halo else round_up(self.num_sinks, ROW_MULTIPLE)

    @property
    def wide(self) -> int:
        """Tokens of a block and its halos."""
        return self.heads.block + 2 * self.halo

    @property
    def scores(self) -> int:
        """Scores that are worked on at once."""
        return self.heads.blocks_at_once * (self.before + self.wide) * self.lanes

    @property
    def before(self) -> int:
        """Rows of keys before the first token of the halo."""
        return 0 if self.sinks_in_halo else self.sinks

    @property
    def seen(self) -> int:
        """Rows of keys from the first one to the last one that any query sees."""
        return self.before + round_up(self.halo + self.heads.block + self.reach, 8)


def windows_of(q: Array, num_sinks: int, reach: int, head_dim: int, interpret: bool) -> Windows:
    """Returns the sizes for some queries, and the number of sinks."""
    num_rows, num_tokens, num_lanes = q.shape
    heads = Heads(head_dim, interpret)
    tile, tiles = tiles_of(num_tokens, heads.block)
    rows = min(num_rows, max(1, TOKENS_AT_ONCE // tile)) if tiles == 1 else 1
    return Windows(
        heads=heads,
        reach=reach,
        num_rows=num_rows,
        num_tokens=tile * tiles,
        num_lanes=num_lanes,
        num_sinks=num_sinks,
        halo=round_up(max(reach, 1), ROW_MULTIPLE),
        rows=rows,
        tile=tile,
        lanes=lanes_at_once(num_lanes, heads, MAX_LANE_BYTES // q.dtype.itemsize),
        interpret=interpret,
    )


def tiles_of(num_tokens: int, block: int) -> tuple[int, int]:
    """Returns the number of tokens in a tile and the number of tiles."""
    blocks = -(-num_tokens // block)
    tiles = -(-blocks // (TILE // block))
    return -(-blocks // tiles) * block, tiles


class Place(NamedTuple):
    """One block of queries and one group of heads."""

    lanes: slice
    start: Array | int  # the block's first token, counted from the tile's
    block: Any  # the block's tokens in the tile
    wide: Any  # those of the block and its halos in a tile with halos


def places_of(plan: Windows, numbers: list) -> list[Place]:
    """Returns the places of blocks, block by block."""
    size, group = plan.heads.block, plan.heads.group
    starts = [n * size if isinstance(n, int) else pl.multiple_of(n * size, size) for n in numbers]
    return [
        Place(slice(lane, lane + group), start, pl.ds(start, size), pl.ds(start, plan.wide))
        for start in starts
        for lane in range(0, plan.lanes, group)
    ]


def widen(plan: Windows, row: Array, refs: list, wide) -> None:
    """Copies a tile and the halos around it. At the ends of the row the halos are zero."""
    tile, halo = plan.tile, plan.halo
    wide[halo : halo + tile] = refs[0][row]
    if plan.tiles == 1:
        wide[:halo] = wide[halo + tile :] = jnp.zeros((halo, plan.lanes), wide.dtype)
    else:
        wide[:halo], wide[halo + tile :] = refs[1][row], refs[2][row]


def join_sinks(
    plan: Windows, sinks: Float[Array, "sink group"], tokens: Float[Array, "wide group"]
) -> Float[Array, "key group"]:
    """Returns the keys of a block: the sinks before the tokens, or in place of the first ones, which nobody sees."""
    if plan.sinks_in_halo:
        sinks, tokens = join_rows(sinks, tokens[: plan.halo], plan.num_sinks), tokens[plan.halo :]
    return jnp.concatenate([sinks, tokens])


def split_sinks(plan: Windows, gradient: Float[Array, "key group"]) -> tuple[Array, Array]:
    """Returns the gradients of sinks and of tokens from those of a block's keys."""
    if not plan.sinks_in_halo:
        return gradient[: plan.sinks], gradient[plan.sinks :]
    both, zero = gradient[: plan.halo], jnp.zeros((plan.halo, gradient.shape[1]), jnp.float32)
    tokens = jnp.concatenate([join_rows(zero, both, plan.num_sinks), gradient[plan.halo :]])
    return join_rows(both, zero, plan.num_sinks), tokens


def fill_biases(plan: Windows, bounds_ref, near_ref, bounded_ref) -> None:
    """Writes 0 for keys that are seen and HIDDEN for others: by their distance in a block, and by bounds in a tile."""
    key = jax.lax.broadcasted_iota(jnp.int32, near_ref.shape, 0)
    query = jax.lax.broadcasted_iota(jnp.int32, near_ref.shape, 1) & (plan.heads.block - 1)
    token = key - plan.before - plan.halo  # counted from the block's first query
    near = (jnp.abs(token - query) <= plan.reach) & (key >= plan.before)
    near_ref[...] = jnp.where(near | (key < plan.num_sinks), 0.0, HIDDEN)
    token = jax.lax.broadcasted_iota(jnp.int32, bounded_ref.shape, 0) + pl.program_id(2) * plan.tile - plan.halo
    bounded_ref[...] = jnp.where((token >= bounds_ref[0]) & (token < bounds_ref[1]), 0.0, HIDDEN)


def block_biases(
    plan: Windows, near_ref, bounded_ref, places: list[Place]
) -> list[Float[Array, "seen columns"] | None]:
    """Returns what is added to the scores of each place."""
    groups = plan.lanes // plan.heads.group
    blocks = [_block_bias(plan, near_ref, bounded_ref, place.start) for place in places[::groups]]
    return [bias for bias in blocks for _ in range(groups)]


def _block_bias(plan: Windows, near_ref, bounded_ref, start: Array | int) -> Float[Array, "seen columns"]:
    """Returns what is added to the scores of a block."""
    bounded = bounded_ref[pl.ds(start, plan.seen - plan.before), :]
    if not plan.sinks_in_halo:
        bounded = jnp.concatenate([jnp.zeros((plan.before, LANES), jnp.float32), bounded])
    elif plan.num_sinks:
        row = jax.lax.broadcasted_iota(jnp.int32, (plan.halo, LANES), 0)
        first = jnp.where(row < plan.num_sinks, 0.0, bounded[: plan.halo])
        bounded = jnp.concatenate([first, bounded[plan.halo :]])
    return near_ref[...] + bounded
