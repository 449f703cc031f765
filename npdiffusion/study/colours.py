"""A colour map for heat, and maps over pictures: lightness grows evenly, from a dark violet over
red to a light yellow.

Colours are chosen in Oklab (Björn Ottosson 2020, bottosson.github.io/posts/oklab), in which equal steps look equal: L is
even by construction, and a, b turn around it. So a map reads the same in grey, and for who doesn't see red.
"""
import numpy as np
from PIL import Image, ImageOps

LMS = np.array([[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728], [1, -0.0894841775, -1.2914855480]])
RGB = np.array([[4.0767416621, -3.3077115913, 0.2309699292], [-1.2684380046, 2.6097574011, -0.3413193965],
                [-0.0041960863, -0.7034186147, 1.7076147010]])                   # from cubed LMS to linear sRGB
LIGHTNESS, HUE, CHROMA = (0.16, 0.97), (-1.25, 1.85), 0.165                      # ends; radians; the largest


def colour_map(count=256):
    """(count, 3), uint8, from dark to light"""
    t = np.linspace(0, 1, count)
    hue = HUE[0] + (HUE[1] - HUE[0]) * t
    chroma = CHROMA * np.sin(np.pi * (0.08 + 0.86 * t)) ** 0.8
    lab = np.stack([LIGHTNESS[0] + (LIGHTNESS[1] - LIGHTNESS[0]) * t, chroma * np.cos(hue), chroma * np.sin(hue)], axis=1)
    linear = np.clip((lab @ LMS.T) ** 3 @ RGB.T, 0, 1)
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return (255 * srgb).round().astype(np.uint8)


def heat(values, largest):
    """Numbers from 0 to `largest` as colours      (h, w) → (h, w, 3), uint8"""
    return colour_map()[np.clip(255 * np.asarray(values) / max(largest, 1e-12), 0, 255).round().astype(int)]


def over(image, values, largest, share=0.7):
    """A map over a picture, which is grey below it → PIL image of the picture's size      values: (h, w), 0 to `largest`"""
    colours = Image.fromarray(heat(values, largest)).resize(image.size, Image.Resampling.BICUBIC)
    return Image.blend(ImageOps.grayscale(image).convert("RGB"), colours, share)
