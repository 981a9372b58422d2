"""The transform and its inverse against torch, and the round trip, for common sizes and odd lengths.

    python benchmarks/stft_parity.py

Input uniform in -1 .. 1. Columns: largest difference to torch over the largest value, for the transform and for the
inverse of a randomly masked spectrum (bound 1e-5), and the largest difference of the round trip to the input, inside
(bound 1e-6).
"""

import argparse
import itertools

import numpy as np
import torch
from report import print_table, write_result

from wroformer_jax.model.stft import inverse_stft, stft

LENGTHS = [4097, 20_001, 44_101, 220_499]


def errors(n_fft: int, hop: int, samples: int) -> dict[str, float]:
    rng = np.random.default_rng(samples)
    audio = rng.uniform(-1, 1, (2, samples)).astype(np.float32)
    sizes = {"n_fft": n_fft, "hop_length": hop, "win_length": n_fft}
    window = torch.hann_window(n_fft)
    spectrum = torch.stft(torch.tensor(audio), **sizes, window=window, return_complex=True).mT.numpy()
    real, imag = map(np.asarray, stft(audio, **sizes))
    mask = rng.standard_normal((2, *real.shape), np.float32)
    masked = (spectrum * (mask[0] + 1j * mask[1])).astype(np.complex64)
    samples_of_torch = torch.istft(torch.tensor(masked).mT, **sizes, window=window).numpy()
    inverse = np.asarray(inverse_stft(masked.real, masked.imag, **sizes))
    back = np.asarray(inverse_stft(real, imag, **sizes))
    return {
        "stft": float(np.abs(real + 1j * imag - spectrum).max() / np.abs(spectrum).max()),
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
