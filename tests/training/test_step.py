"""The training step: pure, learning, its parts, and what it does when numbers are no numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.tiny_training import tiny_run

from wroformer_jax.model.roformer import RoFormer
from wroformer_jax.parallel.mesh import make_mesh
from wroformer_jax.training.losses import l1, multi_resolution_stft_loss
from wroformer_jax.training.state import initial_state
from wroformer_jax.training.step import build_update, make_train_step

CONFIG = tiny_run(
    seconds=0.05, batch_size=4, loss={"windows": (64,)}, optimizer={"ema": 0.9, "freeze": ("band_split",)}
)


def one_batch(seed=0):
    rng = np.random.default_rng(seed)
    targets = 0.1 * rng.standard_normal((CONFIG.batch_size, 1, 2, CONFIG.crop_samples), dtype=np.float32)
    mixture = targets[:, 0] + 0.1 * rng.standard_normal(targets[:, 0].shape, dtype=np.float32)
    return {"mixture": mixture, "targets": targets}


@pytest.fixture(scope="module")
def step():
    return make_train_step(CONFIG, make_mesh(CONFIG.mesh))


@pytest.fixture(scope="module")
def start():
    """Parameters of step 0, on the host."""
    return jax.device_get(initial_state(CONFIG, make_mesh(CONFIG.mesh)).params)


@pytest.fixture
def state(start):
    return initial_state(CONFIG, make_mesh(CONFIG.mesh), start)


def test_it_is_pure_and_learns(step, start):
    ends = []
    for _ in range(2):
        state, losses = initial_state(CONFIG, make_mesh(CONFIG.mesh), start), []
        for _ in range(8):
            state, metrics = step(state, one_batch())
            losses.append(float(metrics["loss"]))
        assert losses[-1] < losses[0]
        ends.append(jax.device_get(state))
    jax.tree.map(np.testing.assert_array_equal, *ends)
    assert ends[0].step == 8


def test_constants_and_frozen_parameters_stay(step, start, state):
    state, _ = step(state, one_batch())
    state, _ = step(state, one_batch())  # the learning rate of the first step is 0
    for name in ("time_rotary", "freq_rotary", "band_split"):
        jax.tree.map(np.testing.assert_array_equal, start[name], jax.device_get(state.params[name]))
    assert not np.array_equal(start["sink_tokens"], state.params["sink_tokens"])


def test_metrics_are_those_of_the_definitions(step, start, state):
    batch = one_batch()
    estimate = jax.jit(RoFormer(CONFIG.model).apply)({"params": start}, batch["mixture"])
    targets = jnp.asarray(batch["targets"])
    spectral = multi_resolution_stft_loss(estimate, targets, stft_n_fft=256, windows=(64,), hop=64)
    expected = l1(estimate, targets) + spectral
    _, metrics = step(state, batch)
    assert float(metrics["loss"]) == pytest.approx(float(expected), rel=1e-5)
    assert float(metrics["l1"] + metrics["stft"]) == pytest.approx(float(expected), rel=1e-5)
    energy = np.square(batch["targets"]).sum((-2, -1)) / np.square(batch["targets"] - estimate).sum((-2, -1))
    assert float(metrics["sdr"]) == pytest.approx(float(10 * np.log10(energy).mean()), abs=1e-4)
    assert (int(metrics["skipped"]), int(metrics["skipped_in_a_row"])) == (0, 0)


def test_the_average_follows(step, state):
    averages = [jax.device_get(state.ema)]
    for number in range(3):
        state, _ = step(state, one_batch(number))
        decay = min(0.9, (1 + number) / (10 + number))
        expected = jax.tree.map(lambda a, p, d=decay: d * a + (1 - d) * p, averages[-1], jax.device_get(state.params))
        averages.append(jax.device_get(state.ema))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), averages[-1], expected)


def test_steps_without_a_number_change_nothing_but_the_counts(step, state):
    state, _ = step(state, one_batch())
    before = jax.device_get(state)
    bad = {name: np.where(np.arange(audio.shape[-1]) == 9, np.nan, audio) for name, audio in one_batch().items()}
    for count in (1, 2):
        state, metrics = step(state, {name: audio.astype(np.float32) for name, audio in bad.items()})
        assert not np.isfinite(metrics["loss"])
        assert (int(state.skipped), int(state.skipped_in_a_row)) == (count, count)
    after = jax.device_get(state)
    for name in ("params", "ema", "opt_state"):
        jax.tree.map(np.testing.assert_array_equal, getattr(before, name), getattr(after, name))
    assert after.step == before.step + 2
    state, _ = step(state, one_batch())
    assert (int(state.skipped), int(state.skipped_in_a_row)) == (2, 0)


def test_a_gradient_without_a_number_is_enough(state):
    update = jax.jit(build_update(CONFIG))
    gradients = jax.tree.map(jnp.ones_like, state.params)
    measured = {"loss": jnp.float32(1.0)}
    bad = {**gradients, "sink_tokens": gradients["sink_tokens"].at[0, 0, 0].set(jnp.inf)}
    after, metrics = update(state, measured, bad)
    jax.tree.map(np.testing.assert_array_equal, state.params, after.params)
    assert int(after.skipped) == 1
    # The schedule goes on where it was: the optimiser did not count the step.
    after, metrics = update(after, measured, gradients)
    assert float(metrics["learning_rate"]) == 0.0
    after, metrics = update(after, measured, gradients)
    assert float(metrics["learning_rate"]) > 0.0
    assert int(after.opt_state.inner_states["trained"].inner_state[-1].count) == 2


@pytest.mark.slow
def test_a_batch_in_parts_gives_the_same_gradients(step, start):
    config = CONFIG.with_changes(optimizer={"accumulate": 2})
    in_parts = make_train_step(config, make_mesh(config.mesh))
    ends = []
    for one in (step, in_parts):
        after, metrics = one(initial_state(CONFIG, make_mesh(CONFIG.mesh), start), one_batch())
        # After one step the moments are a tenth of the clipped gradients.
        ends.append((metrics["loss"], metrics["sdr"], metrics["gradient_norm"], after.opt_state))
    for one, other in zip(*map(jax.tree.leaves, ends), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5 * max(float(abs(one).max()), 1e-9))
