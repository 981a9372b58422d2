"""Shows how far a separation is."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

LOG_SECONDS = 30.0  # between two lines of progress where there is no terminal


def with_progress(
    blocks: Iterable[dict[str, np.ndarray]], *, samples: int, sample_rate: int, label: str
) -> Iterator[dict[str, np.ndarray]]:
    """Passes blocks of stems on and shows how far they are, with the speed as multiples of real time.

    On stderr: a bar on a terminal, elsewhere a line every LOG_SECONDS.

    Args:
      blocks: of `separate_blocks`.
      samples: how many there will be for each channel.
      sample_rate: in Hz.
      label: what stands before the bar.
    """
    import tqdm

    layout = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
    start = logged = time.perf_counter()
    with tqdm.tqdm(total=samples, desc=label, bar_format=layout, disable=not sys.stderr.isatty()) as bar:
        done = 0
        for block in blocks:
            done, now = done + _length(block), time.perf_counter()
            pace = real_time_factor(done / sample_rate, now - start)
            bar.set_postfix_str(pace)
            bar.update(_length(block))
            if bar.disable and now - logged >= LOG_SECONDS:
                print(f"{label}: {done / samples:.0%}, {pace}", file=sys.stderr, flush=True)
                logged = now
            yield block


def _length(block: Mapping[str, np.ndarray]) -> int:
    return next(iter(block.values())).shape[-1]


def real_time_factor(audio_seconds: float, seconds: float) -> str:
    """'12.3x real time'."""
    return f"{audio_seconds / max(seconds, 1e-9):.1f}x real time"
