"""PyTorch's side of compare.py: the public package BS-RoFormer, as fast as PyTorch makes it.

The package's model has full attention. `full` gives it PyTorch's scaled_dot_product_attention, eager or with its
transformers compiled. `windowed` adds sinks, and windowed sink attention by flex_attention, which skips blocks of
scores that the mask hides; bin 0 is not zeroed. Compiling one transformer serves all that are like it; compiling the
whole model, with its 60 small layers for the bands on either side, would take many minutes and gain little.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from ours import as_full
from torch import nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.utils.checkpoint import checkpoint

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from support.reference import make_reference  # pyright: ignore[reportMissingImports]: in tests/

from wroformer_jax.config.model import ModelConfig

# The package's model makes an STFT without a window only to count its bins.
warnings.filterwarnings("ignore", "A window was not provided")


class Scaled(nn.Module):
    """PyTorch's own attention. Rotary embedding returns float32 under autocast, so queries and keys are cast back."""

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v)


class Windowed(nn.Module):
    """Windowed sink attention: flex_attention with a block mask, which must be set before the module is called."""

    mask: BlockMask

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Any:
        return flex_attention(q.to(v.dtype), k.to(v.dtype), v, block_mask=self.mask)


class WindowedAlone(Windowed):
    """The same, compiled by itself: on a CPU, PyTorch cannot fuse it with what follows, and refuses to compile both."""

    @torch.compiler.disable(recursive=False)
    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Any:
        return _compiled_flex(q.to(v.dtype), k.to(v.dtype), v, block_mask=self.mask)


_compiled_flex = torch.compile(flex_attention, dynamic=False)


class WithSinks(nn.Module):
    """A band split that puts the sinks in front of the frames."""

    def __init__(self, inner: nn.Module, sinks: torch.Tensor) -> None:
        super().__init__()
        self.inner, self.sinks = inner, sinks

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        frames = self.inner(x)
        return torch.cat([self.sinks.to(frames.dtype).expand(len(frames), -1, -1, -1), frames], dim=1)


class MaskOfFrames(nn.Module):
    """A mask estimator without the sinks. Its result is float32, since there are no complex numbers of bfloat16."""

    def __init__(self, inner: nn.Module, num_sinks: int) -> None:
        super().__init__()
        self.inner, self.num_sinks = inner, num_sinks

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x[:, self.num_sinks :]).float()


class Recomputed(nn.Module):
    """A transformer that keeps only its input for the backward pass, as remat "block" does."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> Any:
        return checkpoint(self.inner, x, use_reentrant=False)


def full(config: ModelConfig, device: str, *, compiled: bool = False, remat: bool = False) -> nn.Module:
    """Returns the package's model with full attention and random weights.

    Args:
      config: the settings.
      device: "cpu" or "cuda".
      compiled: compile the transformers.
      remat: keep only the transformers' inputs for the backward pass.
    """
    model = make_reference(as_full(config))
    for time, freq in model.layers:
        _set_attention(time, Scaled)
        _set_attention(freq, Scaled)
    return _finished(model, device, compiled, remat)


def windowed(
    config: ModelConfig, device: str, seconds: float, *, compiled: bool = True, remat: bool = False
) -> nn.Module:
    """Returns a windowed-sink model with random weights, for audio of one length.

    Without `compiled`, flex_attention lays out all scores: for tests of the numbers only.
    """
    model = make_reference(config)
    shared = block_mask(config, seconds, device)
    for time, freq in model.layers:
        _set_attention(time, WindowedAlone if compiled and device == "cpu" else Windowed)
        _set_attention(freq, Scaled)
        for attention, _ in time.layers:
            attention.attend.mask = shared
    return _finished(model, device, compiled, remat)


def block_mask(config: ModelConfig, seconds: float, device: str) -> BlockMask:
    """Returns the mask of windowed sink attention: which query sees which key."""
    sinks, reach = config.num_sinks, config.window // 2

    def sees(_batch: Any, _head: Any, i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
        return (i < sinks) | (j < sinks) | ((i - j).abs() <= reach)

    tokens = sinks + 1 + round(seconds * config.sample_rate) // config.stft_hop_length
    return create_block_mask(sees, None, None, tokens, tokens, device=device)


def inference(model: nn.Module, audio: Any, dtype: str) -> Callable[[], torch.Tensor]:
    """Returns a function that runs the forward pass once, without gradients."""
    given = torch.tensor(audio, device=device_of(model))

    def run() -> torch.Tensor:
        with torch.inference_mode(), autocast(model, dtype):
            return _done(model(given))

    return run


def training(model: nn.Module, audio: Any, targets: Any, dtype: str) -> Callable[[], torch.Tensor]:
    """Returns a function that takes one step of AdamW on the package's own loss."""
    given, wanted = (torch.tensor(array, device=device_of(model)) for array in (audio, targets[:, 0]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        with autocast(model, dtype):
            loss = model(given, target=wanted)
        loss.backward()
        optimizer.step()
        return _done(loss.detach())

    return step


def autocast(model: nn.Module, dtype: str) -> torch.autocast:
    """Returns the context in which products take bfloat16, or float32."""
    return torch.autocast(device_of(model).type, dtype=torch.bfloat16, enabled=dtype == "bfloat16")


def device_of(model: nn.Module) -> torch.device:
    """Returns the device of the weights."""
    return next(model.parameters()).device


def best_product(shapes: list[tuple[int, int, int]], device: str, dtype: str) -> Callable[[int], Callable[[], Any]]:
    """Returns, by the number of a shape (m, k, n), a function that multiplies two random matrices."""

    def product(number: int) -> Callable[[], Any]:
        m, k, n = shapes[number]
        a, b = (torch.randn(*size, device=device, dtype=getattr(torch, dtype)) for size in ((m, k), (k, n)))
        return lambda: _done(a @ b)

    return product


def _done(result: torch.Tensor) -> torch.Tensor:
    if result.is_cuda:
        torch.cuda.synchronize()
    return result


def _set_attention(transformer: Any, kind: type[nn.Module]) -> None:
    for attention, _ in transformer.layers:
        attention.attend = kind()


def _finished(model: Any, device: str, compiled: bool, remat: bool) -> nn.Module:
    sinks = model.config.num_sinks
    if sinks:
        model.band_split = WithSinks(model.band_split, model.sink_tokens)
    model.mask_estimators = nn.ModuleList(MaskOfFrames(estimator, sinks) for estimator in model.mask_estimators)
    for pair in model.layers:
        if remat:
            pair[0], pair[1] = Recomputed(pair[0]), Recomputed(pair[1])
        if compiled:  # with the recomputation inside, or PyTorch may recompute by another program
            pair[0].compile(dynamic=False)
            pair[1].compile(dynamic=False)
    return model.to(device)
