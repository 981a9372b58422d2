"""What windowed sink attention costs, and what fine-tuning gives back: the experiment of arXiv 2510.25745 in small.

    python benchmarks/recover.py

A small full-attention model is trained on synthetic songs. Its time attention is then replaced by windowed sink
attention of several windows, numbers of sinks, and starts of the sinks: without training, fine-tuned on the stems
("reconstruction"), and fine-tuned on the stems and on the masks of the model that it was ("distillation"). The row
"full" is the teacher itself, trained on for as long as the others are: what they gain by more training alone.

Every training is a run of the trainer in a folder of its own. What is done is not done again, and what was interrupted
goes on: the command can be given in parts (--minutes). The table is printed whenever something is added to it. When all
is done, docs/recovery.md, its picture and benchmarks/results/recover.json are written.
"""

import argparse
import dataclasses
import functools
import importlib.util
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
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
WAYS = {"reconstruction": 0.0, "distillation": 1.0}  # weight of the masks
SONGS = {"train_songs": 48, "test_songs": 8, "seconds": 8.0, "sample_rate": RATE, "seed": 0}


@dataclasses.dataclass(frozen=True)
class Variant:
    """A windowed sink attention; no window is full attention."""

    window: int | None
    num_sinks: int = 0
    start: str = ""  # of the sinks

    @property
    def name(self) -> str:
        return f"window{self.window}-sinks{self.num_sinks}{self.start}" if self.window is not None else "full"

    @property
    def model(self) -> dict[str, Any]:
        if self.window is None:
            return FULL
        return {"time_mixer": "windowed_sink", "window": self.window, "num_sinks": self.num_sinks}


# In the order in which they are trained: the paper's own comes first.
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
    """A run like the quickstart's but for what is given."""
    spec = importlib.util.spec_from_file_location("quickstart", ROOT / "configs" / "quickstart.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    quickstart = TrainingConfig.from_dict(module.get_config().to_dict())
    changed = quickstart.with_changes(**RUN, data=str(songs), model={**MODEL, **model})
    return changed.with_changes(**fields)


class Experiment:
    """The folder of the experiment: the songs, the teacher, what is made of it, and the scores of all by name."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.songs, self.teacher = folder, folder / "songs", folder / "teacher"

    def train_teacher(self) -> None:
        if not is_set(self.songs):
            prepare_synthetic(self.songs, **SONGS, say=functools.partial(print, flush=True))
        self._once("teacher", lambda: train(config_of(self.songs, FULL, **TEACHER), self.teacher))

    def swap(self, variant: Variant) -> None:
        """Saves and scores the teacher with another time attention."""

        def score() -> dict[str, float]:
            config = config_of(self.songs, variant.model)
            there, params, _ = load_model(self.teacher)
            if variant.window is not None:
                there, params = add_windowed_sinks(
                    there, params, window=variant.window, num_sinks=variant.num_sinks, seed=config.seed
                )
            if variant.start in ("zeros", "mean"):
                params["sink_tokens"] = self._sinks(variant, params["sink_tokens"])
            save_model(self.folder / variant.name, there, params, overwrite=True)
            return Validation(config, open_songs(config)).score(jax.tree.map(jnp.asarray, params))

        self._once(variant.name, score)

    def fine_tune(self, variant: Variant, way: str) -> None:
        """Trains what `swap` saved."""
        weights = {"l1": 1.0, "stft": 1.0, "masks": WAYS[way]}
        teacher = {"teacher": str(self.teacher), "teacher_seconds": RUN["seconds"]} if WAYS[way] else {}
        start = {"init": str(self.folder / variant.name), **teacher, "loss": {"weights": weights}}
        config = config_of(self.songs, variant.model, **STUDENT, **start)
        self._once(name_of(variant, way), lambda: train(config, self.folder / name_of(variant, way)))

    def scores(self, name: str) -> dict[str, float] | None:
        """The scores of what is done; None for what is not."""
        path = self._file(name)
        return json.loads(path.read_text()) if path.exists() else None

    def _once(self, name: str, make: Callable[[], dict[str, float]]) -> None:
        if self.scores(name) is None:
            made = make()
            self._file(name).parent.mkdir(parents=True, exist_ok=True)
            with replacing(self._file(name)) as temporary:
                temporary.write_text(json.dumps(made))

    def _file(self, name: str) -> Path:
        return self.folder / "scores" / f"{name}.json"

    def _sinks(self, variant: Variant, drawn: np.ndarray) -> np.ndarray:
        """Zeros, or the mean of what the first block sees of training mixtures, told apart by what was drawn."""
        if variant.start == "zeros":
            return np.zeros_like(drawn)
        config = config_of(self.songs, FULL, batch_size=16)
        with batches(open_songs(config), TRAIN, loading_of(config)) as loader:
            mixture = jnp.asarray(next(loader)["mixture"])
        there, params, _ = load_model(self.teacher)
        features = RoFormer(there).apply({"params": params}, mixture, method="band_features")
        return np.asarray(features.mean((0, 1))) + drawn


def ways_of(variant: Variant) -> tuple[str, ...]:
    """How it is fine-tuned; the teacher has nothing to learn from its own masks."""
    return ("reconstruction",) if variant.window is None else ("distillation", "reconstruction")


def name_of(variant: Variant, way: str) -> str:
    """Of a run."""
    return f"{variant.name}-{way}"


def table(experiment: Experiment) -> list[dict[str, Any]]:
    """A row for each variant: uSDR in dB, and as a part of the teacher's; "-" is not done."""
    teacher = experiment.scores("teacher")["usdr"]

    def cells(column: str, name: str) -> dict[str, str]:
        scores = experiment.scores(name)
        if scores is None:
            return {column: "-", f"{column} %": "-"}
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


def attention_by_distance(config: ModelConfig, params: Params, audio: np.ndarray) -> dict[str, list[np.ndarray]]:
    """Which part of each layer's attention goes how far: for "time" and "freq", an array by distance for each block.

    A value is the mean over queries that are no sinks, bands or frames, heads and examples, of the softmax weight of
    the keys at this distance, on both sides. What goes to sinks is left out, so that the values add up to the rest.
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

    def transform(axis: str, block: Params, x: Any) -> Any:
        mixer = functools.partial(Attention, config=config, attend=functools.partial(attend, axis))
        tables = rotary_tables(params[f"{axis}_rotary"]["freqs"], jnp.arange(x.shape[-2]))
        flat = x.reshape(-1, *x.shape[-2:])
        depth = config.time_transformer_depth if axis == "time" else config.freq_transformer_depth
        return Transformer(config, depth, mixer).apply({"params": block[axis]}, flat, tables).reshape(x.shape)

    x = RoFormer(config).apply({"params": params}, audio, method="band_features")
    if config.num_sinks:
        sinks = jnp.broadcast_to(params["sink_tokens"], (len(x), *params["sink_tokens"].shape))
        x = jnp.concatenate([sinks, x], axis=1)
    for index in range(config.depth):
        block = jax.tree.map(lambda leaf, index=index: leaf[index], params["blocks"])
        x = transform("time", block, x.swapaxes(1, 2)).swapaxes(1, 2)
        x = transform("freq", block, x)
    return found


def draw(path: Path, before: dict[str, list[np.ndarray]], after: dict[str, list[np.ndarray]], window: int) -> None:
    """Writes the picture: time attention above, frequency attention below, before and after side by side."""
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
    """The picture, and a table of how local attention is."""
    variant = VARIANTS[0]
    config = config_of(experiment.songs, FULL, batch_size=4)
    songs = RecordSet.open(config.data)
    with batches(songs, songs.splits[-1], loading_of(config)) as loader:
        audio = jnp.asarray(next(loader)["mixture"])
    found = {}
    for name, workdir in (("before", "teacher"), ("after", name_of(variant, "distillation"))):
        there, params, _ = load_model(experiment.folder / workdir)
        found[name] = attention_by_distance(there, jax.tree.map(jnp.asarray, params), audio)
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
    """The page, of numbers of this experiment alone."""
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
    parser.add_argument("--minutes", type=float, default=np.inf, help="begin no training after so many (default: all)")
    arguments = parser.parse_args()
    experiment, end = Experiment(arguments.folder), time.monotonic() + 60 * arguments.minutes
    experiment.train_teacher()
    for variant in VARIANTS:
        if time.monotonic() < end:
            experiment.swap(variant)
        for way in ways_of(variant):
            if time.monotonic() < end and experiment.scores(name_of(variant, way)) is None:
                experiment.fine_tune(variant, way)
                print_table(table(experiment))
    if any(experiment.scores(name_of(variant, way)) is None for variant in VARIANTS for way in ways_of(variant)):
        print("not all is done yet: the same command goes on")
        return
    rows, attention = table(experiment), look(experiment, ROOT / "docs" / "recovery_attention.png")
    print_table(attention)
    print_table(rows)
    write_result("recover", "python benchmarks/recover.py", [*rows, *attention])
    write_document(ROOT / "docs" / "recovery.md", experiment, rows, attention)


if __name__ == "__main__":
    main()
