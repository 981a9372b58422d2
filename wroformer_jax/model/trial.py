"""A form of attention is tried on a device before a model is computed by it.

The forms for TPUs (lanes.py) and GPUs (gpu.py) rest on compilers and libraries that differ from device to device. So
their first use on a kind of device computes a small case there, values and gradients, and compares it with the scan
form (attention.py), which has no code of its own for any device. A form that differs, or fails, is not used.

The form computes in the model's dtype, as it will in the model. The scan form computes in float32, on the same numbers,
and on the host's CPU: compilers for TPUs need several times longer for it than for the kernels. An error is the largest
difference, relative to the largest value, apart for outputs and each gradient, and for sinks and other tokens. It may
be as large as rounding makes it (`ROUNDING`). A key too many or too few, or a wrong factor, makes it much larger.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from wroformer_jax.config.model import ModelConfig
from wroformer_jax.model.blocks import Attend, freq_attention, time_attention
from wroformer_jax.model.implementations import settled
from wroformer_jax.model.lanes import in_lanes, num_lanes, padded_head_dim

# Errors that rounding explains. In bfloat16 the scan form itself has up to 8e-3. In float32, sums in another order have
# up to 1e-6; products in several passes of bfloat16, as TPUs make them, round more.
ROUNDING = {"float32": 1e-4, "bfloat16": 2e-2}

# The case: several blocks and tiles of every form, the last ones not full, and some padding at the end.
ROWS, FRAMES, HOPS = 2, 1301, 1279

# Settings that decide what a form does. All others are the same in every case.
_SIZES = ("attention_impl", "dtype", "time_mixer", "window", "num_sinks", "heads", "dim_head", "num_bands")

_log = logging.getLogger("wroformer")


class Case(NamedTuple):
    """Attention of a model in one of its directions.

    Attributes:
      name: what it is, for messages.
      tokens: number of tokens.
      counting: number of first tokens that are no padding.
      sinks: number of first tokens that are sinks.
    """

    name: str
    tokens: int
    counting: int
    sinks: int


# Attention over bands, and along time, on (row, token, head, head_dim), with queries that are not scaled.
Attends = tuple[Attend, Attend]
Form = Callable[[ModelConfig], Attends]


def checked(config: ModelConfig, device: Any, form: Form | None = None) -> ModelConfig:
    """Returns the settled settings (see `implementations.settled`), with a form of attention that works on a device.

    The first call for a form, its sizes and a device computes something there, which takes some seconds. Call it
    outside of jitted functions.

    Args:
      config: the settings of a model.
      device: a `jax.Device` of this process, on which the model will be computed, or of the same kind.
      form: gives the attention that is tried, in place of that of the settings.

    Raises:
      InputError: see `settled`.
    """
    chosen = settled(config, device.platform)
    if chosen.attention_impl == "scan":
        return chosen
    sizes = dataclasses.replace(ModelConfig(), **{name: getattr(chosen, name) for name in _SIZES})
    return chosen if _works(sizes, device, form or form_of) else by_scan(config, device)


def by_scan(config: ModelConfig, device: Any) -> ModelConfig:
    """Returns the settings for the scan form, settled for a device."""
    return settled(dataclasses.replace(config, attention_impl="scan"), device.platform)


def form_of(config: ModelConfig) -> Attends:
    """Returns the attention of settled settings: over the bands, and along time with HOPS hops of audio."""
    attends = freq_attention(config), time_attention(config, HOPS)
    if not in_lanes(config):
        return attends
    return _in_heads(config, attends[0]), _in_heads(config, attends[1])


@functools.cache
def _works(config: ModelConfig, device: Any, form: Form) -> bool:
    """Tries a form and logs what came of it. Cached, so that this happens once in a process."""
    start = time.perf_counter()
    try:
        error, wrong = _largest_error(config, device, form)
    except Exception as failure:  # whatever a compiler or a library raises: the scan form does the work
        error, wrong = 0.0, f"it fails with {type(failure).__name__}: {(str(failure).strip() or '-').splitlines()[0]}"
    kind = device.device_kind
    if wrong:
        _log.warning(
            "attention is computed by jax.lax.scan and not by %r, which was tried on %s: %s",
            config.attention_impl, kind, wrong,
        )  # fmt: skip
        return False
    _log.info(
        "attention kernels (%s) checked on %s in %.1f s: largest difference %.1e of the largest value",
        config.attention_impl, kind, time.perf_counter() - start, error,
    )  # fmt: skip
    return True


def _largest_error(config: ModelConfig, device: Any, form: Form) -> tuple[float, str | None]:
    """Returns the largest relative error of a form, and a clause that names the first array that is wrong, if any."""
    cases = (
        Case("attention over bands", config.num_bands, config.num_bands, 0),
        Case("attention along time", config.num_sinks + FRAMES, config.num_sinks + HOPS + 1, config.num_sinks),
    )
    reference = form_of(dataclasses.replace(config, attention_impl="scan"))
    largest, bound = 0.0, ROUNDING[config.dtype]
    for case, tried, scan in zip(cases, form(config), reference, strict=True):
        inputs = _inputs(config, case)
        found = jax.device_get(_measured(tried, case, jax.device_put(inputs, device)))
        exact = tuple(x.astype(np.float32) for x in inputs)
        expected = jax.device_get(_measured(scan, case, jax.device_put(exact, _host(device))))
        for name in sorted(found, key=lambda name: name.startswith("gradients")):
            error = float(np.max(abs(found[name] - expected[name])) / np.max(abs(expected[name])))
            if not error <= bound:  # also if it is not a number
                return error, (
                    f"{name} of the {case.name} differ by {error:.1e} of the largest value from the scan form's, "
                    f"where {bound:.1e} is rounding"
                )
            largest = max(largest, error)
    return largest, None


def _host(device: Any) -> Any:
    """Returns the CPU as a `jax.Device`; the given one if JAX was told to use no CPU (JAX_PLATFORMS)."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return device


Inputs = tuple[Shaped[Any, "row token head head_dim"], ...]


def _inputs(config: ModelConfig, case: Case) -> Inputs:
    """Returns queries, keys, values, and gradients of outputs, in the model's dtype, random but always the same."""
    shape = (ROWS, case.tokens, config.heads, config.dim_head)
    return tuple(np.random.default_rng(0).standard_normal((4, *shape), np.float32).astype(jnp.dtype(config.dtype)))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _measured(attend: Attend, case: Case, inputs: Inputs) -> dict[str, Float[Array, "row token head head_dim"]]:
    """Returns outputs and gradients by name, float32. Those of sinks come apart, since they are much larger."""
    *qkv, cotangent = inputs
    out, pull = jax.vjp(attend, *qkv)
    # Outputs of padding are no numbers that forms have in common.
    counts = (jnp.arange(case.tokens) < case.counting)[:, None, None]
    gradients = pull(jnp.where(counts, cotangent, 0).astype(out.dtype))
    arrays = {
        "outputs": jnp.where(counts, out, 0),
        **{f"gradients of {name}": x for name, x in zip(("queries", "keys", "values"), gradients, strict=True)},
    }
    arrays = {name: x.astype(jnp.float32) for name, x in arrays.items()}
    at_sinks = {f"{name} at the sinks": x[:, : case.sinks] for name, x in arrays.items() if case.sinks}
    return {name: x[:, case.sinks :] for name, x in arrays.items()} | at_sinks


def _in_heads(config: ModelConfig, attend: Attend) -> Attend:
    """Makes attention in lanes (lanes.py) one that takes heads, and queries that are not scaled."""
    lanes, padded = num_lanes(config), padded_head_dim(config.dim_head)

    def wide(x: Float[Array, "row token head head_dim"]) -> Float[Array, "row token lane"]:
        x = jnp.pad(x, ((0, 0), (0, 0), (0, lanes // padded - config.heads), (0, padded - config.dim_head)))
        return x.reshape(*x.shape[:2], lanes)

    def attend_heads(q: Array, k: Array, v: Array) -> Array:
        q = q * np.asarray(config.dim_head**-0.5, q.dtype)
        out = attend(wide(q), wide(k), wide(v)).reshape(*q.shape[:2], -1, padded)
        return out[:, :, : config.heads, : config.dim_head]

    return attend_heads
