"""Working piece by piece gives the same results as working in one go, forwards and backwards."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wroformer_jax.model.pieces import Cut, walk


def work(params, part, piece):
    scaled = part * params["scale"] + piece[..., None, None] * jnp.tanh(part)
    return scaled, (jnp.sum(scaled**2), params["scale"] * piece)


def in_one_go(cut, params, array, pieces):
    """The same by hand: no scan, no buffer that is written twice."""
    parts, outputs, stop = [], [], cut.first + cut.count * cut.size
    for number in range(cut.count):
        start = cut.first + number * cut.size
        part, output = work(params, array[:, start : start + cut.size], pieces[number])
        parts.append(part)
        outputs.append(output)
    whole = jnp.concatenate([array[:, : cut.first], *parts, array[:, stop:]], axis=1)
    return whole, jax.tree.map(lambda *leaves: jnp.stack(leaves), *outputs)


@pytest.mark.parametrize("cut", [Cut(1, 4, 3), Cut(1, 3, 3, 2), Cut(1, 1, 12), Cut(1, 1, 5, 4), Cut(1, 12, 1)])
def test_values_and_gradients(cut):
    rng = np.random.default_rng(0)
    array = rng.standard_normal((2, 12, 5), dtype=np.float32)
    pieces = rng.standard_normal(cut.count, dtype=np.float32)
    params = {"scale": jnp.float32(0.7)}
    weights = rng.standard_normal(array.shape, dtype=np.float32)

    def scalar(walk):
        def of(params, array, pieces):
            # Twice in a row, as the two halves of a block.
            for _ in range(2):
                array, (sums, scaled) = walk(params, array, pieces)
            return jnp.sum(weights * array) + jnp.sum(sums * scaled)

        return jax.jit(jax.value_and_grad(of, argnums=(0, 1, 2)))(params, array, pieces)

    found = scalar(lambda *given: walk(work, cut, *given))
    wanted = scalar(lambda *given: in_one_go(cut, *given))
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=2e-5, atol=1e-5), found, wanted)


def test_the_backward_pass_holds_the_array_once():
    """Temporary memory is that of one array at most: no second copy, no stack of pieces."""
    rows, pieces = 1 << 16, 64
    cut = Cut(0, pieces, rows // pieces)
    array = jax.ShapeDtypeStruct((rows, 64), jnp.float32)

    def twice(scale, array):
        total, _ = walk(lambda scale, part, _: (jnp.tanh(part * scale), None), cut, scale, array)
        return jnp.sum(total)

    step = jax.jit(jax.grad(twice, argnums=1), donate_argnums=1)
    memory = step.lower(jnp.float32(1), array).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 1.3 * array.size * 4, memory
