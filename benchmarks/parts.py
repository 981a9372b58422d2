"""Times the parts of the model alone, and the best matrix product of the machine: compare.py's row "parts".

Each part is compiled by itself and works on about as many (frame, band) places as 8 s of audio have. Its time is then
scaled to the whole model. The parts along time are measured for two lengths: on all bands for the shorter one, on as
few bands as give the same number of places for the longer one. Windowed attention must take the same time per place.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from alternating import alternate, seconds_of
from ours import inference, noise

from wroformer_jax.config.model import ModelConfig
from wroformer_jax.model.band_layers import BandSplit, MaskEstimator
from wroformer_jax.model.blocks import Block
from wroformer_jax.model.flops import forward_flops, num_frames
from wroformer_jax.model.implementations import settled
from wroformer_jax.model.layers import Rotary
from wroformer_jax.model.params import init_params
from wroformer_jax.model.roformer import RoFormer
from wroformer_jax.model.stft import inverse_stft, stack_planes, stft, stft_sizes

ATTENTION, SCORES = ("time attention", "frequency attention"), ("time scores", "frequency scores")


class Part(NamedTuple):
    """A part of the model, ready to be timed.

    Attributes:
      run: computes it once.
      times: how often the whole model needs it for the length of the audio.
      flops: of its products, in the whole model.
    """

    run: Callable[[], Any]
    times: float
    flops: int


def share_rows(config: ModelConfig, lengths: tuple[float, float], rounds: int) -> list[dict[str, Any]]:
    """Returns a row for each part and length: its time per second of audio, its share, and its share of the peak.

    Attention is counted without its scores, which have a row of their own.
    """
    config = settled(config, jax.default_backend())
    products = best_product(config.dtype)
    peak = max(products.values())
    params = init_params(RoFormer(config), 0)
    parts = {(name, length): part for length in lengths for name, part in parts_of(config, params, length).items()}
    times = alternate({f"{name}, {length:g} s": part.run for (name, length), part in parts.items()}, rounds)
    whole = statistics.median(alternate({"whole": inference(config, lengths[0], params)}, rounds)["whole"])
    rows = []
    for length in lengths:
        taken = {
            name: part.times * statistics.median(times[f"{name}, {length:g} s"])
            for (name, seconds), part in parts.items()
            if seconds == length
        }
        flops = {name: part.flops for (name, seconds), part in parts.items() if seconds == length}
        for outer, inner in zip(ATTENTION, SCORES, strict=True):
            taken[outer] = max(taken[outer] - taken[inner], 0.0)
        for name, seconds in taken.items():
            speed = flops[name] / seconds if seconds else 0.0
            rows.append(_row(length, name, seconds, seconds / sum(taken.values()), speed, peak))
        total = sum(taken.values())
        rows.append(_row(length, "sum of the parts", total, 1.0, sum(flops.values()) / total, peak))
    flops = sum(forward_flops(config, _frames(config, lengths[0])).values())
    rows.append(_row(lengths[0], "forward pass", whole, whole / total_of(rows, lengths[0]), flops / whole, peak))
    return rows + [_row(lengths[0], f"best product, {name}", "-", "-", speed, peak) for name, speed in products.items()]


def total_of(rows: list[dict[str, Any]], length: float) -> float:
    """Returns the seconds of all parts together for one length."""
    return next(row["s"] for row in rows if row["what"] == "sum of the parts" and row["audio s"] == length)


def best_product(dtype: str) -> dict[str, float]:
    """Returns the speed of the best product of random matrices in FLOP/s, by library."""
    size = 4096 if jax.default_backend() != "cpu" else 2048
    shapes = [(size, size, size), (2 * size,) * 3, (12_288, 384, 1536)]
    makers: dict[str, Callable[[int], Callable[[], Any]]] = {"jax": lambda i: _jax_product(shapes[i], dtype)}
    if jax.default_backend() == "cpu" and dtype == "float32":
        makers["numpy"] = lambda i: _numpy_product(shapes[i])
    try:
        import peers

        device = "cpu" if jax.default_backend() == "cpu" else "cuda"
        makers["torch"] = peers.best_product(shapes, device, dtype)
    except (ImportError, RuntimeError, AssertionError) as error:  # no PyTorch, or one without CUDA
        print(f"torch's products are left out: {error}")
    speeds = {}
    for name, make in makers.items():
        runs = [make(i) for i in range(len(shapes))]
        best = [min(seconds_of(run) for _ in range(4)) for run in runs]
        speeds[name] = max(2 * m * k * n / taken for (m, k, n), taken in zip(shapes, best, strict=True))
    return speeds


def parts_of(config: ModelConfig, params: Any, seconds: float) -> dict[str, Part]:
    """Returns the parts by name, for audio of one length."""
    frames = _frames(config, seconds)
    tokens, bands, dim = frames + config.num_sinks, config.num_bands, config.dim
    some_frames = min(frames, _frames(config, 8.0))
    some_bands = max(1, bands * some_frames // frames)
    flops, block = forward_flops(config, frames), jax.tree.map(lambda leaf: leaf[0], params["blocks"])
    module: Any = Block(config, frames - 1, parent=None)
    tables = _tables(config, params, tokens)
    by_bands, by_frames = config.depth * bands / some_bands, config.depth * tokens / some_frames
    along_time, along_bands = _random(some_bands, tokens, dim), _random(some_frames, bands, dim)
    time_heads, freq_heads = (
        [_random(*x.shape[:2], config.heads, config.dim_head)] * 3 for x in (along_time, along_bands)
    )
    time_heads, freq_heads = ([x.astype(config.dtype) for x in heads] for heads in (time_heads, freq_heads))

    def of_block(part: Callable[..., Any], *inputs: Any) -> Callable[[], Any]:
        def call(params: Any, *inputs: Any) -> Any:
            return module.apply({"params": params}, *inputs, method=part)

        return _ready(call, block, *inputs)

    mixture, _ = noise(config, seconds)
    real, imag = stft(jnp.asarray(mixture), **stft_sizes(config))
    planes = stack_planes(real[..., :some_frames, :], imag[..., :some_frames, :])
    return {
        "STFT": Part(_ready(lambda audio: stft(audio, **stft_sizes(config)), jnp.asarray(mixture)), 1, 0),
        "band split": Part(
            _applied(BandSplit(config), params["band_split"], planes), frames / some_frames, flops["band_split"]
        ),
        ATTENTION[0]: Part(
            of_block(lambda b, x, t: b.time.mixer[0](x, t), along_time, tables[0]), by_bands, flops["time_projections"]
        ),
        SCORES[0]: Part(
            of_block(lambda b, q, k, v: b.time.mixer[0].attend(q, k, v), *time_heads), by_bands, flops["time_scores"]
        ),
        "time feed-forward": Part(
            of_block(lambda b, x: b.time.feed_forward[0](x), along_bands), by_frames, flops["time_feed_forward"]
        ),
        ATTENTION[1]: Part(
            of_block(lambda b, x, t: b.freq.mixer[0](x, t), along_bands, tables[1]),
            by_frames,
            flops["freq_projections"],
        ),
        SCORES[1]: Part(
            of_block(lambda b, q, k, v: b.freq.mixer[0].attend(q, k, v), *freq_heads), by_frames, flops["freq_scores"]
        ),
        "frequency feed-forward": Part(
            of_block(lambda b, x: b.freq.feed_forward[0](x), along_bands), by_frames, flops["freq_feed_forward"]
        ),
        "masks": Part(
            _applied(MaskEstimator(config), params["mask_estimator"], along_bands[None]),
            frames / some_frames,
            flops["masks"],
        ),
        "inverse STFT": Part(
            _ready(lambda *planes: inverse_stft(*planes, **stft_sizes(config)), real, imag), config.num_stems, 0
        ),
    }


def _tables(config: ModelConfig, params: Any, tokens: int) -> tuple[Any, Any]:
    rotary = Rotary(config.dim_head, parent=None)
    time = rotary.apply({"params": params["time_rotary"]}, tokens, num_sinks=config.num_sinks)
    return time, rotary.apply({"params": params["freq_rotary"]}, config.num_bands)


def _applied(module: Any, params: Any, x: Any) -> Callable[[], Any]:
    return _ready(lambda params, x: module.apply({"params": params}, x), params, x)


def _ready(function: Callable[..., Any], *inputs: Any) -> Callable[[], Any]:
    compiled = jax.jit(function)
    return lambda: jax.block_until_ready(compiled(*inputs))


def _random(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape, dtype=np.float32))


def _jax_product(shape: tuple[int, int, int], dtype: str) -> Callable[[], Any]:
    m, k, n = shape
    a, b = _random(m, k).astype(dtype), _random(k, n).astype(dtype)
    run = _ready(jnp.matmul, a, b)
    run()  # compiles
    return run


def _numpy_product(shape: tuple[int, int, int]) -> Callable[[], Any]:
    m, k, n = shape
    a, b = np.asarray(_random(m, k)), np.asarray(_random(k, n))
    return lambda: a @ b


def _frames(config: ModelConfig, seconds: float) -> int:
    return num_frames(config, round(seconds * config.sample_rate))


def _row(
    length: float, name: str, seconds: float | str, share: float | str, speed: float, peak: float
) -> dict[str, Any]:
    return {
        "row": "parts",
        "audio s": length,
        "what": name,
        "s": seconds,
        "ms a second of audio": seconds if isinstance(seconds, str) else 1000 * seconds / length,
        "share": share if isinstance(share, str) else f"{100 * share:.1f} %",
        "GFLOP/s": speed / 1e9 if speed else "-",
        "of the best product": f"{100 * speed / peak:.0f} %" if speed else "-",
    }
