"""Counts the instructions of a TPU's cores in libtpu's dumps of the operations of a program.

A core issues one bundle of instructions a cycle (VLIW). libtpu writes the bundles of each operation, Pallas kernels
included, after the last pass of its scheduler (`*-final_bundles.txt`):

    0xd LB: >> { %s277 = sphi %s275, %s130  ;; ...

`LB` begins a loop, the number of `>` is the depth of loops, and the end of a loop compares its counter with a constant
(`/* loop exit test */`). The loop over an operation's windows, which `iteration index` marks, is a pipeline (fetch,
compute, write back), so that it turns a few more times than there are windows: two more in a kernel's grid. The
program's text has the number of windows of XLA's own operations.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

# Options of libtpu (in LIBTPU_INIT_ARGS) that make it write the files; the folder follows the first.
DUMP_FLAGS = (
    "--xla_jf_dump_to={folder}",
    "--xla_jf_dump_llo_text=true",
    "--xla_jf_dump_llo_pass_label_regex=final_bundles|dedup",
)

_BUNDLE = re.compile(r"^ *(?:0x)?[0-9a-f]+ (?:([A-Z]{2,3}))? *: (>*) *\{")
# The branch back to a loop's beginning, and empty bundles, belong to the loop, but carry no mark of its depth.
_UNMARKED = re.compile(r"\}| *%\d+ = sbr\.rel [^;]*\}")
_EXIT = re.compile(r"scmp\.ge\.s32\.totalorder (%s\d+)(?:_s\d+)?, (\d+) /\* loop exit test")
_ADDED = re.compile(r"(%s\d+)\S* = sadd\.s32 (\d+), ")
_PRODUCT = re.compile(r"= vmatmul\.(\S+)")
_UNIT = re.compile(r"mxu(\d+)")
_EXTRA_TURNS = 2  # of a pipeline over windows
_FILE = re.compile(r"^(\d+)-(.+)-\d+-final_bundles\.txt$")


class Count(NamedTuple):
    """The instructions of one execution of an operation."""

    bundles: int = 0
    rows: int = 0  # that pass through the busiest matrix unit
    is_exact: bool = True  # False if the number of turns of a loop is not a constant; such a loop counts once


class _Loop:
    """A loop while its bundles are read; the outermost "loop" is the operation itself."""

    def __init__(self) -> None:
        self.bundles = 0
        self.rows: collections.Counter[str] = collections.Counter()
        self.added: dict[str, int] = {}
        self.limit: tuple[str, int] | None = None
        self.is_pipeline = False
        self.is_exact = True

    def turns(self, windows: int | None) -> int | None:
        if self.is_pipeline and windows is not None:
            return windows
        if self.limit is None:
            return None
        counter, limit = self.limit
        return max(1, (-(-limit // self.added.get(counter, 1))) - (_EXTRA_TURNS if self.is_pipeline else 0))

    def add(self, inner: _Loop, windows: int | None) -> None:
        turns = inner.turns(windows)
        self.is_exact &= inner.is_exact and turns is not None
        times = 1 if turns is None else turns
        self.bundles += times * inner.bundles
        for unit, rows in inner.rows.items():
            self.rows[unit] += times * rows


def count(lines: Iterable[str], windows: int | None = None) -> Count:
    """Returns the instructions that one execution of an operation issues.

    Branches that may be skipped count as executed.

    Args:
      lines: of its final bundles.
      windows: how many of them a core works on; None for a kernel, whose loops tell.
    """
    stack = [_Loop()]
    for line in lines:
        found = _BUNDLE.match(line)
        if not found:
            continue
        label, depth = found[1], len(found[2])
        if _UNMARKED.match(line, found.end()) and "exit bundle" not in line:
            depth = len(stack) - 1
        while len(stack) - 1 > depth or (label == "LB" and len(stack) - 1 == depth):
            inner = stack.pop()
            stack[-1].add(inner, windows)
        while len(stack) - 1 < depth:
            stack.append(_Loop())
        _read(line, stack[-1])
    while len(stack) > 1:
        inner = stack.pop()
        stack[-1].add(inner, windows)
    whole = stack[0]
    return Count(whole.bundles, max(whole.rows.values(), default=0), whole.is_exact)


def _read(line: str, loop: _Loop) -> None:
    """Adds a bundle to the loop that it is in."""
    loop.bundles += 1
    if "sadd.s32" in line:
        for name, step in _ADDED.findall(line):
            loop.added[name] = int(step)
    if "iteration index" in line:
        loop.is_pipeline = True
    if limit := _EXIT.search(line):
        loop.limit = limit[1], int(limit[2])
    if "vmatmul" in line:
        for kind, rest in _products(line):
            unit = _UNIT.search(rest)
            # A register has 8 rows of 32 bits or 16 of 16 bits.
            loop.rows[unit[1] if unit else ""] += 16 if "bf16" in kind else 8


def _products(line: str) -> Iterable[tuple[str, str]]:
    for part in line.split(";;"):
        if found := _PRODUCT.search(part):
            yield found[1], part


def num_dumped(folder: Path) -> int:
    """Returns the number of operations whose bundles a folder of dumps has so far."""
    return sum("schedule-analysis" not in path.name for path in folder.glob("*-final_bundles.txt"))


class Dumps:
    """The counts of the operations of a program, read from a folder of dumps when they are asked for."""

    def __init__(self, folder: Path) -> None:
        self._files: dict[str, Path] = {}
        for path in sorted(folder.glob("*-final_bundles.txt")):  # by time: the last of several tries counts
            found = _FILE.match(path.name)
            if found and "schedule-analysis" not in path.name:
                self._files[found[2]] = path
        self._same: dict[str, str] = {}
        for path in sorted(folder.glob("*-deduplication-map.txt")):
            self._same |= read_duplicates(path.read_text(errors="replace"))
        self._counts: dict[tuple[str, int | None], Count] = {}

    def of(self, name: str, windows: int | None) -> Count:
        """Returns the count of an operation; that of no bundles if libtpu wrote none, as for scalars.

        Args:
          name: of the operation.
          windows: see `count`.
        """
        key = name if name in self._files else self._same.get(name, name)
        path = self._files.get(key)
        if path is None:
            return Count()
        if (key, windows) not in self._counts:
            with open(path, encoding="utf-8", errors="replace") as lines:
                self._counts[key, windows] = count(lines, windows)
        return self._counts[key, windows]


def read_duplicates(text: str) -> Mapping[str, str]:
    """Returns the operation whose bundles stand for each of a deduplication map."""
    same: dict[str, str] = {}
    key = ""
    for line in text.splitlines():
        if line.startswith("key:"):
            key = line.removeprefix("key:").strip()
        elif line.startswith("  "):
            same[line.strip()] = key
    return same
