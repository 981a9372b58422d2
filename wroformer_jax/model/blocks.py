"""Transformers along time and along bands, and the block of both."""

from __future__ import annotations

import functools
from collections.abc import Callable

import flax.linen as nn
from jaxtyping import Array, Float

from wroformer_jax.config.model import ModelConfig
from wroformer_jax.model.attention import full_attention, naive_attention, windowed_sink_attention
from wroformer_jax.model.layers import Attention, FeedForward, RMSNorm, Tables
from wroformer_jax.parallel.time_axis import WHOLE, TimeAxis

MakeMixer = Callable[..., nn.Module]


Stream = Float[Array, "batch band token dim"]


def time_mixer(config: ModelConfig, num_hops: int | None = None, time: TimeAxis = WHOLE) -> MakeMixer:
    """The module that mixes along time, chosen by `config.time_mixer`.

    A mixer is called with (batch, token, dim) and rotary tables and returns what is added to the residual stream.
    Only this function knows the mixers by name.

    Args:
      config: the settings of the model.
      num_hops: hops of the audio at hand; tokens behind its frames are padding. None: there are no others.
      time: what lies beyond it.
    """
    num_keys = None if num_hops is None else config.num_sinks + num_hops + 1
    attend = {
        "windowed_sink": functools.partial(
            windowed_sink_attention, window=config.window, num_sinks=config.num_sinks, num_hops=num_hops, time=time
        ),
        "full": functools.partial(full_attention, num_keys=num_keys),
        "naive": functools.partial(naive_attention, num_keys=num_keys),
    }[config.time_mixer]
    return functools.partial(Attention, config=config, attend=attend)


class Block(nn.Module):
    """A transformer along time for each band, then one along the bands of each frame.

    Its two halves are called apart, on pieces of the stream: `mix_time` on some bands of all tokens, `rest` on all
    bands of some tokens.
    """

    config: ModelConfig
    num_hops: int | None = None
    time_axis: TimeAxis = WHOLE

    def setup(self) -> None:
        config = self.config
        freq_mixer = functools.partial(Attention, config=config, attend=full_attention)
        self.time = Transformer(
            config, config.time_transformer_depth, time_mixer(config, self.num_hops, self.time_axis)
        )
        self.freq = Transformer(config, config.freq_transformer_depth, freq_mixer)

    def __call__(
        self,
        x: Stream,
        time_tables: tuple[Float[Array, "token 1 head_dim"], Float[Array, "token 1 head_dim"]],
        freq_tables: tuple[Float[Array, "band 1 head_dim"], Float[Array, "band 1 head_dim"]],
    ) -> tuple[Stream, None]:
        """Both halves; the form of nn.scan, which makes the parameters."""
        return self.rest(self.mix_time(x, time_tables), freq_tables), None

    def mix_time(self, x: Stream, tables: Tables) -> Stream:
        """The time transformer but for its last feed-forward layer and norm."""
        flat = self.time.until_last_mixer(x.reshape(-1, *x.shape[2:]), tables)
        return flat.reshape(x.shape)

    def rest(self, x: Stream, tables: Tables) -> Stream:
        """What of the time transformer works on each place alone, and the frequency transformer."""
        x = self.time.after_last_mixer(x).swapaxes(1, 2)
        x = self.freq(x.reshape(-1, *x.shape[2:]), tables).reshape(x.shape)
        return x.swapaxes(1, 2)


class Transformer(nn.Module):
    """Layers of x += mixer(x); x += feed_forward(x). Mel-Band RoFormer ends each transformer with a norm."""

    config: ModelConfig
    depth: int
    make_mixer: MakeMixer

    def setup(self) -> None:
        for i in range(self.depth):
            setattr(self, f"mixer_{i}", self.make_mixer())
            setattr(self, f"feed_forward_{i}", FeedForward(self.config))
        if self.config.band_scheme == "mel":
            self.norm = RMSNorm()

    def __call__(self, x: Float[Array, "batch token dim"], tables: Tables) -> Float[Array, "batch token dim"]:
        return self.after_last_mixer(self.until_last_mixer(x, tables))

    def until_last_mixer(self, x: Float[Array, "batch token dim"], tables: Tables) -> Float[Array, "batch token dim"]:
        """All layers, but for the last one's feed-forward layer."""
        for i in range(self.depth):
            if i:
                x = x + getattr(self, f"feed_forward_{i - 1}")(x)
            x = x + getattr(self, f"mixer_{i}")(x, tables)
        return x

    def after_last_mixer(self, x: Float[Array, "*batch token dim"]) -> Float[Array, "*batch token dim"]:
        """The last feed-forward layer and the norm."""
        x = x + getattr(self, f"feed_forward_{self.depth - 1}")(x)
        return self.norm(x) if self.config.band_scheme == "mel" else x
