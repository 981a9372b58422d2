"""The optimiser of a training run: AdamW, its schedule, and the parameters that it freezes or moves faster.

A parameter's name is its path in the tree, as in "blocks/time/mixer_0/to_qkv/kernel"; patterns are regular expressions
that must match the beginning of a name.
"""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import optax

from wroformer_jax.config.training import TrainingConfig
from wroformer_jax.errors import InputError
from wroformer_jax.model.layers import Params
from wroformer_jax.model.params import trainable_mask


def make_optimizer(config: TrainingConfig, params: Params) -> optax.GradientTransformation:
    """Returns AdamW on gradients clipped to a global norm.

    Weight decay applies to matrices (`kernel`) only. Constants, and parameters that match a pattern of `freeze`, get
    no update and have no moments. Updates of parameters that match a pattern of `learning_rate_scales` are multiplied
    by its factor.

    Args:
      config: the settings of the run.
      params: the parameters, or their shapes.

    Raises:
      InputError: a pattern matches no parameter, or nothing is left to train.
    """
    adamw = optax.chain(
        optax.clip_by_global_norm(config.optimizer.clip_norm),
        optax.scale_by_adam(b1=config.optimizer.b1, b2=config.optimizer.b2),
        optax.add_decayed_weights(config.optimizer.weight_decay, mask=_matrices),
        _scale_by_name(config, params),
        optax.scale_by_learning_rate(schedule(config)),
    )
    labels = jax.tree.map(lambda trained: "trained" if trained else "frozen", trained_mask(config, params))
    return optax.partition({"trained": adamw, "frozen": optax.set_to_zero()}, labels)


def schedule(config: TrainingConfig) -> optax.Schedule:
    """Returns the learning rate by step: a linear warmup, then constant or a cosine to zero at the last step."""
    warmup_steps = round(config.optimizer.warmup * config.steps)
    start = 0.0 if warmup_steps else config.optimizer.learning_rate
    if config.optimizer.schedule == "cosine":
        return optax.warmup_cosine_decay_schedule(start, config.optimizer.learning_rate, warmup_steps, config.steps)
    return optax.warmup_constant_schedule(start, config.optimizer.learning_rate, warmup_steps)


def trained_mask(config: TrainingConfig, params: Params) -> Params:
    """Returns a tree like `params` that is True for the parameters that are trained.

    Raises:
      InputError: a pattern of `config.optimizer.freeze` matches no parameter, or nothing is left to train.
    """
    _check_patterns("optimizer.freeze", config.optimizer.freeze, params)
    frozen = [re.compile(pattern) for pattern in config.optimizer.freeze]
    mask = jax.tree_util.tree_map_with_path(
        lambda path, constant_free: constant_free and not any(pattern.match(_name(path)) for pattern in frozen),
        trainable_mask(params),
    )
    if not any(jax.tree.leaves(mask)):
        raise InputError(f"optimizer.freeze is {', '.join(config.optimizer.freeze)}, which leaves nothing to train")
    return mask


def _matrices(params: Params) -> Params:
    """True for the parameters with weight decay: matrices, not gains, biases and sink tokens."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def _scale_by_name(config: TrainingConfig, params: Params) -> optax.GradientTransformation:
    """Multiplies updates by the factors of `learning_rate_scales`; the last pattern that matches counts."""
    scales = [(re.compile(pattern), factor) for pattern, factor in config.optimizer.learning_rate_scales]
    _check_patterns(
        "optimizer.learning_rate_scales", [pattern for pattern, _ in config.optimizer.learning_rate_scales], params
    )

    def factor_of(name: str) -> float:
        return next((factor for pattern, factor in reversed(scales) if pattern.match(name)), 1.0)

    def scale(updates: optax.Updates, _params: optax.Params | None = None) -> optax.Updates:
        return jax.tree_util.tree_map_with_path(lambda path, u: jnp.float32(factor_of(_name(path))) * u, updates)

    return optax.stateless(scale) if scales else optax.identity()


def _check_patterns(field: str, patterns: list[str] | tuple[str, ...], params: Params) -> None:
    names = [_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    for pattern in patterns:
        try:
            matches = any(re.match(pattern, name) for name in names)
        except re.error as error:
            raise InputError(f"{field} has {pattern!r}, which is not a regular expression: {error}") from error
        if not matches:
            example = next((name for name in names if name.startswith("blocks/time")), names[0])
            raise InputError(
                f"{field} has {pattern!r}, which matches no parameter; names look like {example!r}, and `wroformer "
                "inspect` shows those of a run"
            )


def _name(path: tuple) -> str:
    """The name of a parameter: the keys of dicts on the way to it, joined by slashes."""
    return "/".join(str(entry.key) for entry in path if isinstance(entry, jax.tree_util.DictKey))
