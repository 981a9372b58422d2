"""Band-split RoFormers with windowed sink attention for music source separation, in JAX and Flax.

`load` a checkpoint, `separate` a mixture, `save` the weights. Names are imported when they are first used, so that
`import wroformer_jax` and `wroformer --help` stay fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wroformer_jax.checkpoints import load, save
    from wroformer_jax.config import ModelConfig
    from wroformer_jax.errors import InputError
    from wroformer_jax.model import RoFormer, full_attention, init_params, windowed_sink_attention
    from wroformer_jax.separation import separate

__all__ = [
    "InputError",
    "ModelConfig",
    "RoFormer",
    "full_attention",
    "init_params",
    "load",
    "save",
    "separate",
    "windowed_sink_attention",
]
__version__ = "0.1.0"

# The room that each public name is imported from when it is first used.
_HOME = {
    "InputError": "errors",
    "ModelConfig": "config",
    "RoFormer": "model",
    "full_attention": "model",
    "init_params": "model",
    "load": "checkpoints",
    "save": "checkpoints",
    "separate": "separation",
    "windowed_sink_attention": "model",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
