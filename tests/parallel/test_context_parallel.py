"""With time cut over devices the numbers are those of one device, and devices exchange only halos."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from jax.sharding import AbstractMesh
from support.helpers import of_a_program, tiny_config
from support.tiny_training import tiny_run
from support.tpus import needs_libtpu

from wroformer_jax.errors import InputError
from wroformer_jax.parallel.context_parallel import cut_time, padded_samples
from wroformer_jax.planning.plans import plan, settle
from wroformer_jax.planning.topology import find_topology
from wroformer_jax.training.state import time_of

PROGRAM = Path(__file__).parents[1] / "support" / "time_parts.py"

TEACHER = {"teacher": "not read", "loss": {"weights": {"masks": 1.0}}}
EVERYTHING = {  # at the same time
    "model": {"depth": 2, "skip_connection": True, "remat": "block", "blocks_per_save": 2, "places_at_once": 60},
    "optimizer": {"accumulate": 2},
    "batch_size": 4,
}
LANES = {"attention_impl": "interpret"}
ROUNDED = {"model": {"stream_dtype": "bfloat16"}}
# Fields that replace those of SETTINGS. The lengths do not divide, so that last parts are shorter. With a teacher, a
# part has four of its windows, and the last of the five parts is empty.
CASES = {
    "whole": {},
    "2 parts": {"mesh": {"seq": 2}},
    "8 parts": {"mesh": {"seq": 8}},
    "whole, teacher": TEACHER,
    "5 parts, teacher": {**TEACHER, "mesh": {"seq": 5}, "model": {"places_at_once": 60}},
    "whole, everything": EVERYTHING,
    "4 parts, fsdp, everything": {**EVERYTHING, "mesh": {"fsdp": 2, "seq": 4}},
    "whole, rounded": ROUNDED,
    "4 parts, rounded": {**ROUNDED, "mesh": {"seq": 4}},
    "4 parts, lanes": {"mesh": {"seq": 4}, "model": LANES},
    "2 examples, lanes": {"mesh": {"fsdp": 2}, "model": LANES},
}
# The case that each must agree with, and the tolerance relative to the largest value. A stream in bfloat16 is rounded,
# and sums in another order may round the other way.
REFERENCES = {
    "2 parts": ("whole", 1e-5),
    "8 parts": ("whole", 1e-5),
    "5 parts, teacher": ("whole, teacher", 1e-5),
    "4 parts, fsdp, everything": ("whole, everything", 1e-5),
    "4 parts, rounded": ("whole, rounded", 2**-8),
    "4 parts, lanes": ("whole", 1e-5),
    "2 examples, lanes": ("whole", 1e-5),
}
# 61 hops of 128 samples, and a teacher of 4 hops. With a single head the gradient of the gate's bias would be a single
# number, whose terms may all but cancel.
SETTINGS = tiny_run(batch_size=2, seconds=0.488, loss={"windows": (512, 64)}, teacher_seconds=0.032)
SETTINGS = dataclasses.replace(SETTINGS, model=dataclasses.replace(SETTINGS.model, heads=2))


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Returns a function from a case to its results: what was measured, arrays by name, and the bytes sent."""
    results = run(CASES, tmp_path_factory.mktemp("parts"))
    return results.__getitem__


def run(cases, folder):
    command = [sys.executable, str(PROGRAM), json.dumps(SETTINGS.to_dict()), json.dumps(cases), str(folder)]
    printed = subprocess.run(command, env=of_a_program(), capture_output=True, text=True, check=False, timeout=1200)
    assert not printed.returncode, printed.stderr
    rows = [json.loads(line) for line in printed.stdout.splitlines() if line.startswith("{")]
    assert [row["case"] for row in rows] == list(cases)
    results = {}
    for row in rows:
        with np.load(folder / f"{row['case']}.npz") as arrays:
            results[row["case"]] = row["measured"], dict(arrays), row["sent"]
    return results


@pytest.mark.slow
@pytest.mark.parametrize("case", REFERENCES)
def test_loss_and_gradients_are_those_of_one_device(found, case):
    name, tolerance = REFERENCES[case]
    (measured, arrays, _), (reference, expected, _) = found(case), found(name)
    assert measured.keys() == reference.keys()
    assert ("masks" in measured) == ("teacher" in CASES[case])
    for name in measured:
        np.testing.assert_allclose(measured[name], reference[name], rtol=tolerance, err_msg=name)
    gradients = [name for name in expected if name.startswith("[")]
    assert len(gradients) > 20
    for name in gradients:
        apart, largest = abs(arrays[name] - expected[name]).max(), abs(expected[name]).max()
        assert apart <= tolerance * largest, (name, apart, largest)


@pytest.mark.slow
@pytest.mark.parametrize("parts", [2, 8])
def test_stems_frames_and_sinks_are_those_of_one_device(found, parts):
    """They are, even if the last part is padded with loud samples."""
    (_, arrays, _), (_, expected, _) = found(f"{parts} parts"), found("whole")
    for name in ("stems", "frames"):
        assert arrays[name].shape == expected[name].shape
        assert abs(arrays[name] - expected[name]).max() <= 1e-6 * max(1, abs(expected[name]).max()), name
    assert len(arrays["sinks"]) == parts
    for sinks in arrays["sinks"]:  # the same on every device
        np.testing.assert_allclose(sinks, expected["sinks"][0], atol=1e-6, rtol=1e-6)


@pytest.mark.slow
def test_a_recording_is_separated_in_one_pass_on_all_devices(found):
    (_, arrays, _), (_, expected, _) = found("8 parts"), found("whole")
    assert abs(arrays["one pass"] - expected["stems"][0, 0]).max() <= 1e-6 * max(1, abs(expected["stems"]).max())


def halo_bytes(config):
    """Returns the bytes that a device should send to its neighbours in a step without recomputation."""
    model, forward, both = config.model, 1, 2  # the backward pass sends the cotangents back
    signals = config.batch_size * model.num_stems * model.channels
    edge = model.stft_n_fft // 2
    losses = sum(max(window, model.stft_n_fft) // 2 for window in config.loss.windows)
    # Mixtures need no gradient; then the stems' overlap, the losses' frames, and keys and values.
    samples = config.batch_size * model.channels * edge * forward + signals * (edge + losses) * both
    places = config.batch_size * model.num_bands * (model.window // 2) * model.depth
    return 2 * 4 * (samples + 2 * places * model.heads * model.dim_head * both)  # to both sides, float32


@pytest.mark.slow
@pytest.mark.parametrize("parts", [2, 8])
def test_halos_are_all_that_is_sent(found, parts):
    assert found("whole")[2] == 0
    assert found(f"{parts} parts")[2] == halo_bytes(SETTINGS)


@pytest.mark.slow
@needs_libtpu
def test_on_tpus_nothing_grows_with_the_length():
    """Compiled for a v5e slice: halos as they should be, and the same arrays exchanged for twice the audio."""
    sent = []
    target = find_topology("v5e:2x4")
    for seconds in (1.0, 2.0):
        changed = SETTINGS.with_changes(mesh={"seq": 8}, seconds=seconds, synthetic={"song_seconds": 8.0})
        config, mesh = settle(changed, target, batch_size=SETTINGS.batch_size)
        exchanged = plan(config, mesh, target).collectives
        assert all(one.is_exact for one in exchanged)
        permuted = sum(one.size * one.executions for one in exchanged if one.kind == "collective-permute")
        assert permuted == halo_bytes(config)
        sent.append(sorted((one.kind, one.size, one.executions) for one in exchanged))
    assert sent[0] == sent[1]


def test_an_example_without_a_whole_window_of_the_teacher_is_refused():
    """Its masks would be compared nowhere."""
    config = SETTINGS.with_changes(**TEACHER, teacher_seconds=1.0)
    whole, cut = (AbstractMesh((1, 1, parts), ("data", "fsdp", "seq")) for parts in (1, 2))
    assert time_of(config, whole).is_whole
    with pytest.raises(InputError, match=r"seconds is 0\.488, less than teacher_seconds = 1: .*mesh\.seq = 2"):
        time_of(config, cut)


def test_parts_are_whole_multiples():
    config = tiny_config(sample_rate=16000, stft_n_fft=512, stft_hop_length=160, stft_win_length=512, window=6)
    time = cut_time(config, 16000, 4, multiple=96)
    assert time.part_samples == 4320  # the least multiple of 480 from 4000 on
    assert padded_samples(time, 16000) == 4 * 4320
    assert cut_time(config, 16000, 1).is_whole
    # 5 parts of 4,800 samples: the recording ends in the fourth.
    assert cut_time(config, 16000, 5, multiple=4800).part_samples == 4800
    # Its last 48 samples would be too few to be reflected.
    assert cut_time(config, 14448, 4, multiple=4800).part_samples == 9600


@pytest.mark.parametrize(
    ("fields", "parts", "settings", "sentence"),
    [
        ({"time_mixer": "full", "num_sinks": 0}, 2, {}, r"needs time_mixer 'windowed_sink', not 'full'"),
        ({"window": 4000}, 2, {}, r"window is 4000, expected at most 1024"),
        (
            {"window": 2},
            100,
            {},
            r"1 s of audio are too short.*has 160, and needs 257; .* of at most 99",
        ),
        ({}, 8, {"longest_window": 8000}, r"has 2080, and needs 4001; expected mesh\.seq of at most 3"),
    ],
)
def test_what_cannot_be_cut_is_refused(fields, parts, settings, sentence):
    sizes = {"sample_rate": 16000, "stft_n_fft": 512, "stft_hop_length": 160, "stft_win_length": 512}
    with pytest.raises(InputError, match=sentence):
        cut_time(tiny_config(**sizes, **fields), 16000, parts, **settings)
