"""The pages stay true where a machine can tell: files and names that they mention exist, lines fit a terminal."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
IDS = [page.relative_to(ROOT).as_posix() for page in PAGES]
FOLDERS = ("wroformer_jax", "tests", "benchmarks", "configs", "docs")
FILES = {
    path.relative_to(ROOT).as_posix()
    for path in [*ROOT.glob("*.py"), *(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py"))]
}


def code_of(page):
    """What stands in backticks and in fenced blocks."""
    text = page.read_text()
    return [*re.findall(r"^```.*?^```", text, re.M | re.S), *re.findall(r"`([^`\n]+)`", text)]


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_files_that_a_page_names_exist(page):
    named = {name for code in code_of(page) for name in re.findall(r"(?<![\w/*.])[\w][\w/.]*\.py\b", code)}
    known = {path[start:] for path in FILES for start in [0, *(m.end() for m in re.finditer("/", path))]}
    assert named - known - {"FILE.py", "utils/metrics.py"} == set()  # the second is another project's


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_names_of_the_package_that_a_page_mentions_exist(page):
    for name in {name for code in code_of(page) for name in re.findall(r"\bwroformer_jax(?:\.\w+)+", code)}:
        *modules, last = name.split(".")
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:
            assert hasattr(importlib.import_module(".".join(modules)), last), name


def test_names_that_tell_a_contributor_where_to_go_exist():
    """Functions, classes and constants in CONTRIBUTING.md and docs/architecture.md are in the code."""
    words = {word for file in FILES for word in re.findall(r"\w+", (ROOT / file).read_text())}
    for page in (ROOT / "CONTRIBUTING.md", ROOT / "docs" / "architecture.md"):
        named = {code for code in code_of(page) if re.fullmatch(r"\w+", code)}
        assert named - words - {"cuda"} == set()  # an extra of pyproject.toml


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_lines_fit_a_terminal(page):
    long = [number for number, line in enumerate(page.read_text().splitlines(), 1) if len(line) > 120]
    assert not long
