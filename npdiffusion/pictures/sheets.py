"""Sheets: many pictures on one, in rows, each with its caption below.

    ┌─────┬─────┬─────┐     cells are as large as the largest picture; the others stand in the middle of theirs
    │     │     │     │     captions are broken into lines, and cut off with … after LINES of them
    └euler┴heun─┴─────┘     a sheet with more than LARGEST_PICTURE pixels is made of smaller ones

The font is the one that comes with Pillow, so that sheets look alike everywhere; it has little more than ASCII.
"""
import io
import math
import os
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image

from npdiffusion.pictures.images import LARGEST_PICTURE, look_into, open_image

LINES, LONGEST = 3, 3000      # of a caption, and characters of it: more than three lines of a large picture take
GAP = 8                       # pixels around each picture
PAPER, INK = "white", "#202020"


def sheet(pictures: Sequence[Image.Image | str | os.PathLike[str]], captions: Sequence[str] | None = None,
          columns: int | None = None) -> Image.Image:
    """One picture that shows all → PIL image (RGB)

    pictures  PIL images, or paths of files, which are read one at a time; at least one
    captions  a text for each, or None
    columns   pictures in a row; None makes the sheet about square
    Raises UserError for a file that can't be read, ValueError for numbers that don't fit.
    """
    from PIL import ImageDraw, ImageFont  # slow to import, and most pictures stand on no sheet
    if not pictures or (captions and len(captions) != len(pictures)) or (columns is not None and columns < 1):
        raise ValueError(f"{len(pictures)} pictures, {len(captions or [])} captions, {columns} columns")
    columns = min(columns or math.ceil(math.sqrt(len(pictures))), len(pictures))
    rows = math.ceil(len(pictures) / columns)
    widths, heights = zip(*map(size, pictures))
    width, height = fit(max(widths), max(heights), columns * rows)
    font = ImageFont.load_default(size=max(10, min(width // 16, 24)))
    broken_captions = [broken(drawable(text, font), font, width) for text in captions or []]
    line = sum(font.getmetrics())         # type: ignore[union-attr]      # FreeType is part of every Pillow wheel
    below = max((len(lines) for lines in broken_captions), default=0) * line

    result = Image.new("RGB", (columns * (width + GAP) + GAP, rows * (height + below + GAP) + GAP), PAPER)
    draw = ImageDraw.Draw(result)
    for i, picture in enumerate(pictures):
        left, top = GAP + i % columns * (width + GAP), GAP + i // columns * (height + below + GAP)
        picture = picture.convert("RGB") if isinstance(picture, Image.Image) else open_image(picture)
        picture.thumbnail((width, height), Image.Resampling.LANCZOS)
        result.paste(picture, (left + (width - picture.width) // 2, top + (height - picture.height) // 2))
        for number, words in enumerate(broken_captions[i] if captions else ()):
            draw.text((left + width / 2, top + height + number * line), words, INK, font, anchor="ma")
    return result


class Pictures(list):
    """A list of PIL images, which notebooks show: one as it is, several as a sheet."""
    def _repr_png_(self):
        file = io.BytesIO()
        if self:
            (self[0] if len(self) == 1 else sheet(self)).save(file, format="PNG")
        return file.getvalue() or None


def size(picture: Image.Image | str | os.PathLike[str]) -> tuple[int, int]:
    """(width, height) of a PIL image or a file"""
    if isinstance(picture, Image.Image):
        return picture.size
    with look_into(picture) as image:
        return image.size


def fit(width: int, height: int, count: int) -> tuple[int, int]:
    """The size of `count` cells of that shape that may be drawn: at most LARGEST_PICTURE pixels in all."""
    scale = min(1, math.sqrt(LARGEST_PICTURE / (count * (width + GAP) * (height + GAP))))
    return max(1, int(width * scale)), max(1, int(height * scale))


def drawable(text: str, font: Any) -> str:
    """The text with accents taken off (ö → o), and ? for each character that the font lacks; no more than may be shown."""
    missing = bytes(font.getmask("\uffff"))
    plain = "".join(c for c in unicodedata.normalize("NFKD", text[:LONGEST]) if not unicodedata.combining(c))
    plain = plain.replace("ß", "ss")[:LONGEST]
    drawn = {c for c in {*plain} if c.isspace() or bytes(font.getmask(c)) != missing}
    return "".join(c if c in drawn else "?" for c in plain)


def broken(text: str, font: Any, width: int) -> list[str]:
    """A caption as at most LINES lines of at most `width` pixels."""
    lines, rest = [], text.split()
    while rest and len(lines) < LINES:
        def fits(n, rest=rest):
            return font.getlength(" ".join(rest[:n])) <= width
        count = max(1, most(len(rest), fits))
        lines.append(" ".join(rest[:count]))
        rest = rest[count:]
    if rest:
        lines[-1] += " …"
    return [shortened(line, font, width) for line in lines]


def shortened(line: str, font: Any, width: int) -> str:
    """The line, or as much of its beginning and … as `width` pixels take."""
    if font.getlength(line) <= width:
        return line
    kept = line.removesuffix(" …")
    return kept[:most(len(kept), lambda n: font.getlength(kept[:n] + "…") <= width)] + "…"


def most(largest: int, fits: Callable[[int], bool]) -> int:
    """The largest number up to that one that fits, by halving; 0 if none does"""
    low = 0
    while low < largest:
        middle = (low + largest + 1) // 2
        low, largest = (middle, largest) if fits(middle) else (low, middle - 1)
    return low
