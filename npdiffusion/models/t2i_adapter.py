"""T2I-Adapter: a small network that reads a picture once, and whose features join those of the UNet's way down.

    h_i ← h_i + scale · f_i(picture)      h_i the last features of level i      Mou et al. 2023, arXiv:2302.08453, equation 2

The picture's pixels are first folded into channels (pixel-unshuffle), so that even its first map is as small as latents are.
Three kinds: full and light for v1 and 2, halved from level to level; full for XL, folded by 16 instead of 8 and halved once.

N pictures, H × W pixels, r the fold, C channels of a level; pixels in [0, 1], float32.
"""
from collections.abc import Sequence
from typing import Any

import numpy as np

from npdiffusion import kernels
from npdiffusion.kernels.arrays import Array
from npdiffusion.models.layers import Conv2d
from npdiffusion.models.tree import Module


class AdapterResnetBlock(Module):
    """x + block2(relu(block1(x)))      (N, h, w, C) → the same      kernel: of block2, 1 in full adapters, 3 in light ones"""
    def __init__(self, channels: int, kernel: int) -> None:
        self.block1, self.block2 = Conv2d(channels, channels), Conv2d(channels, channels, kernel)

    def __call__(self, x: Array) -> Array:
        return self.block2(kernels.relu(self.block1(x)), x)


class AdapterBlock(Module):
    """One level      (N, h, w, C_in) → (N, h, w, C), or half as large

    inner: channels of its residual blocks, in light adapters a quarter of C, otherwise C      halved: whether it begins so
    """
    def __init__(self, in_channels: int, channels: int, inner: int, blocks: int, halved: bool) -> None:
        light = inner != channels
        self.halved = halved
        self.in_conv = Conv2d(in_channels, inner, kernel=1) if light or in_channels != channels else None
        self.resnets = [AdapterResnetBlock(inner, 3 if light else 1) for _ in range(blocks)]
        self.out_conv = Conv2d(inner, channels, kernel=1) if light else None

    def __call__(self, x: Array) -> Array:
        x = mean_of_four(x) if self.halved else x
        x = self.in_conv(x) if self.in_conv else x
        for block in self.resnets:
            x = block(x)
        return self.out_conv(x) if self.out_conv else x


class Body(Module):
    """Pixels (N, H, W, 3 or 1) → features, [(N, h, w, C), ...], a level each

    fold: r      colours: 3 or 1      channels: of the levels      inner: see `AdapterBlock`      halved: for each level
    """
    def __init__(self, fold: int, colours: int, channels: Sequence[int], inner: Sequence[int], blocks: int,
                 halved: Sequence[bool]) -> None:
        self.fold, self.colours, folded = fold, colours, colours * fold ** 2
        light = inner[0] != channels[0]
        self.conv_in = None if light else Conv2d(folded, channels[0])
        before = [folded if light else channels[0], *channels]
        self.body = [AdapterBlock(*each) for each in zip(before, channels, inner, [blocks] * len(channels), halved)]

    def __call__(self, pixels: Array) -> list[Array]:
        x = unshuffled(pixels, self.fold)
        x = self.conv_in(x) if self.conv_in else x
        features = []
        for block in self.body:
            x = block(x)
            features.append(x)
        return features


class T2IAdapter(Module):
    """Pixels (N, H, W, 3 or 1) in [0, 1] → features, [(N, h, w, C), ...], a level each, as `Body`, which has the arguments"""
    def __init__(self, *body: Any) -> None:
        self.adapter = Body(*body)

    def __call__(self, pixels: Array) -> list[Array]:
        return self.adapter(pixels)


class Features:
    """What an adapter adds for one picture.

    features: of `T2IAdapter`, times the scale      until: share of the UNet's calls in which it acts, of `calls`
    """
    def __init__(self, features: Sequence[Array], until: float = 1.0, calls: int = 1) -> None:
        self.features, self.until, self.calls = features, until, calls

    def at(self, call: int) -> Sequence[Array]:
        """[(1, h, w, C), ...] at a call, counted from 0; () where it is silent"""
        return self.features if call < int(self.calls * self.until) else ()


def unshuffled(x: Array, r: int) -> Array:
    """Pixels folded into channels, those of a colour together      (N, r·h, r·w, C) → (N, h, w, C·r²)"""
    n, height, width, channels = x.shape
    x = x.reshape(n, height // r, r, width // r, r, channels)
    return np.ascontiguousarray(x.transpose(0, 1, 3, 5, 2, 4)).reshape(n, height // r, width // r, channels * r * r)


def mean_of_four(x: Array) -> Array:
    """The mean of each 2 × 2 pixels; at odd edges of those that are there      (N, h, w, C) → (N, ⌈h/2⌉, ⌈w/2⌉, C)"""
    _, height, width, _ = x.shape
    rows, columns = np.arange(0, height, 2), np.arange(0, width, 2)
    sums = np.add.reduceat(np.add.reduceat(x, rows, axis=1), columns, axis=2)
    counts = np.outer(np.minimum(height - rows, 2), np.minimum(width - columns, 2)).astype(np.float32)
    return sums / counts[None, :, :, None]
