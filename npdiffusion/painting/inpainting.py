"""Inpainting: where a sampler starts, and how the parts of the picture that are kept enter each step.

Two kinds of models, and m = 1 where a latent pixel is repainted, 0 where it is kept:

    any model (4 channels in)   what is kept is known at each noise level, so it is put there:
                                x ← m x + (1 − m)(α z + σ ε)      x̂₀ ← m x̂₀ + (1 − m) z
    inpainting models (9)       are trained to go on from it (Rombach et al. 2021, arXiv:2112.10752, section 4.5):
                                ε̂ = unet([x, m, z_masked], t)

z are the latents of the picture, z_masked those of the picture with zeros where it is repainted, ε the noise that the
sampler started from. The numbers are those of diffusers' StableDiffusionInpaintPipeline, which changes the state after
each step where this changes what the denoiser sees and says; samplers work on each pixel by itself and the mask is 0 or
1, so that comes to the same, for samplers that look several times in a step as well.

N images, H × W latent pixels, C channels (last); float32.
"""
from typing import NamedTuple

import numpy as np

from npdiffusion.diffusion.schedules import Plan
from npdiffusion.painting import masks
from npdiffusion.painting.canvas import Canvas


class Known:
    """The part of a picture that is kept, for models that weren't trained for inpainting.

    mask   (1, H, W, 1), 1 where it is repainted       z, noise   latents of the picture and ε, (N, H, W, C)
    """
    def __init__(self, mask, z, noise):
        self.mask, self.z, self.noise = mask, z, noise

    def under_noise(self, x, alpha, sigma):
        """m x + (1 − m) (α z + σ ε), all (N, H, W, C)"""
        return self.mask * x + (1 - self.mask) * (alpha * self.z + sigma * self.noise)

    def clean(self, x0):
        """m x̂₀ + (1 − m) z, all (N, H, W, C)"""
        return self.mask * x0 + (1 - self.mask) * self.z


class Start(NamedTuple):
    """Where a sampler starts: its first state (N, H, W, C), and what is known on its way.

    known      for ordinary models with a mask
    channels   for inpainting models: m and z_masked (N or 1, H, W, 1 + C)
    """
    latents: np.ndarray
    known: Known | None = None
    channels: np.ndarray | None = None

    def finish(self, latents):
        """The sampler's last state, kept parts without a trace of noise."""
        return self.known.clean(latents) if self.known else latents


class FirstPass(NamedTuple):
    """A canvas, the plan of the sampler on it, the steps asked for, how far to leave the canvas' picture, if it has one, and
    the plan of a refiner that goes on where the first one ends, or None."""
    canvas: Canvas
    plan: Plan
    steps: int
    strength: float | None
    refining: Plan | None = None

    def start(self, vae, unet, latents, draw, tile=None):
        """Where to start → Start      latents: None, nothing precedes this pass; draw: a noise.LatentNoise

        At strength 1 inpainting starts from noise alone, image to image from a picture that is lost in it, as in diffusers.
        """
        whole = self.strength == 1
        if self.canvas.picture is None or (whole and inpainting_model(vae, unet)):
            return begin(vae, unet, self.plan, self.canvas, draw, tile=tile)
        z = vae.latents(self.canvas.image, draw.posterior, tile)
        from_noise = whole and (self.canvas.mask is not None or inpainting_model(vae, unet))
        return begin(vae, unet, self.plan, self.canvas, draw, z, from_noise, tile)


def begin(vae, unet, plan, canvas, draw, z=None, from_noise=False, tile=None):
    """Start at z under the noise of the plan's first level, or at noise alone without z or with `from_noise`.

    Noise is drawn in diffusers' order: posterior of the picture (for z), latents, posterior of the masked picture. The
    last one is drawn for ordinary models with a mask too, which have no use for it, so that random samplers go on alike.
    """
    noise = draw.start()
    latents = plan.start(noise, None if from_noise else z)
    if inpainting_model(vae, unet):
        return Start(latents, channels=conditioning(vae, canvas, draw.posterior, tile))
    if canvas.mask is None:
        return Start(latents)
    if vae.samples:
        draw.posterior()
    return Start(latents, Known(masks.in_latents(canvas.mask, vae.config.reduction), z, noise))


def inpainting_model(vae, unet):
    """Whether the UNet takes a mask and the latents of a masked picture as well."""
    return unet.config.in_channels > vae.config.latent_channels


def conditioning(vae, canvas, draw, tile=None):
    """The further channels of an inpainting model, m and z_masked (N or 1, H, W, 1 + C); without a mask all is repainted."""
    width, height = canvas.size
    if canvas.mask is None:
        mask = np.ones((1, height // vae.config.reduction, width // vae.config.reduction, 1), np.float32)
        kept = np.zeros((1, height, width, 3), np.float32)
    else:
        mask = masks.in_latents(canvas.mask, vae.config.reduction)
        kept = canvas.image * ~masks.repainted(canvas.mask)[None, :, :, None]
    z_masked = vae.latents(kept, draw, tile)
    return np.concatenate([np.broadcast_to(mask, (*z_masked.shape[:3], 1)), z_masked], axis=-1)
