"""Inpainting: where a sampler starts, and what it is told on its way about the parts of the picture that are kept.

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
import numpy as np

from npdiffusion.painting import masks


class Start:
    """The first state of a sampler; `predictor` and `denoiser` wrap those of a pipeline, `finish` the last state.

    latents       (N, H, W, C)
    known         for ordinary models with a mask: (plan, mask (1, H, W, 1), z and ε like latents)
    conditioning  for inpainting models: m and z_masked (N or 1, H, W, 1 + C)
    """
    def __init__(self, latents, known=None, conditioning=None):
        self.latents, self.known, self.conditioning = latents, known, conditioning

    def predictor(self, model):
        """model: context → predict(x, t), see denoiser.py; the same for x without what an inpainting model is told."""
        if self.conditioning is None:
            return model

        def with_conditioning(context):
            predict = model(context)
            told = np.broadcast_to(self.conditioning, (*self.latents.shape[:3], self.conditioning.shape[-1]))
            return lambda x, t: predict(np.concatenate([x, told], axis=-1), t)
        return with_conditioning

    def denoiser(self, denoise):
        """denoise: (x, level) → x̂₀; the same with what is kept put in its place."""
        if self.known is None:
            return denoise
        plan, mask, z, noise = self.known
        first = next(iter(plan.levels))

        def inpainted(x, level):
            if level != first:                               # the first state is as it should be: noise alone at strength 1
                _, alpha, sigma = plan.levels[level]
                x = mask * x + (1 - mask) * (alpha * z + sigma * noise)
            return mask * denoise(x, level) + (1 - mask) * z
        return inpainted

    def finish(self, latents):
        """The sampler's last state, kept parts without a trace of noise."""
        if self.known is None:
            return latents
        _, mask, z, _ = self.known
        return mask * latents + (1 - mask) * z


def start(vae, unet, plan, canvas, strength, draw, tile=None):
    """Where to start on a canvas → Start

    plan: of the sampler; strength: how much of it there is; draw: a noise.LatentNoise; tile: of the VAE
    At strength 1 inpainting starts from noise alone, image to image from a picture that is lost in it, as in diffusers.
    """
    for_inpainting = canvas.mask is not None or inpainting_model(vae, unet)
    if canvas.picture is None or strength == 1 and inpainting_model(vae, unet):
        return begin(vae, unet, plan, canvas, draw, tile=tile)
    z = vae.latents(canvas.image, draw.posterior, tile)
    return begin(vae, unet, plan, canvas, draw, z, strength == 1 and for_inpainting, tile)


def begin(vae, unet, plan, canvas, draw, z=None, from_noise=False, tile=None):
    """Start at z under the noise of the plan's first level, or, without z or if so told, at noise alone.

    Noise is drawn in diffusers' order: posterior of the picture (for z), latents, posterior of the masked picture. The
    last one is drawn for ordinary models with a mask too, which have no use for it, so that random samplers go on alike.
    """
    noise = draw.start()
    latents = plan.start(noise, None if from_noise else z)
    if inpainting_model(vae, unet):
        return Start(latents, conditioning=conditioning(vae, canvas, draw.posterior, tile))
    if canvas.mask is None:
        return Start(latents)
    if vae.samples:
        draw.posterior()
    return Start(latents, known=(plan, masks.in_latents(canvas.mask, vae.config.reduction), z, noise))


def inpainting_model(vae, unet):
    """Whether the UNet takes a mask and the latents of a masked picture as well."""
    return unet.config.in_channels > vae.config.latent_channels


def conditioning(vae, canvas, draw, tile=None):
    """What an inpainting model is told: m and z_masked (N or 1, H, W, 1 + C); without mask or picture all is repainted."""
    width, height = canvas.size
    if canvas.mask is None:
        mask = np.ones((1, height // vae.config.reduction, width // vae.config.reduction, 1), np.float32)
        kept = np.zeros((1, height, width, 3), np.float32)
    else:
        mask = masks.in_latents(canvas.mask, vae.config.reduction)
        kept = canvas.image * ~masks.repainted(canvas.mask)[None, :, :, None]
    z_masked = vae.latents(kept, draw, tile)
    return np.concatenate([np.broadcast_to(mask, (*z_masked.shape[:3], 1)), z_masked], axis=-1)
