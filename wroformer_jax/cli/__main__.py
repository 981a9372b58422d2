"""`python -m wroformer_jax.cli` is `wroformer`."""

import sys

from wroformer_jax.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
