"""Trains a model in a clone: python train.py --config=configs/quickstart.py --workdir=runs/quickstart

This is `wroformer train`; `wroformer train --help` describes its options and exit statuses.
"""

import sys

from wroformer_jax.cli.processor import prepare_process
from wroformer_jax.cli.train import main

if __name__ == "__main__":
    prepare_process(sys.orig_argv)
    sys.exit(main(sys.argv[1:], program="train.py"))
