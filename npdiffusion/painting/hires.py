"""Hires fix: a picture is generated at the size that the model knows, enlarged, and denoised again.

    noise → latents z → larger z', as latents or as a picture → α z' + σ ε → the last `steps` of a longer schedule → image

So the composition comes from the small picture and the details from the second pass; a model that is asked for a large
picture at once repeats its subject. Names, defaults and rules are those of AUTOMATIC1111's web interface: the second
pass does all of its steps, as the end of a schedule of steps / strength, and starts its seed's noise afresh.

N images, h × w latent pixels, C channels (last).
"""
import math
from typing import NamedTuple

import numpy as np
from PIL import Image

from npdiffusion.diffusion.schedules import Plan
from npdiffusion.errors import UserError
from npdiffusion.painting import inpainting
from npdiffusion.painting.canvas import Canvas
from npdiffusion.pictures.images import to_array, to_images
from npdiffusion.settings import LARGEST_SIDE

MOST_STRENGTH = 0.999                 # of the web interface, so that a little of the first picture is always left


class SecondPass(NamedTuple):
    """What follows a picture: a larger canvas, the plan of the sampler, the steps asked for, how latents are enlarged, and the
    plan of a refiner that goes on where the sampler ends, or None."""
    canvas: Canvas
    plan: Plan
    steps: int
    upscaler: str                     # "latent": bilinear, without antialiasing; "lanczos": as a picture
    refining: Plan | None = None

    def start(self, vae, unet, latents, draw, tile=None):
        """latents (N, h, w, C): what the first pass made; draw: a noise.LatentNoise of the larger size → Start"""
        width, height = self.canvas.size
        if self.upscaler == "latent":
            z = bilinear(latents, height // vae.config.reduction, width // vae.config.reduction)
        else:
            pictures = [to_images(vae.decode(one[None], tile))[0] for one in latents]
            larger = [picture.resize((width, height), Image.Resampling.LANCZOS) for picture in pictures]
            z = vae.latents(np.stack([to_array(picture, width, height) for picture in larger]), draw.posterior, tile)
        return inpainting.begin(vae, unet, self.plan, self.canvas, draw, z, tile=tile)


def second_pass(request, canvas, make_plans, reduction, steps):
    """The second pass that a request asks for, after one of `steps` on `canvas` → SecondPass

    make_plans(steps, strength): the plan of a sampler, and a refiner's
    reduction: of the VAE, of which sides are rounded to multiples
    UserError if the picture becomes too large, or the schedule has no room for the steps.
    """
    larger = Canvas(None, None, *enlarged(canvas.size, request.hires, reduction))
    if max(larger.size) > LARGEST_SIDE:
        raise UserError("hires is {:g}: the picture would have {}x{} pixels, allowed are {} a side".format(
            request.hires, *larger.size, LARGEST_SIDE))
    steps, strength = request.hires_steps or steps, request.value("hires_strength")
    total = max(int(steps / min(strength, MOST_STRENGTH)), steps)
    try:
        plan, refining = make_plans(total, min((steps + 0.5) / total, 1.0))     # + 0.5: int() shall not lose one
    except UserError as error:
        raise UserError(f"hires: {steps} steps at strength {strength:g} are the end of {total}: {error}") from None
    return SecondPass(larger, plan, steps, request.value("hires_upscaler"), refining)


def enlarged(size, scale, reduction):
    """(width, height) of the first pass → of the second, multiples of the VAE's reduction"""
    return tuple(max(round(side * scale / reduction), 1) * reduction for side in size)


def bilinear(x, height, width):
    """(N, h, w, C) → (N, height, width, C), each value between the four nearest; centres of pixels at i + 1/2."""
    rows, columns = interpolation(x.shape[1], height), interpolation(x.shape[2], width)
    return np.ascontiguousarray(np.einsum("ij,njkc,lk->nilc", rows, x, columns, optimize=True))


def interpolation(old, new):
    """Matrix (new, old), float32: linear interpolation along an axis; beyond the outer centres the edge goes on."""
    matrix = np.zeros((new, old), np.float32)
    for i in range(new):
        at = min(max((i + 0.5) * old / new - 0.5, 0), old - 1)
        below = math.floor(at)
        matrix[i, below] += 1 - (at - below)
        matrix[i, min(below + 1, old - 1)] += at - below
    return matrix
