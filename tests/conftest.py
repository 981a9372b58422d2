"""Shapes in annotations are checked in every test: the hook must be in place before the package is imported.

Tests, and the programs that they start, compile quickly: they compile small models more often than they run them, and
most of their time would go into optimising. What is computed is the same; the benchmarks measure the optimised code.
"""

import os
import pkgutil
from pathlib import Path

import jaxtyping

os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")  # before JAX asks for it

# Not the settings: what users may put into them by mistake is their own matter, and has tests of its own.
unchecked = ("wroformer_jax.config.", "wroformer_jax.data.loading")
package = Path(__file__).parents[1] / "wroformer_jax"
found = pkgutil.walk_packages([str(package)], "wroformer_jax.")
# A package is all that is in it: named itself, it would bring what is left out.
modules = [name for _, name, is_package in found if not is_package and not name.startswith(unchecked)]
jaxtyping.install_import_hook(modules, "beartype.beartype")
