"""Which run a workdir belongs to: it is claimed once, and refused to runs and models that do not fit."""

import json

import pytest
from support.tiny_model import CONFIG
from support.tiny_training import QUICKLY_COMPILED, tiny_run

from wroformer_jax.checkpoints.model_dir import write_model_json
from wroformer_jax.errors import InputError
from wroformer_jax.workdir import claim
from wroformer_jax.workdir.ownership import claim_for_model, refuse_other


def test_a_free_workdir_gets_the_config_of_the_run(tmp_path):
    config = tiny_run(QUICKLY_COMPILED)
    claim(tmp_path / "new" / "run", config)
    assert json.loads((tmp_path / "new" / "run" / "config.json").read_text()) == json.loads(
        json.dumps(config.to_dict())
    )


def test_refusing_another_run_writes_nothing(tmp_path):
    refuse_other(tmp_path, tiny_run())
    assert list(tmp_path.iterdir()) == []


def test_the_same_run_claims_its_workdir_again(tmp_path):
    claim(tmp_path, tiny_run())
    claim(tmp_path, tiny_run(mesh={"data": 2, "fsdp": 1, "seq": 1}))  # does not change what is learnt
    assert json.loads((tmp_path / "config.json").read_text())["mesh"]["data"] == 2


@pytest.mark.parametrize(
    ("model", "changed", "sentence"),
    [
        ({}, {"steps": 9}, r"holds a run with steps = 8, not 9: .*: to train for longer, start a new run"),
        ({"dim": 16}, {}, r"holds a run with model\.dim = 8, not 16: set it back"),
    ],
)
def test_a_run_with_other_settings_is_refused(tmp_path, model, changed, sentence):
    claim(tmp_path, tiny_run())
    before = (tmp_path / "config.json").read_bytes()
    with pytest.raises(InputError, match=sentence):
        claim(tmp_path, tiny_run(model, **changed))
    assert (tmp_path / "config.json").read_bytes() == before


@pytest.mark.parametrize("content", ["{", "[1]", '{"no_such_field": 1}'])
def test_a_config_that_cannot_be_read_is_refused(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError, match=r"config\.json is not the config of a training run \("):
        claim(tmp_path, tiny_run())


def test_a_directory_of_a_model_is_refused(tmp_path):
    write_model_json(tmp_path, CONFIG)
    with pytest.raises(InputError, match=r"holds a model but no config\.json of a training"):
        claim(tmp_path, tiny_run())


def test_a_path_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file"):
        claim(tmp_path / "file" / "run", tiny_run())


def test_the_model_of_a_workdir_may_be_computed_otherwise_but_not_be_another(tmp_path):
    claim_for_model(tmp_path, tiny_run().model)
    claim_for_model(tmp_path, tiny_run({"dtype": "bfloat16", "remat": "none"}).model)
    with pytest.raises(InputError, match="holds the training of another model: its dim is 8, not 16"):
        claim_for_model(tmp_path, tiny_run({"dim": 16}).model)
