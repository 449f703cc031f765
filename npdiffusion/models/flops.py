"""Floating-point operations of the models, counted from their configurations: what a direct algorithm would do.

    convolution   2 · H·W · k² · I · O        linear   2 · T · I · O        attention products   2 · (2 · T · S · C)

for one image of H × W pixels after the operation, T tokens, S keys, I → O channels; a multiply-add is two operations.
Norms, activations and biases are left out: they are memory traffic, well below 1 % of the operations. What an algorithm
saves (Winograd, what two images share, keys that are remembered) is not subtracted, so that the rate of operations per
second compares systems by time alone, and may exceed what a direct algorithm can reach. Convolution as a product:
docs/notes/10-convolution.md, where the time goes: docs/notes/14-latent-diffusion.md
"""
from collections import Counter

WORDS = 77      # tokens of a prompt


def unet(config, height, width, words=WORDS):
    """{kind: operations} of one call for one image of height × width latent pixels"""
    count, channels = Counter(), config.block_out_channels
    last = len(channels) - 1
    sides = [(height, width)]
    for _ in range(last):
        sides.append(tuple((side + 1) // 2 for side in sides[-1]))
    count["linear"] += 2 * config.time_channels * (channels[0] + config.time_channels)
    if config.added_width:
        count["linear"] += 2 * config.time_channels * (config.added_width + config.time_channels)

    def layer(level, inputs, depth):
        _residual_block(count, sides[level], inputs, channels[level], config.time_channels)
        if depth:
            crosses = config.only_cross_attention is not None and config.only_cross_attention[level]
            _transformer(count, sides[level], channels[level], config.cross_attention_dim, words, depth, crosses)

    _convolution(count, sides[0], config.in_channels, channels[0])
    skips = [channels[0]]
    for level, outputs in enumerate(channels):
        for depth in config.depths(level):
            layer(level, skips[-1], depth)
            skips.append(outputs)
        if level < last:
            _convolution(count, sides[level + 1], outputs, outputs, kind="3×3 stride 2")
            skips.append(outputs)
    if config.mid_depth is not None:
        for _ in range(2 if config.mid_depth else 1):
            _residual_block(count, sides[last], channels[last], channels[last], config.time_channels)
    if config.mid_depth:
        _transformer(count, sides[last], channels[last], config.cross_attention_dim, words, config.mid_depth)
    below = channels[last]
    for level in range(last, -1, -1):
        for depth in config.depths(level, up=True):
            layer(level, below + skips.pop(), depth)
            below = channels[level]
        if level:
            _convolution(count, sides[level - 1], below, below)
    _convolution(count, sides[0], channels[0], config.out_channels)
    return count


def decoder(config, height, width):
    """{kind: operations} of decoding one image of height × width latent pixels"""
    count, channels, side = Counter(), config.block_out_channels[::-1], (height, width)
    _convolution(count, side, config.latent_channels, config.latent_channels, kind="1×1")
    _convolution(count, side, config.latent_channels, channels[0])
    for _ in range(2):
        _residual_block(count, side, channels[0], channels[0])
    tokens = height * width
    count["linear"] += 4 * 2 * tokens * channels[0] ** 2
    count["attention"] += 4 * tokens * tokens * channels[0]
    below = channels[0]
    for level, outputs in enumerate(channels):
        for _ in range(config.layers_per_block + 1):
            _residual_block(count, side, below, outputs)
            below = outputs
        if level < len(channels) - 1:
            side = (2 * side[0], 2 * side[1])
            _convolution(count, side, outputs, outputs)
    _convolution(count, side, below, config.out_channels)
    return count


def _convolution(count, side, inputs, outputs, kind="3×3"):
    taps = 1 if kind == "1×1" else 9
    count[kind] += 2 * side[0] * side[1] * taps * inputs * outputs


def _residual_block(count, side, inputs, outputs, time_channels=0):
    _convolution(count, side, inputs, outputs)
    _convolution(count, side, outputs, outputs)
    if inputs != outputs:
        _convolution(count, side, inputs, outputs, kind="1×1")
    count["linear"] += 2 * time_channels * outputs


def _transformer(count, side, channels, context_channels, words, depth=1, crosses=False):
    """Projections in and out; `depth` times self-attention, or with `crosses` a further cross-attention, cross-attention, and
    a feed-forward layer: C → 2 · 4C, 4C → C"""
    tokens = side[0] * side[1]
    for _ in range(2):
        _convolution(count, side, channels, channels, kind="1×1")
    keys = 2 * 2 * words * context_channels * channels
    count["linear"] += depth * (2 * tokens * channels * channels * (4 + 2 + 8 + 4) + keys)
    if crosses:
        count["linear"] += depth * (keys - 2 * 2 * tokens * channels * channels)
    count["attention"] += depth * 4 * tokens * ((words if crosses else tokens) + words) * channels
