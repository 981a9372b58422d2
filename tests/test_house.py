"""The house: who may import whom. The table is that of docs/architecture.md; every import counts, lazy ones too."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "wroformer_jax"

# What each room may import besides itself, errors and stems. Nobody imports cli.
MAY_IMPORT = {
    "errors": "",
    "stems": "",
    "config": "",
    "io": "",
    "parallel": "config",
    "model": "config parallel",
    "data": "config io",
    "checkpoints": "config io model",
    "separation": "config io model parallel",
    "evaluation": "config io data model separation",
    "workdir": "config io parallel model checkpoints separation evaluation",
    "training": "config io parallel model data checkpoints separation evaluation workdir",
    "planning": "config io parallel model separation evaluation workdir training",
    "cli": "config io parallel model data checkpoints separation evaluation workdir training planning",
}
ROOTS = {"errors", "stems"}


def room_of(module):
    """'model' of 'wroformer_jax.model.layers'; '' of the package itself."""
    return ([*module.split("."), ""])[1]


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), ast.parse(path.read_text())


def imports_of(tree):
    """Modules and names that are imported from the package, wherever in the file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


TREES = dict(modules())


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_what_the_table_allows(room):
    allowed = {room, *MAY_IMPORT[room].split(), *(ROOTS if room not in ROOTS else ())}
    for module, tree in TREES.items():
        if room_of(module) == room:
            for imported in imports_of(tree):
                if imported.startswith("wroformer_jax.") and imported != "wroformer_jax.__version__":
                    assert room_of(imported) in allowed, f"{module} imports {imported}"


def test_every_room_is_in_the_table():
    rooms = {room_of(module) for module in TREES} - {"", "attention"}  # the re-export that README names
    assert rooms == set(MAY_IMPORT)


def test_no_circle_of_modules():
    """Each module can be put behind all that it imports."""
    needs = {
        module: {
            next((name for name in (imported, imported.rpartition(".")[0]) if name in TREES), module)
            for imported in imports_of(tree)
            if imported.startswith("wroformer_jax")
        }
        - {module}
        for module, tree in TREES.items()
        if module.count(".")
    }
    placed = {"wroformer_jax"}
    while ready := {module for module in needs if module not in placed and needs[module] <= placed}:
        placed |= ready
    assert set(needs) <= placed, sorted(set(needs) - placed)


@pytest.mark.parametrize("module", [name for name in TREES if name.count(".") and name != "wroformer_jax.attention"])
def test_modules_say_what_they_are_for(module):
    assert ast.get_docstring(TREES[module])


@pytest.mark.parametrize("module", [name for name in TREES if name != "wroformer_jax.model.stft"])  # as torch.stft
def test_no_module_has_the_name_of_a_function_in_it(module):
    functions = {node.name for node in TREES[module].body if isinstance(node, ast.FunctionDef)}
    assert module.rpartition(".")[2] not in functions


def test_the_page_has_the_same_table():
    """docs/architecture.md shows who may import whom: names, "nothing", "all above", or "all above but ..."."""
    page = (PACKAGE.parent / "docs" / "architecture.md").read_text()
    rows = page.partition("| room | for | may import |\n|---|---|---|\n")[2].partition("\n\n")[0].splitlines()
    shown: dict[str, set[str]] = {}
    for names, _, allowed in (row.split("|")[1:4] for row in rows):
        words = set(allowed.replace(",", " ").replace("nothing", "").split())
        if {"all", "above"} <= words:
            words = set(shown) - ROOTS - words
        shown |= {name.strip(" `"): words for name in names.split(",")}
    assert shown == {room: set(allowed.split()) for room, allowed in MAY_IMPORT.items()}


LONGEST_MODULE, LONGEST_FUNCTION = 400, 60  # lines; the complexity of functions is ruff's to check (C901)


@pytest.mark.parametrize("module", TREES)
def test_modules_and_functions_can_be_read_in_one_sitting(module):
    tree = TREES[module]
    assert not tree.body or tree.body[-1].end_lineno <= LONGEST_MODULE
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            docstring = node.body[0] if ast.get_docstring(node) else None
            lines = node.end_lineno - node.lineno + 1
            lines -= docstring.end_lineno - docstring.lineno + 1 if docstring else 0
            assert lines <= LONGEST_FUNCTION, f"{node.name} has {lines} lines"
