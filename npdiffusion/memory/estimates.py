"""Will a model fit? An estimate before anything is allocated, since a machine that runs out of memory helps no one.

    needed = 4 bytes (bfloat16: 2) · parameters + FEATURE_MAPS · largest feature map of the decoder, for a usual picture
"""
import math
import os

from PIL import Image

from npdiffusion.errors import UserError
from npdiffusion.kernels import machine, threads
from npdiffusion.models import parameters
from npdiffusion.models.flops import WORDS
from npdiffusion.pictures import images

UNET_MAPS = 13        # of the first level's size, alive at once in its last blocks: skips, tokens, q, k, v, …
LEVELS = 31           # bytes of a pixel when numbers become levels: float32 twice, uint8, and as Pillow has it
IN_PILLOW = 4         # bytes of a pixel in Pillow, in RGB too
MERGED = 3            # copies of a weight while an adapter changes it
FEATURE_MAPS = 3      # alive at once in a residual block: its input, that normalised, and half as many channels convolved


def check(vae, kept, source):
    """UserError if weights of so many bytes, and what making a picture takes, need more memory than there is.

    vae: configuration of the autoencoder      source: what messages call the model
    """
    require(needed(vae, kept), source, "; --dtype bfloat16 takes half the memory of float32, --max-memory less than that")


def needed(vae, kept):
    """Bytes that weights of so many bytes, and making a picture as large as those of the training, take"""
    return kept + picture(vae, vae.sample_size, vae.sample_size)


def step(config, width, height, together):
    """Bytes that the UNet's feature maps take; width, height: latent pixels; together: 2 with guidance for each picture"""
    return UNET_MAPS * 4 * together * width * height * config.block_out_channels[0]


def words(config, together, states=WORDS):
    """Bytes of the keys and values that each cross-attention makes of the prompts' states, once a picture"""
    depths = [(channels, sum(config.depths(level)) + sum(config.depths(level, up=True)))
              for level, channels in enumerate(config.block_out_channels)]
    depths.append((config.block_out_channels[-1], config.mid_depth or 0))
    return 4 * 2 * together * states * sum(channels * blocks for channels, blocks in depths)


def merging(model, many=False):
    """Bytes in which an adapter changes the largest weight of a model that is still empty: W, ΔW and a product on its way to
    ΔW, float32      many: of as many weights as there are threads, when they are all changed at once"""
    largest = max(getattr(owner, attribute).size for _, owner, attribute in parameters.walk(model)
                  if parameters.is_packed(owner, attribute))
    return 4 * MERGED * largest * (min(threads.get_threads(), parameters.MOST_THREADS) if many else 1)


def control(config, width, height, together):
    """Bytes of what ControlNets add to the UNet's skips and middle; arguments as of `step`"""
    size, channels = width * height, config.block_out_channels
    numbers = size * channels[0] + sum(
        (size >> 2 * level) * width * config.layers_per_block + (size >> 2 * min(level + 1, len(channels) - 1)) * width
        for level, width in enumerate(channels))
    return 4 * together * numbers


def picture(config, width, height, tile=None):
    """Bytes that decoding a picture of width × height pixels takes; config: the VAE's; tile: see tiles.py"""
    channels, pixels = config.block_out_channels, width * height
    tile = max(width, height) if tile is None else tile
    tall, wide = min(height, tile), min(width, tile)
    maps = FEATURE_MAPS * 4 * tall * wide * channels[min(1, len(channels) - 1)]
    if max(width, height) > tile:                  # the whole picture, the tile before, the ends of the tiles above
        maps += 4 * 3 * (pixels + tall * wide + width * tile // 3)
    return max(maps, LEVELS * pixels)


def reading(image):
    """Bytes that reading a picture to start from takes: as it is in its file, and in RGB. Zero if it can't be read at all

    image: a path; what is in memory already needs no more than once again
    """
    if not isinstance(image, (str, os.PathLike)):
        return IN_PILLOW * math.prod(getattr(image, "size", ())) if isinstance(image, Image.Image) else 0
    try:
        with images.look_into(image) as opened:
            return 2 * IN_PILLOW * opened.width * opened.height
    except UserError:
        return 0


def require(needed, what, hint=""):
    """UserError unless that many bytes are available, as far as the system says; hint: the end of its message"""
    there = machine.memory_available()
    if there is not None and needed > there:
        raise UserError(f"{what}: needs about {needed / 1e9:.1f} GB of memory, {there / 1e9:.1f} GB are available{hint}")
