"""Commands use the fast products and large pages of memory, unless the user says otherwise."""

import subprocess
import sys

import pytest
from support.helpers import of_a_program

from wroformer_jax.cli.processor import add_tunable, knows_xla_flag, needs_new_start, prepare_process, with_xla_flag

FLAG = "--xla_cpu_experimental_ynn_fusion_type"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("", f"{FLAG}="),
        ("--a=1", f"--a=1 {FLAG}="),
        (f"{FLAG}=dot --a=1", f"{FLAG}=dot --a=1"),
        (f"{FLAG}=", f"{FLAG}="),
    ],
)
def test_a_flag_that_the_user_set_stays(given, expected):
    assert with_xla_flag(given) == expected


@pytest.mark.parametrize(
    ("package", "version", "expected"),
    [
        ("jaxlib", "0.10.1", False),
        ("jaxlib", "0.10.2", True),
        ("jaxlib", "0.12.0.1", True),
        ("jaxlib", "0.13.0", False),
        ("jaxlib", "1.0.0", False),
        ("jaxlib", "dev", False),
        ("libtpu", "0.0.41", False),
        ("libtpu", "0.0.50.1", True),
        ("libtpu", "0.0.51", False),
    ],
)
def test_an_xla_that_may_not_know_the_flag_does_not_get_it(package, version, expected):
    assert knows_xla_flag(package, version) is expected


def test_an_interpreter_that_cannot_start_anew_goes_on(monkeypatch):
    monkeypatch.setattr(sys, "executable", "")
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setenv("GLIBC_TUNABLES", "")
    prepare_process(["python"])


@pytest.mark.parametrize(
    ("tunables", "glibc", "expected"),
    [
        ("", (2, 35), True),
        ("", (2, 34), False),
        ("", None, False),
        ("glibc.malloc.hugetlb=0", (2, 40), False),
        ("glibc.malloc.check=1", (2, 40), True),
    ],
)
def test_starts_anew_only_where_it_helps(tunables, glibc, expected):
    assert needs_new_start({"GLIBC_TUNABLES": tunables}, glibc) is expected


def test_starts_anew_once_even_if_the_interpreter_drops_the_tunable():
    assert not needs_new_start({"WROFORMER_STARTED_ANEW": "1"}, (2, 40))


def test_tunables_that_the_user_set_stay():
    environment = {"GLIBC_TUNABLES": "glibc.malloc.check=1"}
    add_tunable(environment)
    assert environment["GLIBC_TUNABLES"] == "glibc.malloc.check=1:glibc.malloc.hugetlb=1"


PROGRAM = """
import os, sys
from wroformer_jax.cli.processor import prepare_process
print(os.getpid())
prepare_process(sys.orig_argv)
print(sys.argv[1:], os.environ["XLA_FLAGS"])
"""


def test_a_process_that_starts_anew_is_the_same_command():
    environment = {name: value for name, value in of_a_program().items() if name != "GLIBC_TUNABLES"}
    command = [sys.executable, "-c", PROGRAM, "song one.wav", "--x"]
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(set(shown[:-1])) == 1  # the process keeps its number
    assert shown[-1].startswith("['song one.wav', '--x'] ")
    assert shown[-1].split()[-1] == f"{FLAG}="
