"""museval for the tests. Its import looks for the commands ffmpeg and ffprobe, which the tests never run."""

import functools
import os
import shutil
import tempfile
from pathlib import Path


@functools.cache
def museval():
    """Imports museval, with stand-ins for the two commands where they are missing."""
    if shutil.which("ffmpeg") and shutil.which("ffprobe"):
        import museval

        return museval
    before = os.environ["PATH"]
    with tempfile.TemporaryDirectory() as folder:
        for name in ("ffmpeg", "ffprobe"):
            command = Path(folder, name)
            command.write_text("#!/bin/sh\nexit 1\n")
            command.chmod(0o755)
        os.environ["PATH"] = os.pathsep.join([folder, before])
        try:
            import museval
        finally:
            os.environ["PATH"] = before
    return museval
