"""Shows the progress of a separation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from wroformer_jax.io.progress import Progress


def with_progress(
    blocks: Iterable[dict[str, np.ndarray]], *, samples: int, sample_rate: int, label: str
) -> Iterator[dict[str, np.ndarray]]:
    """Passes buffers of stems on, and shows on stderr how much of the recording they cover and at which speed.

    Args:
      blocks: from `separate_blocks`.
      samples: length of the recording.
      sample_rate: in Hz.
      label: the start of the bar.
    """
    with Progress(label, samples / sample_rate, lambda progress: f"{progress.pace:.1f}x real time") as progress:
        for block in blocks:
            progress.advance(_length(block) / sample_rate)
            yield block


def _length(block: Mapping[str, np.ndarray]) -> int:
    return next(iter(block.values())).shape[-1]


def real_time_factor(audio_seconds: float, seconds: float) -> str:
    """Returns the speed as in '12.3x real time'."""
    return f"{audio_seconds / max(seconds, 1e-9):.1f}x real time"
