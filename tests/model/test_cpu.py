"""The CPU's form of windowed attention gives the scan form's numbers, and takes few tokens at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wroformer_jax.model import attention, cpu


@pytest.mark.parametrize(("tokens", "sinks", "num_hops"), [(209, 8, None), (1100, 8, 1050), (300, 0, None)])
def test_values_and_gradients_are_those_of_the_scan_form(tokens, sinks, num_hops):
    rng = np.random.default_rng(tokens)
    q, k, v, weights = (jnp.asarray(rng.standard_normal((12, tokens, 2, 8), np.float32)) for _ in range(4))

    def value_and_gradients(form):
        def attend(q, k, v):
            out = form.windowed_sink_attention(q, k, v, window=10, num_sinks=sinks, num_hops=num_hops)
            return out if num_hops is None else out[:, : sinks + num_hops + 1]  # what follows is padding

        out, pull = jax.vjp(attend, q, k, v)
        return out, *pull(weights[:, : out.shape[1]])

    ours, theirs = (jax.jit(lambda form=form: value_and_gradients(form))() for form in (cpu, attention))
    for actual, expected in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-5 * max(1.0, float(abs(expected).max())), rtol=0)


@pytest.mark.parametrize(("rows", "tokens", "expected"), [(60, 209, 6), (60, 809, 2), (60, 24_000, 1), (7, 100, 7)])
def test_rows_at_once_divide_the_rows(rows, tokens, expected):
    assert cpu.rows_at_once(rows, tokens) == expected
