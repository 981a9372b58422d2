"""The log of a training run: lines or a progress bar for people, metrics.jsonl and TensorBoard for programs."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wroformer_jax.io.buckets import Place
from wroformer_jax.io.files import replacing
from wroformer_jax.workdir.excerpts import Excerpt
from wroformer_jax.workdir.plots import spectrogram_image
from wroformer_jax.workdir.tensorboard import EventFile

METRICS_FILE = "metrics.jsonl"

_log = logging.getLogger("wroformer")


class TrainingLog:
    """Writes the log of a run. Use as a context manager.

    metrics.jsonl holds one record per line and nothing that depends on the clock. So two runs of the same settings
    write the same file, and so does a run that was killed and resumed.

    Args:
      workdir: gets metrics.jsonl and events/ (TensorBoard).
      first_step: the step from which training continues; records of later steps, from before a crash, are dropped.
      steps: the last step of the run.
    """

    def __init__(self, workdir: Path, first_step: int, steps: int) -> None:
        from tqdm import tqdm

        path = workdir / METRICS_FILE
        self.records = read_records(path, first_step)
        with replacing(path) as temporary:
            temporary.write_text("".join(map(_line, self.records)), encoding="utf-8")
        self._file = path.open("a", encoding="utf-8")
        self._directory = workdir / "events"
        self._events = EventFile(self._directory, first_step + 1)
        self._bar = tqdm(total=steps, initial=first_step, unit="step", disable=not on_terminal())
        self._steps = steps

    def train(self, step: int, scalars: Mapping[str, float], rates: Mapping[str, float]) -> None:
        """Records means over the steps since the last record.

        Args:
          step: the last of these steps.
          scalars: "loss", "sdr" and the other metrics of the training step.
          rates: values that depend on the clock and the devices, see `progress_line`; not written to metrics.jsonl.
        """
        with _written_later(step):
            self._record("train", step, scalars, {f"speed/{name}": value for name, value in rates.items()})
        line = progress_line(scalars, rates)
        if on_terminal():
            self._bar.set_postfix_str(line, refresh=False)
            self._bar.update(step - self._bar.n)
        else:
            self.say(f"step {step}/{self._steps}: {line}")

    def validation(self, step: int, scores: dict[str, float], excerpts: Sequence[Excerpt] = ()) -> None:
        """Records the scores of a validation, and adds excerpts of its songs to TensorBoard as sound and picture.

        Mixtures and references never change, so they are added at the first validation only.

        Args:
          step: the step after which the model was validated.
          scores: as `evaluation.validation_songs.mean_scores` returns them.
          excerpts: of the first songs.
        """
        with_references = not self.curve("validation", "usdr")
        with _written_later(step):
            self._record("validation", step, scores)
            self._show(step, excerpts, with_references=with_references)
        self.say(f"step {step}/{self._steps}: {describe(scores)}")

    def say(self, line: str) -> None:
        """Prints a line above the progress bar."""
        self._bar.write(line, file=sys.stdout)
        sys.stdout.flush()

    def curve(self, kind: str, scalar: str) -> list[tuple[int, float]]:
        """Returns (step, value) of a scalar from all records of a kind, "train" or "validation"."""
        return [(record["step"], record[scalar]) for record in self.records if record["kind"] == kind]

    def last_validation(self) -> dict[str, float] | None:
        """Returns the scores of the newest validation, or None if there was none."""
        for record in reversed(self.records):
            if record["kind"] == "validation":
                return {name: value for name, value in record.items() if name not in ("kind", "step")}
        return None

    def close(self) -> None:
        """Closes the bar and the files."""
        self._bar.close()
        self._events.close()
        self._file.close()

    def __enter__(self) -> TrainingLog:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _show(self, step: int, excerpts: Sequence[Excerpt], *, with_references: bool) -> None:
        if not excerpts:
            return
        # Each validation has its own file, so that the mirror of a run in a bucket uploads it only once. These files
        # have a directory of their own, since TensorBoard only keeps reading the last file of a directory.
        with EventFile(self._directory / "excerpts", step) as events:
            for number, excerpt in enumerate(excerpts, start=1):
                events.add(step, *_summaries(number, excerpt, with_references=with_references))

    def _record(
        self, kind: str, step: int, scalars: Mapping[str, float], others: Mapping[str, float] | None = None
    ) -> None:
        """Writes a record to metrics.jsonl, and its scalars and `others`, named by their full tags, to TensorBoard."""
        from tensorboardX import summary

        record = {"kind": kind, "step": step, **scalars}
        self.records.append(record)
        self._file.write(_line(record))
        self._file.flush()
        named = {**{f"{kind}/{name}": value for name, value in scalars.items()}, **(others or {})}
        self._events.add(step, *(summary.scalar(name, value) for name, value in named.items()))


@contextlib.contextmanager
def _written_later(step: int) -> Iterator[None]:
    """Turns errors of the disk into a warning: unwritten data is kept and written with the next record."""
    try:
        yield
    except OSError as error:
        _log.warning("cannot write the log of step %d yet: %s", step, error)


def _summaries(number: int, excerpt: Excerpt, *, with_references: bool) -> Iterator[Any]:
    """Yields the sounds and spectrograms of an excerpt as TensorBoard summaries."""
    from tensorboardX import summary

    sounds = {f"{stem}_estimate": audio for stem, audio in excerpt.estimates.items()}
    if with_references:
        sounds |= {f"{stem}_reference": audio for stem, audio in excerpt.references.items()}
        sounds["mixture"] = excerpt.mixture
    rate = excerpt.sample_rate
    for name, audio in sounds.items():
        # The sounds are stored with 16 bits, so samples beyond full scale are clipped.
        yield summary.audio(f"song_{number}/{name}", np.clip(audio.T, -1, 1), sample_rate=rate)
        # A TensorBoard tag holds values of one kind only, so the picture needs another tag.
        picture = spectrogram_image(audio, sample_rate=rate, beside=excerpt.mixture)
        yield summary.image(f"song_{number}_spectrogram/{name}", picture, dataformats="HWC")


def progress_line(scalars: Mapping[str, float], rates: Mapping[str, float]) -> str:
    """Returns a line for people about the steps since the last record.

    Args:
      scalars: "loss", and "sdr" in dB.
      rates: "seconds_per_step"; "data_wait", the share of the time spent waiting for data; "audio_seconds_per_second";
        and, where they are known, "mfu" (see `training.throughput.speed`) and "hbm_gib" (see
        `training.throughput.memory_in_use`).
    """
    phrases = [
        f"loss {scalars['loss']:.4f}",
        f"SDR {scalars['sdr']:.2f} dB",
        f"{rates['audio_seconds_per_second']:.3g} s of audio per second",
        f"{rates['seconds_per_step']:.3g} s per step",
        f"MFU {rates['mfu']:.1%}" if "mfu" in rates else "",
        f"{rates['data_wait']:.0%} waiting for data",
        f"{rates['hbm_gib']:.1f} GiB of HBM" if "hbm_gib" in rates else "",
    ]
    return ", ".join(filter(None, phrases))


def describe(scores: dict[str, float]) -> str:
    """Returns a line for people about scores as `evaluation.validation_songs.mean_scores` returns them."""
    stems = [name.removesuffix("_usdr") for name in scores if name.endswith("_usdr") and name != "mixture_usdr"]
    each = ", ".join(f"{stem} {scores[f'{stem}_usdr']:.2f} dB" for stem in stems)
    return (
        f"uSDR on unseen songs: {each}; {scores['improvement']:.2f} dB above the mixture's own "
        f"{scores['mixture_usdr']:.2f} dB"
    )


def on_terminal() -> bool:
    """Whether stderr is a terminal; a progress bar in a log file would be noise."""
    return sys.stderr.isatty()


def _line(record: dict) -> str:
    return json.dumps(record) + "\n"


def read_records(path: Place, last_step: int | None = None) -> list[dict]:
    """Reads the records of metrics.jsonl; returns none if the file does not exist.

    Reading stops at a line that is not a record: it is being written, or a crash has cut it short.

    Args:
      path: of the file.
      last_step: records of later steps are left out; None returns all.
    """
    records = []
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            record = json.loads(line)
            if last_step is None or record["step"] <= last_step:
                records.append(record)
        except (ValueError, KeyError, TypeError):
            break
    return records
