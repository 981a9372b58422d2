"""Converts weights between PyTorch and JAX in a clone; this is `wroformer convert`."""

import sys

from wroformer_jax.cli.convert import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], program="convert_torch_checkpoint.py"))
