"""Time as one device sees it: the whole recording (here), or one part of it (context_parallel.py).

A `TimeAxis` answers what a device cannot see in its own audio: the samples and frames of its neighbours, which frames
belong to the recording, and sums over the whole recording. The model, its attention and the losses ask it, and know
nothing of devices.

`num_hops` is the number of whole hops of this device's audio. Frame 0 is centred at its first sample, so that it has
num_hops + 1 frames. Arrays of frames may be longer; the rest of them is padding.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Count = int | Int[Array, ""]

# Frames on each side of a frame up to which a window is laid out as a whole; larger ones go over blocks of keys.
MAX_REACH = 512


@dataclasses.dataclass(frozen=True)
class TimeAxis:
    """This device has the whole recording."""

    @property
    def is_whole(self) -> bool:
        """Whether this device has the whole recording."""
        return True

    def first_frame(self, num_hops: int) -> Count:
        """Returns the number of the recording's first frame, counted from this device's first frame: 0 or less."""
        return 0

    def end_frame(self, num_hops: int) -> Count:
        """Returns the number after the recording's last frame, counted from this device's first frame."""
        return num_hops + 1

    def owned_end_frame(self, num_hops: int) -> Count:
        """Returns the number after the last frame that belongs to this device and to no other."""
        return num_hops + 1

    def samples_to_end(self, samples: int) -> Count:
        """Returns the samples from this device's first one to the end of the recording.

        They may be more than this device has, and negative if the recording ends before.

        Args:
          samples: number of samples that this device has.
        """
        return samples

    def total_samples(self, samples: int) -> int:
        """Returns the length of the whole recording in samples.

        Args:
          samples: number of samples that this device has, padding included.
        """
        return samples

    def pad_audio(self, audio: Float[Array, "*batch sample"], margin: int) -> Float[Array, "*batch padded"]:
        """Adds `margin` samples on each side: the neighbours' samples, or a reflection where the recording ends."""
        padding = [(0, 0)] * (audio.ndim - 1) + [(margin, margin)]
        return jnp.pad(audio, padding, mode="reflect")

    def fold_margins(
        self, signal: Float[Array, "*batch padded"], margin: int, samples: int
    ) -> Float[Array, "*batch sample"]:
        """Cuts the margins off an overlap-added signal, and adds them to the neighbours' signals.

        Args:
          signal: begins `margin` samples before this device's first sample, and ends after its last one.
          margin: samples.
          samples: number of samples that this device has.
        """
        return signal[..., margin : margin + samples]

    def pad_with_neighbours(
        self, frames: Float[Array, "*batch frame head_dim"], reach: int, num_hops: int
    ) -> Float[Array, "*batch wider head_dim"]:
        """Adds `reach` frames on each side: the neighbours' frames, or zeros where the recording ends."""
        return jnp.pad(frames, [*[(0, 0)] * (frames.ndim - 2), (reach, reach), (0, 0)])

    def sum(self, x: Float[Array, ...]) -> Float[Array, ...]:
        """Sums over the devices that share the recording."""
        return x

    def max(self, x: Float[Array, ...]) -> Float[Array, ...]:
        """Returns the greatest value of the devices that share the recording."""
        return x


WHOLE = TimeAxis()
