"""The canvas: what is painted on, at the size at which the model works, and the way back into the picture.

    whole         picture and mask, scaled to cover width × height          result: width × height
    only masked   the part around the mask, enlarged to width × height      result: the picture's own size

The second one gives a small part all the model's pixels: diffusers' `padding_mask_crop`, "only masked" of
AUTOMATIC1111's web interface. Either way what was painted is pasted over the original through the mask, so that pixels
where the mask is black stay as they were, bit for bit; the VAE alone would change them a little.
"""
from typing import NamedTuple

from PIL import Image

from npdiffusion.errors import UserError
from npdiffusion.painting import masks, outpainting
from npdiffusion.pictures.images import LARGEST_PICTURE, fit, rgb, to_array
from npdiffusion.settings import LARGEST_SIDE, SETTINGS

LANCZOS = Image.Resampling.LANCZOS


class Inputs(NamedTuple):
    """The pictures that a request names, opened: RGB, and a mask of the same size (mode L); or None"""
    picture: Image.Image | None = None
    mask: Image.Image | None = None


def open_inputs(request):
    """The pictures that a `settings.Request` names → Inputs. UserError for what can't be read or doesn't go together."""
    if request.init_image is None:
        for name, value in (("mask_image", request.mask_image), ("outpaint", request.outpaint)):
            if value is not None:
                raise UserError(f"{name} says {SETTINGS[name].says}: init_image, the picture, is missing")
        return Inputs()
    picture = rgb(request.init_image)
    return Inputs(picture, None if request.mask_image is None else masks.read_mask(request.mask_image, picture.size))


def originals(request, inputs=None, step=8):
    """What is painted on → picture (RGB) and mask (mode L) of one size, or None: extended, the mask inverted and feathered

    inputs: what `open_inputs` gives, if it has been called; step: what the sides of outpainting must be multiples of
    UserError for what can't be read or doesn't go together.
    """
    picture, mask = inputs or open_inputs(request)
    if picture is None:
        return None, None
    sides = None if request.outpaint is None else outpainting.read_sides(request.outpaint, step, LARGEST_SIDE)
    if mask is None and not sides:
        return picture, None
    blur = request.mask_blur
    if mask is not None:
        mask = masks.prepare(mask, invert=request.invert_mask)
    if sides:
        larger = outpainting.extended(picture.size, **sides)
        if max(larger) > LARGEST_SIDE:
            width, height = larger
            raise UserError(f"outpaint: the picture would have {width}x{height} pixels, allowed are {LARGEST_SIDE} a side")
        picture, mask = outpainting.extend(picture, mask, **sides)
        blur = outpainting.CUSTOMARY_BLUR if blur is None else blur
    return picture, masks.prepare(mask, blur or 0)


class Canvas:
    """A picture to paint on; `finish` makes the result of what was painted.

    picture   PIL image (RGB), or None: a blank canvas, painted from noise alone
    mask      PIL image (mode L) of the same size, or None: all of it is painted
    padding   pixels around the mask that are looked at too, or None for the whole picture
    overlay   whether the original is pasted back where the mask is black
    UserError for a padding without a mask.
    """
    def __init__(self, picture, mask, width, height, padding=None, overlay=True):
        if padding is not None and mask is None:
            raise UserError("padding_mask_crop says how much around the mask is looked at: mask_image is missing")
        self.size = width, height
        self.original, self.original_mask, self.region, self.overlay = picture, mask, None, overlay
        if picture is None:
            self.picture = self.mask = None
        elif padding is None:
            self.picture, self.mask = fit(picture, width, height), mask and fit(mask, width, height)
        else:
            self.region = region_around(mask, width, height, padding)
            self.picture, self.mask = (inscribed(image.crop(self.region), width, height) for image in (picture, mask))

    @property
    def image(self):
        """The picture as the VAE takes it: (1, H, W, 3), float32 in [−1, 1]"""
        return to_array(self.picture, *self.size)[None]

    def seen(self, image):
        """A picture that belongs to the one that is painted on, as it lies on the canvas: scaled and cut as that one is"""
        if self.region is None:
            return fit(image, *self.size)
        return inscribed(fit(image, *self.original.size).crop(self.region), *self.size)

    def finish(self, painted):
        """PIL image of the canvas' size → the result"""
        if self.region is not None:
            left, top, right, bottom = self.region
            pasted = self.original.copy()
            pasted.paste(circumscribed(painted, right - left, bottom - top), (left, top))
            return Image.composite(pasted, self.original, self.original_mask)
        if self.mask is None or not self.overlay:
            return painted
        # What the latents repaint, m ≥ 1/2, is shown fully, and the transition lies outside: min(2m, 1)
        return Image.composite(painted, self.picture, self.mask.point(lambda level: min(2 * level, 255)))


def region_around(mask, width, height, padding):
    """(left, top, right, bottom) of what isn't black and `padding` pixels around it, with the aspect width : height.

    It is moved to lie inside the picture; if the picture is too small for the aspect, it ends at the edges. The rule
    and its rounding are those of diffusers' get_crop_region. An empty mask gives the whole picture.
    """
    left, top, right, bottom = mask.getbbox() or (0, 0, *mask.size)
    left, right = max(left - padding, 0), min(right + padding, mask.width)
    top, bottom = max(top - padding, 0), min(bottom + padding, mask.height)
    aspect = width / height
    if (right - left) / (bottom - top) > aspect:
        top, bottom = lengthened(top, bottom, (right - left) / aspect, mask.height)
    else:
        left, right = lengthened(left, right, (bottom - top) * aspect, mask.width)
    return left, top, right, bottom


def lengthened(low, high, length, limit):
    """The interval low … high, made that long evenly on both sides and moved into 0 … limit, if that is long enough."""
    more = int(length - (high - low))
    low, high = low - more // 2, high + more - more // 2
    beyond = max(high - limit, 0)
    low, high = low - beyond, high - beyond
    return max(low, 0), min(high - min(low, 0), limit)


def inscribed(image, width, height):
    """Scaled to lie inside width × height, in the middle; its edges are stretched over what is left."""
    wide = width / height < image.width / image.height
    inner = max(image.width * height // image.height, 1), max(image.height * width // image.width, 1)
    inner = (width, inner[1]) if wide else (inner[0], height)
    scaled = image.resize(inner, LANCZOS)
    left, top = width // 2 - inner[0] // 2, height // 2 - inner[1] // 2
    right, bottom = left + inner[0], top + inner[1]
    result = Image.new(image.mode, (width, height))
    result.paste(scaled, (left, top))
    for strip, edge in (((0, 0, left, height), (0, 0, 0, inner[1])), ((right, 0, width, height), (inner[0], 0, *inner)),
                        ((0, 0, width, top), (0, 0, inner[0], 0)), ((0, bottom, width, height), (0, inner[1], *inner))):
        size = strip[2] - strip[0], strip[3] - strip[1]
        if min(size) > 0:
            result.paste(scaled.resize(size, box=edge), strip[:2])      # a box without width or height: the edge alone
    return result


def circumscribed(image, width, height):
    """Scaled to cover width × height; what sticks out is cut off: the inverse of `inscribed`.

    Where nearly all would stick out, as of a region one pixel wide, only what is left is scaled: the same but for rounding.
    """
    tall = width / height > image.width / image.height
    outer = (width, image.height * width // image.width) if tall else (image.width * height // image.height, height)
    left, top = outer[0] // 2 - width // 2, outer[1] // 2 - height // 2
    if outer[0] * outer[1] > LARGEST_PICTURE:
        across, down = image.width / outer[0], image.height / outer[1]
        right, bottom = min((left + width) * across, image.width), min((top + height) * down, image.height)      # rounded
        return image.resize((width, height), LANCZOS, box=(left * across, top * down, right, bottom))
    return image.resize(outer, LANCZOS).crop((left, top, left + width, top + height))
