"""Works on one long array piece by piece, in place, forwards and backwards; and the sizes of a model's pieces.

`walk` keeps the memory of training small: beside the long array it needs the intermediate results of one piece. The
forward pass overwrites the array piece by piece. The backward pass does the same with the array's cotangent, and
computes each piece's forward pass again. A scan over stacked pieces would hold the array twice and copy it to stack
them. With slices of a closed-over array, the backward pass would add an array of full length for every piece.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from wroformer_jax.config.model import ModelConfig

Pieces = Any  # a tree of arrays with the pieces on their first axis
# Takes parameters, a piece of the array, and the piece's own input. Returns the new piece, and the piece's own output.
Work = Callable[[Any, Array, Pieces], tuple[Array, Pieces]]


# Where runs begin, if they can: an array of a TPU has tiles of 8 rows.
ROW_MULTIPLE = 8


class Cut(NamedTuple):
    """`count` pieces of `size` entries each along `axis`, one after the other, from entry `first` on."""

    axis: int
    count: int
    size: int
    first: int = 0


class Sizes(NamedTuple):
    """How the residual stream of a model is cut: into runs of frames, runs of tokens, and groups of bands.

    Runs of frames are for the ends of the model, between samples and features. Tokens are the sinks and the frames.
    """

    num_hops: int  # hops of the audio, which has num_hops + 1 frames
    num_sinks: int
    frame_runs: int  # number of runs of frames
    frames: int  # frames per run; at the end of the last run they may be padding
    token_runs: int  # number of runs of tokens
    tokens: int  # tokens per run
    bands: int  # bands per group
    groups: int

    @classmethod
    def of(cls, config: ModelConfig, num_hops: int, *, length: int | None = None) -> Sizes:
        """The sizes for audio of `num_hops` hops.

        Args:
          config: the settings: pieces have about config.places_at_once places, one piece for 0.
          num_hops: hops of the audio.
          length: number of tokens with padding; runs then begin at multiples of ROW_MULTIPLE. None: as it comes.
        """
        num_frames, num_tokens = num_hops + 1, num_hops + 1 + config.num_sinks
        at_once = config.places_at_once or max(num_tokens, length or 0) * config.num_bands
        frames_at_once = config.frames_at_once or at_once // config.num_bands
        # A piece of fewer frames than overlap would be mostly overlap.
        least = -(-config.stft_n_fft // config.stft_hop_length)
        frame_runs = -(-num_frames // max(least, frames_at_once))
        frames = -(-num_frames // frame_runs)
        token_runs = -(-num_tokens // max(least, at_once // config.num_bands))
        # Runs of frames, which follow the sinks, may not end behind the last token.
        tokens = -(-(config.num_sinks + frame_runs * frames) // token_runs)
        if length:
            token_runs, tokens = _runs_of_tokens(length, token_runs)
            frame_runs, frames = _runs_of_frames(num_frames, frame_runs, length - config.num_sinks)
        fitting = max(1, at_once // (token_runs * tokens))
        bands = max(size for size in range(1, config.num_bands + 1) if config.num_bands % size == 0 and size <= fitting)
        return cls(num_hops, config.num_sinks, frame_runs, frames, token_runs, tokens, bands, config.num_bands // bands)

    @property
    def num_tokens(self) -> int:
        """Number of sinks and frames."""
        return self.num_sinks + self.num_hops + 1

    @property
    def padded_tokens(self) -> int:
        """Number of tokens of the stream, padding included."""
        return self.token_runs * self.tokens

    def frame_cut(self, first: int) -> Cut:
        """Runs of frames; `first` tokens stand before them."""
        return Cut(2, self.frame_runs, self.frames, first)


def _runs_of_frames(num_frames: int, fewest: int, room: int) -> tuple[int, int]:
    """Returns a number of runs of frames and their size: a multiple of ROW_MULTIPLE if that leaves them in `room`.

    Args:
      num_frames: number of frames that the runs must hold.
      fewest: least number of runs; up to twice as many are tried.
      room: greatest runs x size.
    """
    tried = ((runs, -(-num_frames // (runs * ROW_MULTIPLE)) * ROW_MULTIPLE) for runs in range(fewest, 2 * fewest + 1))
    fitting = [(runs * size, runs) for runs, size in tried if runs * size <= room]
    if not fitting:
        return fewest, -(-num_frames // fewest)
    total, runs = min(fitting)
    return runs, total // runs


def _runs_of_tokens(num_tokens: int, fewest: int) -> tuple[int, int]:
    """Cuts tokens, a multiple of ROW_MULTIPLE, into equal runs of such a multiple: `fewest` of them, or a few more.

    No run is shorter than ROW_MULTIPLE, so that there may be fewer.
    """
    most = num_tokens // ROW_MULTIPLE
    runs = next(runs for runs in range(min(fewest, most), most + 1) if most % runs == 0)
    return runs, num_tokens // runs


def walk(
    work: Work, cut: Cut, params: Any, array: Float[Array, ...], pieces: Pieces = None
) -> tuple[Float[Array, ...], Pieces]:
    """Works through an array piece by piece.

    Args:
      work: the work on one piece, a pure function that is differentiable in its three arguments. It must not close
        over traced values.
      cut: how the array is cut. Entries outside of all pieces stay as they are.
      params: arrays that the work on every piece needs.
      array: the long array.
      pieces: the pieces' own inputs, stacked.

    Returns:
      The array with every piece replaced, and the pieces' own outputs, stacked.
    """
    if cut.count == 1:  # the backward pass need not compute anything again
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
