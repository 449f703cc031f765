"""Masks: pictures that say where another one is repainted.

    white is repainted, black is kept         m = level / 255, in [0, 1]

Pixels take grey as it is, for soft transitions. Latents know only yes and no: a latent pixel is repainted if m ≥ 1/2 at
the top left of the f × f pixels that it stands for, as in diffusers' inpainting.
"""
import os
import warnings

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from npdiffusion.errors import UserError
from npdiffusion.pictures.images import from_array, look_into, to_rgb


def read_mask(mask, size, name="mask_image"):
    """PIL image, path or array → PIL image of mode L and that (width, height), resized with a warning if it has another size.

    Of a picture with transparent parts the opacity is the mask, as in AUTOMATIC1111's web interface, of any other one
    its lightness. name: what messages call an image. UserError for what can't be read.
    """
    if isinstance(mask, np.ndarray):
        mask = from_array(mask, name, grey=True)
    if not isinstance(mask, (Image.Image, str, os.PathLike)):
        raise UserError(f"{name} is a {type(mask).__name__}: a PIL image, a path or an array (H, W) was expected")
    if isinstance(mask, Image.Image):
        try:
            mask = to_grey(mask)
        except ValueError as error:
            raise UserError(f"{name}: {error}") from None
    else:
        name = mask
        with look_into(mask) as image:
            mask = to_grey(ImageOps.exif_transpose(image))
    if mask.size != size:
        was, wanted = ("{}x{}".format(*each) for each in (mask.size, size))
        warnings.warn(f"{name}: its {was} pixels are resized to the picture's {wanted}", stacklevel=2)
        mask = mask.resize(size, Image.Resampling.LANCZOS)
    return mask


def to_grey(image):
    """A PIL image of any mode → mode L: its opacity if some of it is transparent, else its lightness."""
    if "transparency" in image.info or image.mode in ("RGBA", "RGBa", "LA", "La", "PA"):
        opacity = image.convert("RGBA").getchannel("A")
        if opacity.getextrema() != (255, 255):
            return opacity
    return to_rgb(image).convert("L")


def prepare(mask, blur=0, invert=False):
    """A mask of mode L, inverted, then feathered: a Gaussian of standard deviation `blur` pixels."""
    if invert:
        mask = ImageOps.invert(mask)
    return mask.filter(ImageFilter.GaussianBlur(blur)) if blur else mask


def repainted(mask):
    """Mode L → (H, W), bool: m ≥ 1/2"""
    return np.asarray(mask) >= 128


def in_latents(mask, reduction):
    """Mode L, H × W pixels → (1, H/f, W/f, 1), float32: 1 is repainted, 0 kept; a warning if nothing is repainted."""
    latent = repainted(mask)[::reduction, ::reduction]
    if not latent.any():
        why = "it has no white" if not repainted(mask).any() else f"what is white is smaller than {reduction} pixels"
        warnings.warn(f"the mask leaves nothing to repaint: {why} (white is repainted; inverting swaps white and black)",
                      stacklevel=2)
    return latent.astype(np.float32)[None, :, :, None]
