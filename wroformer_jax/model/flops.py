"""FLOPs of a model's forward pass, counted from its settings.

XLA counts the body of a loop once, and includes recomputation and padding. This count has the matrix products of the
model's definition, with two FLOPs per multiply-add: bands without their padding, and the attention scores that the mask
does not hide. As is usual, it leaves out the STFT and its inverse, norms, softmax and other elementwise work.
"""

from __future__ import annotations

from wroformer_jax.config.model import ModelConfig
from wroformer_jax.model.bands import band_layout


def num_frames(config: ModelConfig, samples: int) -> int:
    """Returns the number of STFT frames of `samples` samples."""
    return 1 + samples // config.stft_hop_length


def forward_flops(config: ModelConfig, frames: int) -> dict[str, int]:
    """Returns the FLOPs of one example's forward pass, by part of the model. Their sum is the total.

    "time_projections" counts queries, keys, values, gates and outputs of the time attention, "time_scores" its scores
    and the weighted sums of values. "freq_..." does the same for the frequency attention.

    Args:
      config: the settings of the model.
      frames: number of STFT frames, see `num_frames`.
    """
    bands, planes, inner = config.num_bands, 2 * config.channels, config.heads * config.dim_head
    tokens = frames + config.num_sinks
    features = planes * sum(band_layout(config).widths)  # inputs of all bands together
    places = config.depth * tokens * bands  # (token, band) positions that each layer of a transformer works on
    projections = 2 * config.dim * (4 * inner + config.heads)
    feed_forward = 4 * config.dim * config.dim_feed_forward
    score = 4 * inner  # per pair of tokens, in all heads: the score, and the value's share in the sum
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
    """Returns the number of scores of one head of the time attention for one band: pairs that the mask does not hide.

    The paper (arXiv 2510.25745) counts frames * (window + sinks) for windowed sinks and frames² for full attention,
    see `published_score_entries`. This count differs in three points: it has a frame's own position beside the window,
    it has the sinks' queries, which see everything, and it leaves out windows' ends beyond the first and last frame.
    attention.py computes more, since 64 queries share 64 keys and their halo, most of which are hidden.
    """
    tokens = frames + config.num_sinks
    if config.time_mixer != "windowed_sink":
        return tokens * tokens
    reach = min(config.window // 2, frames - 1)
    near = frames * (2 * reach + 1) - reach * (reach + 1)
    return near + frames * config.num_sinks + config.num_sinks * tokens


def published_score_entries(config: ModelConfig, frames: int) -> int:
    """Returns the number of scores of one head for one band as the paper counts them (see `score_entries`)."""
    return frames * (config.window + config.num_sinks if config.time_mixer == "windowed_sink" else frames)
