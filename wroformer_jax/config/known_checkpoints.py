"""Checkpoints that can be loaded by name: where they are on the Hugging Face hub, and their settings."""

from __future__ import annotations

import dataclasses

from wroformer_jax.config.model import ModelConfig

HUB_PREFIX = "hf://"


@dataclasses.dataclass(frozen=True)
class KnownCheckpoint:
    """A checkpoint whose settings are known, so that its name is all that a user has to give."""

    repo: str  # owner/name on the hub
    file: str
    about: str
    size: str  # number of parameters, and bytes to download
    licence: str  # as the repository's page gives it, "unknown" where that has not been checked
    config: ModelConfig

    @property
    def source(self) -> str:
        """The checkpoint as `hf://owner/repo/file`."""
        return f"{HUB_PREFIX}{self.repo}/{self.file}"


KNOWN_CHECKPOINTS = {
    "kim-melband": KnownCheckpoint(
        repo="KimberleyJSN/melbandroformer",
        file="MelBandRoformer.ckpt",
        about="Mel-Band RoFormer, full attention, vocals",
        size="228 M parameters, 0.9 GB",
        licence="unknown, see its page",
        # Its YAML says mask_estimator_depth 2, but its mask estimators have three Linear layers. The code that
        # trained it did not zero the DC bin.
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
