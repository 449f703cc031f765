"""How long a step will take, from a few of its own layers, run at sizes that take a moment.

    step = Σ levels  R · residual block + B · transformer block + products of one token with all others  + reading of weights

A block's time grows with pixels, but for self-attention, whose time grows with their square and is taken apart. Blocks of a
level differ by the channels that they read: R counts multiplications of all in terms of the one that runs. Weights that stay
on disk are read before a block runs, and some of all sizes are read by the clock.

N images, h × w latent pixels, T tokens, C channels, X width of the prompt's states.
"""
import contextlib
import time

import numpy as np

from npdiffusion import kernels
from npdiffusion.kernels import machine
from npdiffusion.models import parameters
from npdiffusion.models.attention import SelfAttention
from npdiffusion.models.conditioning import Conditioning
from npdiffusion.models.flops import WORDS
from npdiffusion.models.on_disk import OnDisk

SIDE, TOKENS, QUERIES = 64, 2048, 256        # at most in a run: latent pixels of a side; tokens; of them those that attend
EXAMPLES = 8                                 # weights that are read
MOMENT = 0.1                                 # seconds: what takes longer is run no more often than needed


def of_step(networks, height, width, images, read=0):
    """Seconds that one call of each of these takes: a UNet, and ControlNets     height, width: latent pixels

    images: N, two for each picture with guidance     read: bytes of files that are read meanwhile
    """
    found = sum(of_level(network, level, height, width, images) for network in networks
                for level in range(len(network.config.block_out_channels)))
    packing, files = reading([layer.weight for network in networks for layer in on_disk(network)], read)
    return max(found + packing, files)                    # files are read ahead while layers compute


def of_level(network, level, height, width, images):
    """Seconds of all layers that a level has on the way down, up, and in the middle"""
    config, last = network.config, level == len(network.config.block_out_channels) - 1
    channels = config.block_out_channels[level]
    tall, wide = (-(-side >> level) for side in (height, width))
    tall, wide = max(1, tall), max(1, wide)
    down, up = network.down_blocks[level], getattr(network, "up_blocks", [None] * (level + 1))[-1 - level]
    blocks = [block for block in (down, up, network.mid_block if last else None) if block is not None]

    sample = down.resnets[-1]
    resampled = 9 * channels ** 2 * (len(down.downsamplers) / 4 + (4 * len(up.upsamplers) if up else 0))
    work = resampled + sum(multiplications(resnet) for block in blocks for resnet in block.resnets)
    inputs = np.zeros((images, min(tall, SIDE), min(wide, SIDE), sample.conv1.weight.shape[1]), np.float32)
    embedding = np.zeros((images, config.time_channels), np.float32)
    with in_memory(sample):
        found = shortest(lambda: sample(inputs, embedding))
    found *= tall * wide / (inputs.shape[1] * inputs.shape[2]) * work / multiplications(sample)

    transformers = [each for block in blocks for each in block.attentions]
    if transformers:
        count = sum(len(each.transformer_blocks) for each in transformers)
        one, ends = of_transformer(transformers[0], tall * wide, channels, config.cross_attention_dim, images)
        found += count * one + len(transformers) * ends
    return found


def of_transformer(transformer, tokens, channels, width, images):
    """Seconds of one of its blocks, and of its two projections"""
    some = min(tokens, TOKENS)
    x = np.zeros((images, some, channels), np.float32)
    conditioning = Conditioning(np.zeros((images, WORDS, width), np.float32))
    block, scale = transformer.transformer_blocks[0], tokens / some
    projected = x.reshape(images, some, 1, channels)
    with in_memory(transformer.proj_in):
        ends = 2 * scale * shortest(lambda: transformer.proj_in(projected))
    with in_memory(block):
        found = shortest(lambda: block(x, conditioning))
    if scale == 1 or not isinstance(block.attn1, SelfAttention):
        return found * scale, ends
    few, all_of_them = attending(block.attn1, x, some), attending(block.attn1, x, tokens)
    return (found - few) * scale + all_of_them, ends


def attending(attention, x, tokens):
    """Seconds in which so many tokens attend to one another      x (N, T, C): some of them"""
    images, some, channels = x.shape
    queries = x[:, :min(QUERIES, some)]
    keys = np.zeros((images, tokens, channels), np.float32)
    return tokens / queries.shape[1] * shortest(
        lambda: kernels.attention(np.ascontiguousarray(queries), keys, keys, attention.heads, dtype=attention.to_q.dtype))


def multiplications(resnet):
    """Of a residual block, for each pixel"""
    outputs, inputs = resnet.conv1.weight.shape[:2]
    return 9 * outputs * (inputs + outputs) + (inputs * outputs if resnet.conv_shortcut else 0)


def reading(weights, read):
    """Seconds in which weights that stay on disk are read and packed, and those that the disk takes, zero if its files will
    still be in the system's memory when they are asked for again"""
    if not weights:
        return 0, 0
    weights = sorted(weights, key=lambda weight: weight.size)
    some = weights[len(weights) // (2 * EXAMPLES)::-(-len(weights) // EXAMPLES)]                 # of all sizes
    share = sum(weight.size for weight in some) / sum(weight.size for weight in weights)
    first = sum(map(elapsed, [weight.read for weight in some])) / share
    there = machine.memory_available()
    return sum(shortest(weight.read) for weight in some) / share, first if there is not None and read > there else 0


def on_disk(module):
    """The layers whose weights stay in their files"""
    return [layer for _, layer in parameters.modules(module) if isinstance(vars(layer).get("weight"), OnDisk)]


@contextlib.contextmanager
def in_memory(module):
    """Within, it has all of its weights."""
    layers = on_disk(module)
    before = [layer.weight for layer in layers]
    try:
        for layer in layers:
            layer.weight = layer.weight.read()
        yield
    finally:
        for layer, weight in zip(layers, before):
            layer.weight = weight


def shortest(call):
    """Seconds of the shortest of some calls, after one that warms up."""
    call()
    first = elapsed(call)
    return first if first > MOMENT else min(first, elapsed(call), elapsed(call))


def elapsed(call):
    """Seconds of a call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
