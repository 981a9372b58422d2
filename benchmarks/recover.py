"""Measures the cost of windowed sink attention and the gain of fine-tuning: a small version of arXiv 2510.25745.

    python benchmarks/recover.py

A small full-attention model, the teacher, is trained on synthetic songs. Its time attention is then replaced by
windowed sink attention, with several windows, numbers of sinks and initial sinks. The result is scored without
training, fine-tuned on the stems ("reconstruction"), and fine-tuned on the stems and the teacher's masks
("distillation"). The row "full" is the teacher after as many further steps as the others: the gain of more training
alone.

Every training is a run of the trainer in its own folder. With --minutes the work can be done in several calls: a call
skips what is done and continues what was interrupted. It prints the table after each training. When all are done, it
writes docs/recovery.md, its picture and benchmarks/results/recover.json.
"""

import argparse
import dataclasses
import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from recipes import read_recipe
from report import aligned, print_table, write_result

from wroformer_jax.checkpoints.model_dir import load_model, save_model
from wroformer_jax.config.model import ModelConfig
from wroformer_jax.config.training import TrainingConfig
from wroformer_jax.data.loading import batches
from wroformer_jax.data.prepare.write import prepare_synthetic
from wroformer_jax.data.record_set import RecordSet, is_set
from wroformer_jax.io.files import replacing
from wroformer_jax.model.blocks import Transformer
from wroformer_jax.model.layers import Attention, Params
from wroformer_jax.model.params import add_windowed_sinks, num_parameters
from wroformer_jax.model.roformer import RoFormer
from wroformer_jax.model.rotary import rotary_tables
from wroformer_jax.training.data import TRAIN, loading_of, open_songs
from wroformer_jax.training.trainer import train
from wroformer_jax.training.validation import Validation

ROOT = Path(__file__).parents[1]
RATE = 16000  # Hz
MODEL = {
    "num_bands": 16,
    "sample_rate": RATE,
    "stft_n_fft": 1024,
    "stft_hop_length": 320,  # samples, 20 ms: windows of 2, 10 and 40 reach 20, 100 and 400 ms
    "stft_win_length": 1024,
    "dim": 32,
    "depth": 2,
    "heads": 2,
    "dim_head": 16,
    "dim_feed_forward": 128,
    "mask_layers": 2,
    "dim_mask": 64,
}
FULL = {"time_mixer": "full", "num_sinks": 0}
RUN = {
    "seconds": 2.0,  # 100 frames
    "validation": {"songs": 8, "chunk_seconds": 2.0},
    "batch_size": 4,
    "loading": {"workers": 0},
    "loss": {"windows": (1024, 512, 256), "hop": 320},
    "logging": {"every": 50},
    "checkpoints": {"every": 100},
}
TEACHER = {"steps": 1000, "optimizer": {"learning_rate": 3e-3}, "validation": {"every": 500}}
STUDENT = {
    "steps": 200,
    "optimizer": {"learning_rate": 1e-3, "ema": 0.99, "warmup": 0.1},
    "validation": {"every": 200},
}
WAYS = {"reconstruction": 0.0, "distillation": 1.0}  # weight of the mask loss
SONGS = {"train_songs": 48, "test_songs": 8, "seconds": 8.0, "sample_rate": RATE, "seed": 0}


@dataclasses.dataclass(frozen=True)
class Variant:
    """A time attention: windowed sinks, or full attention if `window` is None."""

    window: int | None
    num_sinks: int = 0
    start: str = ""  # initial values of the sinks: "normal", "zeros" or "mean"

    @property
    def name(self) -> str:
        return f"window{self.window}-sinks{self.num_sinks}{self.start}" if self.window is not None else "full"

    @property
    def model(self) -> dict[str, Any]:
        if self.window is None:
            return FULL
        return {"time_mixer": "windowed_sink", "window": self.window, "num_sinks": self.num_sinks}


# In the order of training; the first one is the paper's.
VARIANTS = (
    Variant(10, 8, "normal"),
    Variant(None),
    Variant(10, 0),
    Variant(2, 8, "normal"),
    Variant(40, 8, "normal"),
    Variant(2, 0),
    Variant(40, 0),
    Variant(10, 8, "zeros"),
    Variant(10, 8, "mean"),
)


def config_of(songs: Path, model: dict[str, Any], **fields: Any) -> TrainingConfig:
    """Returns the quickstart's config with these settings."""
    quickstart = read_recipe("quickstart.py")
    changed = quickstart.with_changes(**RUN, data=str(songs), model={**MODEL, **model})
    return changed.with_changes(**fields)


class Experiment:
    """The folder of the experiment, with the songs, the teacher, its variants and the scores of all by name."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.songs, self.teacher = folder, folder / "songs", folder / "teacher"

    def train_teacher(self) -> None:
        if not is_set(self.songs):
            prepare_synthetic(self.songs, **SONGS, say=functools.partial(print, flush=True))
        self._once("teacher", lambda: train(config_of(self.songs, FULL, **TEACHER), self.teacher))

    def swap(self, variant: Variant) -> None:
        """Replaces the teacher's time attention, saves the result and scores it."""

        def score() -> dict[str, float]:
            config = config_of(self.songs, variant.model)
            loaded, params, _ = load_model(self.teacher)
            if variant.window is not None:
                loaded, params = add_windowed_sinks(
                    loaded, params, window=variant.window, num_sinks=variant.num_sinks, seed=config.seed
                )
            if variant.start in ("zeros", "mean"):
                params["sink_tokens"] = self._sinks(variant, params["sink_tokens"])
            save_model(self.folder / variant.name, loaded, params, overwrite=True)
            scores = Validation(config, open_songs(config)).score(jax.tree.map(jnp.asarray, params))
            assert scores is not None  # the set has songs to test on
            return scores

        self._once(variant.name, score)

    def fine_tune(self, variant: Variant, way: str) -> None:
        """Trains the model that `swap` saved."""
        weights = {"l1": 1.0, "stft": 1.0, "masks": WAYS[way]}
        teacher = {"teacher": str(self.teacher), "teacher_seconds": RUN["seconds"]} if WAYS[way] else {}
        start = {"init": str(self.folder / variant.name), **teacher, "loss": {"weights": weights}}
        config = config_of(self.songs, variant.model, **STUDENT, **start)
        self._once(name_of(variant, way), lambda: train(config, self.folder / name_of(variant, way)))

    def is_done(self, name: str) -> bool:
        """Returns whether a run has its scores."""
        return self._file(name).exists()

    def scores(self, name: str) -> dict[str, float]:
        """Returns the scores of a run that is done."""
        return json.loads(self._file(name).read_text())

    def _once(self, name: str, make: Callable[[], dict[str, float]]) -> None:
        if not self.is_done(name):
            made = make()
            self._file(name).parent.mkdir(parents=True, exist_ok=True)
            with replacing(self._file(name)) as temporary:
                temporary.write_text(json.dumps(made))

    def _file(self, name: str) -> Path:
        return self.folder / "scores" / f"{name}.json"

    def _sinks(self, variant: Variant, drawn: np.ndarray) -> np.ndarray:
        """Returns initial sinks: zeros, or the mean input of the first block plus the random values `drawn`."""
        if variant.start == "zeros":
            return np.zeros_like(drawn)
        config = config_of(self.songs, FULL, batch_size=16)
        with batches(open_songs(config), TRAIN, loading_of(config)) as loader:
            mixture = jnp.asarray(next(loader)["mixture"])
        loaded, params, _ = load_model(self.teacher)
        features = np.asarray(RoFormer(loaded).apply({"params": params}, mixture, method="band_features"))
        return features.mean((0, 1)) + drawn


def ways_of(variant: Variant) -> tuple[str, ...]:
    """Returns the ways to fine-tune a variant; the teacher has nothing to learn from its own masks."""
    return ("reconstruction",) if variant.window is None else ("distillation", "reconstruction")


def name_of(variant: Variant, way: str) -> str:
    """Returns the name of a run."""
    return f"{variant.name}-{way}"


def table(experiment: Experiment) -> list[dict[str, Any]]:
    """Returns a row per variant: uSDR in dB and as a percentage of the teacher's; "-" if it is not done."""
    teacher = experiment.scores("teacher")["usdr"]

    def cells(column: str, name: str) -> dict[str, str]:
        if not experiment.is_done(name):
            return {column: "-", f"{column} %": "-"}
        scores = experiment.scores(name)
        return {column: f"{scores['usdr']:.2f}", f"{column} %": f"{100 * scores['usdr'] / teacher:.1f}"}

    return [
        {
            "window": "full" if variant.window is None else variant.window,
            "sinks": variant.num_sinks,
            "their start": variant.start or "-",
            **cells("swapped", variant.name),
            **{key: cell for way in WAYS for key, cell in cells(way, name_of(variant, way)).items()},
        }
        for variant in VARIANTS
    ]


def attention_by_distance(config: ModelConfig, params: Params, audio: jax.Array) -> dict[str, list[np.ndarray]]:
    """Returns, for "time" and "freq", an array per block: the softmax weight of keys by their distance.

    A weight is the mean over queries (without sinks), bands or frames, heads and examples, for keys at this distance on
    both sides. Weights of sinks are left out, so the values of an array add up to the rest.
    """
    found: dict[str, list[np.ndarray]] = {"time": [], "freq": []}

    def attend(axis: str, q: Any, k: Any, v: Any) -> Any:
        sinks = config.num_sinks if axis == "time" else 0
        tokens = np.arange(q.shape[1])
        distance = abs(tokens[:, None] - tokens)
        visible = np.ones(distance.shape, bool)
        if axis == "time" and config.time_mixer == "windowed_sink":
            visible = (distance <= config.window // 2) | (tokens < sinks) | (tokens[:, None] < sinks)
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) * q.shape[-1] ** -0.5
        weights = jax.nn.softmax(jnp.where(visible, scores, -jnp.inf), axis=-1)
        mean = np.asarray(weights.mean((0, 1)), np.float64)[sinks:, sinks:]
        mass = np.bincount(distance[sinks:, sinks:].ravel(), weights=mean.ravel()) / len(mean)
        found[axis].append(mass)
        return jnp.einsum("bhqk,bkhd->bqhd", weights, v)

    def transform(axis: str, block: Params, x: jax.Array) -> jax.Array:
        mixer = functools.partial(Attention, config=config, attend=functools.partial(attend, axis))
        tables = rotary_tables(params[f"{axis}_rotary"]["freqs"], jnp.arange(x.shape[-2]))
        flat = x.reshape(-1, *x.shape[-2:])
        depth = config.time_transformer_depth if axis == "time" else config.freq_transformer_depth
        return jnp.asarray(
            Transformer(config, depth, mixer, axis).apply({"params": block[axis]}, flat, tables)
        ).reshape(x.shape)

    x = jnp.asarray(RoFormer(config).apply({"params": params}, audio, method="band_features"))
    if config.num_sinks:
        sinks = jnp.broadcast_to(params["sink_tokens"], (len(x), *params["sink_tokens"].shape))
        x = jnp.concatenate([sinks, x], axis=1)
    for index in range(config.depth):
        block = jax.tree.map(lambda leaf, index=index: leaf[index], params["blocks"])
        x = transform("time", block, x.swapaxes(1, 2)).swapaxes(1, 2)
        x = transform("freq", block, x)
    return found


def draw(path: Path, before: dict[str, list[np.ndarray]], after: dict[str, list[np.ndarray]], window: int) -> None:
    """Draws time attention above and frequency attention below; before and after fine-tuning side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6.5), layout="constrained")
    axes = figure.subplots(2, 2, sharey="row", sharex="row")
    for row, (axis, unit) in enumerate((("time", "frames"), ("freq", "bands"))):
        for column, (name, masses) in enumerate((("full attention", before), ("windowed, distilled", after))):
            panel = axes[row, column]
            for index, mass in enumerate(masses[axis]):
                panel.plot(np.cumsum(mass), label=f"block {index + 1}")
            length = len(before[axis][0])
            # A uniform softmax over `length` keys, by distance on both sides.
            uniform = np.array([length, *(2 * (length - np.arange(1, length)))]) / length**2
            panel.plot(np.cumsum(uniform), "--", color="grey", label="uniform attention")
            if axis == "time":
                panel.axvline(window // 2, color="grey", linewidth=0.8, label=f"half a window of {window}")
            panel.set(title=f"{axis} attention, {name}", xlabel=f"distance ({unit})", ylim=(0, 1.02))
            panel.legend(fontsize=8)
        axes[row, 0].set_ylabel("attention within the distance")
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)


def look(experiment: Experiment, picture: Path) -> list[dict[str, Any]]:
    """Draws the picture; returns a table of how local attention is."""
    variant = VARIANTS[0]
    config = config_of(experiment.songs, FULL, batch_size=4)
    songs = RecordSet.open(config.data)
    with batches(songs, songs.splits[-1], loading_of(config)) as loader:
        audio = jnp.asarray(next(loader)["mixture"])
    found = {}
    for name, workdir in (("before", "teacher"), ("after", name_of(variant, "distillation"))):
        loaded, params, _ = load_model(experiment.folder / workdir)
        found[name] = attention_by_distance(loaded, jax.tree.map(jnp.asarray, params), audio)
    assert variant.window is not None
    draw(picture, found["before"], found["after"], variant.window)
    return [
        {
            "attention": axis,
            "block": index + 1,
            "when": name,
            **{f"within {reach}": f"{100 * mass[: reach + 1].sum():.0f} %" for reach in (1, 5, 20)},
            "farther": f"{100 * mass[21:].sum():.0f} %",
            "to sinks": f"{100 * max(0.0, 1 - mass.sum()):.0f} %",
        }
        for axis in ("time", "freq")
        for name, masses in found.items()
        for index, mass in enumerate(masses[axis])
    ]


DOCUMENT = """# What windowed sink attention costs, and what fine-tuning gives back

`python benchmarks/recover.py` writes this page. It is a small version of the experiment of arXiv 2510.25745: {model} M
parameters, {train_songs} synthetic songs of {seconds:g} s to train on and {test_songs} to test on, crops of {crop:g} s,
frames of {hop:g} ms. A full-attention teacher is trained for {teacher_steps} steps. Then windowed sink attention
replaces its time attention, and the result is scored as it is ("swapped"), after {student_steps} steps on the stems
("reconstruction"), and after as many on the stems and on the teacher's masks ("distillation"). Scores are the uSDR of
the vocals in dB, the mean over the test songs; % is the share of the teacher's {teacher:.2f} dB (the mixtures have
{mixture:.2f} dB). The paper, at full size and on real songs, has 92 %.

```
{scores}
```

The row "full" is the teacher after as many further steps as the others: it shows the effect of more training alone.
"Their start" is the value of the sinks before training: random (normal, standard deviation 0.02), zeros, or the mean of
the frames plus a random value.

With a window of {window} and {sinks} sinks, {kept:.1f} % of the teacher's uSDR remain after distillation.

## How far attention goes

The table gives the softmax weight by distance in frames (time) and in bands (frequency), the mean over queries, heads,
bands or frames; before (the teacher) and after (window {window}, {sinks} sinks, distilled).

```
{attention}
```

![attention within a distance](recovery_attention.png)
"""


def write_document(
    path: Path, experiment: Experiment, rows: list[dict[str, Any]], attention: list[dict[str, Any]]
) -> None:
    """Writes the page from the numbers of this experiment."""
    teacher, best = experiment.scores("teacher"), VARIANTS[0]
    text = DOCUMENT.format(
        model=f"{num_parameters(config_of(experiment.songs, FULL).model) / 1e6:.2f}",
        **{name: SONGS[name] for name in ("train_songs", "test_songs", "seconds")},
        crop=RUN["seconds"],
        hop=1000 * MODEL["stft_hop_length"] / RATE,
        teacher_steps=TEACHER["steps"],
        student_steps=STUDENT["steps"],
        teacher=teacher["usdr"],
        mixture=teacher["mixture_usdr"],
        scores=aligned(rows),
        attention=aligned(attention),
        window=best.window,
        sinks=best.num_sinks,
        kept=100 * experiment.scores(name_of(best, "distillation"))["usdr"] / teacher["usdr"],
    )
    with replacing(path) as temporary:
        temporary.write_text(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/recover"), help="where runs are kept")
    parser.add_argument(
        "--minutes", type=float, default=np.inf, help="begin no training after so many minutes (default: train all)"
    )
    arguments = parser.parse_args()
    experiment, end = Experiment(arguments.folder), time.monotonic() + 60 * arguments.minutes
    experiment.train_teacher()
    for variant in VARIANTS:
        if time.monotonic() < end:
            experiment.swap(variant)
        for way in ways_of(variant):
            if time.monotonic() < end and not experiment.is_done(name_of(variant, way)):
                experiment.fine_tune(variant, way)
                print_table(table(experiment))
    if any(not experiment.is_done(name_of(variant, way)) for variant in VARIANTS for way in ways_of(variant)):
        print("not everything is done yet: the same command continues")
        return
    rows, attention = table(experiment), look(experiment, ROOT / "docs" / "recovery_attention.png")
    print_table(attention)
    print_table(rows)
    write_result("recover", "python benchmarks/recover.py", [*rows, *attention])
    write_document(ROOT / "docs" / "recovery.md", experiment, rows, attention)


if __name__ == "__main__":
    main()
