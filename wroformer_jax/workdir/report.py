"""The report of a run: a separated validation song as sound and picture, and curves of loss and SDR."""

from __future__ import annotations

from pathlib import Path

from wroformer_jax.evaluation.metrics import usdr
from wroformer_jax.evaluation.validation_songs import ValidationSong, separate_song
from wroformer_jax.io.files import replacing
from wroformer_jax.model.layers import Params
from wroformer_jax.model.roformer import RoFormer
from wroformer_jax.separation.stream import stem_names
from wroformer_jax.workdir import plots
from wroformer_jax.workdir.log import TrainingLog


def write_curves(workdir: Path, log: TrainingLog) -> None:
    """Writes curve.png: the loss and the SDR of the run so far."""
    plots.save_curves(
        workdir / "curve.png",
        loss=log.curve("train", "loss"),
        sdr=log.curve("validation", "usdr"),
        mixture_sdr=(log.last_validation() or {}).get("mixture_usdr"),
    )


def write_example(
    workdir: Path, model: RoFormer, params: Params, song: ValidationSong, chunk_seconds: float | None
) -> None:
    """Writes a song, its true stems and its estimates as WAV files in example/ and as spectrogram.png."""
    import soundfile

    sample_rate = model.config.sample_rate
    estimates = separate_song(model, params, song.mixture, chunk_seconds=chunk_seconds)
    wavs, panels = {"mixture": song.mixture}, {"Mixture of an unseen song": song.mixture}
    for stem, target, estimate in zip(model.config.stems, song.targets, estimates, strict=True):
        wavs |= {stem: estimate, f"{stem}_reference": target}
        panels[f"{stem.capitalize()}, reference"] = target
        panels[f"{stem.capitalize()}, estimate: SDR {usdr(target, estimate):.1f} dB"] = estimate
    if len(estimates) == 1:
        _, rest = stem_names(model.config)
        wavs[rest] = song.mixture - estimates[0]
    (workdir / "example").mkdir(exist_ok=True)
    for name, audio in wavs.items():
        with replacing(workdir / "example" / f"{name}.wav") as temporary:
            soundfile.write(temporary, audio.T, sample_rate, subtype="FLOAT")  # the rest may exceed full scale
    plots.save_spectrograms(workdir / "spectrogram.png", panels, sample_rate=sample_rate)
