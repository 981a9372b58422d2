"""Traces of some steps: begun and ended where they should be, whatever else happens."""

import os
import re
import signal

import jax
import pytest
from support.tiny_training import tiny_run, train_on

from wroformer_jax.training.loop import PreemptedError
from wroformer_jax.training.trainer import train

TRACED = tiny_run(profile_steps=(3, 6))


@pytest.fixture
def traces(monkeypatch):
    """The calls that begin and end a trace."""
    calls = []
    for name in ("start_trace", "stop_trace"):
        act = getattr(jax.profiler, name)
        noted = lambda *args, name=name, act=act: (calls.append(name), act(*args))  # noqa: E731
        monkeypatch.setattr(jax.profiler, name, noted)
    return calls


def traced_files(workdir):
    return list((workdir / "profile").rglob("*.xplane.pb"))


@pytest.mark.slow
def test_a_trace_of_some_steps(whole, tmp_path, traces, capsys):
    train(TRACED, tmp_path)
    assert traces == ["start_trace", "stop_trace"]
    [trace] = traced_files(tmp_path)
    assert trace.stat().st_size
    assert (tmp_path / "metrics.jsonl").read_bytes() == (whole[0] / "metrics.jsonl").read_bytes()
    lines = capsys.readouterr().out.splitlines()
    for step in (2, 4, 6, 8):
        [line] = [line for line in lines if line.startswith(f"step {step}/8: loss ")]
        assert re.fullmatch(
            rf"step {step}/8: loss \d+\.\d{{4}}, SDR -?\d+\.\d\d dB, [\d.e+]+ s of audio per second, "
            r"[\d.e-]+ s per step, \d+% waiting for data",
            line,
        )


@pytest.mark.slow
def test_a_trace_ends_when_the_run_is_preempted_and_a_resumed_one_has_none(tmp_path, traces):
    def notice(batch, number):
        if number == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return batch

    with pytest.raises(PreemptedError, match="step 4 of 8 is saved"):
        train_on(notice, TRACED, tmp_path)
    assert traces == ["start_trace", "stop_trace"]
    assert len(traced_files(tmp_path)) == 1
    train(TRACED, tmp_path)  # steps 5 to 8
    assert traces == ["start_trace", "stop_trace"]


def test_a_trace_ends_with_an_error(tmp_path, traces):
    def fail(batch, number):
        if number == 4:
            raise MemoryError
        return batch

    with pytest.raises(MemoryError):
        train_on(fail, TRACED, tmp_path)
    assert traces == ["start_trace", "stop_trace"]
