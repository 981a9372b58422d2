"""Small PyTorch checkpoints of every kind of model, and the YAML files that come with them."""

import dataclasses
import functools

import torch
import yaml

from support.helpers import tiny_config
from support.reference import make_reference

CONFIG = tiny_config(num_bands=12, depth=1, dim=8, heads=2, dim_head=4, dim_feed_forward=32, dim_mask=32)
FULL = dataclasses.replace(CONFIG, time_mixer="full", num_sinks=0, zero_dc=False)
TWO_STEMS = dataclasses.replace(FULL, stems=("drums", "bass"), channels=1, time_transformer_depth=2)
BAND_SPLIT = dataclasses.replace(FULL, band_scheme="band_split", freqs_per_bands=(1,) * 5 + (20, 1000), mask_layers=2)
CONFIGS = {"windowed sinks": CONFIG, "full": FULL, "two stems, mono": TWO_STEMS, "band split": BAND_SPLIT}


@functools.cache
def _reference_tensors(config):
    return make_reference(config).state_dict()


def state_dict(config, dtype=torch.float32):
    """Returns the state dict of a random model; it is the same for each call."""
    return {key: value.to(dtype) for key, value in _reference_tensors(config).items()}


def saved(folder, content, name="model.ckpt"):
    """Writes a file of torch.save and returns its path."""
    torch.save(content, folder / name)
    return folder / name


def write_yaml(path, config, **changes):
    """Writes the settings in the YAML dialect of public checkpoints and returns the path."""
    model = {
        "dim": config.dim,
        "depth": config.depth,
        "stereo": config.channels == 2,
        "num_stems": config.num_stems,
        "time_transformer_depth": config.time_transformer_depth,
        "freq_transformer_depth": config.freq_transformer_depth,
        "dim_head": config.dim_head,
        "heads": config.heads,
        "attn_dropout": 0.0,
        "flash_attn": True,
        "dim_freqs_in": config.num_bins,
        "stft_n_fft": config.stft_n_fft,
        "stft_hop_length": config.stft_hop_length,
        "stft_win_length": config.stft_win_length,
        "stft_normalized": False,
        "mask_estimator_depth": config.mask_layers - 1,
        "multi_stft_resolutions_window_sizes": (4096, 2048, 1024, 512, 256),
        "zero_dc": config.zero_dc,
    }
    if config.band_scheme == "mel":
        model |= {"num_bands": config.num_bands, "sample_rate": config.sample_rate}
    else:
        model |= {"freqs_per_bands": config.freqs_per_bands}
    if config.time_mixer == "windowed_sink":
        model |= {"wsa_window_len": config.window, "n_wsa_sinks": config.num_sinks}
    model = {key: value for key, value in {**model, **changes}.items() if value is not None}
    target = config.stems[0] if config.num_stems == 1 else None
    training = {"instruments": [*config.stems, "other"][: max(2, config.num_stems)], "target_instrument": target}
    path.write_text(yaml.dump({"audio": {"chunk_size": 352800}, "model": model, "training": training}))
    return path


def assert_same_bits(a, b):
    """Compares two state dicts of torch tensors: order of keys, dtypes, shapes and bits."""
    assert list(a) == list(b)
    for key in a:
        assert a[key].dtype == b[key].dtype, key
        assert a[key].shape == b[key].shape, key
        assert torch.equal(a[key].contiguous().view(torch.uint8), b[key].contiguous().view(torch.uint8)), key
