"""Compares a model of the published size with PyTorch: 2 s of audio, conversion there and back, peak memory.

    python benchmarks/published_size.py

Needs the test extra (PyTorch and the public package) and 5 GB of disk and memory. The weights are random, from the
initialisation of the PyTorch package, with windowed sink attention patched in.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from report import print_table, write_result

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
CHECKS = {"output of 2 s": 2e-4, "tensors that differ": 0, "to-jax: memory / file": 3.0, "to-torch: memory / file": 3.0}


def peak_memory_of(*arguments: str) -> float:
    """Runs the converter; returns its largest resident memory in bytes, Python and libraries included."""
    command = [sys.executable, "convert_torch_checkpoint.py", *arguments]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(arguments)} failed")
    return usage.ru_maxrss * 1024


def reference_on(folder: Path, audio: np.ndarray) -> np.ndarray:
    """Writes the PyTorch model's weights; returns its output for the audio."""
    import torch
    from support.reference import make_reference  # pyright: ignore[reportMissingImports]: in tests/

    from wroformer_jax.config.model import ModelConfig

    model = make_reference(ModelConfig())
    torch.save(model.state_dict(), folder / "model.ckpt")
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} million parameters")
    return model.stages(torch.tensor(audio))["output"]


def tensors_that_differ(a: Path, b: Path) -> int:
    """Returns the number of tensors that differ between two PyTorch files; all of them if their keys differ."""
    import torch

    first, second = (torch.load(path, weights_only=True, mmap=True) for path in (a, b))
    if list(first) != list(second):
        return max(len(first), len(second))
    return sum(
        first[key].dtype != second[key].dtype
        or first[key].shape != second[key].shape
        or not torch.equal(first[key].view(torch.uint8), second[key].view(torch.uint8))
        for key in first
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", help="folder for 3 GB of files (default: the system's)")
    scratch = parser.parse_args().scratch
    rng = np.random.default_rng(0)
    audio = (0.2 * rng.standard_normal((1, 2, 2 * 44100))).astype(np.float32)
    audio[..., :14_700] = 0

    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        folder = Path(folder)
        expected = reference_on(folder, audio)
        source, converted, back = folder / "model.ckpt", folder / "jax", folder / "back.ckpt"
        size = source.stat().st_size
        rows = []
        memory = peak_memory_of("to-jax", str(source), str(converted))
        rows.append({"what": "to-jax: memory / file", "measured": memory / size})
        memory = peak_memory_of("to-torch", str(converted), str(back))
        rows.append({"what": "to-torch: memory / file", "measured": memory / size})
        rows.append({"what": "tensors that differ", "measured": tensors_that_differ(source, back)})

        import jax

        import wroformer_jax

        model, params = wroformer_jax.load(converted)
        output = np.asarray(jax.jit(model.apply)({"params": params}, audio))
        error = float(np.abs(output - expected).max() / np.abs(expected).max())
        rows.append({"what": "output of 2 s", "measured": error})

    rows = [{**row, "bound": CHECKS[row["what"]], "within": row["measured"] <= CHECKS[row["what"]]} for row in rows]
    print_table(rows)
    write_result("published_size", "python benchmarks/published_size.py", rows)
    sys.exit(not all(row["within"] for row in rows))


if __name__ == "__main__":
    main()
