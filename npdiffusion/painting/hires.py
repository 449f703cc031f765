"""Hires fix: a picture is generated at the size that the model knows, enlarged, and denoised again.

    noise → latents z → larger z', as latents or as a picture → α z' + σ ε → the last `steps` of a longer schedule → image

So the composition comes from the small picture and the details from the second pass; a model that is asked for a large
picture at once repeats its subject. Names, defaults and rules are those of AUTOMATIC1111's web interface: the second
pass does all of its steps, as the end of a schedule of steps / strength, and starts its seed's noise afresh.

N images, h × w latent pixels, C channels (last).
"""
import math
import numbers

import numpy as np
from PIL import Image

from npdiffusion.errors import UserError, nearest
from npdiffusion.painting import inpainting
from npdiffusion.painting.canvas import LARGEST_SIDE, Canvas
from npdiffusion.pictures.images import to_array, to_images

UPSCALERS = ("latent", "lanczos")
STRENGTH = 0.7
LARGEST_SCALE = 8.0
MOST_STRENGTH = 0.999                 # of the web interface, so that a little of the first picture is always left


class SecondPass:
    """What follows a picture on `canvas`: a larger canvas, the plan of the sampler, and where it starts.

    make_plan(steps, strength=…)   the plan of a sampler, see schedules.py
    scale          of width and height, which are rounded to multiples of the VAE's reduction
    strength       how much of the noise is added again
    steps          that are really done
    upscaler       "latent": bilinear, without antialiasing; "lanczos": as a picture
    UserError for values out of range, and for a canvas that is not blank.
    """
    def __init__(self, canvas, make_plan, reduction, scale, strength, steps, upscaler):
        self.check(scale, strength, steps, upscaler)
        if canvas.picture is not None:
            raise UserError("hires enlarges pictures made from words alone: with init_image, choose a larger width and height")
        self.canvas = Canvas(None, None, *enlarged(canvas.size, scale, reduction))
        if max(self.canvas.size) > LARGEST_SIDE:
            raise UserError("hires is {:g}: the picture would have {}x{} pixels, allowed are {} a side".format(
                scale, *self.canvas.size, LARGEST_SIDE))
        total = max(int(steps / min(strength, MOST_STRENGTH)), steps)
        try:
            self.plan = make_plan(total, strength=min((steps + 0.5) / total, 1.0))       # + 0.5: int() shall not lose one
        except UserError as error:
            raise UserError(f"hires: {steps} steps at strength {strength:g} are the end of {total}: {error}") from None
        self.upscaler = upscaler

    @staticmethod
    def check(scale, strength, steps, upscaler):
        for name, value, low, high in (("hires", scale, 1, LARGEST_SCALE), ("hires_strength", strength, 0, 1)):
            if isinstance(value, bool) or not isinstance(value, numbers.Real) or not low < value <= high:
                raise UserError(f"{name} is {value!r}: it must be a number above {low} and up to {high:g}")
        if isinstance(steps, bool) or not isinstance(steps, numbers.Integral) or steps < 1:
            raise UserError(f"hires_steps is {steps!r}: it must be a whole number from 1 on")
        if upscaler not in UPSCALERS:
            hint = nearest(upscaler, UPSCALERS)
            raise UserError(f"unknown hires_upscaler {upscaler!r}: {hint}known are {', '.join(UPSCALERS)}")

    def start(self, vae, unet, latents, draw, tile=None):
        """latents (N, h, w, C): what the first pass made → Start

        draw: a noise.LatentNoise of the larger size     tile: of the autoencoder, see memory/tiles.py
        """
        width, height = self.canvas.size
        if self.upscaler == "latent":
            z = bilinear(latents, height // vae.config.reduction, width // vae.config.reduction)
        else:
            pictures = [to_images(vae.decode(one[None], tile))[0] for one in latents]
            larger = [picture.resize((width, height), Image.Resampling.LANCZOS) for picture in pictures]
            images = np.stack([to_array(picture, width, height) for picture in larger])
            z = vae.latents(images, draw.posterior, tile)
        return inpainting.begin(vae, unet, self.plan, self.canvas, draw, z, tile=tile)


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
