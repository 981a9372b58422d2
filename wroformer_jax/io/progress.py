"""Shows the progress of long work on audio: a bar on a terminal, elsewhere a line every so often."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType

LOG_SECONDS = 30.0  # between two lines where there is no terminal


class Progress:
    """Counts seconds of audio that are done, and shows them on stderr. A context manager.

    Args:
      label: the start of the bar and of the lines.
      seconds: of audio in all; may be an estimate.
      describe: returns the text behind the bar, given this object.
      say: called with each line.
      every: seconds between two lines.
    """

    def __init__(
        self,
        label: str,
        seconds: float,
        describe: Callable[[Progress], str],
        *,
        say: Callable[[str], object] | None = None,
        every: float = LOG_SECONDS,
    ) -> None:
        import tqdm

        self.label, self.seconds, self.done = label, seconds, 0.0
        self._describe, self._say, self._every = describe, say or _to_stderr, every
        self._began = self._said = time.perf_counter()
        layout = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
        self._bar = tqdm.tqdm(total=seconds, desc=label, bar_format=layout, disable=not sys.stderr.isatty())

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._began

    @property
    def pace(self) -> float:
        """Seconds of audio done in a second."""
        return self.done / max(self.elapsed, 1e-9)

    def advance(self, seconds: float) -> None:
        """Counts more audio as done."""
        self.done += seconds
        text = self._describe(self)
        self._bar.set_postfix_str(text, refresh=False)
        self._bar.update(min(self.done, self.seconds) - self._bar.n)  # more audio than estimated may come
        now = time.perf_counter()
        if self._bar.disable and now - self._said >= self._every and self.pace > 0:
            minutes = max(self.seconds - self.done, 0) / self.pace / 60
            self._say(f"{self.label}: {self.done / self.seconds:.0%}, {text}, about {minutes:.0f} min left")
            self._said = now

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
