"""Downloads checkpoints from the Hugging Face hub: known ones by name, any other as hf://owner/repo/file.

huggingface_hub does the downloads. It caches them and honours HF_HOME, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE.
"""

from __future__ import annotations

import logging
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from wroformer_jax.config.known_checkpoints import HUB_PREFIX, KNOWN_CHECKPOINTS
from wroformer_jax.config.model import ModelConfig
from wroformer_jax.errors import InputError

_log = logging.getLogger("wroformer")


class HubFile(NamedTuple):
    """A file on the hub."""

    repo: str  # owner/name
    file: str  # path inside the repository
    revision: str | None = None  # a branch, tag or commit; None for the main branch

    def __str__(self) -> str:
        return f"{HUB_PREFIX}{self.repo}{f'@{self.revision}' if self.revision else ''}/{self.file}"


def fetch(source: str) -> tuple[Path, ModelConfig | None]:
    """Downloads a checkpoint, unless it is in the cache.

    Args:
      source: a name in `KNOWN_CHECKPOINTS`, `hf://owner/repo/file`, or `hf://owner/repo@revision/file`.

    Returns:
      The path of the local file, and the model's settings if the checkpoint is a known one.

    Raises:
      InputError: the source is misspelt, or the hub does not have it, refuses access or cannot be reached.
    """
    if source in KNOWN_CHECKPOINTS:
        known = KNOWN_CHECKPOINTS[source]
        return _download(HubFile(known.repo, known.file)), known.config
    wanted = parse(source)
    config = next(
        (
            entry.config
            for entry in KNOWN_CHECKPOINTS.values()
            if (entry.repo, entry.file) == (wanted.repo, wanted.file)
        ),
        None,
    )
    return _download(wanted), config


def fetch_yaml(source: str) -> Path | None:
    """Downloads a checkpoint's settings: the .yaml file of the same name in the same folder of its repository.

    Args:
      source: as for `fetch`, but not the name of a known checkpoint.

    Returns:
      The path of the local file. None if the repository has no such file. Also None, with a warning in the log,
      if the file is not in the cache and the hub cannot be reached.

    Raises:
      InputError: the source is misspelt, or the hub refuses access.
    """
    from huggingface_hub import errors

    weights = parse(source)
    wanted = weights._replace(file=str(PurePosixPath(weights.file).with_suffix(".yaml")))
    try:
        return _download(wanted)
    except InputError as error:
        if not isinstance(error.__cause__, errors.EntryNotFoundError):
            raise
        if isinstance(error.__cause__, errors.LocalEntryNotFoundError):
            _log.warning("continuing without the YAML file of %s, if it has one: %s", source, error)
        return None


def parse(source: str) -> HubFile:
    """Parses `hf://owner/repo/file` or `hf://owner/repo@revision/file`.

    Raises:
      InputError: the text has another form.
    """
    parts = source.removeprefix(HUB_PREFIX).split("/", 2)
    if len(parts) < 3 or not all(parts):
        raise InputError(f"{source} is not of the form hf://owner/repo/file (or hf://owner/repo@revision/file)")
    owner, name, file = parts
    name, _, revision = name.partition("@")
    return HubFile(f"{owner}/{name}", file, revision or None)


def _download(wanted: HubFile) -> Path:
    import huggingface_hub
    from huggingface_hub import errors

    # huggingface_hub would log each of its retries. Our own error reports how they ended.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        return Path(huggingface_hub.hf_hub_download(wanted.repo, wanted.file, revision=wanted.revision))
    except errors.GatedRepoError as error:
        raise InputError(
            f"{wanted} is gated: ask for access on its page on the hub, then log in with `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise InputError(
            f"{wanted}: the hub has no repository {wanted.repo}, or it is private: check its name, or log in "
            "with `hf auth login`"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise InputError(f"{wanted}: the repository has no revision {wanted.revision!r}") from error
    except errors.LocalEntryNotFoundError as error:
        raise InputError(
            f"{wanted} is not in the cache and the hub cannot be reached: {_why_unreachable(error)}"
        ) from error
    except errors.EntryNotFoundError as error:
        raise InputError(f"{wanted}: the repository has no file {wanted.file!r}") from error
    except Exception as error:  # includes the errors of the HTTP library, which differs between versions
        raise InputError(f"cannot download {wanted}: {_first_line(error)}") from error


def _why_unreachable(error: Exception) -> str:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set; unset it, or download the file on a machine that is online"
    return f"check the connection and {constants.ENDPOINT} ({_first_line(error.__cause__ or error)})"


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
