"""Outpainting: a picture is extended beyond its edges, and what was added is repainted.

    picture W × H, left, top, right, bottom → picture (left + W + right) × (top + H + bottom), and a mask: white outside

The new parts begin as the picture's mirror image, so that colours go on across the edge; when all of the noise is added
(strength 1) little more than that is left of them.
"""
import numbers

from npdiffusion.errors import UserError, nearest

SIDES = ("left", "top", "right", "bottom")
CUSTOMARY_BLUR = 4           # pixels of feathering, since a straight seam along the old edge is seen easily

# NumPy and Pillow are imported where they are used: the command line reads sides before they may be there.


def read_sides(sides, step, largest):
    """{"left": 64, ...} or "left=64,right=64" → {side: pixels} for all four sides.

    step: what each must be a multiple of; largest: how much it can be. UserError names what is wrong.
    """
    if isinstance(sides, str):
        pairs = [pair.partition("=")[::2] for pair in sides.replace(" ", "").split(",")]
        sides = {name: int(value) if value.isdecimal() and len(value) < 10 else value for name, value in pairs}
    if not isinstance(sides, dict) or not sides:
        raise UserError(f"outpaint is {sides!r}: it must be like left=64,right=64")
    for side, pixels in sides.items():
        if side not in SIDES:
            hint = nearest(side, SIDES, ", did you mean {}?", ".")
            raise UserError(f"outpaint: {side!r} is no side{hint} Sides are {', '.join(SIDES)}, as in left=64,right=64")
        if isinstance(pixels, bool) or not isinstance(pixels, numbers.Integral) or not 0 <= pixels <= largest:
            raise UserError(f"outpaint: {side} is {pixels!r}: it must be a number of pixels up to {largest}")
        if pixels % step:
            near = round(pixels / step) * step or step
            raise UserError(f"outpaint: {side} is {pixels}: it must be a multiple of {step}, the nearest is {near}")
    if not any(sides.values()):
        raise UserError("outpaint: every side is 0, so there is nothing to paint")
    return {side: int(sides.get(side, 0)) for side in SIDES}


def extended(size, left=0, top=0, right=0, bottom=0):
    """(width, height) of a picture → that of the extended one"""
    return size[0] + left + right, size[1] + top + bottom


def working_size(asked, size, trained, step):
    """(width, height) at which the model works: what is asked for, or that of an extended picture, or of the training.

    asked: has width, height, outpaint and padding_mask_crop, as in `request.Request`
    size: (width, height) of the picture that is painted on, extended, or None; trained: of those that the model knows
    step: what an extended picture's sides are rounded to multiples of
    """
    if asked.outpaint is not None and asked.padding_mask_crop is None:
        trained = [max(round(side / step), 1) * step for side in size]
    return trained[0] if asked.width is None else asked.width, trained[1] if asked.height is None else asked.height


def extend(picture, mask, left=0, top=0, right=0, bottom=0):
    """PIL image (RGB), mask (mode L, as large; or None) → both extended; outside the picture the mask is white."""
    import numpy as np
    from PIL import Image
    larger = Image.fromarray(np.pad(np.asarray(picture), ((top, bottom), (left, right), (0, 0)), mode="symmetric"))
    outside = Image.new("L", larger.size, 255)
    outside.paste(0 if mask is None else mask, (left, top, left + picture.width, top + picture.height))
    return larger, outside
