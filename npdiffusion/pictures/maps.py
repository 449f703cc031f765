"""Maps that a ControlNet was trained to read, made of a picture without a network.

    canny      edges, white on black                   Canny 1986, "A computational approach to edge detection", IEEE PAMI 8(6)
    scribble   thick lines, white on black             Winnemöller et al. 2012, "XDoG", Computers & Graphics 36(6), section 2
    tile       the picture, coarser by a factor        blur   by a Gaussian of so many pixels
    invert     dark lines on white as light ones on black

H × W pixels of three channels, levels 0 … 255. Other maps, depths or poses, are found by networks; they come ready.
"""
import numpy as np
from PIL import Image, ImageFilter, ImageOps

from npdiffusion.settings import MAPS

COARSE, FINE = 5.0, 0.5               # standard deviations in pixels, whose difference is a line, in `scribble`


def make(text, image):
    """A map by its name, perhaps with numbers ("canny:50-150"), of a PIL image in RGB → PIL image in RGB of the same size"""
    name, _, numbers = text.partition(":")
    given = [int(number) for number in numbers.split("-")] if numbers else []
    given += [customary for *_, customary in MAPS[name][len(given):]]
    return image if name == "none" else MADE_BY[name](image, *given)


def canny(image, low, high):
    """Edges: where the gradient is largest across itself, above `high`, or above `low` and connected with such a pixel."""
    across, down = gradients(np.asarray(image).astype(np.int64))
    size = abs(across) + abs(down)
    strongest = size.argmax(axis=2)[..., None]                          # the channel that sees most
    across, down, size = (np.take_along_axis(each, strongest, 2)[..., 0] for each in (across, down, size))
    ridge = (size > low) & ridges(across, down, size)
    return from_levels(255 * connected(ridge, size > high))


def gradients(levels):
    """(H, W, C) → ∂/∂x, ∂/∂y by Sobel's 3×3 differences; the edge pixels are repeated"""
    padded = np.pad(levels, ((1, 1), (1, 1), (0, 0)), "edge")
    smooth = padded[:-2] + 2 * padded[1:-1] + padded[2:], padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    return smooth[0][:, 2:] - smooth[0][:, :-2], smooth[1][2:] - smooth[1][:-2]


def ridges(across, down, size):
    """Whether a pixel is larger than its two neighbours along the gradient, of four directions that nearest      (H, W) each"""
    padded = np.pad(size, 1)

    def neighbour(dy, dx):
        return padded[1 + dy:padded.shape[0] - 1 + dy, 1 + dx:padded.shape[1] - 1 + dx]
    flat = abs(down) < np.tan(np.pi / 8) * abs(across)
    steep = abs(down) > np.tan(3 * np.pi / 8) * abs(across)
    rising = (across < 0) ^ (down < 0)                                  # its diagonal goes up to the right
    return np.select(
        [flat, steep, rising],
        [(size > neighbour(0, -1)) & (size >= neighbour(0, 1)), (size > neighbour(-1, 0)) & (size >= neighbour(1, 0)),
         (size > neighbour(-1, 1)) & (size > neighbour(1, -1))],
        (size > neighbour(-1, -1)) & (size > neighbour(1, 1)))


def connected(weak, strong):
    """Pixels of `weak` that are connected with one of `strong`, diagonally too      (H, W) bool → (H, W) bool"""
    from scipy import ndimage  # which takes a while to import, and is seldom needed
    pieces, count = ndimage.label(weak, np.ones((3, 3)))
    kept = np.zeros(count + 1, bool)
    kept[pieces[weak & strong]] = True
    return kept[pieces]


def scribble(image, threshold):
    """Where the picture is darker than around it: a difference of Gaussians, twice it above the threshold"""
    fine, coarse = (np.asarray(image.filter(ImageFilter.GaussianBlur(radius)), np.float32) for radius in (FINE, COARSE))
    return from_levels(255 * (2 * (coarse - fine).min(axis=2) > threshold))


def tile(image, factor):
    """Without the details that are smaller than `factor` pixels"""
    small = [max(side // factor, 1) for side in image.size]
    return image if factor == 1 else image.resize(small, Image.Resampling.BOX).resize(image.size, Image.Resampling.BICUBIC)


def blur(image, pixels):
    """By a Gaussian of that standard deviation"""
    return image.filter(ImageFilter.GaussianBlur(pixels))


def from_levels(levels):
    """(H, W) → PIL image in RGB"""
    return Image.fromarray(levels.astype(np.uint8)).convert("RGB")


MADE_BY = {"canny": canny, "scribble": scribble, "tile": tile, "blur": blur, "invert": ImageOps.invert}
