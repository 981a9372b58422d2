"""Checks the shapes in annotations in every test; the import hook must be installed before the package is imported.

XLA optimises little in tests and in the programs that they start. They compile many small models and run each only a
few times, so optimising would take most of their time. The results stay the same; benchmarks measure optimised code.
"""

import os
import pkgutil
from pathlib import Path

import jaxtyping

os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")  # JAX reads it at import
os.environ.setdefault("JAX_ENABLE_COMPILATION_CACHE", "false")  # tests leave nothing in the user's cache

# Settings check their values themselves, and tests give them wrong types on purpose.
unchecked = ("wroformer_jax.config.", "wroformer_jax.data.loading")
package = Path(__file__).parents[1] / "wroformer_jax"
found = pkgutil.walk_packages([str(package)], "wroformer_jax.")
# Packages are left out: naming one would also include the modules that are to stay unchecked.
modules = [name for _, name, is_package in found if not is_package and not name.startswith(unchecked)]
jaxtyping.install_import_hook(modules, "beartype.beartype")
