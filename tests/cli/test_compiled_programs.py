"""Compiled programs stay on disk, unless the user says otherwise; a folder that cannot be used costs one line."""

import os
import subprocess
import sys

import jax
import pytest
from support.helpers import of_a_program

from wroformer_jax.cli.compiled_programs import default_folder, keep_compiled_programs

SETTINGS = (
    "jax_compilation_cache_dir",
    "jax_compilation_cache_max_size",
    "jax_enable_compilation_cache",
    "jax_persistent_cache_min_compile_time_secs",
)


def value_of(name):
    return getattr(jax.config, name)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The folder of a user who has chosen nothing; JAX's settings are put back afterwards."""
    before = {name: value_of(name) for name in SETTINGS}
    for name in [name for name in os.environ if name.startswith("JAX_COMPILATION_CACHE")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WROFORMER_CACHE", str(tmp_path / "cache"))
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_enable_compilation_cache", True)
    yield tmp_path / "cache" / "compiled"
    for name, value in before.items():
        jax.config.update(name, value)


def folder_in_use():
    keep_compiled_programs()
    return value_of("jax_compilation_cache_dir")


PROGRAM = """
import jax, numpy
from wroformer_jax.cli.compiled_programs import keep_compiled_programs
events = []
jax.monitoring.register_event_listener(lambda name, **_: events.append(name.rpartition("/")[2]))
keep_compiled_programs()
jax.jit(lambda x: jax.numpy.sin(x) @ x)(numpy.ones((3, 3), "float32"))
print(events.count("cache_hits"), events.count("cache_misses"))
"""


def test_another_process_finds_the_program(cache):
    environment = {
        **of_a_program(),
        "JAX_ENABLE_COMPILATION_CACHE": "true",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, "-c", PROGRAM]
    runs = [subprocess.run(command, env=environment, capture_output=True, text=True, check=True) for _ in range(2)]
    assert [run.stdout.split() for run in runs] == [["0", "1"], ["1", "0"]]
    assert [run.stderr for run in runs] == ["", ""]
    assert len(list(cache.glob("jit_*-cache"))) == 1


def test_the_cache_is_bounded(cache):
    assert folder_in_use() == str(cache)
    assert 0 < value_of("jax_compilation_cache_max_size") < 1 << 40
    assert cache.stat().st_mode & 0o077 == 0  # what lies there is run


def test_the_folder_of_the_user(tmp_path, monkeypatch):
    monkeypatch.delenv("WROFORMER_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert default_folder() == tmp_path / ".cache" / "wroformer_jax" / "compiled"
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    assert default_folder() == tmp_path / ".cache" / "wroformer_jax" / "compiled"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_folder() == tmp_path / "xdg" / "wroformer_jax" / "compiled"


def test_what_the_user_has_chosen_stays(cache, monkeypatch):
    jax.config.update("jax_compilation_cache_dir", "/chosen")
    assert folder_in_use() == "/chosen"
    jax.config.update("jax_compilation_cache_dir", None)
    with monkeypatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", "")
        assert folder_in_use() is None
    with monkeypatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_MAX_SIZE", "-1")
        unbounded = value_of("jax_compilation_cache_max_size")
        assert folder_in_use() == str(cache)
        assert value_of("jax_compilation_cache_max_size") == unbounded
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_enable_compilation_cache", False)
    assert folder_in_use() is None


def test_a_folder_that_cannot_be_used_costs_one_line(cache, capsys):
    cache.parent.write_text("not a folder")
    assert folder_in_use() is None
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("wroformer: compiled programs are not kept")
    assert captured.err.count("\n") == 1


def test_a_folder_that_others_may_write_to_is_not_used(cache, capsys):
    cache.mkdir(parents=True)
    cache.chmod(0o770)
    assert folder_in_use() is None
    assert f"other users may write to {cache}" in capsys.readouterr().err


def test_what_a_killed_process_left_half_written_is_deleted(cache):
    cache.mkdir(parents=True)
    whole, half = cache / "jit_whole-cache", cache / "jit_half-cache"
    for file in (whole, cache / "jit_whole-atime", half):
        file.write_bytes(b"12345678")
    assert folder_in_use() == str(cache)
    assert whole.exists()
    assert not half.exists()


def test_programs_of_an_unbounded_cache_have_no_last_use_and_stay(cache, monkeypatch):
    cache.mkdir(parents=True)
    (cache / "jit_whole-cache").write_bytes(b"12345678")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_MAX_SIZE", "-1")
    jax.config.update("jax_compilation_cache_max_size", -1)
    assert folder_in_use() == str(cache)
    assert (cache / "jit_whole-cache").exists()
