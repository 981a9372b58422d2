"""Compares the STFT and its inverse with torch, and the round trip with its input, for several sizes.

    python benchmarks/stft_parity.py

The input is uniform in -1 .. 1. The columns "stft" and "inverse" (of a randomly masked spectrum) are the largest
difference from torch, divided by the largest value (bound 1e-5). "round trip" is the largest difference from the input
(bound 1e-6).
"""

import argparse
import itertools
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch
from report import print_table, write_result

from wroformer_jax.model.stft import inverse_stft, stft

LENGTHS = [4097, 20_001, 44_101, 220_499]


def errors(n_fft: int, hop: int, samples: int) -> dict[str, float]:
    """Returns the errors by column, for audio of a length in samples."""
    rng = np.random.default_rng(samples)
    audio = rng.uniform(-1, 1, (2, samples)).astype(np.float32)
    sizes: dict[str, Any] = {"n_fft": n_fft, "hop_length": hop, "win_length": n_fft}
    window = torch.hann_window(n_fft)
    spectrum = torch.stft(torch.tensor(audio), **sizes, window=window, return_complex=True).mT.numpy()
    real, imag = stft(jnp.asarray(audio), **sizes)
    mask = rng.standard_normal((2, *real.shape), np.float32)
    masked = (spectrum * (mask[0] + 1j * mask[1])).astype(np.complex64)
    samples_of_torch = torch.istft(torch.tensor(masked).mT, **sizes, window=window).numpy()
    inverse = np.asarray(inverse_stft(jnp.asarray(masked.real), jnp.asarray(masked.imag), **sizes))
    back = np.asarray(inverse_stft(real, imag, **sizes))
    return {
        "stft": float(np.abs(np.asarray(real) + 1j * np.asarray(imag) - spectrum).max() / np.abs(spectrum).max()),
        "inverse": float(np.abs(inverse - samples_of_torch).max() / np.abs(samples_of_torch).max()),
        "round trip": float(np.abs(back - audio[:, : back.shape[-1]]).max()),
    }


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    rows = [
        {"n_fft": n_fft, "hop": hop, "samples": samples, **errors(n_fft, hop, samples)}
        for n_fft, hop, samples in itertools.product((2048, 4096), (441, 512), LENGTHS)
    ]
    print_table(rows)
    write_result("stft_parity", "python benchmarks/stft_parity.py", rows)


if __name__ == "__main__":
    main()
