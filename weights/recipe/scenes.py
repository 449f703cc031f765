"""The data: scenes of emoji on plain colours and simple scenery, drawn from a random generator without end.

    sample_scene   what is said       who, how many, in which colour, how big, where, on what ground
    draw           what is not said   shade, light, size and place, the horizon, each star     → (128, 128, 3) uint8

How a scene is put into words is told in `captions`. One combination in ten, chosen by a hash, is held out: a subject
on a ground, two subjects together, a subject in another colour than its own. No training scene has it, so that the
judge can ask for what has never been seen.
"""

import colorsys
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from . import settings
from .subjects import EMOJI, NAMES, NATURAL_COLOURS

COLOURS, SCENERY = tuple(settings.PALETTE), tuple(settings.SCENERY)
GROUNDS = COLOURS + SCENERY
PLACES = tuple(place for place in settings.OFFSET if place)
UNCOUNTED = {"grapes", "cherries", "corn", "cheese", "lightning", "fries", "popcorn", "broccoli", "scissors", "dice",
             "fire", "coffee", "ice cream"}                 # nobody says "two corns"
STRIKE = 109                                                # the one size at which the font holds bitmaps


@dataclass(frozen=True)
class Scene:
    """What a caption says: no subject, two different ones from left to right, or one, and then how many of it, in
    which colour if not its own, how big and where."""
    subjects: tuple
    background: str
    size: str = ""
    place: str = ""
    count: int = 1
    tint: str = ""


def held_out(*words):
    """True for the fixed tenth of all combinations (subject, ground), (subject, subject), (subject, "in " + tint)."""
    return hashlib.sha256(" on ".join(words).encode()).digest()[0] % 10 == 0


def combinations(scene):
    """The combinations in a scene that might be held out."""
    grounds = [(name, scene.background) for name in scene.subjects]
    together = [tuple(sorted(scene.subjects))] if len(scene.subjects) == 2 else []
    shifted = [(scene.subjects[0], f"in {scene.tint}")] if scene.tint else []
    return grounds + together + shifted


def tints_of(name):
    """The colours a subject can be shifted to."""
    return [tint for tint in settings.TINTS if name in NATURAL_COLOURS and tint not in NATURAL_COLOURS[name]]


def sample_scene(rng):
    """A training scene, with no combination that is held out."""
    while True:
        scene = any_scene(rng)
        if not any(held_out(*words) for words in combinations(scene)):
            return scene


def any_scene(rng):
    """Draws the same number of random values for every scene."""
    shares = settings.SHARES
    kind, scenery, tinted, sized, placed = rng.random(5)
    ground, tint, size, place = rng.integers(2 ** 30, size=4)
    first, second = rng.choice(NAMES, 2, replace=False).tolist()
    grounds = SCENERY if scenery < shares["scenery"] else COLOURS
    background = grounds[ground % len(grounds)]
    for name in ("none", "pair", "two", "three"):
        if (kind := kind - shares[name]) < 0:
            break
    else:
        name = "one"
    if name == "none":
        return Scene((), background)
    if name == "pair":
        return Scene((first, second), background)
    tints = [tint for tint in tints_of(first) if tint != background]
    tint = tints[tint % len(tints)] if tints and tinted < 2 * shares["tint"] else ""          # half can be tinted
    if name in ("two", "three") and first not in UNCOUNTED:
        return Scene((first,), background, count=2 if name == "two" else 3, tint=tint if sized < 0.3 else "")
    size = ("small", "small", "big")[size % 3] if sized < shares["size"] else ""
    place = PLACES[place % len(PLACES)] if placed < shares["place"] and size != "big" else ""  # big fills the picture
    return Scene((first,), background, size, place, tint=tint)


# Pictures ------------------------------------------------------------------------------------------------------

def load_sprites(font=settings.FONT):
    """Every subject as an RGBA image, cut to its outline; {name: image}."""
    if not Path(font).exists():
        raise SystemExit(f"{font} not found: install Debian's package fonts-noto-color-emoji, or give --font")
    typeface = ImageFont.truetype(str(font), STRIKE)
    sprites = {}
    for name, emoji in EMOJI.items():
        canvas = Image.new("RGBA", (192, 192))
        ImageDraw.Draw(canvas).text((24, 24), emoji, font=typeface, embedded_color=True)
        sprites[name] = canvas.crop(canvas.getbbox())
    return sprites


def scaled(sprite, longest):
    """The sprite with its longest side made `longest` pixels."""
    factor = longest / max(sprite.size)
    return sprite.resize([max(1, round(side * factor)) for side in sprite.size], Image.Resampling.LANCZOS)


def tinted(sprite, tint):
    """The sprite in another colour: every hue becomes the tint's; saturation and value are scaled, so that their
    means, weighted by how coloured a pixel is, become the tint's too. White stays white and black black."""
    hue, saturation, value = colorsys.rgb_to_hsv(*(c / 255 for c in settings.PALETTE[tint]))
    hsv = np.asarray(sprite.convert("RGB").convert("HSV"), np.float64) / 255
    s, v, alpha = hsv[..., 1], hsv[..., 2], np.asarray(sprite.getchannel("A")) > 127
    weight = (s * v * alpha + 1e-9)
    hsv[..., 0] = hue
    hsv[..., 1] = (s * max(saturation, 0.55) * weight.sum() / (s * weight).sum()).clip(0, 1)
    hsv[..., 2] = (v * value * weight.sum() / (v * weight).sum()).clip(0, 1)
    out = Image.fromarray((hsv * 255).round().astype(np.uint8), "HSV").convert("RGBA")
    out.putalpha(sprite.getchannel("A"))
    return out


def draw_ground(background, rng):
    """→ RGB image: a plain colour, or a sky that grows lighter downwards, above a ground or full of stars; a little lighter
    towards one side"""
    brighter, coloured = settings.SHADE
    shade, side = rng.normal(0, brighter) + rng.normal(0, coloured, 3), settings.PIXELS
    horizon = int(rng.integers(*settings.HORIZON, endpoint=True))
    if background in settings.PALETTE:
        rows = np.tile(np.array(settings.PALETTE[background], np.float64), (side, 1))
    else:
        (top, low), ground = settings.SCENERY[background]
        horizon = horizon if ground else side
        down = np.linspace(0, 1, horizon)[:, None]
        rows = (1 - down) * top + down * low
        if ground:
            rows = np.concatenate([rows, np.tile(np.array(ground, np.float64), (side - horizon, 1))])
    down, across = np.meshgrid(*[np.linspace(-1, 1, side)] * 2, indexing="ij")
    strength, angle = rng.uniform(0, settings.LIGHT), rng.uniform(0, 2 * np.pi)
    light = strength * (np.cos(angle) * across + np.sin(angle) * down)
    picture = ((rows + shade)[:, None] + light[..., None]).round().clip(0, 255).astype(np.uint8)
    if background == "night":
        for x, y, light in rng.integers((2, 2, 190), (side - 4, side - 4, 255), (rng.integers(*settings.STARS), 3)):
            picture[y:y + 3, x:x + 3] = light, light, light * 9 // 10
    return Image.fromarray(picture)


def laid_out(scene, sprites, rng, bend=None):
    """Yield (sprite, (left, top)) for each subject: RGBA images, scaled, where they are to be pasted

    bend(sprite, rng) may change a sprite before it is placed, see `scribbles`
    """
    names = scene.subjects * scene.count
    low, high = settings.LONGEST_SIDE[scene.size if len(names) < 2 else "two" if len(names) == 2 else "three"]
    offsets = ([settings.OFFSET[scene.place]], settings.TWO, settings.THREE)[max(0, len(names) - 1)]
    for name, offset, wander in zip(names, offsets, wandering(scene, len(names))):
        whole = tinted(sprites[name], scene.tint) if scene.tint else sprites[name]
        sprite = scaled(whole, int(rng.integers(low, high + 1)))
        if bend:
            sprite = bend(sprite, rng)
        wander = [int(rng.integers(-by, by + 1)) for by in wander]
        last = settings.PIXELS - settings.MARGIN
        yield sprite, [
            int(np.clip((settings.PIXELS - side) // 2 + shift + by, settings.MARGIN, last - side))
            for side, shift, by in zip(sprite.size, offset, wander)
        ]


def wandering(scene, count):
    """How many pixels each of the subjects may be off its place, across and down: those that a caption puts nowhere may be
    nearly anywhere, and several only keep apart"""
    near, far, rise = settings.WANDER, settings.ROVE, settings.RISE
    if count == 2:
        return [(near, rise)] * 2
    if count == 3:
        return [(rise, near), (near, near), (near, near)]
    return [(near, near) if scene.place else (far, far)]


def draw(scene, sprites, rng):
    """→ (128, 128, 3) uint8"""
    picture = draw_ground(scene.background, rng)
    for sprite, corner in laid_out(scene, sprites, rng):
        picture.paste(sprite, corner, sprite)
    return np.asarray(picture)


def pictures(sprites, rng):
    """Pictures of training scenes without end."""
    while True:
        yield draw(sample_scene(rng), sprites, rng)
