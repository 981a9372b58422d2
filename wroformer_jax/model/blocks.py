"""A block: a transformer along time, then one along the bands.

A transformer is made of layers; a layer is a mixer, which lets positions see each other, and a feed-forward layer,
which works on each position alone. The mixer along time is chosen by `config.time_mixer`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from wroformer_jax.config.model import ModelConfig
from wroformer_jax.model import attention, cpu, gpu
from wroformer_jax.model.lanes import Attend, LaneAttention, attend_in_window, attend_to_all, in_lanes
from wroformer_jax.model.layers import Attention, FeedForward, RMSNorm, Tables
from wroformer_jax.parallel.time_axis import WHOLE, TimeAxis

MakeMixer = Callable[[], nn.Module]


class Block(nn.Module):
    """A time transformer for each band, then a frequency transformer for each token.

    Attributes:
      config: the settings of the model.
      num_hops: hops of the audio, see `time_mixer`.
      time_axis: the time axis.
    """

    config: ModelConfig
    num_hops: int | None = None
    time_axis: TimeAxis = WHOLE

    def setup(self) -> None:
        config = self.config
        make_time_mixer = time_mixer(config, self.num_hops, self.time_axis)
        self.time = Transformer(config, config.time_transformer_depth, make_time_mixer, "time")
        self.freq = Transformer(config, config.freq_transformer_depth, freq_mixer(config), "freq")

    def __call__(
        self, x: Float[Array, "batch token band dim"], time_tables: Tables, freq_tables: Tables
    ) -> Float[Array, "batch token band dim"]:
        x = x.swapaxes(1, 2)
        x = self.time(x.reshape(-1, *x.shape[2:]), time_tables).reshape(x.shape)
        x = x.swapaxes(1, 2)
        return self.freq(x.reshape(-1, *x.shape[2:]), freq_tables).reshape(x.shape)


class Transformer(nn.Module):
    """Layers of x += mixer(x); x += feed_forward(x). Mel-Band RoFormer ends each transformer with a norm.

    Attributes:
      config: the settings of the model.
      depth: number of layers.
      make_mixer: makes the mixer of a layer.
      axis: "time" or "freq", for the names of the parts in the compiled program.
    """

    config: ModelConfig
    depth: int
    make_mixer: MakeMixer
    axis: str

    def setup(self) -> None:
        self.mixer = [self.make_mixer() for _ in range(self.depth)]
        self.feed_forward = [FeedForward(self.config) for _ in range(self.depth)]
        if self.config.band_scheme == "mel":
            self.norm = RMSNorm()

    def __call__(self, x: Float[Array, "batch token dim"], tables: Tables) -> Float[Array, "batch token dim"]:
        for mixer, feed_forward in zip(self.mixer, self.feed_forward, strict=True):
            with jax.named_scope(f"{self.axis}_attention"):
                x = x + mixer(x, tables)
            with jax.named_scope(f"{self.axis}_feed_forward"):
                x = x + feed_forward(x)
        with jax.named_scope(f"{self.axis}_feed_forward"):
            return self.norm(x) if self.config.band_scheme == "mel" else x


def time_mixer(config: ModelConfig, num_hops: int | None = None, time: TimeAxis = WHOLE) -> MakeMixer:
    """The module that mixes along time, chosen by `config.time_mixer`.

    A mixer is called with (batch, token, dim) and rotary tables and returns what is added to the residual stream.

    Args:
      config: the settings of the model.
      num_hops: hops of the audio; tokens after the sinks and num_hops + 1 frames are padding. None: no padding.
      time: the time axis.
    """
    make = LaneAttention if in_lanes(config) else Attention
    attend = time_attention(config, num_hops, time)
    return functools.partial(make, config=config, attend=jax.named_scope("time_scores")(attend))


def freq_mixer(config: ModelConfig) -> MakeMixer:
    """The module that mixes along the bands: attention of every band to every band."""
    make = LaneAttention if in_lanes(config) else Attention
    return functools.partial(make, config=config, attend=jax.named_scope("freq_scores")(freq_attention(config)))


def time_attention(config: ModelConfig, num_hops: int | None = None, time: TimeAxis = WHOLE) -> Attend:
    """Returns the attention along time, in the form that the settings name, from queries, keys and values to outputs.

    Only this function knows the mixers by name. Arguments are those of `time_mixer`. In lanes (`in_lanes`) arrays are
    (batch, token, lane) and queries are scaled; in all other forms they are (batch, token, head, head_dim), not scaled.
    """
    num_keys = None if num_hops is None else config.num_sinks + num_hops + 1
    if in_lanes(config):
        if config.time_mixer == "windowed_sink":
            return attend_in_window(config, num_hops, time)
        return attend_to_all(config, num_keys=num_keys)
    is_cudnn = config.attention_impl == "cudnn"
    windowed = gpu.windowed_sink_attention if is_cudnn else cpu.windowed_sink_attention
    full = gpu.full_attention if is_cudnn else attention.full_attention
    return {
        "windowed_sink": functools.partial(
            windowed, window=config.window, num_sinks=config.num_sinks, num_hops=num_hops, time=time
        ),
        "full": functools.partial(full, num_keys=num_keys),
        "naive": functools.partial(attention.naive_attention, num_keys=num_keys),
    }[config.time_mixer]


def freq_attention(config: ModelConfig) -> Attend:
    """Returns the attention of every band to every band, on arrays as in `time_attention`."""
    if in_lanes(config):
        return attend_to_all(config, num_keys=config.num_bands)  # bands behind the last are padding
    return gpu.full_attention if config.attention_impl == "cudnn" else attention.full_attention
