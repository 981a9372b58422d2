"""Time as one device sees it: all of the recording here, a stretch of it in context_parallel.py.

The model, its attention and the losses ask a `TimeAxis` for whatever lies beyond the audio at hand: what stands in
front of its first sample and behind its last one, which of its frames are frames of the recording, and sums over all
of time. They know nothing of devices.

`num_hops` is the number of whole hops of the audio at hand. Frame 0 is centred at its first sample, so that there are
num_hops + 1 of them; arrays of frames may be longer, the rest of them is padding.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Count = int | Int[Array, ""]


@dataclasses.dataclass(frozen=True)
class TimeAxis:
    """The whole recording is at hand."""

    is_whole = True

    def first_frame(self, num_hops: int) -> Count:
        """Number of the recording's first frame, counted from the first one at hand: 0 or less."""
        return 0

    def end_frame(self, num_hops: int) -> Count:
        """Number behind the recording's last frame, counted from the first one at hand."""
        return num_hops + 1

    def owned_end_frame(self, num_hops: int) -> Count:
        """Number behind the last frame that no other device counts."""
        return num_hops + 1

    def samples_to_end(self, samples: int) -> Count:
        """Samples of the recording from the first one at hand to its end; may be more than are at hand."""
        return samples

    def total_samples(self, samples: int) -> int:
        """Samples of the recording, of which so many are at hand, padding included."""
        return samples

    def pad_audio(self, audio: Float[Array, "*batch sample"], margin: int) -> Float[Array, "*batch padded"]:
        """Audio with `margin` more samples on each side: the recording's own, or its reflection at its ends."""
        padding = [(0, 0)] * (audio.ndim - 1) + [(margin, margin)]
        return jnp.pad(audio, padding, mode="reflect")

    def fold_margins(
        self, signal: Float[Array, "*batch padded"], margin: int, samples: int
    ) -> Float[Array, "*batch sample"]:
        """The part of an overlap-added signal that is at hand, with what the frames of others add to it.

        Args:
          signal: begins `margin` samples before the audio at hand, and ends behind it.
          margin: samples.
          samples: at hand.
        """
        return signal[..., margin : margin + samples]

    def pad_with_neighbours(
        self, frames: Float[Array, "*batch frame head_dim"], reach: int, num_hops: int
    ) -> Float[Array, "*batch wider head_dim"]:
        """`reach` more frames on each side, zeros where the recording ends."""
        return jnp.pad(frames, [*[(0, 0)] * (frames.ndim - 2), (reach, reach), (0, 0)])

    def sum(self, x: Float[Array, ...]) -> Float[Array, ...]:
        """Sum over the parts of time."""
        return x

    def max(self, x: Float[Array, ...]) -> Float[Array, ...]:
        """The greatest value of all parts of time."""
        return x


WHOLE = TimeAxis()


MAX_REACH = 512  # frames: beyond it a window is walked over in blocks of keys instead of laid out whole
