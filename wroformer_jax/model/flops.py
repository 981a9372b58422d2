"""How much a model computes, counted from its settings, and how much of what a device can do that is.

XLA's own count takes the body of a loop once and what is computed again or for padding as well; this one counts what
the model is: products of matrices, two FLOPs a multiply-add, of real bands and of the scores that the mask of the
attention shows. Not counted, as is usual: the STFT and its inverse, norms, softmax and other elementwise work.
"""

from __future__ import annotations

from wroformer_jax.config.model import ModelConfig
from wroformer_jax.model.bands import band_layout


def num_frames(config: ModelConfig, samples: int) -> int:
    """Frames of the STFT of so many samples."""
    return 1 + samples // config.stft_hop_length


def forward_flops(config: ModelConfig, frames: int) -> dict[str, int]:
    """FLOPs of the forward pass of one example, by part of the model; their sum is the whole.

    "time_projections" are queries, keys, values, gates and outputs of the time attention, "time_scores" its scores and
    the weighted sums of values, and so for "freq".

    Args:
      config: the settings of the model.
      frames: of the STFT, see `num_frames`.
    """
    bands, planes, inner = config.num_bands, 2 * config.channels, config.heads * config.dim_head
    tokens = frames + config.num_sinks
    features = planes * sum(band_layout(config).widths)  # of all bands together
    places = config.depth * tokens * bands  # where each layer of a transformer works
    projections = 2 * config.dim * (4 * inner + config.heads)
    feed_forward = 4 * config.dim * config.dim_feed_forward
    score = 4 * inner  # of a pair of tokens, in all heads: the score, and the value's share in the sum
    hidden = [config.dim, *[config.dim_mask] * (config.mask_layers - 1)]
    masks = bands * sum(2 * size * config.dim_mask for size in hidden[:-1]) + 2 * hidden[-1] * 2 * features
    time, freq = config.time_transformer_depth, config.freq_transformer_depth
    return {
        "band_split": 2 * frames * features * config.dim,
        "time_projections": time * places * projections,
        "time_scores": time * config.depth * bands * score_entries(config, frames) * score,
        "time_feed_forward": time * places * feed_forward,
        "freq_projections": freq * places * projections,
        "freq_scores": freq * config.depth * tokens * bands**2 * score,
        "freq_feed_forward": freq * places * feed_forward,
        "masks": frames * config.num_stems * masks,
    }


def score_entries(config: ModelConfig, frames: int) -> int:
    """Scores of one head of the time attention for one band: pairs of tokens that the mask shows.

    The paper (arXiv 2510.25745) takes frames * (window + sinks) for windowed sinks, and frames² for full
    attention: `published_score_entries`. Here a frame's own place is counted beside the window, the sinks' queries,
    which see everything, are, and what the window reaches over at both ends is not. The blocks of attention.py
    compute more: 64 queries share 64 keys and their halo, of which most are hidden.
    """
    tokens = frames + config.num_sinks
    if config.time_mixer != "windowed_sink":
        return tokens * tokens
    reach = min(config.window // 2, frames - 1)
    near = frames * (2 * reach + 1) - reach * (reach + 1)
    return near + frames * config.num_sinks + config.num_sinks * tokens


def published_score_entries(config: ModelConfig, frames: int) -> int:
    """Scores of one head of the time attention for one band as the paper counts them (see `score_entries`)."""
    return frames * (config.window + config.num_sinks if config.time_mixer == "windowed_sink" else frames)
