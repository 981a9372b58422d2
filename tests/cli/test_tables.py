"""The one writer of tables."""

from wroformer_jax.cli.tables import aligned, scores_table, set_table
from wroformer_jax.evaluation.statistics import METRICS


def test_numbers_stand_right_and_words_left():
    rows = [("NAME", "SIZE", "NOTE"), ("a", "1,000", "x"), ("longer", "2", "")]
    assert aligned(rows, last_left=True).splitlines() == ["NAME     SIZE  NOTE", "a       1,000  x", "longer      2"]
    assert aligned(rows, left=2, indent=2).splitlines()[2] == "  longer  2"


def test_a_rule_is_as_wide_as_the_table():
    assert aligned([("A", "B"), ("one", "22"), ("x", "1")], rules=(1,)).splitlines() == [
        "A     B",
        "-------",
        "one  22",
        "x     1",
    ]


def test_the_table_of_a_set():
    rows = [
        ("split", "stem", "songs", "hours", "silent"),
        ("train", "", "2", "0.01", ""),
        ("", "drums", "2", "0.01", "0.0%"),
    ]
    assert set_table(rows).splitlines() == [
        "split  stem   songs  hours  silent",
        "----------------------------------",
        "train             2   0.01",
        "       drums      2   0.01    0.0%",
    ]


def test_the_scores_of_a_stem():
    rows = {
        "one": dict.fromkeys(METRICS, 1.0),
        "a song with a longer name": {**dict.fromkeys(METRICS, 3.0), next(iter(METRICS)): float("nan")},
    }
    lines = scores_table("vocals", rows, signed=True).splitlines()
    assert lines[0].split() == ["vocals", *METRICS.values()]
    assert lines[1] == lines[4] == "-" * len(lines[0])
    assert [line.split()[-1] for line in (lines[2], lines[3], lines[-1])] == ["+1.00", "+3.00", "2"]
    assert lines[3].split()[-len(METRICS)] == "-"
    assert len({len(line) for line in lines}) == 1
