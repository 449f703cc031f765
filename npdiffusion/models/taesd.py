"""TAESD, the tiny autoencoder: nearly what Stable Diffusion's own does, with a small part of the arithmetic.

Ollin Boer Bohan 2023, github.com/madebyollin/taesd (diffusers: AutoencoderTiny). Only 3×3 convolutions of 64 channels
and ReLU, no norms and no attention, distilled from the autoencoder of Stable Diffusion v1:

    block     y = relu(x + conv(relu(conv(relu(conv(x))))))
    encoder   conv, block,  then three times: conv of stride 2, 3 blocks;            conv
    decoder   3 tanh(z / 3), conv, relu,  then three times: 3 blocks, twice the size, conv;   block, conv

It works on latents as diffusion has them (its scaling_factor is 1) and on pixels in [0, 1], which `encode` and `decode`
turn from and to [−1, 1]. The encoder gives no distribution: there is nothing to sample.
N images, H × W pixels, C channels (last); f = 2^(stages − 1) is the reduction.
"""
from collections.abc import Callable
from typing import Any

import numpy as np

from npdiffusion import kernels
from npdiffusion.errors import UserError
from npdiffusion.kernels.arrays import Array
from npdiffusion.models import expected
from npdiffusion.models.configs import TinyVAEConfig
from npdiffusion.models.layers import Conv2d
from npdiffusion.models.tiling import tiled
from npdiffusion.models.tree import Module


class AutoencoderTinyBlock(Module):
    """(N, H, W, C) → (N, H, W, C)"""
    def __init__(self, channels: int) -> None:
        first, second, third = (Conv2d(channels, channels) for _ in range(3))
        self.conv: list[Any] = [first, None, second, None, third]   # placeholders for nn.ReLU

    def __call__(self, x: Array) -> Array:
        first, _, second, _, third = self.conv
        h = first(x)
        h = kernels.relu(h)                              # a line each: rebinding h frees the operand of the last operation
        h = second(h)
        h = kernels.relu(h)
        h = third(h, residual=x)
        return kernels.relu(h)


class Encoder(Module):
    """Images (N, H, W, 3) in [0, 1] → latents (N, H/f, W/f, latent channels)"""
    def __init__(self, config: TinyVAEConfig) -> None:
        channels = config.channels
        self.layers: list[Any] = []
        for stage, blocks in enumerate(config.encoder_blocks):
            self.layers.append(Conv2d(channels, channels, stride=2, bias=False) if stage else Conv2d(3, channels))
            self.layers += [AutoencoderTinyBlock(channels) for _ in range(blocks)]
        self.layers.append(Conv2d(channels, config.latent_channels))

    def __call__(self, x: Array) -> Array:
        for layer in self.layers:
            x = layer(x)
        return x


class Decoder(Module):
    """3 tanh(z / 3) (N, H/f, W/f, latent channels) → images (N, H, W, 3), about [0, 1]"""
    def __init__(self, config: TinyVAEConfig) -> None:
        channels = config.channels
        self.layers: list[Any] = [Conv2d(config.latent_channels, channels), None]                # placeholder for nn.ReLU
        for stage, blocks in enumerate(config.decoder_blocks):
            if stage:
                self.layers += [None, Conv2d(channels, channels, bias=False)]                    # placeholder for nn.Upsample
            self.layers += [AutoencoderTinyBlock(channels) for _ in range(blocks)]
        self.layers.append(Conv2d(channels, 3))

    def __call__(self, z: Array) -> Array:
        first, _, *others = self.layers
        x, layers = kernels.relu(first(z)), iter(others)
        for layer in layers:
            if layer is None:
                conv = next(layers)
                x = kernels.upsample_conv2d(x, conv.weight, conv.bias, 2 * x.shape[1], 2 * x.shape[2])
            else:
                x = layer(x)
        return x


class AutoencoderTiny(Module):
    """Encoder and decoder, to be used as an `AutoencoderKL` is. Without an encoder (which has its own file) it decodes."""
    samples = False                   # `latents` draws no noise

    def __init__(self, config: TinyVAEConfig, has_encoder: bool = True) -> None:
        self.config = config
        self.encoder = Encoder(config) if has_encoder else None
        self.decoder = Decoder(config)

    def latents(self, images: Array, draw: Callable[[], Array] | None = None, tile: int | None = None) -> Array:
        """Images (N, H, W, 3) in [−1, 1] → latents that diffusion runs on (N, H/f, W/f, latent channels); draws nothing

        tile: see `AutoencoderKL`     UserError if there is no encoder.
        """
        if self.encoder is None:
            raise UserError("this TAESD can only decode: put taesd_encoder.safetensors beside taesd_decoder.safetensors, "
                            "or take another VAE")
        expected.pictures(images, "images", 3)
        encoded = tiled(self.encoder, (images + 1) / 2, tile, tile and tile // self.config.reduction)
        return encoded * self.config.scaling_factor

    def decode(self, latents: Array, tile: int | None = None) -> Array:
        """Latents (N, h, w, latent channels), as diffusion leaves them → images (N, f·h, f·w, 3), about [−1, 1]"""
        expected.pictures(latents, "latents", self.config.latent_channels)
        z = 3 * np.tanh(latents * (1 / (3 * self.config.scaling_factor)))
        return 2 * tiled(self.decoder, z, tile and tile // self.config.reduction, tile) - 1
