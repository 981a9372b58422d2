"""Progress: lines in a log, a bar on a terminal."""

import sys

from wroformer_jax.io.progress import Progress


def pace(progress):
    return f"{progress.done:.0f} s"


def test_lines_in_a_log(capsys):
    with Progress("writing", 8.0, pace, every=0.0) as progress:
        progress.advance(2.0)
        progress.advance(6.0)
    assert capsys.readouterr().err.splitlines() == [
        "writing: 25%, 2 s, about 0 min left",
        "writing: 100%, 8 s, about 0 min left",
    ]
    assert progress.done == 8.0
    assert progress.pace > 0


def test_no_line_before_its_time(capsys):
    lines = []
    with Progress("writing", 8.0, pace, say=lines.append) as progress:
        progress.advance(8.0)
    assert lines == []
    assert capsys.readouterr().err == ""


def test_a_bar_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Progress("writing", 8.0, pace) as progress:
        progress.advance(4.0)
        progress.advance(5.0)  # more than was estimated
    shown = capsys.readouterr().err
    assert "writing: 100%|" in shown
    assert "9 s" in shown
