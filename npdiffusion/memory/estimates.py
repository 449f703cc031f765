"""Will a model fit? An estimate before anything is allocated, since a machine that runs out of memory helps no one.

    needed = 4 bytes (bfloat16: 2) · parameters + FEATURE_MAPS · largest feature map of the decoder, for a usual picture
"""
from npdiffusion.errors import UserError
from npdiffusion.kernels import machine

UNET_MAPS = 13        # of the first level's size, alive at once in its last blocks: skips, tokens, q, k, v, …
FEATURE_MAPS = 3      # alive at once in a residual block: its input, that normalised, and half as many channels convolved


def check(vae, kept, source):
    """UserError if weights of so many bytes, and what making a picture takes, need more memory than there is.

    vae: configuration of the autoencoder      source: what messages call the model
    """
    require(kept + picture(vae, vae.sample_size, vae.sample_size), source)


def step(config, width, height, images):
    """Bytes that the UNet's feature maps take; width, height: latent pixels; images: 2 with guidance for each picture"""
    return UNET_MAPS * 4 * images * width * height * config.block_out_channels[0]


def picture(config, width, height, tile=None):
    """Bytes that decoding a picture of width × height pixels takes; config: the VAE's; tile: see tiles.py"""
    channels = config.block_out_channels
    width, height = min(width, tile or width), min(height, tile or height)
    return FEATURE_MAPS * 4 * width * height * channels[min(1, len(channels) - 1)]


def require(needed, what):
    """UserError unless that many bytes are available, as far as the system says."""
    there = machine.memory_available()
    if there is not None and needed > there:
        raise UserError(f"{what}: needs about {needed / 1e9:.1f} GB of memory, {there / 1e9:.1f} GB are available")
