"""From a mixture to its stems: `separate` for arrays, `separate_blocks` for streams of any length.

One song's way: blocks of mixture come in at their own rate, are resampled and given the model's channels, cut into
overlapping chunks, and separated; the estimates are overlap-added, brought back to the mixture's channels and
rate, and leave as blocks of stems. Every stage is a generator that holds no more than a few chunks.

The overlap-add is that of the public tools (`demix` of ZFTurbo's Music-Source-Separation-Training): chunks every
chunk / overlap samples, linear fades over a tenth of a chunk, the sum divided by the summed weights, and the ends
of a song reflected so that every sample lies in `overlap` chunks.
"""

from __future__ import annotations

import collections
import functools
import itertools
import math
import numbers
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Float32

from wroformer_jax.config.model import ModelConfig, forward_only
from wroformer_jax.errors import InputError
from wroformer_jax.io.audio import BLOCK_SAMPLES, resample_blocks
from wroformer_jax.model.roformer import RoFormer
from wroformer_jax.parallel.context_parallel import can_cut_time
from wroformer_jax.separation_over_devices import separate_over_devices

Params = Mapping[str, Any]
Run = Callable[[Float32[np.ndarray, "batch channel sample"]], Float32[np.ndarray, "batch stem channel sample"]]

# Frames x bands that are worked on at a time where a recording is separated in one pass.
WHOLE_PLACES = 65536

LOG_SECONDS = 30.0  # between two lines of progress where there is no terminal
# More than anybody separates at once. Far above, sizes overflow in ways that no longer look like too little memory.
LONGEST_CHUNK = 24 * 3600  # seconds
LARGEST_BATCH = 1 << 16  # chunks

# A weight of zero would lose a sample that lies in one chunk only (overlap 1); this one rounds away beside others.
_SMALLEST_WEIGHT = 1e-6


def separate(
    model: Any,
    params: Params,
    mixture: np.ndarray,
    *,
    sample_rate: int,
    chunk_seconds: float | None = 8.0,
    overlap: int = 2,
    batch_size: int = 1,
    progress: bool = False,
    tta: bool = False,
) -> dict[str, np.ndarray]:
    """Separates a recording into its stems.

    A mono mixture given to a stereo model is separated as two equal channels and averaged back; a stereo mixture
    given to a mono model is separated a channel at a time. A mixture at another rate than the model's is resampled
    on the way in and out.

    Args:
      model: what `load` returned first (any object with `config` and `apply`).
      params: what `load` returned second.
      mixture: (channels, samples), 1 or 2 channels, floating point.
      sample_rate: of the mixture and of the stems, in Hz.
      chunk_seconds: length of what the model hears at once, in seconds, rounded up to whole hops; None for
        the whole recording in one pass.
      overlap: chunks that each sample lies in.
      batch_size: chunks that are separated at a time.
      progress: shows a bar on stderr.
      tta: test-time augmentation: averages the estimates for the mixture, for its negative and (stereo) for its
        channels swapped; three times the work.

    Returns:
      For each stem of the model float32 (channels, samples), as long as the mixture. For a model of one stem also
      the rest of the mixture, mixture - stem, under the name 'instrumental' (see `stem_names`).

    Raises:
      InputError: the mixture or a setting cannot be used, there is too little memory, or the model's output is
        not finite.
    """
    mixture = _checked_mixture(mixture)
    samples = mixture.shape[1]
    blocks = (mixture[:, i : i + BLOCK_SAMPLES] for i in range(0, samples, BLOCK_SAMPLES))
    separated = separate_blocks(
        model,
        params,
        blocks,
        sample_rate=sample_rate,
        chunk_seconds=chunk_seconds,
        overlap=overlap,
        batch_size=batch_size,
        tta=tta,
    )
    if progress:
        separated = with_progress(separated, samples=samples, sample_rate=sample_rate, label="separate")
    stems = {name: np.empty_like(mixture) for name in stem_names(model.config)}
    done = 0
    for block in separated:
        for name, estimate in block.items():
            stems[name][:, done : done + estimate.shape[1]] = estimate
        done += estimate.shape[1]
    return stems


def stem_names(config: ModelConfig) -> tuple[str, ...]:
    """The names that `separate` returns: the model's stems and, if there is only one, the rest of the mixture.

    The rest is called 'instrumental', or 'vocals' where the stem itself is the instrumental.
    """
    if len(config.stems) > 1:
        return config.stems
    return (*config.stems, "vocals" if config.stems[0] == "instrumental" else "instrumental")


def separate_blocks(
    model: Any,
    params: Params,
    blocks: Iterable[Float32[np.ndarray, "channel _"]],
    *,
    sample_rate: int,
    chunk_seconds: float | None = 8.0,
    overlap: int = 2,
    batch_size: int = 1,
    tta: bool = False,
) -> Iterator[dict[str, np.ndarray]]:
    """Separates a stream: takes blocks of mixture, yields blocks of stems as they are finished.

    The blocks that come out have other lengths than those that go in, the same for all stems, and add up to the
    same number of samples. What is held at any time is a few chunks, however long the stream (all of it for
    `chunk_seconds=None`). Arguments and errors as for `separate`.
    """
    config: ModelConfig = model.config
    _check_whole("sample_rate", sample_rate)
    _check_whole("batch_size", batch_size, most=LARGEST_BATCH)
    chunk = chunk_samples(config, chunk_seconds, overlap)
    blocks = iter(blocks)
    first = next(blocks, None)
    if first is None:
        return
    channels = len(first)
    # The mixture waits here for its stems: the rest is a difference, and the count is where the stems end.
    waiting = _Queue()
    heard = waiting.recording(itertools.chain([first], blocks))
    if sample_rate != config.sample_rate:
        heard = resample_blocks(_with_room(heard, sample_rate, config), sample_rate, config.sample_rate)
    apply = _apply if chunk else _apply_to_whole
    run = _runner(functools.partial(apply, model, jax.device_put(params)), model.config, channels=channels, tta=tta)
    if chunk is None:
        estimates = _in_one_pass(heard, run, config)
    else:
        estimates = _overlap_add(heard, run, chunk=chunk, step=chunk // overlap, batch_size=batch_size)
    amount = "the whole recording" if chunk is None else f"{batch_size} x {chunk / config.sample_rate:.1f} s of audio"
    estimates = _memory_errors_named(estimates, amount)
    flat = (estimate.reshape(-1, estimate.shape[-1]) for estimate in estimates)
    for block in resample_blocks(flat, config.sample_rate, sample_rate):
        mixture = waiting.take(block.shape[-1])
        samples = mixture.shape[-1]
        if samples == 0:
            continue
        stems = block[:, :samples].reshape(config.num_stems, channels, samples)
        names = stem_names(config)
        if len(names) > config.num_stems:
            stems = (*stems, mixture - stems[0])
        yield dict(zip(names, stems, strict=True))


def chunk_samples(config: ModelConfig, chunk_seconds: float | None, overlap: int) -> int | None:
    """The length of a chunk in samples of the model, whole hops; None for the whole recording.

    Raises:
      InputError: the chunk is shorter than an STFT window or longer than a day, or `overlap` is not a whole number
        of at least 1.
    """
    _check_whole("overlap", overlap)
    if chunk_seconds is None:
        return None
    shortest = max(config.stft_n_fft, overlap)
    if not math.isfinite(chunk_seconds) or chunk_seconds * config.sample_rate < shortest:
        raise InputError(
            f"chunk_seconds is {chunk_seconds}, expected at least {shortest / config.sample_rate:.3f} (an STFT window, "
            "and a sample for each overlapping chunk)"
        )
    if chunk_seconds > LONGEST_CHUNK:
        raise InputError(f"chunk_seconds is {chunk_seconds}, expected at most {LONGEST_CHUNK} (a day)")
    return _whole_hops(config, math.ceil(chunk_seconds * config.sample_rate))


def in_pieces(config: ModelConfig) -> ModelConfig:
    """The settings with which a recording is separated in one pass: the model's own, but for remat, and in pieces.

    Args:
      config: of the model. If it says how much is worked on at once, that is kept.
    """
    return forward_only(config, config.places_at_once or WHOLE_PLACES)


def with_progress(
    blocks: Iterable[dict[str, np.ndarray]], *, samples: int, sample_rate: int, label: str
) -> Iterator[dict[str, np.ndarray]]:
    """Passes blocks of stems on and shows how far they are, with the speed as multiples of real time.

    On stderr: a bar on a terminal, elsewhere a line every LOG_SECONDS.

    Args:
      blocks: of `separate_blocks`.
      samples: how many there will be for each channel.
      sample_rate: in Hz.
      label: what stands before the bar.
    """
    import tqdm

    layout = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
    start = logged = time.perf_counter()
    with tqdm.tqdm(total=samples, desc=label, bar_format=layout, disable=not sys.stderr.isatty()) as bar:
        done = 0
        for block in blocks:
            done, now = done + _length(block), time.perf_counter()
            pace = speed(done / sample_rate, now - start)
            bar.set_postfix_str(pace)
            bar.update(_length(block))
            if bar.disable and now - logged >= LOG_SECONDS:
                print(f"{label}: {done / samples:.0%}, {pace}", file=sys.stderr, flush=True)
                logged = now
            yield block


def _length(block: Mapping[str, np.ndarray]) -> int:
    return next(iter(block.values())).shape[-1]


def speed(audio_seconds: float, seconds: float) -> str:
    """'12.3x real time'."""
    return f"{audio_seconds / max(seconds, 1e-9):.1f}x real time"


class _Queue:
    """Samples that went by and are still needed."""

    def __init__(self) -> None:
        self._blocks: collections.deque[np.ndarray] = collections.deque()

    def recording(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Passes blocks on and keeps them."""
        for block in blocks:
            self._blocks.append(block)
            yield block

    def take(self, samples: int) -> Float32[np.ndarray, "channel _"]:
        """The oldest samples, at most that many; they are no longer kept."""
        taken = _gather((self._blocks.popleft() for _ in range(len(self._blocks))), samples)
        self._blocks.appendleft(taken[:, samples:])
        return taken[:, :samples]


class _Chunk(NamedTuple):
    """What the model hears at once, and its place in the song."""

    audio: Float32[np.ndarray, "channel chunk"]  # padded at the end if the song is over
    samples: int  # of audio that are not padding
    is_first: bool
    is_last: bool


def _overlap_add(
    blocks: Iterable[Float32[np.ndarray, "channel _"]], run: Run, *, chunk: int, step: int, batch_size: int
) -> Iterator[Float32[np.ndarray, "stem channel _"]]:
    """Separates a stream in overlapping chunks; yields as many samples as come in."""
    blocks = iter(blocks)
    border = chunk - step
    head = _gather(blocks, 2 * border + 1)
    if head.shape[-1] <= 2 * border:  # too short to reflect, as the public tools decide it
        border = 0
    chunks = _chunks(_reflect_ends(itertools.chain([head], blocks), border), chunk=chunk, step=step, border=border)
    total, weights = 0.0, np.zeros(chunk, np.float32)
    surplus = border  # samples of the reflection at the start, still to be dropped
    for part, estimate in _estimates(chunks, run, batch_size):
        weight = _window(chunk, fade_in=not part.is_first, fade_out=border > 0 or not part.is_last)
        total = total + weight * estimate
        weights += weight
        # Later chunks begin a step further on; after the last one only the reflection at the end is left over.
        finished = part.samples - border if part.is_last else step
        if finished > surplus:
            yield total[..., surplus:finished] / weights[surplus:finished]
        surplus = max(0, surplus - finished)
        total, weights = _shifted(total, step), _shifted(weights, step)


def _window(chunk: int, *, fade_in: bool, fade_out: bool) -> Float32[np.ndarray, " chunk"]:
    """The weight of each sample of a chunk: 1, with linear fades over a tenth of it."""
    fade = np.maximum(np.linspace(0, 1, chunk // 10, dtype=np.float32), _SMALLEST_WEIGHT)
    window = np.ones(chunk, np.float32)
    if fade_in:
        window[: len(fade)] = fade
    if fade_out:
        window[chunk - len(fade) :] = fade[::-1]
    return window


def _reflect_ends(
    blocks: Iterable[Float32[np.ndarray, "channel _"]], border: int
) -> Iterator[Float32[np.ndarray, "channel _"]]:
    """Puts `border` samples in front of and behind a stream, mirrored at its first and last sample.

    The first block must be longer than `border`.
    """
    tail = None
    for block in blocks:
        if tail is None:
            yield block[:, border:0:-1]
            tail = block[:, :0]
        yield block
        tail = np.concatenate([tail, block], axis=-1)[:, -(border + 1) :]
    if tail is not None:
        yield tail[:, -2 : -(border + 2) : -1]


def _chunks(
    blocks: Iterable[Float32[np.ndarray, "channel _"]], *, chunk: int, step: int, border: int
) -> Iterator[_Chunk]:
    """Cuts a stream into chunks that start every `step` samples.

    The last one is the last to reach a sample that is not in the `border` at the end.
    """
    blocks = iter(blocks)
    waiting = _gather(blocks, chunk + 1)
    is_first = True
    while waiting.shape[-1]:
        samples = min(chunk, waiting.shape[-1])
        is_last = waiting.shape[-1] <= step + border
        yield _Chunk(_pad_end(waiting[:, :samples], chunk), samples, is_first, is_last)
        if is_last:
            return
        waiting = _gather(blocks, chunk + 1, waiting[:, step:])
        is_first = False


def _estimates(
    chunks: Iterable[_Chunk], run: Run, batch_size: int
) -> Iterator[tuple[_Chunk, Float32[np.ndarray, "stem channel chunk"]]]:
    """Runs the model on batches that all have the same size, so that it is compiled once."""
    chunks = iter(chunks)
    while batch := list(itertools.islice(chunks, batch_size)):
        audio = np.zeros((batch_size, *batch[0].audio.shape), np.float32)
        for i, part in enumerate(batch):
            audio[i] = part.audio
        yield from zip(batch, run(audio), strict=False)  # the estimates of the padding are left over


def _in_one_pass(
    blocks: Iterable[Float32[np.ndarray, "channel _"]], run: Run, config: ModelConfig
) -> Iterator[Float32[np.ndarray, "stem channel _"]]:
    """Separates a whole stream at once, padded so that the model's whole hops hold all of it."""
    mixture = np.concatenate(list(blocks), axis=-1)
    samples = mixture.shape[-1]
    yield run(_pad_end(mixture, _whole_hops(config, max(samples, config.min_samples)))[None])[0, ..., :samples]


def _runner(apply: Callable[[np.ndarray], Any], config: ModelConfig, *, channels: int, tta: bool) -> Run:
    """The model as a function of numpy arrays with the mixture's channels, augmented if asked for."""

    def run(audio: np.ndarray) -> np.ndarray:
        estimate = np.asarray(apply(audio))
        if not np.isfinite(estimate).all():
            raise InputError("the model's output has NaN or infinite samples: its weights are damaged")
        return estimate

    def augmented(audio: np.ndarray) -> np.ndarray:
        if not tta:
            return run(audio)
        estimates = [run(audio), -run(-audio)]
        if channels == config.channels == 2:
            estimates.append(run(audio[:, ::-1])[:, :, ::-1])
        return sum(estimates) / np.float32(len(estimates))

    if channels == config.channels:
        return augmented
    if channels == 1:
        return lambda audio: augmented(np.repeat(audio, 2, axis=1)).mean(axis=2, keepdims=True)
    return lambda audio: np.concatenate([augmented(audio[:, i : i + 1]) for i in range(channels)], axis=2)


@functools.partial(jax.jit, static_argnums=0)
def _apply(
    model: Any, params: Params, audio: Float[jax.Array, "batch channel sample"]
) -> Float[jax.Array, "batch stem channel sample"]:
    return model.apply({"params": params}, audio)


def _apply_to_whole(
    model: Any, params: Params, audio: Float32[np.ndarray, "batch channel sample"]
) -> Float[jax.Array, "batch stem channel sample"]:
    """A recording in one pass: piece by piece, so that little more than the residual stream is held at a time.

    With several devices each has its part of the time, if attention is windowed and the parts are long enough. Sinks
    hear all of the recording in any case.
    """
    if isinstance(model, RoFormer):
        model = RoFormer(in_pieces(model.config))
        if can_cut_time(model.config, audio.shape[-1], len(jax.local_devices())):
            return separate_over_devices(model, params, audio)
    return _apply(model, params, audio)


def _memory_errors_named(estimates: Iterable[np.ndarray], amount: str) -> Iterator[np.ndarray]:
    """Passes estimates on; turns the errors of numpy and XLA about too little memory into one sentence."""
    try:
        yield from estimates
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise InputError(
            f"not enough memory for {amount} at once: use shorter chunks or a smaller batch size"
        ) from error


def _with_room(
    blocks: Iterable[Float32[np.ndarray, "channel _"]], sample_rate: int, config: ModelConfig
) -> Iterator[Float32[np.ndarray, "channel _"]]:
    """Appends the silence that makes resampling there and back give no fewer samples than went in."""
    for block in blocks:
        yield block
    yield np.zeros((len(block), math.ceil(sample_rate / config.sample_rate)), np.float32)


def _gather(blocks: Iterator[np.ndarray], samples: int, start: np.ndarray | None = None) -> np.ndarray:
    """Joins `start` and blocks until there are that many samples, or no more."""
    parts = [] if start is None else [start]
    held = sum(part.shape[-1] for part in parts)
    while held < samples and (block := next(blocks, None)) is not None:
        parts.append(block)
        held += block.shape[-1]
    return np.concatenate(parts, axis=-1)


def _pad_end(audio: Float32[np.ndarray, "channel _"], samples: int) -> Float32[np.ndarray, "channel _"]:
    """Lengthens audio by its own reflection or, if it would be less than half of the result, by silence."""
    missing = samples - audio.shape[-1]
    mode = "reflect" if audio.shape[-1] > samples // 2 else "constant"
    return np.pad(audio, ((0, 0), (0, missing)), mode=mode)


def _shifted(samples: np.ndarray, step: int) -> np.ndarray:
    """The same samples `step` earlier, with zeros coming in at the end."""
    shifted = np.zeros_like(samples)
    shifted[..., : samples.shape[-1] - step] = samples[..., step:]
    return shifted


def _whole_hops(config: ModelConfig, samples: int) -> int:
    return math.ceil(samples / config.stft_hop_length) * config.stft_hop_length


def _checked_mixture(mixture: np.ndarray) -> Float32[np.ndarray, "channel sample"]:
    mixture = np.asarray(mixture)
    if mixture.ndim != 2 or mixture.shape[0] not in (1, 2):
        raise InputError(f"mixture has the shape {mixture.shape}, expected (channels, samples) with 1 or 2 channels")
    if mixture.shape[1] == 0:
        raise InputError("mixture has no samples: there is nothing to separate")
    if not np.issubdtype(mixture.dtype, np.floating):
        raise InputError(f"mixture is {mixture.dtype}, expected floating point with full scale 1")
    if not np.isfinite(mixture).all():
        raise InputError("mixture has NaN or infinite samples")
    return mixture.astype(np.float32, copy=False)


def _check_whole(name: str, value: Any, most: int | None = None) -> None:
    if not isinstance(value, numbers.Real) or value < 1 or value % 1:
        raise InputError(f"{name} is {value!r}, expected a whole number of at least 1")
    if most is not None and value > most:
        raise InputError(f"{name} is {value!r}, expected at most {most}")
