"""The band-split RoFormer: Mel-Band RoFormer (arXiv 2310.01809) and BS-RoFormer (arXiv 2309.02612).

`RoFormer.plain` is the model written straight down, from samples to stems; start there. `RoFormer.__call__` gives the
same numbers, computed as forward.py does it: in pieces, in little memory, and with time cut over devices if need be.
The layers are in band_layers.py (bins to bands and back), blocks.py (transformers) and layers.py (all others).
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from wroformer_jax.config.model import ModelConfig
from wroformer_jax.model import forward
from wroformer_jax.model.band_layers import BandSplit, MaskEstimator
from wroformer_jax.model.blocks import Block
from wroformer_jax.model.implementations import settled
from wroformer_jax.model.layers import Params, RMSNorm, Rotary, Tables, named
from wroformer_jax.model.stft import inverse_stft, stack_planes, stft, stft_sizes
from wroformer_jax.parallel.time_axis import WHOLE, TimeAxis

# Standard deviation of fresh sink tokens: small beside the features, whose entries are of the order of 1.
SINK_STD = 0.02


class RoFormer(nn.Module):
    """Separates stems by complex masks on the mixture's spectrum.

    `model.apply({"params": params}, audio)` runs `__call__`, and with `method="masks"` one of the other methods.

    Attributes:
      config: the settings.
      time_axis: the time axis; TimeParts where time is cut over devices (parallel/context_parallel.py).
    """

    config: ModelConfig
    time_axis: TimeAxis = WHOLE

    def setup(self) -> None:
        # `plain` is the reference for all forms, and the parameters are the same in all.
        config = dataclasses.replace(self.config, attention_impl="scan")
        self.band_split = BandSplit(config)
        self.time_rotary, self.freq_rotary = Rotary(config.dim_head), Rotary(config.dim_head)
        if config.num_sinks:
            self.sink_tokens = self.param(
                "sink_tokens",
                named(nn.initializers.normal(SINK_STD), "sink", "band", "embed"),
                (config.num_sinks, config.num_bands, config.dim),
            )
        self.blocks = Block(config)  # one module; its parameters have a leading axis of config.depth
        if config.band_scheme == "band_split":
            self.final_norm = RMSNorm()
        self.mask_estimator = MaskEstimator(config)

    def plain(self, audio: Float[Array, "batch channel sample"]) -> Float[Array, "batch stem channel out_sample"]:
        """What the model is: `__call__` without pieces, on one device, with all intermediate results in memory.

        Initialising the parameters traces this method.
        """
        config = self.config
        real, imag = stft(audio, **stft_sizes(config))
        x = self.band_split(stack_planes(real, imag))
        if config.num_sinks:
            sinks = jnp.broadcast_to(self.sink_tokens, (x.shape[0], *self.sink_tokens.shape))
            x = jnp.concatenate([sinks, x], axis=1)
        x = self._run_blocks(x, self.time_rotary(x.shape[1]), self.freq_rotary(x.shape[2]))
        x = x[:, config.num_sinks :]
        if config.band_scheme == "band_split":
            x = self.final_norm(x)
        mask_real, mask_imag = self.mask_estimator(x)

        real, imag = real[:, None], imag[:, None]  # the same for all stems
        stem_real = real * mask_real - imag * mask_imag
        stem_imag = real * mask_imag + imag * mask_real
        if config.zero_dc:
            stem_real, stem_imag = stem_real.at[..., 0].set(0), stem_imag.at[..., 0].set(0)
        return inverse_stft(stem_real, stem_imag, **stft_sizes(config))

    def _run_blocks(
        self, x: Float[Array, "batch token band dim"], time_tables: Tables, freq_tables: Tables
    ) -> Float[Array, "batch token band dim"]:
        """All blocks. With skip connections, a block's input is the sum of the outputs of all blocks before it."""

        def run_block(block: Block, carry: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
            x, earlier = carry
            if self.config.skip_connection:
                x = x + earlier
            x = block(x, time_tables, freq_tables)
            return (x, earlier + x), None

        run_all = nn.scan(
            run_block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=self.config.depth,
            metadata_params={nn.PARTITION_NAME: "depth"},
        )
        (x, _), _ = run_all(self.blocks, (x, jnp.zeros_like(x)), None)
        return x

    def __call__(
        self, audio: Float[Array | np.ndarray, "batch channel sample"]
    ) -> Float[Array, "batch stem channel out_sample"]:
        """Separates a batch of mixtures.

        Args:
          audio: float32 samples at config.sample_rate, at least config.min_samples of them.

        Returns:
          The stems in the order of config.stems, hop * (samples // hop) samples each.

        Raises:
          InputError: the shape does not fit the model.
        """
        if self.is_initializing():
            forward.check_audio(self.config, audio)
            return self.plain(jnp.asarray(audio))
        stems, _ = forward.separate(self._settled, self.time_axis, self._params(), audio)
        return stems

    def stems_and_masks(
        self, audio: Float[Array | np.ndarray, "batch channel sample"]
    ) -> tuple[
        Float[Array, "batch stem channel out_sample"],
        Float[Array, "batch stem channel frame bin"],
        Float[Array, "batch stem channel frame bin"],
    ]:
        """Returns the stems, as `__call__`, and the real and imaginary part of the masks, as `masks`."""
        stems, masks = forward.separate(self._settled, self.time_axis, self._params(), audio, with_masks=True)
        return stems, *masks

    def masks(
        self, audio: Float[Array | np.ndarray, "batch channel sample"]
    ) -> tuple[
        Float[Array, "batch stem channel frame bin"],
        Float[Array, "batch stem channel frame bin"],
    ]:
        """Returns the real and imaginary part of the complex masks, averaged over the bands that share a bin."""
        _, *masks = self.stems_and_masks(audio)
        return masks[0], masks[1]

    def band_features(
        self, audio: Float[Array | np.ndarray, "batch channel sample"]
    ) -> Float[Array, "batch frame band dim"]:
        """Returns the input of the first block, without the sinks."""
        return forward.band_features(self._settled, self.time_axis, self._params(), audio)

    def features(
        self, audio: Float[Array | np.ndarray, "batch channel sample"], *, keep_sinks: bool = False
    ) -> Float[Array, "batch token band dim"]:
        """Returns the input of the mask estimators; with the sinks in front of the frames if `keep_sinks`."""
        return forward.features(self._settled, self.time_axis, self._params(), audio, keep_sinks=keep_sinks)

    @property
    def _settled(self) -> ModelConfig:
        return settled(self.config)

    def _params(self) -> Params:
        return dict(self.variables["params"])
