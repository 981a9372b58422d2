"""How far the writing of a set is: a bar on a terminal, elsewhere a line every so often."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

LOG_SECONDS = 30.0  # between two lines


class Progress:
    """Counts seconds of audio. A context manager.

    Args:
      seconds: that will be written in all; an estimate, where the header of a file is.
      say: gets the lines.
    """

    def __init__(self, seconds: float, say: Callable[[str], object]) -> None:
        import tqdm

        self._total, self._done, self._say = seconds, 0.0, say
        self._began = self._said = time.perf_counter()
        layout = "writing: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}, {postfix}"
        self._bar = tqdm.tqdm(total=seconds, bar_format=layout, disable=not sys.stderr.isatty())

    def advance(self, seconds: float) -> None:
        """So much more is written."""
        self._done += seconds
        now, pace = time.perf_counter(), self._pace()
        amount = f"{self._done / 3600:.2f} of {self._total / 3600:.2f} h of audio, {pace:.0f}x real time"
        self._bar.set_postfix_str(amount, refresh=False)
        # More than all may come of an mp3, whose length is estimated.
        self._bar.update(min(self._done, self._total) - self._bar.n)
        if self._bar.disable and now - self._said >= LOG_SECONDS and pace > 0:
            left = max(self._total - self._done, 0) / pace
            self._say(f"writing: {self._done / self._total:.0%}, {amount}, about {left / 60:.0f} min left")
            self._said = now

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, exception_type: type[BaseException] | None, *_: object) -> None:
        self._bar.close()
        if exception_type is None:
            seconds = time.perf_counter() - self._began
            self._say(f"wrote {self._done / 3600:.2f} h of audio in {seconds:.1f} s, {self._pace():.0f}x real time")

    def _pace(self) -> float:
        """Seconds of audio a second."""
        return self._done / max(time.perf_counter() - self._began, 1e-9)
