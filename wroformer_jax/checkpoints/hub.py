"""Checkpoints on the Hugging Face hub: the ones known by name, and any other as hf://owner/repo/file.

Downloads go through huggingface_hub, which caches them and honours HF_HOME, HF_ENDPOINT, HF_TOKEN and
HF_HUB_OFFLINE.
"""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from wroformer_jax.config.model import ModelConfig
from wroformer_jax.errors import InputError

PREFIX = "hf://"

_log = logging.getLogger("wroformer")


class HubFile(NamedTuple):
    """A file on the hub; the revision is a branch, tag or commit, None for the main branch."""

    repo: str
    file: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{PREFIX}{self.repo}{f'@{self.revision}' if self.revision else ''}/{self.file}"


@dataclasses.dataclass(frozen=True)
class KnownCheckpoint:
    """A published checkpoint whose settings are known, so that its name is all that a user has to say."""

    repo: str  # owner/name on the hub
    file: str
    about: str
    size: str  # parameters and bytes to download
    licence: str  # as its page says, "unknown" where that has not been checked
    config: ModelConfig


KNOWN = {
    "kim-melband": KnownCheckpoint(
        repo="KimberleyJSN/melbandroformer",
        file="MelBandRoformer.ckpt",
        about="Mel-Band RoFormer, full attention, vocals",
        size="228 M parameters, 0.9 GB",
        licence="unknown, see its page",
        # Its mask estimators (mask_estimator_depth 2 in its YAML) have three Linear layers, and the code that it
        # was trained with did not zero the DC bin.
        config=ModelConfig(time_mixer="full", num_sinks=0, mask_layers=3, zero_dc=False),
    ),
    "smule-wsa": KnownCheckpoint(
        repo="smulelabs/windowed-roformer",
        file="mbr-win10-sink8.ckpt",
        about="Mel-Band RoFormer, windowed sink attention 10/8, vocals",
        size="228 M parameters, 0.9 GB",
        licence="unknown, see its page",
        config=ModelConfig(time_mixer="windowed_sink", window=10, num_sinks=8, mask_layers=3, zero_dc=True),
    ),
}


def fetch(source: str) -> tuple[Path, ModelConfig | None]:
    """Downloads a checkpoint, or finds it in the cache.

    Args:
      source: a name in `KNOWN`, or `hf://owner/repo/file`, or `hf://owner/repo@revision/file`.

    Returns:
      Where the file is now, and its settings if it is a known one.

    Raises:
      InputError: the source is misspelt, or the hub does not have it, refuses it or cannot be reached.
    """
    if source in KNOWN:
        known = KNOWN[source]
        return _download(HubFile(known.repo, known.file)), known.config
    place = parse(source)
    config = next((known.config for known in KNOWN.values() if (known.repo, known.file) == place[:2]), None)
    return _download(place), config


def fetch_yaml(source: str) -> Path | None:
    """Downloads the settings of a checkpoint: the .yaml file of the same name in the same folder of its repository.

    Args:
      source: as for `fetch`, but not a known name.

    Returns:
      Where the file is now; None if the repository has none, or it is not in the cache and the hub cannot be
      reached, which is logged.

    Raises:
      InputError: the source is misspelt, or the hub refuses it.
    """
    from huggingface_hub import errors

    weights = parse(source)
    place = weights._replace(file=str(PurePosixPath(weights.file).with_suffix(".yaml")))
    try:
        return _download(place)
    except InputError as error:
        if not isinstance(error.__cause__, errors.EntryNotFoundError):
            raise
        if isinstance(error.__cause__, errors.LocalEntryNotFoundError):
            _log.warning("going on without the YAML file of %s, if there is one: %s", source, error)
        return None


def parse(source: str) -> HubFile:
    """Takes `hf://owner/repo/file` or `hf://owner/repo@revision/file` apart.

    Raises:
      InputError: it is not of this form.
    """
    parts = source.removeprefix(PREFIX).split("/", 2)
    if len(parts) < 3 or not all(parts):
        raise InputError(f"{source} is not of the form hf://owner/repo/file (or hf://owner/repo@revision/file)")
    owner, name, file = parts
    name, _, revision = name.partition("@")
    return HubFile(f"{owner}/{name}", file, revision or None)


def _download(place: HubFile) -> Path:
    import huggingface_hub
    from huggingface_hub import errors

    # It reports each of its retries; we say once how it ended.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        return Path(huggingface_hub.hf_hub_download(place.repo, place.file, revision=place.revision))
    except errors.GatedRepoError as error:
        raise InputError(
            f"{place} is gated: ask for access on its page on the hub, then log in with `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise InputError(
            f"{place}: there is no repository {place.repo} on the hub, or it is private: check its name, or log in "
            "with `hf auth login`"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise InputError(f"{place}: the repository has no revision {place.revision!r}") from error
    except errors.LocalEntryNotFoundError as error:
        raise InputError(
            f"{place} is not in the cache and the hub cannot be reached: {_why_unreachable(error)}"
        ) from error
    except errors.EntryNotFoundError as error:
        raise InputError(f"{place}: the repository has no file {place.file!r}") from error
    except Exception as error:  # also the errors of whichever HTTP library this huggingface_hub is built on
        raise InputError(f"cannot download {place}: {_first_line(error)}") from error


def _why_unreachable(error: Exception) -> str:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set; unset it, or download the file on a machine that is online"
    return f"check the connection and {constants.ENDPOINT} ({_first_line(error.__cause__ or error)})"


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
