"""What is in a picture, told without a network: which sprite is nearest, how big, where, and on what ground.

    ground     the border's median colour, row by row in scenery          → nearest of all colours and sceneries
    subject    what differs from the ground, cut out and made 48 × 48     → nearest of all sprites, drawn at the same
                                                                            place and cut out likewise (squared error)
    several    the same in the left and right half, or top, bottom left and bottom right, with a gap between
    tint       the nearest of all subjects, of all in that colour and of this one in all colours has to be it
    size       longest side of what was cut out;   place    its middle; what the caption doesn't say can't be wrong

Pictures are (H, W, 3) in 0 … 255.
"""

from functools import lru_cache

import numpy as np
from PIL import Image
from scipy import ndimage

from . import settings
from .scenes import GROUNDS, SCENERY, scaled, tinted, tints_of

FRAME = 3                                                   # pixels of border that show the ground
DIFFERS = 36                                                # of 255, in one channel at least: this is no longer ground
SPECK, STAR = 12, 36                                        # pixels; what is no larger is no subject
THUMBNAIL = 48
SMALL, BIG, OFF_CENTRE = 57, 97, 9                          # pixels, between those of the scenes drawn


def ground_of(picture):
    """What lies behind the subjects: one colour, if most of the border has it, else one for each row.

    (H, W, 3) → (H, 1, 3) float32
    """
    inside = np.zeros(picture.shape[:2], bool)
    inside[FRAME:-FRAME, FRAME:-FRAME] = True
    border = picture[~inside]
    colour = np.median(border, axis=0)
    if (np.abs(border - colour) < DIFFERS).all(axis=1).mean() > 0.7:
        return np.tile(colour, (len(picture), 1, 1))
    sides = np.concatenate([picture[:, :FRAME], picture[:, -FRAME:]], axis=1)
    return np.median(sides, axis=1, keepdims=True)


def name_of_ground(ground):
    """→ the colour or scenery whose upper and lower parts are nearest"""
    upper, lower = ground[8:40].mean(axis=(0, 1)), ground[100:122].mean(axis=(0, 1))

    def distance(name):
        if name in settings.PALETTE:
            looks = (settings.PALETTE[name],) * 2
        else:
            (top, low), below = settings.SCENERY[name]
            share = np.array([24 / np.mean(settings.HORIZON), 111 / settings.PIXELS])[:, None]
            sky = (1 - share) * top + share * low if below is None else top + (np.array(low) - top) * share[:1]
            looks = sky[0], sky[1] if below is None else below
        return ((looks[0] - upper) ** 2).sum() + ((looks[1] - lower) ** 2).sum()
    return min(GROUNDS, key=distance)


def outline(picture, ground, scenery):
    """Where something stands out from the ground, specks left out, in scenery stars and lines of one pixel, too.

    → (H, W) bool
    """
    mask = (np.abs(picture - ground) > DIFFERS).any(axis=2)
    if scenery:
        mask = ndimage.binary_opening(mask, np.ones((2, 2)))
    parts, count = ndimage.label(mask, np.ones((3, 3)))
    if count < 2:
        return mask
    sizes = np.bincount(parts.ravel(), minlength=count + 1)
    return mask & (sizes > (STAR if scenery else SPECK))[parts]


def stars_in(picture, ground):
    """How many specks are brighter than the ground."""
    parts, count = ndimage.label((picture - ground).mean(axis=2) > DIFFERS, np.ones((3, 3)))
    return int((np.bincount(parts.ravel(), minlength=count + 1)[1:] <= STAR).sum())


def box_of(mask):
    """→ (top, left, bottom, right), or None if nothing is there"""
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    return (rows[0], columns[0], rows[-1] + 1, columns[-1] + 1) if len(rows) else None


def thumbnail(picture, ground, box):
    """The box, centred in a square of ground.     → (24, 24, 3) float"""
    top, left, bottom, right = box
    side = max(bottom - top, right - left)
    square = np.empty((side, side, 3))
    square[:] = ground[top:bottom].mean(axis=(0, 1)).round()
    down, across = (side - bottom + top) // 2, (side - right + left) // 2
    square[down:down + bottom - top, across:across + right - left] = picture[top:bottom, left:right]
    small = Image.fromarray(square.astype(np.uint8)).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    return np.asarray(small, np.float32)


class Judge:
    """Knows the sprites; a sprite is called by (name, tint), where tint is "" for its own colours."""

    def __init__(self, sprites):
        self.sprites = sprites
        self.scaled = lru_cache(20_000)(self.scaled)

    def scaled(self, name, tint, longest):
        """→ (h, w, 4) float, alpha in 0 … 1"""
        sprite = tinted(self.sprites[name], tint) if tint else self.sprites[name]
        pixels = np.array(scaled(sprite, longest), np.float32)
        pixels[..., 3] /= 255
        return pixels

    def drawn(self, name, tint, ground, scenery, box):
        """The thumbnail of a sprite drawn where the box is; None if it cannot be seen there."""
        top, left, bottom, right = box
        pixels = self.scaled(name, tint, int(max(bottom - top, right - left)))
        first = int(np.clip((top + bottom - len(pixels)) // 2, 0, settings.PIXELS - len(pixels)))
        behind = ground[first:first + len(pixels)]
        picture = (behind + pixels[..., 3:] * (pixels[..., :3] - behind)).round()
        seen = box_of(outline(picture, behind, scenery))
        return None if seen is None else thumbnail(picture, behind, seen)

    def nearest(self, picture, ground, scenery, box, more=()):
        """→ (name, tint) of the sprite most like what is in the box; `more`: tinted ones to compare with, too"""
        seen = thumbnail(picture, ground, box)
        known = {one: self.drawn(*one, ground, scenery, box) for one in [*((name, "") for name in self.sprites), *more]}
        return min((one for one in known if known[one] is not None), key=lambda one: ((known[one] - seen) ** 2).mean(),
                   default=(None, ""))

    def rivals(self, name, tint):
        """What a subject in another colour is compared with: itself in all colours and all others in this one."""
        return [(name, other) for other in tints_of(name)] + [(other, tint) for other in self.sprites
                                                             if other != name and tint in tints_of(other)]

    def marks(self, scene, picture):
        """What of the scene is in the picture.     → {"subject", "ground", "size", "place": bool}"""
        picture = np.asarray(picture).astype(np.float32)
        ground = ground_of(picture)
        seen = name_of_ground(ground)
        scenery = seen in SCENERY
        mask = outline(picture, ground, scenery)
        ground_is_right = seen == scene.background and (seen != "night" or stars_in(picture, ground) >= 4)
        names = scene.subjects * scene.count
        boxes = boxes_of(mask, len(names))
        more = self.rivals(*names, scene.tint) if scene.tint and len(names) == 1 else ()
        found = [self.nearest(picture, ground, scenery, box, more) for box in boxes]
        right = dict(subject=sorted(found, key=str) == sorted(((name, scene.tint) for name in names), key=str),
                     ground=ground_is_right, size=True, place=True)
        if len(names) == 1:
            right["size"] = bool(boxes) and scene.size in ("", size_of(boxes[0]))
            right["place"] = bool(boxes) and (not scene.place or place_of(boxes[0]) == scene.place.replace("centre", ""))
        return right

    def error(self, scene, picture):
        """How far the one subject of a scene is from its sprite, at the same place: the root of the mean squared difference of
        the thumbnails, 0 … 255; None for other scenes, or if nothing is there"""
        picture = np.asarray(picture).astype(np.float32)
        ground, scenery = ground_of(picture), scene.background in SCENERY
        box = box_of(outline(picture, ground, scenery)) if len(scene.subjects * scene.count) == 1 else None
        sprite = None if box is None else self.drawn(*scene.subjects, scene.tint, ground, scenery, box)
        return None if sprite is None else float(np.sqrt(((sprite - thumbnail(picture, ground, box)) ** 2).mean()))


def boxes_of(mask, count):
    """Outlines of one subject, of two side by side or of one above two, or none if there is no gap between them."""
    half = settings.PIXELS // 2
    parts = np.zeros((count, *mask.shape), bool)
    middle = slice(half - 8, half + 8)
    if count == 1:
        parts[:] = mask
    elif count == 2:
        parts[0, :, :half], parts[1, :, half:] = mask[:, :half], mask[:, half:]
        gaps = [mask[:, middle].sum(axis=0)]
    else:
        parts[0, :half], parts[1, half:, :half] = mask[:half], mask[half:, :half]
        parts[2, half:, half:] = mask[half:, half:]
        gaps = [mask[middle].sum(axis=1), mask[half:, middle].sum(axis=0)]
    boxes = [box_of(part) for part in parts]
    if None in boxes or (count > 1 and any(gap.min() > 4 for gap in gaps)):
        return []
    return boxes


def size_of(box):
    longest = max(box[2] - box[0], box[3] - box[1])
    return "small" if longest < SMALL else "big" if longest > BIG else ""


def place_of(box):
    down, across = (box[0] + box[2] - settings.PIXELS) / 2, (box[1] + box[3] - settings.PIXELS) / 2
    vertical = "top" if down < -OFF_CENTRE else "bottom" if down > OFF_CENTRE else ""
    horizontal = "left" if across < -OFF_CENTRE else "right" if across > OFF_CENTRE else ""
    return f"{vertical} {horizontal}".strip()
