"""The noise of a batch of latents: each picture's from its own seed, in the order in which other programs draw it.

    torch, numpy   as diffusers does: the VAE's posterior (image to image), then the start, then the sampler's steps
    a1111          as AUTOMATIC1111's web interface does: the start, then the steps; steps of stochastic flows follow a
                   Brownian path that has the picture's seed, and the VAE gives the mean of its posterior

N pictures, H × W latent pixels, C channels (last). Numbers are drawn in the order (C, H, W), in which torch keeps an
image, and then moved to channels last. Why one kind of noise is enough: docs/notes/02-gaussians.md
"""
import numpy as np

from npdiffusion.diffusion.noise.brownian import BrownianPath
from npdiffusion.diffusion.noise.seeds import wrapped

SMALLEST_SINE = 1e-3                  # of an angle in float32 that can be divided by


class LatentNoise:
    """N(0, 1) for latents (N, H, W, C), float32.      noise() → the next draw

    make        from a seed to a generator, see GENERATORS
    seeds       one for each picture; of subseeds likewise, or None
    strength    of the variation: how far the first noise goes from that of the seed to that of the sub-seed, 0 to 1
    first       (N, H, W, C) in place of the start's noise, for which nothing is drawn then, as in diffusers; or None
    """
    def __init__(self, make, seeds, height, width, channels=4, subseeds=None, strength=0.0, web_interface=False,
                 first=None):
        self.make, self.seeds = make, list(seeds)
        self.subseeds, self.strength, self.first = subseeds, float(strength), first
        self.shape, self.web_interface = (channels, height, width), web_interface
        self.generators = [make(seed) for seed in self.seeds]

    def __call__(self):
        return channels_last([generator.normal(self.shape) for generator in self.generators])

    def posterior(self):
        """For the VAE's posterior: zeros, its mean, where the web interface draws none from the seed"""
        return channels_last([np.zeros(self.shape, np.float32) for _ in self.seeds]) if self.web_interface else self()

    def start(self):
        """For the state that a sampler starts from, varied by the sub-seeds"""
        if self.first is not None:
            return self.first
        images = [generator.normal(self.shape) for generator in self.generators]
        if self.subseeds is not None and self.strength:
            others = [self.make(seed).normal(self.shape) for seed in self.subseeds]
            images = [slerp(self.strength, image, other) for image, other in zip(images, others)]
        return channels_last(images)

    def path(self, sigma_max, sigma_min):
        """noise(σ, σ_next) → the increment between two levels, over its standard deviation, like the next draw"""
        if not self.web_interface:
            return lambda sigma, sigma_next: self()              # independent where intervals don't overlap
        low, high = single(sigma_min), single(sigma_max)
        paths = [BrownianPath(low, high, wrapped(seed), lambda seed: self.make(seed).normal(self.shape))
                 for seed in self.seeds]
        return lambda sigma, sigma_next: channels_last(
            [path.increment(single(sigma), single(sigma_next)) for path in paths])


def slerp(share, low, high):
    """From low to high on an arc, column by column, as the web interface does it      (C, H, W), (C, H, W) → (C, H, W)

        sin((1 − s) ω) / sin ω · low + sin(s ω) / sin ω · high      ω the angle between two columns of H numbers

    Almost equal arrays are mixed in a straight line, where it takes s for the share of low. Columns without an angle
    between them, or in one line (all, where H is 1), for which its formula gives NaN, are mixed in a straight line too.
    Why an arc: docs/notes/02-gaussians.md
    """
    def along_columns(x):
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    with np.errstate(divide="ignore", invalid="ignore"):
        cosine = (along_columns(low) * along_columns(high)).sum(axis=1, keepdims=True)       # (C, 1, W)
        if cosine.mean() > 0.9995:
            return low * share + high * (1 - share)
        omega = np.arccos(np.clip(cosine, -1, 1))
        arc = (np.sin((1 - share) * omega) * low + np.sin(share * omega) * high) / np.sin(omega)
    return np.where(np.sin(omega) > SMALLEST_SINE, arc, (1 - share) * low + share * high)


def channels_last(images):
    """A list of (C, H, W) → (N, H, W, C)"""
    return np.ascontiguousarray(np.stack(images).transpose(0, 2, 3, 1))


def single(sigma):
    """σ as a float32 holds it, which is how the web interface asks for a path's times"""
    return float(np.float32(sigma))
