"""Copies the recipes into the wheel; all other settings of the build are in pyproject.toml.

configs/ stays out of the package's folder, because it holds experiment files to be read and copied. The wheel has a
copy as `wroformer_jax/recipes`. A clone and an editable install have no copy and use configs/ beside the package (see
wroformer_jax/cli/recipes.py). Mapping the folder with setuptools' `package-dir` would save this file, but would need a
list of all packages in pyproject.toml in place of `packages.find`, since the two cannot be combined.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithRecipes(build_py):
    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            recipes = Path(self.build_lib, "wroformer_jax", "recipes")
            recipes.mkdir(parents=True, exist_ok=True)
            for config in Path("configs").glob("*.py"):
                shutil.copy(config, recipes)


setup(cmdclass={"build_py": BuildWithRecipes})
