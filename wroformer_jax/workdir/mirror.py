"""Uploads the small files of a run whose workdir is in a bucket.

Objects in a bucket cannot be appended to, so the log and the report are written to a local folder and uploaded as they
change. Checkpoints do not pass through here: all hosts write them to the bucket themselves.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import threading
from pathlib import Path

from wroformer_jax.errors import InputError
from wroformer_jax.io.buckets import Place, access, cache_folder, upload
from wroformer_jax.io.files import disk_errors_named, locked

_log = logging.getLogger("wroformer")


class Mirror:
    """A local folder, empty at first, whose changed files are uploaded at intervals, on request and at the end.

    Use as a context manager. A failed upload logs a warning and is tried again; it never ends a run. Files whose names
    begin with a dot are still being written and are left out.

    Args:
      remote: the directory in the bucket.
      process_index: of this process; each process has its own folder.
      interval: seconds between two uploads.

    Raises:
      InputError: (on entering) another run on this machine uses the same directory in the bucket, or the folder cannot
        be created.
    """

    def __init__(self, remote: Place, process_index: int, *, interval: float = 30.0) -> None:
        self.folder = cache_folder("runs", f"{remote}\0{process_index}")
        self._remote = remote
        self._sent: dict[str, tuple[int, int]] = {}  # by name: time and size of the uploaded version
        self._interval = interval
        self._unreachable = False
        self._busy = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._copy_at_intervals, daemon=True)

    def bring(self, name: str) -> None:
        """Downloads a file from the bucket into the folder, if it exists.

        Raises:
          InputError: the bucket cannot be reached, or the folder cannot be written.
        """
        with contextlib.suppress(FileNotFoundError):
            with access(self._remote / name):
                content = (self._remote / name).read_bytes()
            with disk_errors_named(self.folder):
                (self.folder / name).write_bytes(content)

    def copy(self) -> None:
        """Uploads the files that have changed since their last upload; returns once all are uploaded or one failed."""
        with self._busy:
            try:
                for path in sorted(self.folder.rglob("*")):
                    if path.is_file() and not path.name.startswith("."):
                        self._send(path)
                self._unreachable = False
            except (InputError, OSError) as error:
                if not self._unreachable:
                    _log.warning(
                        "the log could not be uploaded to %s yet and stays in %s: %s", self._remote, self.folder, error
                    )
                self._unreachable = True

    def __enter__(self) -> Mirror:
        with contextlib.ExitStack() as stack:
            with disk_errors_named(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(locked(self.folder))
                for path in self.folder.iterdir():  # of an earlier run, whose files are in the bucket
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            self._thread.start()
            self._lock = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self.copy()
        self._lock.close()

    def _copy_at_intervals(self) -> None:
        while not self._over.wait(self._interval):
            self.copy()

    def _send(self, path: Path) -> None:
        name = path.relative_to(self.folder).as_posix()
        with contextlib.suppress(FileNotFoundError):  # replaced at this very moment: the next upload has it
            found = os.stat(path)
            version = (found.st_mtime_ns, found.st_size)
            if self._sent.get(name) != version:
                upload(path, self._remote / name)
                self._sent[name] = version
