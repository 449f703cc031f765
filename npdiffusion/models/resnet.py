"""Residual block and resampling: what the UNet and the VAE are built from.

The block is the pre-activation residual block of DDPM (Ho et al. 2020, arXiv:2006.11239, appendix B):

    h = conv1(silu(norm1(x))) + W e               e: silu(time embedding), the same in all blocks; the VAE's have none
    y = shortcut(x) + conv2(silu(norm2(h)))       shortcut: 1×1 convolution where the channels change, else identity

Norm and activation: docs/notes/11-normalisation.md
"""
from npdiffusion import kernels
from npdiffusion.kernels.arrays import Array
from npdiffusion.models.conditioning import repeated
from npdiffusion.models.layers import Conv2d, GroupNorm, Linear
from npdiffusion.models.tree import Module


class ResnetBlock2D(Module):
    """(N, H, W, C_in), silu(time embedding) (N, E), (n, E) if images share it, see `repeated`, or None → (N, H, W, C_out)

    eps of the norms is 1e-5 in the UNet (`norm_eps`) and 1e-6 in the VAE.
    """
    def __init__(self, in_channels: int, out_channels: int, groups: int, *, eps: float,
                 time_channels: int | None = None) -> None:
        self.norm1 = GroupNorm(in_channels, groups, eps=eps)
        self.conv1 = Conv2d(in_channels, out_channels)
        self.time_emb_proj = Linear(time_channels, out_channels) if time_channels else None
        self.norm2 = GroupNorm(out_channels, groups, eps=eps)
        self.conv2 = Conv2d(out_channels, out_channels)
        self.conv_shortcut = Conv2d(in_channels, out_channels, kernel=1) if in_channels != out_channels else None

    def __call__(self, x: Array, time_embedding: Array | None = None) -> Array:
        shift = repeated(self.time_emb_proj(time_embedding), len(x)) if self.time_emb_proj else None
        h = self.conv1(self.norm1.silu(x), shift=shift)
        h = self.norm2.silu(h)                        # conv1's result ends here: feature maps of the VAE are large
        shortcut = self.conv_shortcut(x) if self.conv_shortcut else x
        return self.conv2(h, residual=shortcut)


class Downsample2D(Module):
    """Halve height and width by a 3×3 convolution of stride 2      (N, H, W, C) → (N, ⌈H/2⌉, ⌈W/2⌉, C)

    The UNet pads all four sides, (1, 1, 1, 1); the VAE's encoder pads bottom and right alone, (0, 1, 0, 1).
    """
    def __init__(self, channels: int, padding: tuple[int, int, int, int]) -> None:
        self.conv = Conv2d(channels, channels, stride=2, padding=padding)

    def __call__(self, x: Array) -> Array:
        return self.conv(x)


class Upsample2D(Module):
    """Nearest neighbours, then a 3×3 convolution      (N, H, W, C) → (N, height, width, C), by default (N, 2H, 2W, C)

    The UNet aims at the size of the skip connection that comes next: an odd size was rounded up on the way down.
    """
    def __init__(self, channels: int) -> None:
        self.conv = Conv2d(channels, channels)

    def __call__(self, x: Array, height: int | None = None, width: int | None = None) -> Array:
        height, width = height or 2 * x.shape[1], width or 2 * x.shape[2]
        return kernels.upsample_conv2d(x, self.conv.weight, self.conv.bias, height, width)
