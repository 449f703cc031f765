"""The data: scenes of emoji on a coloured ground, each with its caption, drawn from a random generator without end.

    sample_scene   what is said       who, how big, where, on which colour
    caption        how it is said     one of a few wordings
    draw           what is not said   exact shade, size and place                   → (128, 128, 3) uint8

One (subject, colour) pair in ten, chosen by a hash, is held out: no training scene has it, so that the judge can
ask for what has never been seen.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from . import settings
from .subjects import EMOJI, NAMES

COLOURS = tuple(settings.PALETTE)
PLACES = tuple(place for place in settings.OFFSET if place)
WITHOUT_ARTICLE = {"grapes", "cherries", "corn", "cheese", "lightning"}
STRIKE = 109                                                # the one size at which the font holds bitmaps


@dataclass(frozen=True)
class Scene:
    """What a caption says: one subject, with a size and a place if they are told, or two from left to right."""
    subjects: tuple
    background: str
    size: str = ""
    place: str = ""


def held_out(name, colour):
    """True for the fixed tenth of all (subject, background) pairs that training never shows."""
    return hashlib.sha256(f"{name} on {colour}".encode()).digest()[0] % 10 == 0


def sample_scene(rng):
    """A training scene: one subject mostly, sometimes with a size or a place, sometimes two."""
    while True:
        subjects = tuple(rng.choice(NAMES, 2 if rng.random() < settings.TWO_SUBJECTS else 1, replace=False).tolist())
        background = COLOURS[rng.integers(len(COLOURS))]
        size = ("small", "big")[rng.integers(2)] if rng.random() < settings.SIZED else ""
        place = PLACES[rng.integers(len(PLACES))] if rng.random() < settings.PLACED else ""
        if any(held_out(name, background) for name in subjects):
            continue
        if len(subjects) == 2:
            return Scene(subjects, background)
        return Scene(subjects, background, size, "" if size == "big" else place)     # a big subject fills the picture


# Words ---------------------------------------------------------------------------------------------------------

def with_article(words):
    """"cat" → "a cat", "orange background" → "an orange background", "grapes" → "grapes"."""
    if words.split()[-1] in WITHOUT_ARTICLE:
        return words
    vowel = words[0] in "aeio" or words.startswith("umbrella")                       # "a unicorn"
    return f"{'an' if vowel else 'a'} {words}"


def caption(scene, rng=None):
    """The scene in words: the plain wording without a generator, one of several with one."""
    wording = 0 if rng is None or rng.random() < 0.7 else rng.integers(1, 5)
    named = [f"{scene.size} {name}".strip() for name in scene.subjects]
    if len(named) == 2 and rng is not None and rng.random() < 0.5:
        who = f"{with_article(named[0])} on the left and {with_article(named[1])} on the right"
    else:
        who = " and ".join(map(with_article, named)) + f" {scene.place}".rstrip()
    ground = with_article(f"{scene.background} background")
    return (
        f"{who} on {ground}",
        f"{' and '.join(named)} {scene.place}".rstrip() + f" on {scene.background}",
        f"{scene.background} background, {who}",
        f"a picture of {who} on {ground}",
        f"{who}, {scene.background} background",
    )[wording]


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


def draw(scene, sprites, rng):
    """→ (128, 128, 3) uint8"""
    shade = np.array(settings.PALETTE[scene.background]) + rng.normal(0, settings.SHADE, 3)
    picture = Image.new("RGB", (settings.PIXELS,) * 2, tuple(int(c) for c in shade.round().clip(0, 255)))
    pair = len(scene.subjects) == 2
    low, high = settings.LONGEST_SIDE["pair" if pair else scene.size]
    offsets = [(-31, 0), (31, 0)] if pair else [settings.OFFSET[scene.place]]
    for name, offset in zip(scene.subjects, offsets):
        sprite = scaled(sprites[name], int(rng.integers(low, high + 1)))
        wander = rng.integers(-settings.WANDER, settings.WANDER + 1, 2)
        corner = [
            int(np.clip((settings.PIXELS - side) // 2 + shift + by, 4, settings.PIXELS - 4 - side))
            for side, shift, by in zip(sprite.size, offset, wander)
        ]
        picture.paste(sprite, corner, sprite)
    return np.asarray(picture)


def scenes(sprites, rng):
    """Training scenes without end: yields (caption, picture)."""
    while True:
        scene = sample_scene(rng)
        yield caption(scene, rng), draw(scene, sprites, rng)
