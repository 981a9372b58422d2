"""The recipes that come with the package: configs/ in a clone, `wroformer_jax/recipes` in an installed wheel.

setup.py copies configs/ into the wheel, so a recipe exists once, as an experiment file that can be read, copied and
changed.
"""

from __future__ import annotations

from pathlib import Path

from wroformer_jax.errors import InputError, suggestion

_PACKAGE = Path(__file__).parents[1]


def recipe_files() -> dict[str, Path]:
    """Returns the file of each recipe by its name."""
    installed = _PACKAGE / "recipes"
    folder = installed if installed.is_dir() else _PACKAGE.parent / "configs"
    return {path.stem: path for path in sorted(folder.glob("*.py"))}


def config_file(text: str) -> Path:
    """Returns the file that `--config` means: a path, or the name of a recipe.

    Args:
      text: a path, or a name without suffix and folder. A recipe of that name goes before a file of that name in the
        current folder.

    Raises:
      InputError: it is a folder, or a name of no recipe. Whether a file exists is not checked.
    """
    path, known = Path(text), recipe_files()
    if text in known:
        return known[text]
    if path.is_dir():
        raise InputError(f"{path} is a folder: --config takes a Python file or one of {', '.join(known)}")
    if path.suffix or path.name != text or path.exists():
        return path
    raise InputError(
        f"unknown recipe {text!r}{suggestion(text, list(known))}: --config takes the path of a file or one of "
        f"{', '.join(known)}"
    )
