"""Peak speeds and memory of devices, from their makers' data sheets.

A device is what JAX counts as one: a TPU chip, or half a chip where JAX shows two per chip (v2, v3, 7x).
"""

from __future__ import annotations

from typing import NamedTuple

GIB = 2**30


class Hardware(NamedTuple):
    """The figures of one device."""

    bfloat16: float  # FLOP/s of dense products of bfloat16 with float32 sums
    float32: float  # FLOP/s of float32 products at full precision (see model/precision.py)
    hbm: float  # bytes of its memory; the runtime keeps some of it for itself
    hbm_bandwidth: float  # bytes/s between its memory and its cores
    links: float  # bytes/s that it can send to other devices over all its links; it can receive as much meanwhile


def _tpu(flops: int, hbm: int, hbm_bandwidth: int, links: int, *, devices: int = 1) -> Hardware:
    """Takes a chip's figures in TFLOP/s, GiB and GB/s. A float32 product takes six passes of the bfloat16 units."""
    per_chip = (flops * 1e12, flops * 1e12 / 6, float(hbm * GIB), hbm_bandwidth * 1e9, links * 1e9)
    return Hardware(*(figure / devices for figure in per_chip))


def _gpu(flops: int, float32: float, memory: int, bandwidth: int, links: int) -> Hardware:
    """Takes a GPU's figures in TFLOP/s, GB and GB/s."""
    return Hardware(flops * 1e12, float32 * 1e12, memory * 1e9, bandwidth * 1e9, links * 1e9)


# Jouppi et al., "A domain-specific supercomputer for training deep neural networks", CACM 63 (7), 2020: 4 links of 496
# and 656 Gbit/s; the rest as below.
_V2 = _tpu(46, 16, 700, 248, devices=2)
_V3 = _tpu(123, 32, 900, 328, devices=2)
# Jouppi et al., "TPU v4", arXiv 2304.01433: 6 links of 50 GB/s; docs.cloud.google.com/tpu/docs/v4 has the rest.
_V4 = _tpu(275, 32, 1200, 300)
# docs.cloud.google.com/tpu/docs/v5e, v5p, v6e and tpu7x, whose "bidirectional" bandwidth counts both directions.
_V5E = _tpu(197, 16, 819, 400 // 2)
_V5P = _tpu(459, 95, 2765, 1200 // 2)
_V6E = _tpu(918, 32, 1638, 800 // 2)
_V7X = _tpu(2307, 192, 7380, 1200 // 2, devices=2)

# By `jax.Device.device_kind`. The names of TPUs are those of jax/_src/pallas/mosaic/tpu_info.py.
_HARDWARE = {
    "TPU v2": _V2,
    "TPU v3": _V3,
    "TPU v4": _V4,
    "TPU v5 lite": _V5E,
    "TPU v5e": _V5E,
    "TPU v5": _V5P,
    "TPU v5p": _V5P,
    "TPU v6 lite": _V6E,
    "TPU v6e": _V6E,
    "TPU7x": _V7X,
    # NVIDIA's data sheets, without sparsity (which doubles the printed figures); links are NVLink, or else PCIe.
    "NVIDIA A100-SXM4-40GB": _gpu(312, 19.5, 40, 1555, 300),
    "NVIDIA A100-SXM4-80GB": _gpu(312, 19.5, 80, 2039, 300),
    "NVIDIA A100-PCIE-40GB": _gpu(312, 19.5, 40, 1555, 32),
    "NVIDIA A100 80GB PCIe": _gpu(312, 19.5, 80, 1935, 32),
    "NVIDIA L4": _gpu(121, 30.3, 24, 300, 32),
    "NVIDIA L40S": _gpu(362, 91.6, 48, 864, 32),
    "NVIDIA H100 80GB HBM3": _gpu(989, 67.0, 80, 3350, 450),  # SXM
    "NVIDIA H100 PCIe": _gpu(756, 51.0, 80, 2000, 64),
    "NVIDIA H200": _gpu(989, 67.0, 141, 4800, 450),
}


def known_hardware(device_kind: str) -> Hardware | None:
    """Returns the figures of a device, or None for an unknown kind (as a CPU).

    Args:
      device_kind: the kind as `jax.Device.device_kind` names it.
    """
    return _HARDWARE.get(device_kind)
