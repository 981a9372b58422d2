"""The `wroformer` command: words, options and exit statuses."""

from wroformer_jax.cli.app import main

__all__ = ["main"]
