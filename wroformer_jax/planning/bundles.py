"""Counts the instructions of a TPU's cores in libtpu's dumps of the operations of a program.

A core issues one bundle of instructions a cycle (VLIW). libtpu writes the bundles of each operation, Pallas kernels
included, after the last pass of its scheduler (`*-final_bundles.txt`):

    0xd LB: >> { %s277 = sphi %s275, %s130  ;; ...

`LB` begins a loop, the number of `>` is the depth of loops, and the end of a loop compares its counter with a constant
(`/* loop exit test */`) and branches back to the region that the loop starts. The scheduler moves instructions of an
outer loop into an inner one, so that single bundles in the midst of it carry the mark of the outer.

The loop over an operation's windows, which `iteration index` marks, is a pipeline (fetch, compute, write back), so that
it turns a few more times than there are windows: two more in a kernel's grid. The program's text has the number of
windows of XLA's own operations.
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
_REGION = re.compile(r"Start region (\d+)")
_BRANCH = re.compile(r"sbr\.rel \((?:!?)(%p\d+)\S*\) target = \$region(\d+)")
_EXIT = re.compile(r"(%p\d+)\S* = scmp\.ge\.s32\.totalorder (%s\d+)\S*, (\d+) /\* loop exit test")
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

    def __init__(self, first: str = "") -> None:
        self.regions = set(_REGION.findall(first))  # that begin with it
        self.is_pipeline = "iteration index" in first
        self.exit: str | None = None  # the predicate of the branch back to its beginning, once that has come
        self.bundles = 0
        self.rows: collections.Counter[str] = collections.Counter()
        self.is_exact = True

    def add(self, inner: _Loop, turns: int | None) -> None:
        """Adds a loop inside it, which turns so many times; None if that is not known."""
        self.is_exact &= inner.is_exact and turns is not None
        times = 1 if turns is None else turns
        self.bundles += times * inner.bundles
        for unit, rows in inner.rows.items():
            self.rows[unit] += times * rows


class _Reader:
    """Reads the bundles of an operation one after the other."""

    def __init__(self, windows: int | None) -> None:
        self.windows = windows
        self.loops = [_Loop()]  # from the outermost to the innermost
        self.limits: dict[str, tuple[str, int]] = {}  # counter and constant by the predicate that compares them
        self.steps: dict[str, int] = {}  # of counters

    def read(self, line: str) -> None:
        """Reads a line, which may be no bundle."""
        found = _BUNDLE.match(line)
        if not found:
            return
        label, depth = found[1], len(found[2])
        is_empty = line.startswith("}", found.end())
        if label == "LB":
            self.end(depth - 1)
            self.loops.append(_Loop(line))
        elif "/* exit bundle" in line:
            self.end(0)
        elif self.loops[-1].exit and not is_empty:
            self.end(depth)
        loop = self.loops[-1]
        loop.bundles += 1
        self.steps |= {name: int(step) for name, step in _ADDED.findall(line)}
        self.limits |= {predicate: (counter, int(limit)) for predicate, counter, limit in _EXIT.findall(line)}
        for predicate, region in _BRANCH.findall(line):
            if region in loop.regions:
                loop.exit = predicate
        if "vmatmul" in line:
            loop.rows.update(_rows(line))

    def end(self, depth: int) -> None:
        """Ends the loops that are deeper."""
        while len(self.loops) - 1 > depth:
            inner = self.loops.pop()
            self.loops[-1].add(inner, self._turns(inner))

    def _turns(self, loop: _Loop) -> int | None:
        if loop.is_pipeline and self.windows is not None:
            return self.windows
        if loop.exit not in self.limits:
            return None
        counter, limit = self.limits[loop.exit]
        return max(1, -(-limit // self.steps.get(counter, 1)) - (_EXTRA_TURNS if loop.is_pipeline else 0))


def count(lines: Iterable[str], windows: int | None = None) -> Count:
    """Returns the instructions that one execution of an operation issues.

    Branches that may be skipped count as executed.

    Args:
      lines: of its final bundles.
      windows: how many of them a core works on; None for a kernel, whose loops tell.
    """
    reader = _Reader(windows)
    for line in lines:
        reader.read(line)
    reader.end(0)
    [whole] = reader.loops
    return Count(whole.bundles, max(whole.rows.values(), default=0), whole.is_exact)


def _rows(line: str) -> dict[str, int]:
    """Returns the rows that a bundle sends through each matrix unit: 8 of 32 bits in a register, or 16 of 16 bits."""
    found: dict[str, int] = {}
    for part in line.split(";;"):
        if product := _PRODUCT.search(part):
            unit = _UNIT.search(part)
            name = unit[1] if unit else ""
            found[name] = found.get(name, 0) + (16 if "bf16" in product[1] else 8)
    return found


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
