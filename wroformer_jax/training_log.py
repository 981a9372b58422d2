"""What a training run tells: lines or a progress bar for people, metrics.jsonl and TensorBoard for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path

from wroformer_jax.files import replacing

METRICS = "metrics.jsonl"


class TrainingLog:
    """Records of a run. Use as a context manager.

    metrics.jsonl holds one record a line and nothing that depends on the clock, so that two runs of the same settings
    write the same file, and so does a run that was killed and resumed.

    Args:
      workdir: gets metrics.jsonl and events/ (TensorBoard).
      first_step: the step training goes on from; records of later steps, from before a crash, are dropped.
      steps: the step it ends with.
    """

    def __init__(self, workdir: Path, first_step: int, steps: int) -> None:
        from tensorboardX import SummaryWriter
        from tqdm import tqdm

        path = workdir / METRICS
        self.records = _read(path, first_step)
        with replacing(path) as temporary:
            temporary.write_text("".join(map(_line, self.records)), encoding="utf-8")
        self._file = path.open("a", encoding="utf-8")
        self._events = SummaryWriter(str(workdir / "events"), purge_step=first_step + 1)
        self._bar = tqdm(total=steps, initial=first_step, unit="step", disable=not on_terminal())
        self._steps = steps

    def train(self, step: int, *, seconds_per_step: float, data_wait: float, **scalars: float) -> None:
        """Records means over the steps since the last record.

        Args:
          step: the last of them.
          seconds_per_step: of the clock.
          data_wait: share of the time that was spent waiting for data.
          scalars: "loss" and whatever else the training step measures.
        """
        self._record("train", step, scalars)
        self._events.add_scalar("train/seconds_per_step", seconds_per_step, step)
        self._events.add_scalar("train/data_wait", data_wait, step)
        if on_terminal():
            self._bar.set_postfix(loss=f"{scalars['loss']:.3f}", data_wait=f"{data_wait:.0%}", refresh=False)
            self._bar.update(step - self._bar.n)
        else:
            self.say(
                f"step {step}/{self._steps}: loss {scalars['loss']:.4f}, {seconds_per_step:.2f} s a step, "
                f"{data_wait:.0%} waiting for data"
            )

    def validation(self, step: int, scores: dict[str, float]) -> None:
        """Records what `evaluate.validate` returns."""
        self._record("validation", step, scores)
        self.say(f"step {step}/{self._steps}: {describe(scores)}")

    def say(self, line: str) -> None:
        """Prints a line above the progress bar."""
        self._bar.write(line, file=sys.stdout)
        sys.stdout.flush()

    def curve(self, kind: str, scalar: str) -> list[tuple[int, float]]:
        """(step, value) of all records of a kind, "train" or "validation"."""
        return [(record["step"], record[scalar]) for record in self.records if record["kind"] == kind]

    def last_validation(self) -> dict[str, float] | None:
        """The scores of the newest validation, None if there was none."""
        for record in reversed(self.records):
            if record["kind"] == "validation":
                return {name: value for name, value in record.items() if name not in ("kind", "step")}
        return None

    def close(self) -> None:
        """Ends the bar and flushes the files."""
        self._bar.close()
        self._events.close()
        self._file.close()

    def __enter__(self) -> TrainingLog:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _record(self, kind: str, step: int, scalars: dict[str, float]) -> None:
        record = {"kind": kind, "step": step, **scalars}
        self.records.append(record)
        self._file.write(_line(record))
        self._file.flush()
        for name, value in scalars.items():
            self._events.add_scalar(f"{kind}/{name}", value, step)
        self._events.flush()


def describe(scores: dict[str, float]) -> str:
    """One line for people of what `evaluate.validate` returns."""
    stems = [name.removesuffix("_usdr") for name in scores if name.endswith("_usdr") and name != "mixture_usdr"]
    each = ", ".join(f"{stem} {scores[f'{stem}_usdr']:.2f} dB" for stem in stems)
    return (
        f"uSDR on unseen songs: {each}; {scores['improvement']:.2f} dB above the mixture's own "
        f"{scores['mixture_usdr']:.2f} dB"
    )


def on_terminal() -> bool:
    """Whether somebody watches: a progress bar in a log file would be noise."""
    return sys.stderr.isatty()


def progress(items: Iterable[int], what: str) -> Iterable[int]:
    """Iterates with a progress bar on a terminal."""
    from tqdm import tqdm

    return tqdm(items, desc=what, leave=False, disable=not on_terminal())


def _line(record: dict) -> str:
    return json.dumps(record) + "\n"


def _read(path: Path, last_step: int) -> list[dict]:
    """The records up to a step; a line that is none, because a crash cut it short, belongs to a later one."""
    records = []
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            record = json.loads(line)
            if record["step"] <= last_step:
                records.append(record)
        except (ValueError, KeyError, TypeError):
            break
    return records
