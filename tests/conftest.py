"""Shapes in annotations are checked in every test: the hook must be in place before the package is imported."""

import pkgutil
from pathlib import Path

import jaxtyping

# Not config.py: what users may put into a ModelConfig by mistake is its own matter, and has tests of its own.
package = Path(__file__).parents[1] / "wroformer_jax"
modules = [
    name for _, name, _ in pkgutil.walk_packages([str(package)], "wroformer_jax.") if name != "wroformer_jax.config"
]
jaxtyping.install_import_hook(modules, "beartype.beartype")
