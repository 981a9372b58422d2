"""Writes stems to disk whose samples are exact 16-bit values, for the tests of prepare."""

import numpy as np
import soundfile

RATE = 8000


def sound(samples, channels=2, seed=0, peak=0.4):
    """Noise of exact 16-bit values, (channel, sample)."""
    integers = np.random.default_rng(seed).integers(-peak * 2**15, peak * 2**15, (channels, samples))
    return (integers / 2**15).astype(np.float32)


def write(path, audio, rate=RATE, **keywords):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, audio.T, rate, **keywords)
    return audio


def make_song(folder, seed=0, stems=("vocals", "drums"), samples=2 * RATE, suffix=".wav", **keywords):
    """Writes a song's stems and returns them."""
    return {
        stem: write(folder / f"{stem}{suffix}", sound(samples, seed=1000 * seed + i), **keywords)
        for i, stem in enumerate(stems)
    }


def damage(path):
    """Damages the middle of a flac file; its header stays intact."""
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 2000] = bytes(2000)
    path.write_bytes(content)


def files_of(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
