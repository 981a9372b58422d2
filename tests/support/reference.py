"""The reference model: the public PyTorch package, completed by the parts that it lacks.

The package computes Mel-Band RoFormer and BS-RoFormer with full attention. Windowed sink attention, sinks, skip
connections and the zeroed DC bin are added here directly from their definitions; the attention uses a dense mask.
test_golden.py compares this model with recorded numbers.
"""

import types

import torch
import torch.nn.functional as F
from bs_roformer import BSRoformer, MelBandRoformer
from torch import nn


def make_reference(config, *, seed=0):
    """Returns a PyTorch model of this config with random weights; no gain or bias has its default value.

    mask_layers must be at least 2; heads, widths and the rest follow the config, but the package fixes the
    feed-forward and mask widths at 4 * dim.
    """
    torch.manual_seed(seed)
    mel = config.band_scheme == "mel"
    sizes = {"num_bands": config.num_bands, "sample_rate": config.sample_rate} if mel else {}
    if not mel:
        sizes["freqs_per_bands"] = config.freqs_per_bands
    model = (MelBandRoformer if mel else BSRoformer)(
        dim=config.dim,
        depth=config.depth,
        stereo=config.channels == 2,
        num_stems=config.num_stems,
        time_transformer_depth=config.time_transformer_depth,
        freq_transformer_depth=config.freq_transformer_depth,
        dim_head=config.dim_head,
        heads=config.heads,
        attn_dropout=0.0,
        ff_dropout=0.0,
        flash_attn=False,
        dim_freqs_in=config.num_bins,
        stft_n_fft=config.stft_n_fft,
        stft_hop_length=config.stft_hop_length,
        stft_win_length=config.stft_win_length,
        # The package's two models count the mask estimator's layers differently.
        mask_estimator_depth=config.mask_layers - 1 if mel else config.mask_layers,
        **sizes,
    )
    if config.num_sinks:
        model.sink_tokens = nn.Parameter(torch.randn(config.num_sinks, config.num_bands, config.dim))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 and not name.endswith("rotary_embed.freqs"):
                parameter.add_(0.1 * torch.randn_like(parameter))
    return patch(model, config).eval()


def patch(model, config):
    """Adds the parts of `config` that the package's model lacks."""
    if config.time_mixer == "windowed_sink":
        for time_transformer, _ in model.layers:
            for attention, _ in time_transformer.layers:
                attention.attend = WindowedSinkAttend(config.window, config.num_sinks)
    model.stages = types.MethodType(stages, model)
    model.config = config
    return model


class WindowedSinkAttend(nn.Module):
    """Softmax attention under the dense mask of windowed sink attention."""

    def __init__(self, window, num_sinks):
        super().__init__()
        self.window, self.num_sinks = window, num_sinks

    def forward(self, q, k, v):
        i = torch.arange(q.shape[-2])[:, None]
        j = torch.arange(k.shape[-2])
        mask = (i < self.num_sinks) | (j < self.num_sinks) | ((i - j).abs() <= self.window // 2)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


@torch.no_grad()
def stages(model, audio):
    """Returns the intermediate values of the model by name; their axes are those of the records (golden/README.md)."""
    config, (batch, channels, _) = model.config, audio.shape
    window = torch.hann_window(config.stft_win_length)
    sizes = (config.stft_n_fft, config.stft_hop_length, config.stft_win_length, window)
    stft = torch.stft(audio.flatten(0, 1), *sizes, return_complex=True).unflatten(0, (batch, channels))
    rows = stft.transpose(1, 2).flatten(1, 2)  # (batch, (bin, channel), frame)
    indices = model.freq_indices if config.band_scheme == "mel" else torch.arange(rows.shape[1])
    x = torch.view_as_real(rows[:, indices]).permute(0, 2, 1, 3).flatten(2)
    x = model.band_split(x)
    out = {"stft": stft, "band_split": x}

    if config.num_sinks:
        x = torch.cat([model.sink_tokens.expand(batch, -1, -1, -1), x], dim=1)
    earlier = []
    for time_transformer, freq_transformer in model.layers:
        if config.skip_connection:
            x = sum(earlier, x)
        x = torch.stack([time_transformer(band) for band in x.unbind(2)], dim=2)
        x = freq_transformer(x.flatten(0, 1)).unflatten(0, (batch, -1))
        earlier.append(x)
        out.setdefault("block0", x)
    if config.band_scheme == "band_split":
        x = model.final_norm(x)
    out["features"] = x = x[:, config.num_sinks :]

    masks = torch.stack([estimator(x) for estimator in model.mask_estimators], dim=1)
    masks = torch.view_as_complex(masks.unflatten(-1, (-1, 2)).contiguous()).transpose(2, 3)
    summed = torch.zeros(batch, config.num_stems, *rows.shape[1:], dtype=masks.dtype)
    summed.index_add_(2, indices, masks)
    bands_of_row = torch.bincount(indices, minlength=rows.shape[1])
    mask = (summed / bands_of_row[:, None]).unflatten(2, (-1, channels)).transpose(2, 3)
    out["mask"] = mask

    spectrum = stft[:, None] * mask
    if config.zero_dc:
        spectrum[..., 0, :] = 0
    samples = torch.istft(spectrum.flatten(0, 2), *sizes)
    out["output"] = samples.unflatten(0, (batch, config.num_stems, channels))
    return {name: value.numpy() for name, value in out.items()}
