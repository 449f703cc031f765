"""Scribbles: the outlines of a scene's subjects as somebody would draw them, white on black, and scenes to draw them of.

    sprites → stretched, turned, off their place      so that the outline says what the caption doesn't      `draw_bent`
    mask of the subjects → displaced smoothly, rounded     a hand is neither exact nor keen on details       `scribble`
        → |distance to its edge| < half the pen's width    which varies along the line
        → here and there nothing                           gaps

    IoU   |A ∩ B| / |A ∪ B|, A what stands out in a picture, B the area that the scribble runs around, both with holes filled

Pictures are (128, 128), masks of bool.

    python -m weights.recipe.scribbles whale -o outline.png [--seed 0]
"""

import argparse

import numpy as np
from PIL import Image
from scipy import ndimage

from . import recognition, settings
from .scenes import SCENERY, Scene, draw_ground, laid_out, load_sprites
from .subjects import NAMES


def bend(sprite, rng):
    """A sprite stretched, turned and mirrored by chance; no larger than the picture allows"""
    factor = settings.STRETCH ** rng.uniform(-1, 1)
    turn, mirrored = rng.uniform(-settings.TURN, settings.TURN), rng.random() < 0.5
    if mirrored:
        sprite = sprite.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    width, height = sprite.size
    sprite = sprite.resize((max(1, round(width * factor)), max(1, round(height / factor))), Image.Resampling.BICUBIC)
    sprite = sprite.rotate(turn, Image.Resampling.BICUBIC, expand=True)
    sprite = sprite.crop(sprite.getchannel("A").getbbox())
    sprite.thumbnail((settings.PIXELS - 2 * settings.MARGIN,) * 2, Image.Resampling.BICUBIC)
    return sprite


def draw_bent(scene, sprites, rng):
    """→ (128, 128, 3) uint8, and the mask of the subjects in it"""
    picture, mask = draw_ground(scene.background, rng), Image.new("L", (settings.PIXELS,) * 2)
    for sprite, corner in laid_out(scene, sprites, rng, bend):
        roam = rng.integers(-settings.ROAM, settings.ROAM + 1, 2)
        last = settings.PIXELS - settings.MARGIN
        corner = [int(np.clip(at + by, settings.MARGIN, last - side)) for at, by, side in zip(corner, roam, sprite.size)]
        picture.paste(sprite, corner, sprite)
        mask.paste(255, corner, sprite.getchannel("A"))
    return np.asarray(picture), np.asarray(mask) > 127


def smooth_field(rng, grain, size, *shape):
    """Random numbers that vary smoothly over so many pixels, of deviation `size`      → (*shape, 128, 128)"""
    noise = rng.standard_normal((*shape, settings.PIXELS, settings.PIXELS))
    field = ndimage.gaussian_filter(noise, (0,) * len(shape) + (grain, grain))
    return field * (size / field.std())


def scribble(mask, rng):
    """The outline of a mask, by hand      → (128, 128) uint8, white on black, and the mask of the area that it runs around"""
    grid = np.indices(mask.shape)
    moved = grid + smooth_field(rng, rng.uniform(4, 10), rng.uniform(0.3, 1.5), 2)
    area = ndimage.map_coordinates(mask.astype(np.float32), moved, order=1)
    area = ndimage.gaussian_filter(area, rng.uniform(0.7, 2)) > 0.5
    distance = ndimage.distance_transform_edt(area) - ndimage.distance_transform_edt(~area)
    pen = rng.uniform(*settings.PEN) * np.exp(smooth_field(rng, 8, 0.15))
    lines = np.clip(pen / 2 - np.abs(distance) + 0.5, 0, 1)
    edge = np.argwhere(np.abs(distance) < 1.5)
    for down, across in edge[rng.integers(len(edge), size=rng.integers(0, 7))] if len(edge) else ():
        apart = np.hypot(grid[0] - down, grid[1] - across)
        lines *= np.clip(apart - rng.uniform(1, 5), 0, 1)
    return (255 * lines).round().astype(np.uint8), ndimage.binary_fill_holes(area)


def seen(picture, background):
    """The mask of what stands out from the ground in a picture of a known background, holes filled"""
    picture = np.asarray(picture).astype(np.float32)
    return ndimage.binary_fill_holes(recognition.outline(picture, recognition.ground_of(picture), background in SCENERY))


def iou(one, other):
    """Intersection over union of two masks, 1 for two empty ones"""
    union = np.count_nonzero(one | other)
    return np.count_nonzero(one & other) / union if union else 1.0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subject", choices=NAMES, metavar="SUBJECT")
    parser.add_argument("-o", "--output", required=True, metavar="FILE")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--font", default=settings.FONT)
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    _, mask = draw_bent(Scene((args.subject,), "white"), load_sprites(args.font), rng)
    Image.fromarray(scribble(mask, rng)[0]).save(args.output, optimize=True)


if __name__ == "__main__":
    main()
