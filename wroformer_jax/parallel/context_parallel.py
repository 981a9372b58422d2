"""Time cut over devices: each has one part of every recording, and exchanges with its neighbours what they share.

A device has an equal part of the samples of each example, and the frames that are centred in it. Neighbours exchange
halos (`ppermute`): half an STFT window of samples, `window // 2` frames of keys and values, and what the frames at a
border add to the signal on its other side. Every device has all sinks; their softmax over all frames takes a maximum
and two sums over the devices, and the losses take sums. No array of the length of the recording is ever moved.

Use all of this inside `jax.shard_map` over the mesh axis that cuts time.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from wroformer_jax.config.model import ModelConfig
from wroformer_jax.errors import InputError
from wroformer_jax.parallel.mesh import SAMPLES
from wroformer_jax.parallel.time_axis import MAX_REACH, WHOLE, Count, TimeAxis


@dataclasses.dataclass(frozen=True)
class TimeParts(TimeAxis):
    """This device has one of several equal parts of the recording.

    Attributes:
      parts: number of parts, one per device.
      part_samples: length of a part in samples, a multiple of the hop.
      samples: length of the recording in samples. It may end before the last part; the rest is padding.
      axis: name of the mesh axis that cuts time.
    """

    parts: int
    part_samples: int
    samples: int
    axis: str = SAMPLES

    @property
    def is_whole(self) -> bool:
        return False

    def first_frame(self, num_hops: int) -> Count:
        return -self._number() * num_hops

    def end_frame(self, num_hops: int) -> Count:
        return self.samples // (self.part_samples // num_hops) + 1 + self.first_frame(num_hops)

    def owned_end_frame(self, num_hops: int) -> Count:
        # The frame that is centred at a border belongs to the next part, unless the recording ends there.
        own = jnp.minimum(self.end_frame(num_hops), num_hops + self._is_last())
        return jnp.where(self._number() > self._last, 0, own)

    def samples_to_end(self, samples: int) -> Count:
        return self.samples - self._number() * self.part_samples

    def total_samples(self, samples: int) -> int:
        return self.samples

    def pad_audio(self, audio: Float[Array, "*batch sample"], margin: int) -> Float[Array, "*batch padded"]:
        before = self._from_previous(audio[..., -margin:])
        before = jnp.where(self._number() == 0, audio[..., margin:0:-1], before)
        between = jnp.concatenate([before, audio, self._from_next(audio[..., :margin])], axis=-1)
        # In the part in which the recording ends, its reflection comes before the padding.
        end = margin + self.samples - self._last * self.part_samples
        last = jnp.concatenate([between[..., :end], between[..., end - 2 : end - 2 - margin : -1]], axis=-1)
        missing = between.shape[-1] - last.shape[-1]
        last = jnp.pad(last, [(0, 0)] * (audio.ndim - 1) + [(0, missing)])
        return jnp.where(self._is_last(), last, between)

    def fold_margins(
        self, signal: Float[Array, "*batch padded"], margin: int, samples: int
    ) -> Float[Array, "*batch sample"]:
        mine = signal[..., margin : margin + samples]
        behind = signal[..., margin + samples :][..., :margin]
        lead = [(0, 0)] * (signal.ndim - 1)
        from_previous = jnp.pad(self._from_previous(behind), [*lead, (0, samples - behind.shape[-1])])
        from_next = jnp.pad(self._from_next(signal[..., :margin]), [*lead, (samples - margin, 0)])
        return mine + from_previous + from_next

    def pad_with_neighbours(
        self, frames: Float[Array, "*batch frame head_dim"], reach: int, num_hops: int
    ) -> Float[Array, "*batch wider head_dim"]:
        if not reach:
            return frames
        before = self._from_previous(frames[..., num_hops - reach : num_hops, :])
        after = self._from_next(frames[..., :reach, :])
        wide = jnp.concatenate([before, frames, jnp.zeros_like(after)], axis=-2)
        place = slice(reach + num_hops, 2 * reach + num_hops)
        return wide.at[..., place, :].set(jnp.where(self._is_last(), wide[..., place, :], after))

    def sum(self, x: Float[Array, ...]) -> Float[Array, ...]:
        return jax.lax.psum(x, self.axis)

    def max(self, x: Float[Array, ...]) -> Float[Array, ...]:
        return jax.lax.pmax(x, self.axis)

    def _number(self) -> Array:
        return jax.lax.axis_index(self.axis)

    @property
    def _last(self) -> int:
        """The number of the part in which the recording ends."""
        return -(-self.samples // self.part_samples) - 1

    def _is_last(self) -> Array:
        return self._number() == self._last

    def _from_previous(self, x: Array) -> Array:
        """Returns the previous part's `x`; zeros in the first part."""
        return jax.lax.ppermute(x, self.axis, [(i, i + 1) for i in range(self.parts - 1)])

    def _from_next(self, x: Array) -> Array:
        """Returns the next part's `x`; zeros in the last part."""
        return jax.lax.ppermute(x, self.axis, [(i + 1, i) for i in range(self.parts - 1)])


def cut_time(config: ModelConfig, samples: int, parts: int, *, multiple: int = 1, longest_window: int = 0) -> TimeAxis:
    """Returns the time axis of examples that are cut into parts; `WHOLE` for one part.

    Args:
      config: the settings of the model.
      samples: length of an example.
      parts: number of parts.
      multiple: the length of a part will be a multiple of this, and of the model's hop, in samples.
      longest_window: longest window of any other STFT, in samples; half of it must fit into a part.

    Raises:
      InputError: the model's time attention is not windowed, its window is too wide, or the parts would be too short.
    """
    if parts == 1:
        return WHOLE
    if config.time_mixer != "windowed_sink":
        raise InputError(
            f"time is cut over {parts} devices (mesh.seq), which needs time_mixer 'windowed_sink', not "
            f"{config.time_mixer!r}: with full attention every frame needs all others"
        )
    reach, hop = config.window // 2, config.stft_hop_length
    if reach > MAX_REACH:
        raise InputError(f"window is {config.window}, expected at most {2 * MAX_REACH} where time is cut over devices")
    unit = math.lcm(multiple, hop)
    edge = max(config.stft_n_fft, longest_window) // 2 + 1
    needed = max(reach * hop, edge)

    def size_of(parts: int) -> int:
        return -(-samples // (parts * unit)) * unit

    part_samples = size_of(parts)
    if part_samples < needed:
        most = max((n for n in range(1, parts) if size_of(n) >= needed), default=1)
        raise InputError(
            f"{samples / config.sample_rate:.3g} s of audio are too short to be cut over {parts} devices (mesh.seq): "
            f"in whole multiples of {unit} samples a part has {part_samples}, and needs {needed}; expected mesh.seq of "
            f"at most {most}, or longer examples"
        )
    # Only frames of the part in which the recording ends may reach over its end, because only that part reflects it.
    while (samples - 1) % part_samples + 1 < edge:
        part_samples += unit
    return TimeParts(parts, part_samples, samples)


def can_cut_time(config: ModelConfig, samples: int, parts: int) -> bool:
    """Whether `cut_time` can cut an example of `samples` samples into `parts` parts, at least two."""
    try:
        return not cut_time(config, samples, parts).is_whole
    except InputError:
        return False


def padded_samples(time: TimeAxis, samples: int) -> int:
    """Returns the length in samples of an example of `samples` samples, once its last part is padded."""
    return time.parts * time.part_samples if isinstance(time, TimeParts) else samples
