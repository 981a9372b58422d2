"""Weights on disk: model directories, and the checkpoints of a training run.

A model directory is what `save_model` writes and the converter makes::

    DIR/model.json   {"format": 1, "model": the ModelConfig, "torch": how the PyTorch file looked, or null}
    DIR/params/      an Orbax PyTree of the parameters

A training workdir has the same model.json, and `WORKDIR/checkpoints/STEP/{params,training}/` in place of
params/. `load_model` reads both. Everything is written under a temporary name and renamed when it is whole, so
a save that is interrupted at any moment leaves the checkpoints before it as they were.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import logging
import math
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wroformer_jax.config import ModelConfig
from wroformer_jax.errors import InputError
from wroformer_jax.files import check_space, disk_errors_named, replacing

if TYPE_CHECKING:
    from wroformer_jax.torch_bridge import TorchLayout

FORMAT = 1  # of model.json; raised when an older reader would misread what is written

_log = logging.getLogger("wroformer")


class _DamagedError(Exception):
    """Files that are missing, cut short or garbled; the message is one line."""


def save_model(
    path: str | os.PathLike,
    config: ModelConfig,
    params: Mapping[str, Any],
    *,
    torch_layout: TorchLayout | None = None,
    overwrite: bool = False,
) -> None:
    """Writes a model directory.

    Args:
      path: the directory to make; its parents are made too.
      config: the settings of the model.
      params: its parameters, a nested dict of JAX or NumPy arrays.
      torch_layout: how the PyTorch file that the weights came from looked, for writing it back as it was.
      overwrite: replace an earlier model directory of that name.

    Raises:
      InputError: `path` exists (with `overwrite`: and is not a model directory), the parameters are not those
        of a model with these settings, or the disk is full or refuses.
    """
    path = Path(path)
    _check_leaves(f"the parameters to save in {path}", _describe(params), _expected_params(config))
    with _new_directory(path, overwrite=overwrite, needs=_num_bytes(params)) as temporary:
        _write_model_json(temporary, config, torch_layout)
        _save_tree(temporary / "params", params)


def load_model(path: str | os.PathLike) -> tuple[ModelConfig, dict[str, Any], TorchLayout | None]:
    """Reads a model directory, or the newest whole checkpoint of a training workdir.

    Returns:
      The settings, the parameters as a nested dict of NumPy float32 arrays, and how the PyTorch file that
      they came from looked (None if they came from none).

    Raises:
      InputError: there is no such directory, it is of another kind, or it is damaged.
    """
    path = Path(path)
    config, torch_layout = _read_model_json(path)
    expected = _expected_params(config)
    if (path / "params").is_dir():
        try:
            return config, _restore_tree(path / "params", expected, to_numpy=True), torch_layout
        except _DamagedError as error:
            raise InputError(
                f"{path / 'params'} is damaged or incomplete, convert or copy it again: {error}"
            ) from error
    for step in _steps(path):
        try:
            params = _restore_tree(step / "params", expected, to_numpy=True)
        except _DamagedError as error:
            _log.warning("%s is damaged and passed over: %s", step, error)
        else:
            return config, params, torch_layout
    raise InputError(f"{path} holds no whole checkpoint: train for longer, or name another directory")


def is_model_directory(path: str | os.PathLike) -> bool:
    """Whether `path` is a model directory or a training workdir, whole or not."""
    return (Path(path) / "model.json").is_file()


class TrainingCheckpoints:
    """The checkpoints of a training run, in WORKDIR/checkpoints; a thin layer over Orbax's CheckpointManager.

    Use as a context manager, or call `close`. Saving is synchronous: after `save` the step is on disk.

    Args:
      workdir: the directory of the run; made if it is not there. Gets a model.json, so that
        `wroformer_jax.load(workdir)` works as soon as a step is saved.
      config: the settings of the model that is trained.
      torch_layout: see `save_model`.
      max_to_keep: how many of the newest steps stay; None keeps all.
      keep_best: the name of a metric given to `save`; the step where it is highest stays too.

    Raises:
      InputError: the workdir holds checkpoints of another model, or cannot be written.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        config: ModelConfig,
        *,
        torch_layout: TorchLayout | None = None,
        max_to_keep: int | None = 3,
        keep_best: str | None = None,
    ) -> None:
        ocp = _orbax()
        workdir = Path(workdir).absolute()
        self.directory = workdir / "checkpoints"
        self._keep_best = keep_best
        with disk_errors_named(workdir):
            self.directory.mkdir(parents=True, exist_ok=True)
            self._claim(workdir, config, torch_layout)
        self._set_aside_unlisted()
        managers = ocp.checkpoint_managers
        policies = [managers.LatestN(max_to_keep)]
        if keep_best is not None:
            policies.append(managers.BestN(get_metric_fn=self._best, n=1, keep_checkpoints_without_metrics=False))
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=managers.AnyPreservationPolicy(policies),
                best_fn=self._best if keep_best is not None else None,
                enable_async_checkpointing=False,
                cleanup_tmp_directories=True,
            ),
            handler_registry=ocp.handlers.create_default_handler_registry(params=_handler(), training=_handler()),
        )

    def save(self, step: int, params: Any, training: Any, *, metrics: Mapping[str, float] | None = None) -> None:
        """Saves one step; does nothing if that step is saved already.

        Args:
          step: the number of optimiser steps taken.
          params: the parameters, a nested dict of JAX arrays.
          training: whatever else resuming needs (optimiser state, random keys, counters): any pytree of
            arrays, numbers and texts.
          metrics: what the keep-best rule looks at.

        Raises:
          InputError: the disk is full or refuses; earlier steps are as they were.
        """
        if step in self.steps():
            return
        args = _orbax().args
        score = float("nan") if metrics is None else float(metrics.get(self._keep_best, "nan"))
        with (
            self._clean_after_failure(),
            disk_errors_named(self.directory / str(step)),
            _one_error_at_a_time(),
        ):
            check_space(self.directory, _num_bytes((params, training)))
            self._manager.save(
                step,
                args=args.Composite(params=args.PyTreeSave(params), training=args.PyTreeSave(training)),
                metrics={self._keep_best: score} if math.isfinite(score) else None,
                force=True,  # the caller decides when to save
            )

    def restore(self, params_like: Any, training_like: Any) -> tuple[int, Any, Any] | None:
        """Reads the newest step that is whole.

        A damaged step is passed over with a warning and set aside as STEP.damaged, so that it is neither
        counted among the newest nor in the way when training comes to that step again.

        Args:
          params_like: the tree to fill: arrays, or `jax.ShapeDtypeStruct`, with shardings where that matters.
          training_like: the same for what `save` was given as `training`.

        Returns:
          The step, the parameters and the training state; None if nothing was saved yet.

        Raises:
          InputError: a step is of another model or optimiser, or steps were saved and every one is damaged.
        """
        damaged: list[tuple[Path, str]] = []
        for step in self.steps()[::-1]:
            directory = self.directory / str(step)
            try:
                params = _restore_tree(directory / "params", params_like)
                training = _restore_tree(directory / "training", training_like)
            except _DamagedError as error:
                damaged.append((directory, str(error)))
                continue
            for path, reason in damaged:
                _set_aside(path, reason)
            self._manager.reload()
            return step, params, training
        if damaged:
            raise InputError(
                f"none of the {len(damaged)} checkpoints in {self.directory} can be read, move that directory "
                f"away to start again: {damaged[0][1]}"
            )
        return None

    def steps(self) -> list[int]:
        """The steps on disk, oldest first."""
        return sorted(self._manager.all_steps())

    def close(self) -> None:
        """Releases what Orbax holds."""
        self._manager.close()

    def __enter__(self) -> TrainingCheckpoints:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _best(self, metrics: Mapping[str, float]) -> float:
        return metrics[self._keep_best]

    def _claim(self, workdir: Path, config: ModelConfig, torch_layout: TorchLayout | None) -> None:
        if is_model_directory(workdir):
            _check_same_model(workdir, _read_model_json(workdir)[0], config)
        else:
            _write_model_json(workdir, config, torch_layout)

    def _set_aside_unlisted(self) -> None:
        # Orbax reads the metrics of every step when the manager is made, and one garbled file would stop it.
        for file in self.directory.glob("*[0-9]/metrics/metrics"):
            try:
                json.loads(file.read_bytes())
            except ValueError as error:
                _set_aside(file.parent.parent, f"{file}: {error}")

    @contextlib.contextmanager
    def _clean_after_failure(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            for leftover in self.directory.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(leftover, ignore_errors=True)
            raise


# model.json


def _write_model_json(directory: Path, config: ModelConfig, torch_layout: TorchLayout | None) -> None:
    fields = {
        "format": FORMAT,
        "model": config.to_dict(),
        "torch": None if torch_layout is None else torch_layout.to_dict(),
    }
    with replacing(directory / "model.json") as temporary:
        temporary.write_text(json.dumps(fields, indent=1) + "\n", encoding="utf-8")


def _read_model_json(directory: Path) -> tuple[ModelConfig, TorchLayout | None]:
    file = directory / "model.json"
    if not directory.is_dir():
        raise InputError(f"{directory} is not a directory" if directory.exists() else _missing(directory))
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(
            f"{directory} has no model.json, so it is neither a model directory nor a training workdir"
        ) from error
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{file} is damaged: it is not JSON ({error})") from error
    if not isinstance(fields, dict) or not isinstance(fields.get("model"), dict):
        raise InputError(f"{file} is not the description of a model: it has no 'model' section")
    if fields.get("format") != FORMAT:
        raise InputError(
            f"{file} has format {fields.get('format')!r}, this version reads {FORMAT}: update wroformer-jax, "
            "or convert the PyTorch checkpoint again"
        )
    if unknown := sorted(set(fields) - {"format", "model", "torch"}):
        raise InputError(f"{file} has an unknown field {unknown[0]!r}")
    try:
        return ModelConfig.from_dict(fields["model"]), _torch_layout(fields.get("torch"))
    except InputError as error:
        raise InputError(f"{file}: {error}") from error


def _torch_layout(fields: Any) -> TorchLayout | None:
    if fields is None:
        return None
    from wroformer_jax.torch_bridge import TorchLayout

    try:
        return TorchLayout.from_dict(fields)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"the 'torch' section is damaged ({error})") from error


def _missing(directory: Path) -> str:
    replaced = directory.with_name(directory.name + ".replaced")
    if is_model_directory(replaced):
        return f"{directory} does not exist, but an interrupted overwrite left {replaced}: rename it back"
    return f"{directory} does not exist"


def _check_same_model(workdir: Path, there: ModelConfig, here: ModelConfig) -> None:
    for name, value in here.to_dict().items():
        # These decide how the model is computed, not what its parameters are.
        if name not in ("dtype", "remat") and there.to_dict()[name] != value:
            raise InputError(
                f"{workdir} holds the training of another model: its {name} is {there.to_dict()[name]!r}, "
                f"not {value!r}; choose another workdir"
            )


# Orbax


def _orbax():
    import orbax.checkpoint as ocp

    absl = logging.getLogger("absl")
    if _not_orbax_chatter not in absl.filters:
        absl.addFilter(_not_orbax_chatter)
    return ocp


def _not_orbax_chatter(record: logging.LogRecord) -> bool:
    """Lets a log record pass unless Orbax is reporting on itself."""
    if f"{os.sep}orbax{os.sep}" not in record.pathname:
        return True
    # Orbax logs what goes wrong in its threads, with a traceback, and then raises it to us.
    return record.levelno >= logging.ERROR and "_SignalingThread" not in record.getMessage()


@contextlib.contextmanager
def _one_error_at_a_time() -> Iterator[None]:
    """Keeps Orbax's transfers from printing a traceback each when one of them fails; that one is raised.

    The others end after Orbax has closed its event loop, and report that, or are collected with their errors unread.
    """
    report = sys.unraisablehook
    sys.unraisablehook = lambda _: None
    try:
        yield
    except Exception:
        time.sleep(0.1)  # for those under way
        raise
    finally:
        sys.unraisablehook = report


def _handler(**options):
    # Float weights hardly compress (7 %), and compressing costs a second copy in memory and most of the time.
    return _orbax().PyTreeCheckpointHandler(use_compression=False, **options)


def _save_tree(path: Path, tree: Any) -> None:
    import jax
    import numpy as np

    ocp = _orbax()
    # Nothing changes the arrays while they are written, so Orbax need not write a copy of them all.
    uncopied = ocp.type_handlers.NumpyHandler(deepcopy_host_arrays=False)
    handler = _handler(type_handler_registry=ocp.type_handlers.create_type_handler_registry((np.ndarray, uncopied)))
    with _one_error_at_a_time(), contextlib.closing(ocp.Checkpointer(handler)) as checkpointer:
        checkpointer.save(path.absolute(), args=ocp.args.PyTreeSave(jax.tree.map(np.asarray, tree)))


def _restore_tree(path: Path, like: Any, *, to_numpy: bool = False) -> Any:
    """Reads the Orbax PyTree at `path` into the structure of `like`, a tree of arrays or their descriptions.

    Raises:
      InputError: it is whole, but of another structure.
      _DamagedError: it is damaged.
    """
    try:
        with _one_error_at_a_time():
            return _read_tree(path, like, to_numpy)
    except Exception as error:
        # Orbax and TensorStore raise these for files that are missing, cut short or garbled, even bare Exceptions.
        damage = isinstance(error, OSError | ValueError | KeyError | TypeError) or type(error) is Exception
        if isinstance(error, InputError) or not damage:
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
    with _one_error_at_a_time():
        gc.collect()  # what the error held, now that it is gone
    raise _DamagedError(reason)


def _read_tree(path: Path, like: Any, to_numpy: bool) -> Any:
    import jax

    ocp = _orbax()
    with contextlib.closing(ocp.Checkpointer(_handler())) as checkpointer:
        on_disk = checkpointer.metadata(path.absolute()).item_metadata
        if on_disk is None:
            raise ValueError(f"{path} has no readable metadata")
        _check_leaves(f"the arrays in {path}", _describe(on_disk.tree), like)
        restore_args = jax.tree.map(lambda leaf: _restore_args(leaf, to_numpy), like)
        return checkpointer.restore(path.absolute(), args=ocp.args.PyTreeRestore(item=like, restore_args=restore_args))


def _restore_args(leaf: Any, to_numpy: bool):
    import jax
    import numpy as np

    ocp = _orbax()
    if isinstance(leaf, np.ndarray | np.generic) or (to_numpy and hasattr(leaf, "dtype")):
        return ocp.RestoreArgs(restore_type=np.ndarray, dtype=leaf.dtype)
    if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
        sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
        return ocp.ArrayRestoreArgs(sharding=sharding, global_shape=leaf.shape, dtype=leaf.dtype)
    return ocp.RestoreArgs(restore_type=type(leaf))


def _describe(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by their path; metadata that Orbax read counts as a leaf."""
    flat = _orbax().tree.to_flat_dict(tree, is_leaf=lambda node: hasattr(node, "shape"))
    return {"/".join(path): leaf for path, leaf in flat.items()}


def _check_leaves(what: str, found: dict[str, Any], like: Any) -> None:
    """Raises an InputError that names the first difference between `found` and the tree expected."""
    expected = _describe(like)
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            raise InputError(f"{what}: {name} is missing, they belong to other settings")
        if name not in expected:
            raise InputError(f"{what}: {name} is unknown, they belong to other settings")
        have, want = (_shape_and_dtype(leaf) for leaf in (found[name], expected[name]))
        if None not in (have, want) and have != want:
            raise InputError(f"{what}: {name} is {have}, but these settings need {want}")


def _shape_and_dtype(leaf: Any) -> str | None:
    import jax

    dtype = getattr(leaf, "dtype", None)
    # Plain numbers and texts carry no dtype; typed random keys are stored as plain numbers.
    if dtype is None or jax.dtypes.issubdtype(dtype, jax.dtypes.extended):
        return None
    return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"


@functools.cache
def _expected_params(config: ModelConfig) -> Any:
    """The parameters that a model needs, as shapes and dtypes; nothing is computed."""
    from wroformer_jax.model import RoFormer, abstract_params

    return abstract_params(RoFormer(config))


def _num_bytes(tree: Any) -> int:
    import jax

    return sum(getattr(leaf, "nbytes", 0) for leaf in jax.tree.leaves(tree))


# The file system


def _steps(workdir: Path) -> list[Path]:
    """The step directories of a workdir, newest first. A step gets its name when it is whole."""
    checkpoints = workdir / "checkpoints"
    names = [entry.name for entry in checkpoints.iterdir()] if checkpoints.is_dir() else []
    return [checkpoints / name for name in sorted(filter(str.isdigit, names), key=int, reverse=True)]


def _set_aside(step: Path, reason: str) -> None:
    aside = step.with_name(f"{step.name}.damaged")
    shutil.rmtree(aside, ignore_errors=True)
    step.rename(aside)
    _log.warning("%s is damaged, passed over and renamed to %s: %s", step, aside.name, reason)


@contextlib.contextmanager
def _new_directory(path: Path, *, overwrite: bool, needs: int) -> Iterator[Path]:
    """Yields an empty directory beside `path` that takes its name when the block ends well, else vanishes."""
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists already: remove it, choose another name, or overwrite it")
    if path.exists() and not ((path / "params").is_dir() and is_model_directory(path)):
        raise InputError(f"{path} is not a model directory, so it is not overwritten: choose another name")
    with disk_errors_named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        check_space(path.parent, needs)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-"))
        try:
            yield temporary
            umask = os.umask(0)
            os.umask(umask)
            temporary.chmod(0o777 & ~umask)  # mkdtemp makes directories that only their owner can read
            _take_name(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _take_name(temporary: Path, path: Path) -> None:
    if not path.exists():
        temporary.rename(path)
        return
    # A directory cannot be renamed onto another. Between the two renames the earlier one is whole, but not at
    # its place; `load_model` then says where it is.
    replaced = path.with_name(path.name + ".replaced")
    shutil.rmtree(replaced, ignore_errors=True)
    path.rename(replaced)
    temporary.rename(path)
    shutil.rmtree(replaced)
