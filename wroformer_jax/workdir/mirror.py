"""The small files of a run in a bucket: written to a folder on this machine, and copied up as they change.

Objects in a bucket are written whole: nothing can be appended to them. Checkpoints do not go this way: all hosts write
them to the bucket themselves.
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

_INTERVAL = 30.0  # seconds between two copies of what grows

_log = logging.getLogger("wroformer")


class Mirror:
    """A local folder, empty at first, whose files are copied to a bucket: now and then, when asked, and at the end.

    Use as a context manager. A bucket that does not take them is warned about and tried again; it ends no run. Files
    whose names begin with a dot, which are being written, are left out.

    Args:
      remote: the directory in the bucket.
      process_index: of this process; each has a folder of its own.

    Raises:
      InputError: (on entering) another run on this machine has the same place in the bucket, or the folder cannot be
        made.
    """

    def __init__(self, remote: Place, process_index: int) -> None:
        self.folder = cache_folder("runs", f"{remote}\0{process_index}")
        self._remote = remote
        self._sent: dict[str, tuple[int, int]] = {}  # by name: time and size of what the bucket has
        self._unreachable = False
        self._busy = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._copy_now_and_then, daemon=True)

    def bring(self, name: str) -> None:
        """Copies a file from the bucket into the folder, if there is one.

        Raises:
          InputError: the bucket cannot be reached, or the folder not be written.
        """
        with contextlib.suppress(FileNotFoundError):
            with access(self._remote / name):
                content = (self._remote / name).read_bytes()
            with disk_errors_named(self.folder):
                (self.folder / name).write_bytes(content)

    def copy(self) -> None:
        """Copies what has changed since it was copied last, and returns when that is done, or has failed."""
        with self._busy:
            try:
                for path in sorted(self.folder.rglob("*")):
                    if path.is_file() and not path.name.startswith("."):
                        self._send(path)
                self._unreachable = False
            except (InputError, OSError) as error:
                if not self._unreachable:
                    _log.warning(
                        "the log is not copied to %s yet, it stays in %s: %s", self._remote, self.folder, error
                    )
                self._unreachable = True

    def __enter__(self) -> Mirror:
        with contextlib.ExitStack() as stack:
            with disk_errors_named(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(locked(self.folder))
                for path in self.folder.iterdir():  # of an earlier run; what counts is in the bucket
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            self._thread.start()
            self._hold = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self.copy()
        self._hold.close()

    def _copy_now_and_then(self) -> None:
        while not self._over.wait(_INTERVAL):
            self.copy()

    def _send(self, path: Path) -> None:
        name = path.relative_to(self.folder).as_posix()
        with contextlib.suppress(FileNotFoundError):  # it was replaced at this moment: the next copy has it
            found = os.stat(path)
            version = (found.st_mtime_ns, found.st_size)
            if self._sent.get(name) != version:
                upload(path, self._remote / name)
                self._sent[name] = version
