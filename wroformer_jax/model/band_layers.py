"""From bins to bands and back: the layers before and after the transformers. Each band has its own weights.

The weights of all bands of a group are stacked (see bands.py).
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from wroformer_jax.config.model import ModelConfig
from wroformer_jax.model.bands import BandGroup, average_bins, band_layout, split_bins
from wroformer_jax.model.layers import BandLinear, masked, matmul, named, torch_uniform, unit_norm


class BandSplit(nn.Module):
    """RMSNorm and Linear for each band."""

    config: ModelConfig

    @nn.compact
    def __call__(self, planes: Float[Array, "batch plane frame bin"]) -> Float[Array, "batch frame band dim"]:
        layout = band_layout(self.config)
        return jnp.concatenate(
            [
                BandGroupSplit(self.config, group, name=f"group_{i}")(split_bins(planes, group))
                for i, group in enumerate(layout.groups)
            ],
            axis=2,
        )


class BandGroupSplit(nn.Module):
    """The BandSplit of one group's bands."""

    config: ModelConfig
    group: BandGroup

    @nn.compact
    def __call__(self, x: Float[Array, "batch frame band feature"]) -> Float[Array, "batch frame band dim"]:
        dim, planes = self.config.dim, 2 * self.config.channels
        present = np.tile(self.group.present, (1, planes))
        widths = present.sum(axis=1)
        axes = ("band", "band_feature")
        gamma = self.param("gamma", named(masked(nn.initializers.ones, present), *axes), present.shape)
        kernel = self.param(
            "kernel",
            named(masked(torch_uniform(widths[:, None, None]), present[..., None]), *axes, "embed"),
            (*present.shape, dim),
        )
        bias = self.param("bias", named(torch_uniform(widths[:, None]), "band", "embed"), (len(widths), dim))
        x = unit_norm(x) * np.sqrt(widths, dtype=np.float32)[:, None] * gamma
        return matmul("btki,kid->btkd", x, kernel, self.config) + bias


class MaskEstimator(nn.Module):
    """Linear, tanh, ... , Linear, GLU for each stem and band; then the mean over the bands that share a bin."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch frame band dim"]
    ) -> tuple[
        Float[Array, "batch stem channel frame bin"],
        Float[Array, "batch stem channel frame bin"],
    ]:
        config, layout = self.config, band_layout(self.config)
        batch, frames, bands, _ = x.shape
        # The batched products need bands on a leading axis; (batch, frame) becomes one long axis of rows.
        x = x.transpose(2, 0, 1, 3).reshape(1, bands, batch * frames, -1)
        x = jnp.broadcast_to(x, (config.num_stems, *x.shape[1:]))
        for i in range(config.mask_layers - 1):
            x = nn.tanh(BandLinear(config, config.dim_mask, bands, name=f"hidden_{i}")(x))

        slots = jnp.concatenate(
            [
                BandMask(config, group, name=f"group_{i}")(x[:, group.bands.start : group.bands.stop])
                for i, group in enumerate(layout.groups)
            ],
            axis=-1,
        )
        planes = average_bins(slots, layout)
        planes = planes.reshape(config.num_stems, batch, frames, config.channels, 2, config.num_bins)
        planes = planes.transpose(4, 1, 0, 3, 2, 5)
        return planes[0], planes[1]


class BandMask(nn.Module):
    """The last Linear and the GLU of one group's bands. Returns the masks at the group's slots, padding included."""

    config: ModelConfig
    group: BandGroup

    @nn.compact
    def __call__(self, x: Float[Array, "stem band row hidden"]) -> Float[Array, "stem row plane slot"]:
        planes, (bands, width) = 2 * self.config.channels, self.group.present.shape
        present = np.tile(self.group.present, (1, 2 * planes))
        x = BandLinear(self.config, present.shape[1], bands, present, name="out")(x)
        stems, _, rows, _ = x.shape
        value, gate = x.reshape(stems, bands, rows, 2, planes, width).transpose(3, 0, 2, 4, 1, 5)
        return (value * nn.sigmoid(gate)).reshape(stems, rows, planes, bands * width)
