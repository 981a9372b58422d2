"""Trees on disk: round trips, damage as opposed to another structure, and Orbax's log."""

import logging
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from support.tiny_model import assert_same, largest_file

from wroformer_jax.checkpoints.orbax_io import (
    DamagedError,
    check_leaves,
    num_bytes,
    quiet_orbax,
    restore_tree,
    save_tree,
)
from wroformer_jax.errors import InputError

TREE = {"a": {"b": np.arange(6, dtype=np.float32).reshape(2, 3)}, "c": np.ones(4, np.int32)}


def test_round_trip(tmp_path):
    save_tree(tmp_path / "tree", TREE)
    assert_same(TREE, restore_tree(tmp_path / "tree", TREE))
    restored = restore_tree(tmp_path / "tree", jax.tree.map(jax.numpy.asarray, TREE))
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(restored))
    assert_same(TREE, restore_tree(tmp_path / "tree", restored, to_numpy=True))


def test_damage_is_one_line(tmp_path):
    with pytest.raises(DamagedError):
        restore_tree(tmp_path / "nowhere", TREE)
    save_tree(tmp_path / "tree", TREE)
    largest_file(tmp_path / "tree").write_bytes(b"")
    with pytest.raises(DamagedError) as caught:
        restore_tree(tmp_path / "tree", TREE)
    assert str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"a": TREE["a"]}, "the tree: c is missing"),
        ({**TREE, "d": 1}, "the tree: d is unknown"),
        ({**TREE, "c": np.ones(5, np.int32)}, r"the tree: c is int32\[5\], but these settings need int32\[4\]"),
        ({**TREE, "a": {"b": np.ones((2, 3), np.float16)}}, r"a/b is float16\[2,3\], but .* float32\[2,3\]"),
    ],
)
def test_the_first_difference_is_named(tmp_path, found, message):
    with pytest.raises(InputError, match=message):
        check_leaves("the tree", found, TREE)
    save_tree(tmp_path / "tree", found)
    with pytest.raises(InputError, match=message.removeprefix("the tree: ")):
        restore_tree(tmp_path / "tree", TREE)


def test_num_bytes():
    assert num_bytes(TREE) == 4 * 6 + 4 * 4
    assert num_bytes({"text": "x"}) == 0


def test_orbax_is_quiet(tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="absl"):
        save_tree(tmp_path / "tree", TREE)
        restore_tree(tmp_path / "tree", TREE)
        assert caplog.records == []
        logging.getLogger("absl").info("a line of the trainer")
    assert [record.message for record in caplog.records] == ["a line of the trainer"]


def test_orbax_still_logs_for_others(tmp_path, caplog):
    absl, report = logging.getLogger("absl"), sys.unraisablehook
    filters = list(absl.filters)
    with pytest.raises(ZeroDivisionError), quiet_orbax():
        raise ZeroDivisionError
    assert absl.filters == filters
    assert sys.unraisablehook is report
    with caplog.at_level(logging.INFO, logger="absl"), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        checkpointer.save(tmp_path / "theirs", TREE)
    assert caplog.records
