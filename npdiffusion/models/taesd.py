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
import numpy as np

from npdiffusion import kernels
from npdiffusion.errors import UserError
from npdiffusion.models.layers import Conv2d
from npdiffusion.models.tiling import tiled


def relu(x):
    """Without parameters, but the checkpoint counts it among the layers."""
    return kernels.relu(x)


def enlarged_by_the_next(x):
    """Stands where the checkpoint counts an enlargement: `UpsampleConv2d`, which comes next, reads x so."""
    return x


class UpsampleConv2d(Conv2d):
    """Nearest neighbours, then the convolution      (N, H, W, C) → (N, 2H, 2W, O)"""
    def __call__(self, x):
        return kernels.upsample_conv2d(x, self.weight, self.bias, 2 * x.shape[1], 2 * x.shape[2])


class AutoencoderTinyBlock:
    """(N, H, W, C) → (N, H, W, C)"""
    def __init__(self, channels):
        self.conv = [Conv2d(channels, channels), relu, Conv2d(channels, channels), relu, Conv2d(channels, channels)]

    def __call__(self, x):
        h = x
        for layer in self.conv[:-1]:
            h = layer(h)
        h = self.conv[-1](h, residual=x)              # what it was made from ends here
        return relu(h)


class Coder:
    """Layers, one after the other, at the indices that the checkpoint has for them."""
    def __init__(self, layers):
        self.layers = layers

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def encoder(config):
    """Images (N, H, W, 3) in [0, 1] → latents (N, H/f, W/f, latent channels)"""
    channels, layers = config.channels, []
    for stage, blocks in enumerate(config.encoder_blocks):
        layers.append(Conv2d(3, channels) if stage == 0 else Conv2d(channels, channels, stride=2, bias=False))
        layers += [AutoencoderTinyBlock(channels) for _ in range(blocks)]
    return Coder([*layers, Conv2d(channels, config.latent_channels)])


def decoder(config):
    """3 tanh(z / 3) (N, H/f, W/f, latent channels) → images (N, H, W, 3), about [0, 1]"""
    channels, layers = config.channels, [Conv2d(config.latent_channels, config.channels), relu]
    for stage, blocks in enumerate(config.decoder_blocks):
        layers += [AutoencoderTinyBlock(channels) for _ in range(blocks)]
        if stage < len(config.decoder_blocks) - 1:
            layers += [enlarged_by_the_next, UpsampleConv2d(channels, channels, bias=False)]
    return Coder([*layers, Conv2d(channels, 3)])


class AutoencoderTiny:
    """Encoder and decoder, to be used as an `AutoencoderKL` is. Without an encoder (which has its own file) it decodes.

    tile: see `AutoencoderKL`
    """
    samples = False                   # `latents` draws no noise

    def __init__(self, config, has_encoder=True):
        self.config, self.tile = config, None
        self.encoder = encoder(config) if has_encoder else None
        self.decoder = decoder(config)

    def latents(self, images, draw=None):
        """Images (N, H, W, 3) in [−1, 1] → latents that diffusion runs on (N, H/f, W/f, latent channels); draws nothing

        UserError if there is no encoder.
        """
        if self.encoder is None:
            raise UserError("this TAESD can only decode: put taesd_encoder.safetensors beside taesd_decoder.safetensors, "
                            "or take another VAE")
        encoded = tiled(self.encoder, (images + 1) / 2, self.tile, self.tile and self.tile // self.config.reduction)
        return encoded * self.config.scaling_factor

    def decode(self, latents):
        """Latents (N, h, w, latent channels), as diffusion leaves them → images (N, f·h, f·w, 3), about [−1, 1]"""
        z = 3 * np.tanh(latents * (1 / (3 * self.config.scaling_factor)))
        return 2 * tiled(self.decoder, z, self.tile and self.tile // self.config.reduction, self.tile) - 1
