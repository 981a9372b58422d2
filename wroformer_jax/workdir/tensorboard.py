"""Event files for TensorBoard.

tensorboardX's own `SummaryWriter` has a queue and a thread. A full disk ends the thread, and then the queue, once it is
full, stops the training for ever. Here the caller writes, and what the disk says is the caller's to know.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any


class EventFile:
    """A new event file. Use as a context manager, or call `close`.

    Args:
      directory: made if need be; files of one directory are one run in TensorBoard.
      step: what earlier files of the directory tell of this step and of later ones is void.

    Raises:
      OSError: (all methods, too) it cannot be written. What is not written yet is kept, and written next time.
    """

    def __init__(self, directory: Path, step: int) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        directory.mkdir(parents=True, exist_ok=True)
        # Files are called by the second, and one of the same name would be overwritten.
        self._writer = EventsWriter(str(directory / "events"), f".{step}")
        self._writer.write_event(Event(wall_time=time.time(), step=step, file_version="brain.Event:2"))
        begin = SessionLog(status=SessionLog.START)
        self._writer.write_event(Event(wall_time=time.time(), step=step, session_log=begin))

    def add(self, step: int, *summaries: Any) -> None:
        """Writes what `tensorboardX.summary` makes, for a step."""
        from tensorboardX.proto.event_pb2 import Event

        for summary in summaries:
            self._writer.write_event(Event(wall_time=time.time(), step=step, summary=summary))
        self._writer.flush()

    def close(self) -> None:
        """Ends the file."""
        self._writer.close()

    def __enter__(self) -> EventFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
