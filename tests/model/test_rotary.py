"""Rotary embedding against the package that the PyTorch models use."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from rotary_embedding_torch import RotaryEmbedding

from wroformer_jax.model.rotary import rotary_frequencies, rotary_tables, rotate


@pytest.mark.parametrize("dim_head", [8, 16, 32, 48, 64, 128])
def test_frequencies_are_torch_s_bit_for_bit(dim_head):
    expected = RotaryEmbedding(dim=dim_head).freqs.detach().numpy()
    np.testing.assert_array_equal(rotary_frequencies(dim_head), expected)


def test_rotation_equals_torch():
    x = np.random.default_rng(0).standard_normal((2, 900, 3, 16)).astype(np.float32)
    expected = RotaryEmbedding(dim=16).rotate_queries_or_keys(torch.tensor(x).transpose(1, 2)).transpose(1, 2)
    tables = rotary_tables(jnp.asarray(rotary_frequencies(16)), jnp.arange(900))
    np.testing.assert_allclose(rotate(jnp.asarray(x), *tables), expected.detach(), atol=2e-6)


def test_products_depend_only_on_distances():
    rng = np.random.default_rng(1)
    q, k = (np.broadcast_to(rng.standard_normal((1, 1, 1, 8), np.float32), (1, 50, 1, 8)) for _ in range(2))
    tables = rotary_tables(jnp.asarray(rotary_frequencies(8)), jnp.arange(50))
    q, k = (rotate(jnp.asarray(x), *tables)[0, :, 0] for x in (q, k))
    products = np.asarray(q @ k.T)
    for distance in (-3, 0, 5):
        along = np.diagonal(products, distance)
        np.testing.assert_allclose(along, along[0], atol=1e-5)


def test_the_dtype_is_kept():
    tables = rotary_tables(jnp.asarray(rotary_frequencies(8)), jnp.arange(4))
    assert rotate(jnp.ones((1, 4, 1, 8), jnp.bfloat16), *tables).dtype == jnp.bfloat16
