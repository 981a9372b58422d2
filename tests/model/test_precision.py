"""Gradients of products are those that JAX derives from the einsum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wroformer_jax.model.precision import product


@pytest.mark.parametrize(
    ("equation", "x", "y"),
    [
        ("...i,io->...o", (3, 4, 5), (5, 6)),
        ("skni,skio->skno", (2, 3, 4, 5), (2, 3, 5, 6)),
        ("btki,kid->btkd", (2, 3, 4, 5), (4, 5, 6)),
        ("...qd,...kd->...qk", (2, 3, 4, 5), (2, 3, 7, 5)),
        ("...qk,...kd->...qd", (2, 3, 4, 5), (2, 3, 5, 6)),
    ],
)
def test_gradients_are_those_of_the_einsum(equation, x, y):
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal(shape, np.float32) for shape in (x, y))

    def value_and_gradients(multiply):
        out, pull = jax.vjp(lambda x, y: multiply(equation, x, y), x, y)
        return out, *pull(jnp.cos(out))

    expected = value_and_gradients(lambda *args: jnp.einsum(*args, precision="highest"))
    for ours, theirs in zip(value_and_gradients(product), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_products_that_remat_keeps_are_not_computed_again(dtype):
    def value(x, y):
        return jnp.sin(product("...i,io->...o", x, y)).sum()

    def is_kept(policy):
        _, pull = jax.vjp(jax.checkpoint(value, policy=policy), jnp.ones((3, 4), dtype), jnp.ones((4, 5), dtype))
        return (3, 5) in [leaf.shape for leaf in jax.tree.leaves(pull)]

    assert is_kept(jax.checkpoint_policies.dots_saveable)
    assert not is_kept(jax.checkpoint_policies.nothing_saveable)
