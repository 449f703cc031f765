"""The autoencoder between pixels and latents: 8 × 8 pixels become one latent pixel of 4 channels.

Rombach et al. 2021, arXiv:2112.10752, section 3.1. The encoder gives a Gaussian for each latent value,

    q(z | x) = N(μ(x), σ²(x)),   log σ² clipped to [−30, 20],

and diffusion runs on latents = scaling_factor · z, which brings them near unit variance. Images are in [−1, 1].
How it is trained, and why alone it would draw blurred pictures: docs/notes/03-autoencoder.md

N images, H × W pixels, C channels (last); f = 2^(levels − 1) is the reduction.
"""
from collections.abc import Callable, Iterable

import numpy as np

from npdiffusion.kernels.arrays import Array
from npdiffusion.models import expected
from npdiffusion.models.attention import Attention
from npdiffusion.models.configs import VAEConfig
from npdiffusion.models.layers import Conv2d, GroupNorm
from npdiffusion.models.resnet import Downsample2D, ResnetBlock2D, Upsample2D
from npdiffusion.models.tiling import tiled
from npdiffusion.models.tree import Module

EPS = 1e-6     # of every group norm in the autoencoder: CompVis' `Normalize`, not the UNet's 1e-5


class VAEAttention(Attention):
    """Self-attention over pixels, one head as wide as the channels      (N, H, W, C) → (N, H, W, C)"""
    def __init__(self, channels: int, groups: int) -> None:
        super().__init__(channels, heads=1, qkv_bias=True)
        self.group_norm = GroupNorm(channels, groups, eps=EPS)

    def __call__(self, x: Array) -> Array:
        n, height, width, channels = x.shape
        tokens = self.group_norm(x).reshape(n, height * width, channels)
        return self.attend(tokens, *self.keys_and_values(tokens), x.reshape(tokens.shape)).reshape(x.shape)


class MidBlock(Module):
    """Residual block, attention, residual block      (N, H, W, C) → (N, H, W, C)"""
    def __init__(self, channels: int, groups: int) -> None:
        self.attentions = [VAEAttention(channels, groups)]
        self.resnets = [ResnetBlock2D(channels, channels, groups, eps=EPS) for _ in range(2)]

    def __call__(self, x: Array) -> Array:
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class DownBlock(Module):
    """One level of the encoder      (N, H, W, C_in) → (N, H/2, W/2, C_out), or (N, H, W, C_out) at the last level"""
    def __init__(self, in_channels: int, out_channels: int, layers: int, groups: int, downsample: bool) -> None:
        self.resnets = [ResnetBlock2D(in_channels if i == 0 else out_channels, out_channels, groups, eps=EPS)
                        for i in range(layers)]
        self.downsamplers = [Downsample2D(out_channels, padding=(0, 1, 0, 1))] if downsample else []

    def layers(self) -> list:
        return self.resnets + self.downsamplers


class UpBlock(Module):
    """One level of the decoder      (N, H, W, C_in) → (N, 2H, 2W, C_out), or (N, H, W, C_out) at the last level"""
    def __init__(self, in_channels: int, out_channels: int, layers: int, groups: int, upsample: bool) -> None:
        self.resnets = [ResnetBlock2D(in_channels if i == 0 else out_channels, out_channels, groups, eps=EPS)
                        for i in range(layers)]
        self.upsamplers = [Upsample2D(out_channels)] if upsample else []

    def layers(self) -> list:
        return self.resnets + self.upsamplers


def through(blocks: Iterable[DownBlock | UpBlock], x: Array) -> Array:
    """x after all layers of the blocks.

    One loop over layers: if blocks were called, each block's input would live in the caller until the block's end, and
    feature maps are what a decoder's memory goes to.
    """
    for layer in [layer for block in blocks for layer in block.layers()]:
        x = layer(x)
    return x


class Encoder(Module):
    """Images (N, H, W, 3) → moments (N, H/f, W/f, 2 · latent channels)"""
    def __init__(self, config: VAEConfig) -> None:
        channels, groups = config.block_out_channels, config.norm_num_groups
        inputs = (channels[0], *channels[:-1])
        self.conv_in = Conv2d(config.in_channels, channels[0])
        self.down_blocks = [DownBlock(c_in, c_out, config.layers_per_block, groups, downsample=level < len(channels) - 1)
                            for level, (c_in, c_out) in enumerate(zip(inputs, channels))]
        self.mid_block = MidBlock(channels[-1], groups)
        self.conv_norm_out = GroupNorm(channels[-1], groups, eps=EPS)
        self.conv_out = Conv2d(channels[-1], 2 * config.latent_channels)

    def __call__(self, x: Array) -> Array:
        x = self.mid_block(through(self.down_blocks, self.conv_in(x)))
        return self.conv_out(self.conv_norm_out.silu(x))


class Decoder(Module):
    """z (N, H/f, W/f, latent channels) → images (N, H, W, 3)"""
    def __init__(self, config: VAEConfig) -> None:
        channels, groups = config.block_out_channels[::-1], config.norm_num_groups
        inputs = (channels[0], *channels[:-1])
        self.conv_in = Conv2d(config.latent_channels, channels[0])
        self.mid_block = MidBlock(channels[0], groups)
        self.up_blocks = [UpBlock(c_in, c_out, config.layers_per_block + 1, groups, upsample=level < len(channels) - 1)
                          for level, (c_in, c_out) in enumerate(zip(inputs, channels))]
        self.conv_norm_out = GroupNorm(channels[-1], groups, eps=EPS)
        self.conv_out = Conv2d(channels[-1], config.out_channels)

    def __call__(self, z: Array) -> Array:
        x = through(self.up_blocks, self.mid_block(self.conv_in(z)))
        return self.conv_out(self.conv_norm_out.silu(x))


class AutoencoderKL(Module):
    """Encoder and decoder. `config.scaling_factor` (0.18215 in SD v1) is applied by `latents` and `decode`.

    `tile` in all of them: side in pixels of the tiles in which larger pictures are coded, a multiple of 4 f, see
    tiling.py; None: all in one piece
    """
    samples = True                    # `latents` draws noise

    def __init__(self, config: VAEConfig) -> None:
        self.config = config
        self.encoder = Encoder(config)
        self.quant_conv = Conv2d(2 * config.latent_channels, 2 * config.latent_channels, kernel=1)
        self.post_quant_conv = Conv2d(config.latent_channels, config.latent_channels, kernel=1)
        self.decoder = Decoder(config)

    def encode(self, images: Array, tile: int | None = None) -> tuple[Array, Array]:
        """Images (N, H, W, 3) in [−1, 1] → mean and log variance of z, each (N, H/f, W/f, latent channels)"""
        expected.pictures(images, "images", self.config.in_channels)
        moments = tiled(lambda x: self.quant_conv(self.encoder(x)), images, tile, self._in_latents(tile))
        mean, logvar = np.split(moments, 2, axis=-1)
        return mean, np.clip(logvar, -30, 20)

    def latents(self, images: Array, draw: Callable[[], Array], tile: int | None = None) -> Array:
        """A sample of the latents that diffusion runs on: scaling_factor · (μ + σ · noise)

        draw: gives the noise when called without arguments, an array like μ. Autoencoders that don't sample don't draw.
        """
        mean, logvar = self.encode(images, tile)
        return (mean + np.exp(0.5 * logvar) * draw()) * self.config.scaling_factor

    def decode(self, latents: Array, tile: int | None = None) -> Array:
        """Latents (N, h, w, latent channels), as diffusion leaves them → images (N, f·h, f·w, 3), about [−1, 1]"""
        expected.pictures(latents, "latents", self.config.latent_channels)
        z = latents * (1 / self.config.scaling_factor)
        return tiled(lambda x: self.decoder(self.post_quant_conv(x)), z, self._in_latents(tile), tile)

    def _in_latents(self, tile):
        return tile and tile // self.config.reduction
