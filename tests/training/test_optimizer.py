"""What the optimiser moves, by how much, and what it leaves."""

import jax
import numpy as np
import optax
import pytest
from support.tiny_training import tiny_run

from wroformer_jax.errors import InputError
from wroformer_jax.model.params import abstract_params
from wroformer_jax.model.roformer import RoFormer
from wroformer_jax.training.optimizer import make_optimizer, schedule, trained_mask

PARAMS = {
    "layer": {"kernel": np.ones((2, 3), np.float32), "bias": np.ones(3, np.float32)},
    "norm": {"gamma": np.ones(2, np.float32)},
    "time_rotary": {"freqs": np.ones(2, np.float32)},
}


def updates_of(config, gradients, params=PARAMS):
    optimizer = make_optimizer(config, params)
    return optimizer.update(gradients, optimizer.init(params), params)[0]


def flat(**fields):
    return tiny_run(optimizer={"schedule": "constant", "warmup": 0.0, **fields})


def test_only_matrices_decay():
    updates = updates_of(flat(weight_decay=0.5), jax.tree.map(np.zeros_like, PARAMS))
    np.testing.assert_allclose(updates["layer"]["kernel"], -3e-3 * 0.5, rtol=1e-5)
    assert not updates["layer"]["bias"].any()
    assert not updates["norm"]["gamma"].any()


def test_every_matrix_of_the_model_is_called_kernel():
    for path, leaf in jax.tree_util.tree_leaves_with_path(abstract_params(RoFormer(tiny_run().model))):
        name = path[-1].key
        assert name in ("kernel", "bias", "gamma", "freqs", "sink_tokens")
        assert name != "kernel" or leaf.ndim >= 2


def test_frozen_parameters_and_constants_stay_and_have_no_moments():
    config = flat(freeze=("layer",), weight_decay=0.5)
    updates = updates_of(config, PARAMS)
    assert not any(leaf.any() for leaf in jax.tree.leaves(updates["layer"]))
    assert not updates["time_rotary"]["freqs"].any()
    assert updates["norm"]["gamma"].all()
    moments = make_optimizer(config, PARAMS).init(PARAMS).inner_states["trained"].inner_state[1].mu
    assert [leaf.shape for leaf in jax.tree.leaves(moments)] == [(2,)]


def test_frozen_gradients_do_not_count_in_the_norm():
    gradients = {**PARAMS, "layer": jax.tree.map(lambda leaf: 1e6 * leaf, PARAMS["layer"])}
    config = flat(freeze=("layer",), clip_norm=100.0)
    np.testing.assert_array_equal(
        updates_of(config, gradients)["norm"]["gamma"], updates_of(config, PARAMS)["norm"]["gamma"]
    )


def test_scales_are_by_name_and_the_last_that_matches_counts():
    plain = updates_of(flat(), PARAMS)
    scaled = updates_of(flat(learning_rate_scales=((".*", 0.5), ("layer/bias", 10.0))), PARAMS)
    np.testing.assert_allclose(scaled["layer"]["bias"], 10 * plain["layer"]["bias"], rtol=1e-6)
    np.testing.assert_allclose(scaled["layer"]["kernel"], 0.5 * plain["layer"]["kernel"], rtol=1e-6)


def test_gradients_are_clipped():
    optimizer = make_optimizer(flat(clip_norm=0.5), PARAMS)
    for scale in (1.0, 100.0):
        gradients = jax.tree.map(lambda leaf, scale=scale: scale * leaf, PARAMS)
        _, after = optimizer.update(gradients, optimizer.init(PARAMS), PARAMS)
        moments = after.inner_states["trained"].inner_state[1]
        assert float(optax.global_norm(moments.mu)) == pytest.approx(0.1 * 0.5, rel=1e-4)


def test_learning_rate_rises_and_falls():
    rates = [float(schedule(tiny_run(steps=100))(step)) for step in range(101)]
    assert rates[0] == 0
    assert np.argmax(rates) == 10
    assert rates[10] == pytest.approx(3e-3)
    assert rates[100] == pytest.approx(0, abs=1e-9)
    assert float(schedule(tiny_run(steps=1, optimizer={"warmup": 0.0}))(0)) == pytest.approx(3e-3)


def test_a_constant_rate_stays():
    rate = schedule(tiny_run(steps=100, optimizer={"schedule": "constant"}))
    assert [float(rate(step)) for step in (0, 10, 100, 1000)] == pytest.approx([0, 3e-3, 3e-3, 3e-3])


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"freeze": ("block/",)}, "freeze has 'block/', which matches no parameter; names look like"),
        ({"freeze": ("(",)}, r"freeze has '\(', which is not a regular expression"),
        ({"freeze": (".*",)}, r"freeze is \.\*, which leaves nothing to train"),
        ({"learning_rate_scales": (("sinks", 2.0),)}, "learning_rate_scales has 'sinks', which matches no parameter"),
    ],
)
def test_patterns_that_cannot_be_meant_are_refused(fields, sentence):
    with pytest.raises(InputError, match=sentence):
        make_optimizer(flat(**fields), PARAMS)


def test_patterns_match_names_of_the_model():
    params = abstract_params(RoFormer(tiny_run().model))
    mask = trained_mask(tiny_run(optimizer={"freeze": ("band_split", "blocks/freq", "mask_estimator")}), params)
    assert not any(jax.tree.leaves((mask["band_split"], mask["blocks"]["freq"], mask["mask_estimator"])))
    assert all(jax.tree.leaves((mask["blocks"]["time"], mask["sink_tokens"])))
