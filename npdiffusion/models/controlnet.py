"""ControlNet: a copy of the UNet's way down that reads a picture, and tells the UNet what to draw where.

    r_i = Z_i(s_i), s the copy's skips and middle, where conv_in(x_t) + hint(picture) goes in
    the UNet's skips and middle become s_i + scale · r_i                   Zhang et al. 2023, arXiv:2302.05543, section 3

Z are 1×1 convolutions that were zeros when training began. The hint depends on the picture alone: it is computed once.

N latents, H × W latent pixels, C channels (last); the picture has H · f × W · f pixels, f the VAE's reduction.
"""
import itertools

import numpy as np

from npdiffusion import kernels
from npdiffusion.models.conditioning import repeated
from npdiffusion.models.layers import Conv2d
from npdiffusion.models.tree import Module
from npdiffusion.models.unet import WayDown, added

GUESS_FIRST = 0.1                     # the factor of the first residual in guess mode; that of the middle is 1


class Hint(Module):
    """A picture, (1, 8H, 8W, 3) in [0, 1], as features beside those of the latents      → (1, H, W, C)

    widths: of its convolutions, of which every second halves height and width
    """
    def __init__(self, widths, channels):
        self.conv_in = Conv2d(3, widths[0])
        self.blocks = []
        for before, after in itertools.pairwise(widths):
            self.blocks += [Conv2d(before, before), Conv2d(before, after, stride=2)]
        self.conv_out = Conv2d(widths[-1], channels)

    def __call__(self, x):
        x = kernels.silu(self.conv_in(x))
        for block in self.blocks:
            x = kernels.silu(block(x))
        return self.conv_out(x)


class ControlNetModel(WayDown):
    """Latents (N, H, W, C_in), time steps, conditioning of M prompts, hint → residuals for `UNet2DConditionModel`: a list, as
    long as its skips, and one for its middle

    widths: of `Hint`
    """
    def __init__(self, config, widths=(16, 32, 96, 256)):
        super().__init__(config)
        channels = config.block_out_channels
        self.controlnet_cond_embedding = Hint(widths, channels[0])
        outputs = [channels[0]]
        for level, width in enumerate(channels):
            outputs += [width] * (config.layers_per_block + (level < len(channels) - 1))
        self.controlnet_down_blocks = [Conv2d(width, width, kernel=1) for width in outputs]
        self.controlnet_mid_block = Conv2d(channels[-1], channels[-1], kernel=1)

    def __call__(self, latents, timesteps, conditioning, hint):
        conditioning = self.conditioned(latents, conditioning)
        time_embedding = self.embed_time(timesteps, conditioning)
        x, skips = self.down(self.conv_in(latents) + hint, time_embedding, conditioning)
        x = self.mid_block(x, time_embedding, conditioning)
        return [zero(skip) for zero, skip in zip(self.controlnet_down_blocks, skips)], self.controlnet_mid_block(x)


class Control:
    """A ControlNet for one picture: what it adds at a call of the UNet.

    hint    of the picture      scale   of all residuals      start, end   share of the calls at which it begins, and ends
    guess   only the prompt's half gets residuals, the negative one's none, and the higher the level, the weaker
    calls   of the UNet in the whole run
    """
    def __init__(self, model, hint, scale=1.0, start=0.0, end=1.0, guess=False, calls=1):
        self.model, self.hint, self.scale, self.guess = model, hint, scale, guess
        self.start, self.end, self.calls = start, end, calls

    def residuals(self, latents, t, conditioning, call, guided):
        """For `UNet2DConditionModel`, or None at a call where it is silent; guided: whether half the prompts are negative"""
        if call / self.calls < self.start or (call + 1) / self.calls > self.end:
            return None
        skips, middle = self.model(latents, t, conditioning, self.hint)
        found = [*skips, middle]
        factors = np.geomspace(GUESS_FIRST, 1.0, len(found)) if self.guess else np.ones(len(found))
        for i, factor in enumerate(factors):
            found[i] = found[i] * float(factor * self.scale)
            if self.guess and guided:
                found[i] = repeated(found[i], len(conditioning)).copy()
                found[i][:len(conditioning) // 2] = 0
        return found[:-1], found[-1]


class Controls:
    """Several `Control`s at once: the sum of what those add that aren't silent."""
    def __init__(self, controls):
        self.controls = controls

    def residuals(self, *asked):
        """As of `Control`"""
        skips, middle = None, None
        for control in self.controls:
            found = control.residuals(*asked)
            if found is not None:
                skips = found[0] if skips is None else [added(*each) for each in zip(skips, found[0], strict=True)]
                middle = found[1] if middle is None else added(middle, found[1])
        return None if skips is None else (skips, middle)
