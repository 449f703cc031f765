"""Layers: they hold the parameters of one operation, under the checkpoint's names, and say what it does in one expression.

A fresh layer holds zeros (ones for the scales of norms), which the checkpoint's arrays replace; `prepare` then brings a
weight into the layout that the backend's kernel wants, as float32, bfloat16 or int8. The operations themselves are
`npdiffusion.kernels`.
"""
import functools
from collections.abc import Callable

import numpy as np

from npdiffusion import kernels
from npdiffusion.kernels.arrays import Array, Weight
from npdiffusion.models.on_disk import OnDisk


class Linear:
    """y = x Wᵀ + b (+ r)      (..., in) → (..., out)"""
    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        self.weight = np.zeros((out_features, in_features), np.float32)
        self.bias = np.zeros(out_features, np.float32) if bias else None
        self.dtype = "float32"

    def prepare(self, dtype: str) -> None:
        self.weight = prepared(self.weight, kernels.pack_linear, dtype)
        self.dtype = "bfloat16" if dtype == "int8" else dtype        # of products of no weights, as attention's

    def __repr__(self):
        outputs, inputs = self.weight.shape
        return f"Linear {inputs} → {outputs}" + (", no bias" if self.bias is None else "")

    def __call__(self, x: Array, residual: Array | None = None) -> Array:
        return kernels.linear(x, self.weight, self.bias, residual)


class Conv2d:
    """Convolution, zero-padded at (top, bottom, left, right)      (N, H, W, I) → (N, H_out, W_out, O)"""
    def __init__(self, in_channels: int, out_channels: int, kernel: int = 3, stride: int = 1,
                 padding: tuple[int, int, int, int] | None = None, bias: bool = True) -> None:
        self.weight = np.zeros((out_channels, in_channels, kernel, kernel), np.float32)
        self.bias = np.zeros(out_channels, np.float32) if bias else None
        self.stride = stride
        self.padding = (kernel // 2,) * 4 if padding is None else padding

    def prepare(self, dtype: str) -> None:
        self.weight = prepared(self.weight, kernels.pack_conv2d, dtype)

    def __repr__(self):
        outputs, inputs, height, width = self.weight.shape
        return (f"Conv2d {inputs} → {outputs}, {height}×{width}" + (f", stride {self.stride}" if self.stride != 1 else "")
                + (", no bias" if self.bias is None else ""))

    def __call__(self, x: Array, residual: Array | None = None, shift: Array | None = None) -> Array:
        """residual: like the result; shift: (N, O), added to all pixels of an image"""
        bias = self.bias if shift is None else self.bias + shift
        return kernels.conv2d(x, self.weight, bias, self.stride, self.padding, residual)


class GroupNorm:
    """Parameters of `kernels.group_norm`: γ is `weight`, β is `bias`      (N, H, W, C) → (N, H, W, C)"""
    def __init__(self, channels: int, groups: int, *, eps: float) -> None:
        self.weight = np.ones(channels, np.float32)
        self.bias = np.zeros(channels, np.float32)
        self.groups, self.eps = groups, eps

    def __repr__(self):
        return f"GroupNorm {len(self.weight)}, {self.groups} groups"

    def __call__(self, x: Array) -> Array:
        return kernels.group_norm(x, self.weight, self.bias, self.groups, self.eps)

    def silu(self, x: Array) -> Array:
        """silu(norm(x)) in one pass"""
        return kernels.group_norm_silu(x, self.weight, self.bias, self.groups, self.eps)


class LayerNorm:
    """Parameters of `kernels.layer_norm`: γ is `weight`, β is `bias`      (..., C) → (..., C)"""
    def __init__(self, channels: int, *, eps: float = 1e-05) -> None:
        self.weight = np.ones(channels, np.float32)
        self.bias = np.zeros(channels, np.float32)
        self.eps = eps

    def __repr__(self):
        return f"LayerNorm {len(self.weight)}"

    def __call__(self, x: Array) -> Array:
        return kernels.layer_norm(x, self.weight, self.bias, self.eps)


class Embedding:
    """A table with one row for each id      integers (...) → (..., C)"""
    def __init__(self, entries: int, channels: int) -> None:
        self.weight = np.zeros((entries, channels), np.float32)

    def __repr__(self):
        entries, channels = self.weight.shape
        return f"Embedding {entries} → {channels}"

    def __call__(self, ids: Array) -> Array:
        return kernels.embedding(ids, self.weight)


def prepared(weight: Weight, pack: Callable[..., Weight], dtype: str) -> Weight:
    """A weight in the layout of a kernel; one that stays on disk is brought into it each time that it is read."""
    return weight.packed_by(functools.partial(pack, dtype=dtype)) if isinstance(weight, OnDisk) else pack(weight, dtype)
