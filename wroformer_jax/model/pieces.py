"""One long array worked on piece by piece, in its own memory, forwards and backwards.

`walk` is what keeps training linear in length: all that a step needs besides the long array is one piece's worth of
intermediate results. The forward pass overwrites the array piece by piece, and the backward pass does the same with
its cotangent, computing the piece's forward pass again. A scan over stacked pieces would hold the array twice and
copy it to stack them; slices of a closed-over array would add an array of full length in every step of the backward
pass.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Pieces = Any  # a tree of arrays with the pieces on their first axis
# (parameters, a piece of the array, the piece's own input) to (what becomes of the piece, its own output).
Work = Callable[[Any, Array, Pieces], tuple[Array, Pieces]]


class Cut(NamedTuple):
    """Where the pieces of an array lie: `count` of them, `size` places each, one after the other from `first` on."""

    axis: int
    count: int
    size: int
    first: int = 0


def walk(
    work: Work, cut: Cut, params: Any, array: Float[Array, ...], pieces: Pieces = None
) -> tuple[Float[Array, ...], Pieces]:
    """Works through an array piece by piece.

    Args:
      work: of one piece; differentiable in all three arguments, a pure function of them alone. It closes over no
        traced value.
      cut: how the array is cut. What no piece covers stays as it is.
      params: what the work on every piece needs.
      array: the long array.
      pieces: inputs of each piece, stacked.

    Returns:
      The array with every piece replaced, and the outputs of all pieces, stacked.
    """
    if cut.count == 1:  # nothing is computed twice
        part, output = work(params, _part(array, cut, 0), jax.tree.map(lambda piece: piece[0], pieces))
        return _replaced(array, cut, 0, part), jax.tree.map(lambda piece: piece[None], output)
    return _walk(work, cut, params, array, pieces)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _walk(work: Work, cut: Cut, params: Any, array: Array, pieces: Pieces) -> tuple[Array, Pieces]:
    def step(array: Array, numbered: tuple[Array, Pieces]) -> tuple[Array, Pieces]:
        number, piece = numbered
        part, output = work(params, _part(array, cut, number), piece)
        return _replaced(array, cut, number, part), output

    return jax.lax.scan(step, array, (jnp.arange(cut.count), pieces))


def _walk_forward(work: Work, cut: Cut, params: Any, array: Array, pieces: Pieces) -> tuple[Any, Any]:
    return _walk(work, cut, params, array, pieces), (params, array, pieces)


def _walk_backward(work: Work, cut: Cut, kept: Any, cotangents: tuple[Array, Pieces]) -> tuple[Any, Array, Pieces]:
    params, array, pieces = kept
    of_array, of_outputs = cotangents

    def step(carry: tuple[Array, Any], numbered: tuple[Array, Pieces, Pieces]) -> tuple[Any, Pieces]:
        (of_array, of_params), (number, piece, of_output) = carry, numbered
        _, pull_back = jax.vjp(work, params, _part(array, cut, number), piece)
        of_params_here, of_part, of_piece = pull_back((_part(of_array, cut, number), of_output))
        of_params = jax.tree.map(jnp.add, of_params, of_params_here)
        return (_replaced(of_array, cut, number, of_part), of_params), of_piece

    start = (of_array, jax.tree.map(jnp.zeros_like, params))
    (of_array, of_params), of_pieces = jax.lax.scan(step, start, (jnp.arange(cut.count), pieces, of_outputs))
    return of_params, of_array, of_pieces


_walk.defvjp(_walk_forward, _walk_backward)


def _part(array: Array, cut: Cut, number: Array | int) -> Array:
    return jax.lax.dynamic_slice_in_dim(array, cut.first + number * cut.size, cut.size, cut.axis)


def _replaced(array: Array, cut: Cut, number: Array | int, part: Array) -> Array:
    return jax.lax.dynamic_update_slice_in_dim(array, part, cut.first + number * cut.size, cut.axis)
