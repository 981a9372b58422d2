"""Time cut over devices: what crosses their borders, and nothing else does.

Each device has a stretch of the samples of every example, and the frames that are centred in it. Neighbours exchange
halos (`ppermute`): half an STFT window of samples, `window // 2` frames of keys and values, and what the frames at a
border add to the signal beyond it. Sinks are on every device; their softmax over all frames is a greatest score and
two sums over the devices, and so are the losses. Nothing of the size of the sequence is moved.

All of this is for use inside `jax.shard_map` over the axis that cuts time.
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
    """A device has one of several equal stretches of the recording.

    Attributes:
      parts: how many there are.
      part_samples: samples of each, whole hops.
      samples: of the recording; it ends in one of the parts, and all behind it is padding.
      axis: the mesh axis that they lie along.
    """

    parts: int
    part_samples: int
    samples: int
    axis: str = SAMPLES

    is_whole = False

    def first_frame(self, num_hops: int) -> Count:
        return -self._number() * num_hops

    def end_frame(self, num_hops: int) -> Count:
        return self.samples // (self.part_samples // num_hops) + 1 + self.first_frame(num_hops)

    def owned_end_frame(self, num_hops: int) -> Count:
        # The frame that is centred at a border is the next part's, unless the recording ends there.
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
        # In its last part the recording ends, and is reflected, before the padding.
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
        """Number of the part in which the recording ends."""
        return -(-self.samples // self.part_samples) - 1

    def _is_last(self) -> Array:
        return self._number() == self._last

    def _from_previous(self, x: Array) -> Array:
        """What the part before sends; zeros in the first one."""
        return jax.lax.ppermute(x, self.axis, [(i, i + 1) for i in range(self.parts - 1)])

    def _from_next(self, x: Array) -> Array:
        """What the part behind sends; zeros in the last one."""
        return jax.lax.ppermute(x, self.axis, [(i + 1, i) for i in range(self.parts - 1)])


def cut_time(config: ModelConfig, samples: int, parts: int, *, multiple: int = 1, longest_window: int = 0) -> TimeAxis:
    """How examples of some length are cut into parts.

    Args:
      config: the settings of the model.
      samples: of an example.
      parts: how many.
      multiple: samples of a part are whole multiples of this, and of the model's hop.
      longest_window: of an STFT other than the model's, in samples; half of it must fit into a part.

    Raises:
      InputError: the model sees all of time, or the parts would be too short.
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
    # No frame but those of the part in which the recording ends may reach over its end, where it is reflected.
    while (samples - 1) % part_samples + 1 < edge:
        part_samples += unit
    return TimeParts(parts, part_samples, samples)


def can_cut_time(config: ModelConfig, samples: int, parts: int) -> bool:
    """Whether `cut_time` cuts so much audio into more than one part."""
    try:
        return not cut_time(config, samples, parts).is_whole
    except InputError:
        return False


def padded_samples(time: TimeAxis, samples: int) -> int:
    """Length of an example with what its last part is padded by."""
    return time.parts * time.part_samples if isinstance(time, TimeParts) else samples
