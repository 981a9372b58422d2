"""Shapes in annotations are checked in every test: the hook must be in place before the package is imported."""

import pkgutil
from pathlib import Path

import jaxtyping

# Not the two configs: what users may put into them by mistake is their own matter, and has tests of its own.
unchecked = ("wroformer_jax.config", "wroformer_jax.training_config")
package = Path(__file__).parents[1] / "wroformer_jax"
modules = [name for _, name, _ in pkgutil.walk_packages([str(package)], "wroformer_jax.") if name not in unchecked]
jaxtyping.install_import_hook(modules, "beartype.beartype")
