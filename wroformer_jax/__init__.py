"""Band-split RoFormers with windowed sink attention for music source separation, in JAX and Flax.

`load` a checkpoint, `separate` a mixture, `save` the weights. Names are imported when first used, so that
`import wroformer_jax` and `wroformer --help` stay fast.
"""

import importlib

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

__all__ = sorted(_HOME)
__version__ = "0.1.0"


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
