"""The search for the longest audio that fits: where it ends, and with how few compilations."""

import pytest

from wroformer_jax.planning.search import Attempt, Bounds, find_longest_fit

GIB = 2**30
AVAILABLE, STATE = 16 * GIB, 3 * GIB


def search(memory, *, first=8.0, tolerance=0.05, tells=True, longest=3600.0, known=(), state=STATE):
    """The limits, and the lengths tried; `memory` gives the bytes of so many seconds."""
    tried = []

    def attempt(seconds):
        tried.append(seconds)
        needed = int(memory(seconds))
        fits = needed <= AVAILABLE
        return Attempt(seconds, needed if fits or tells else None, fits)

    bounds = Bounds(shortest=0.05, longest=longest, available=AVAILABLE, at_rest=state, tolerance=tolerance)
    return find_longest_fit(attempt, first, bounds, known), tried


def assert_close(limits, true_limit, tolerance=0.05):
    assert limits.fits.fits
    assert not limits.too_long.fits
    assert limits.fits.seconds <= true_limit <= limits.too_long.seconds
    assert limits.fits.seconds >= (1 - tolerance) * limits.too_long.seconds


@pytest.mark.parametrize("tells", [True, False])
@pytest.mark.parametrize("true_limit", [0.4, 3.0, 9.0, 61.0, 700.0, 3000.0])
def test_memory_that_is_linear_takes_few_compilations(true_limit, tells):
    rest = STATE + 0.2 * GIB
    limits, tried = search(lambda s: rest + (AVAILABLE - rest) * s / true_limit, tells=tells)
    assert_close(limits, true_limit)
    assert len(tried) <= (4 if tells or true_limit > 8 else 9), tried


@pytest.mark.parametrize(
    "memory",
    [
        lambda s: STATE + 0.001 * GIB * s**2,  # full attention, laid out
        lambda s: STATE + 5 * GIB + 0.01 * GIB * s,  # much that is there from the start
        lambda s: STATE + (0.05 * s if s < 60 else 0.1 * s) * GIB,  # the compiler changes its mind
        lambda s: STATE + 0.1 * GIB * (s // 20) * 20,  # in steps
    ],
)
def test_memory_that_is_not(memory):
    true_limit = next(s / 10 for s in range(1, 36000) if memory(s / 10) > AVAILABLE)
    limits, tried = search(memory)
    assert_close(limits, true_limit)
    assert len(tried) <= 10, tried


def test_a_compiler_that_saves_memory_where_it_runs_out():
    """As measured for a v5e:2x2: 15.5 of 15.75 GiB from 7:30 to 8:20, and then steeply more."""
    limits, tried = search(lambda s: STATE + 0.028 * GIB * s if s < 450 else 15.6 * GIB + 0.04 * GIB * max(0, s - 500))
    assert_close(limits, 510)
    assert len(tried) <= 8, tried


@pytest.mark.parametrize("tells", [True, False])
def test_a_state_that_nearly_fills_the_memory(tells):
    state = 15 * GIB
    limits, tried = search(lambda s: state + 0.001 * GIB * s, first=0.1, tells=tells, state=state)
    assert_close(limits, 1000)
    assert len(tried) <= 5, tried


def test_a_narrow_tolerance():
    limits, tried = search(lambda s: STATE + 0.06 * GIB * s, tolerance=0.01)
    assert_close(limits, 13 / 0.06, tolerance=0.01)
    assert len(tried) <= 5


def test_all_of_an_hour_fits():
    limits, tried = search(lambda s: STATE + 0.001 * GIB * s)
    assert (limits.fits.seconds, limits.too_long) == (3600.0, None)
    assert len(tried) == 2


def test_not_even_the_shortest_fits():
    limits, tried = search(lambda s: 17 * GIB + s)
    assert limits.fits is None
    assert limits.too_long.seconds == 0.05
    assert len(tried) <= 3


def test_what_was_tried_before_is_not_tried_again():
    known = [Attempt(60.0, 40 * GIB, fits=False)]
    memory = lambda s: STATE + 37 / 60 * GIB * s  # noqa: E731
    limits, tried = search(memory, first=60.0, longest=60.0, tolerance=0.25, known=known)
    assert 60.0 not in tried
    assert len(tried) <= 2
    assert limits.fits.seconds == pytest.approx(13 / 37 * 60, rel=0.15)
