"""A model that tests can make, save and load many times, and the failures of disks."""

import errno
import os

import jax
import numpy as np

from wroformer_jax.checkpoints.torch_weights import slots
from wroformer_jax.config.model import ModelConfig
from wroformer_jax.model.params import abstract_params
from wroformer_jax.model.roformer import RoFormer

CONFIG = ModelConfig(
    num_bands=8,
    stft_n_fft=256,
    stft_hop_length=64,
    stft_win_length=256,
    dim=16,
    depth=2,
    heads=2,
    dim_head=8,
    dim_feed_forward=32,
    mask_layers=2,
    dim_mask=32,
    window=4,
    num_sinks=2,
)

# The same settings in the public YAML dialect.
YAML = """\
audio:
  chunk_size: !!python/tuple [1, 2]
training:
  target_instrument: vocals
  instruments: [vocals, other]
model:
  dim: 16
  depth: 2
  stereo: true
  num_stems: 1
  time_transformer_depth: 1
  freq_transformer_depth: 1
  num_bands: 8
  dim_head: 8
  heads: 2
  mlp_expansion_factor: 2
  mask_estimator_depth: 2
  sample_rate: 44100
  stft_n_fft: 256
  stft_hop_length: 64
  stft_win_length: 256
  wsa_window_len: 4
  n_wsa_sinks: 2
"""


def make_params(config=CONFIG, seed=0):
    """Returns random parameters; the padding of narrow bands, which a PyTorch file does not have, is zero."""
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract_params(RoFormer(config)))
    for slot in slots(config):
        leaf = params
        for name in slot.path:
            leaf = leaf[name]
        slot.view(leaf)[...] = rng.standard_normal(slot.view(leaf).shape)
    return jax.tree.map(jax.numpy.asarray, params)


def assert_same(expected, found):
    assert jax.tree.structure(expected) == jax.tree.structure(found)
    for want, have in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        np.testing.assert_array_equal(want, have, strict=True)


def files_in(directory):
    return {p.relative_to(directory): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def largest_file(directory):
    return max((p for p in directory.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


# The errors of Python and of TensorStore on a full disk.
FULL = [
    OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    ValueError("RESOURCE_EXHAUSTED: Error writing: No space left on device [os_error_code='28']"),
]


def fail_halfway(error):
    """Replaces Orbax's save by one that writes a part and then fails."""

    def save(self, directory, *_, **__):
        partial = directory.with_name(directory.name + ".orbax-checkpoint-tmp")
        partial.mkdir(parents=True)
        (partial / "part").write_bytes(b"half")
        raise error

    return save
