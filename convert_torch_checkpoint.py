"""Converts weights between PyTorch and JAX; `python convert_torch_checkpoint.py --help` says how."""

import sys

from wroformer_jax.cli.convert import main

if __name__ == "__main__":
    sys.exit(main())
