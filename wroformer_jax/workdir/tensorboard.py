"""Event files for TensorBoard.

tensorboardX's own `SummaryWriter` writes in a thread that reads from a queue. A full disk ends that thread, and once
the queue is full, the training blocks for ever. Here the caller's thread writes, so the caller gets the disk's errors.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any


class EventFile:
    """Creates an event file. Use as a context manager, or call `close`.

    Args:
      directory: created if need be; TensorBoard shows all files of one directory as one run.
      step: TensorBoard discards events of this step and later from earlier files of the directory.

    Raises:
      OSError: (also from every method) the file cannot be written. Unwritten events are kept and written next time.
    """

    def __init__(self, directory: Path, step: int) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore  # protobuf makes them at import

        directory.mkdir(parents=True, exist_ok=True)
        # Names contain the time in seconds, and a file of the same name would be overwritten: add the step.
        self._writer = EventsWriter(str(directory / "events"), f".{step}")
        self._writer.write_event(Event(wall_time=time.time(), step=step, file_version="brain.Event:2"))
        begin = SessionLog(status=SessionLog.START)
        self._writer.write_event(Event(wall_time=time.time(), step=step, session_log=begin))

    def add(self, step: int, *summaries: Any) -> None:
        """Writes the values of a step, as the functions of `tensorboardX.summary` return them."""
        from tensorboardX.proto.event_pb2 import Event  # pyright: ignore  # as above

        for summary in summaries:
            self._writer.write_event(Event(wall_time=time.time(), step=step, summary=summary))
        self._writer.flush()

    def close(self) -> None:
        """Flushes and closes the file."""
        self._writer.close()

    def __enter__(self) -> EventFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
