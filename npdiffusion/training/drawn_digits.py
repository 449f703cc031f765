"""Digits drawn from the fonts that are installed, each turned, sheared, scaled and moved a little: MNIST for those without.

As in MNIST, the ink of a digit fits into 20×20 pixels and its centre of mass is that of the 28×28.
"""
import os
import pathlib
import sys

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIDE, COUNT, MOST_FONTS = 28, 5000, 40
BIG = 4 * SIDE                      # pixels in which a digit is drawn before it is made small
FOLDERS = {"win32": [pathlib.Path(os.environ.get("WINDIR", "C:/Windows"), "Fonts")],
           "darwin": [pathlib.Path("/System/Library/Fonts"), pathlib.Path("/Library/Fonts")]}
EVERYWHERE = [pathlib.Path("/usr/share/fonts"), pathlib.Path("/usr/local/share/fonts"), pathlib.Path("~/.local/share/fonts")]


def draw(count=COUNT, seed=0, folders=None):
    """→ number of fonts, images (count, 28, 28) uint8, labels (count,) uint8, each digit as often

    folders: where fonts are looked for, by default where systems keep them; Pillow's own is always one.
    """
    fonts, rng = usable(FOLDERS.get(sys.platform, EVERYWHERE) if folders is None else folders), np.random.default_rng(seed)
    labels = (np.arange(count) % 10).astype(np.uint8)
    images = np.stack([one(fonts[rng.integers(len(fonts))], int(label), rng) for label in labels])
    return len(fonts), images, labels


def usable(folders):
    """Pillow's own font, and those of files that draw ten different digits, MOST_FONTS in all"""
    found = [ImageFont.load_default(size=BIG // 2)]
    for folder in folders:
        for path in sorted(pathlib.Path(folder).expanduser().rglob("*.[to]tf")):
            if len(found) == MOST_FONTS:
                return found
            try:
                font = ImageFont.truetype(str(path), BIG // 2)
                if len({bytes(font.getmask(character)) for character in "0123456789\uffff"}) == 11:
                    found.append(font)
            except (OSError, ValueError):               # damaged, or of pixels of one size
                continue
    return found


def one(font, digit, rng):
    """A digit as a picture (28, 28), uint8"""
    canvas = Image.new("L", (BIG, BIG))
    ImageDraw.Draw(canvas).text((BIG / 2, BIG / 2), str(digit), 255, font, anchor="mm")
    turn, shear, wide = rng.normal(0, 0.12), rng.normal(0, 0.2), rng.uniform(0.8, 1.2)
    cos, sin = np.cos(turn), np.sin(turn)
    a, b, d, e = cos / wide, sin + shear, -sin, cos
    middle = BIG / 2
    canvas = canvas.transform((BIG, BIG), Image.Transform.AFFINE,
                              (a, b, middle - a * middle - b * middle, d, e, middle - d * middle - e * middle),
                              Image.Resampling.BILINEAR)
    ink = canvas.crop(canvas.getbbox())
    scale = 20 / max(ink.size)
    ink = np.asarray(ink.resize([max(1, round(scale * side)) for side in ink.size], Image.Resampling.BOX), np.float64)
    height, width = ink.shape
    top, left = (int(np.clip(round(SIDE / 2 - 0.5 - (ink.sum(axis=1 - axis) @ np.arange(size)) / ink.sum()), 0, SIDE - size))
                 for axis, size in enumerate((height, width)))
    picture = np.zeros((SIDE, SIDE), np.uint8)
    picture[top:top + height, left:left + width] = ink.round()
    return picture
