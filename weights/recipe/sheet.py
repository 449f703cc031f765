"""The sheet of samples: fixed captions, seeds 0, 1, 2, …, the first try of each.

    python -m weights.recipe.sheet             writes weights/samples.png
"""

import argparse

from PIL import Image, ImageDraw

from . import settings
from .judge import WITH

CAPTIONS = (
    "a red apple on a blue background", "a cat on a green background", "a rocket on a black background",
    "a penguin on a pink background", "a small fox on a yellow background", "a big octopus on a white background",
    "a castle on a gray background", "a cactus on an orange background", "a ghost on the left on a purple background",
    "a sunflower on the right on a blue background", "a pizza at the top on a green background",
    "lightning on a black background",
    "a cat and a rocket on a white background", "a dog on the left and a balloon on the right on a yellow background",
    "a robot and an alien on a brown background", "a panda on red", "pink background, a big strawberry",
    "a picture of a sailboat on a blue background",
)
ACROSS, MARGIN, LABEL = 6, 6, 30


def lines(text, width=24):
    """Break a caption into lines of at most `width` letters."""
    out = [""]
    for word in text.split():
        if len(out[-1]) + len(word) > width:
            out.append("")
        out[-1] = f"{out[-1]} {word}".strip()
    return "\n".join(out)


def sheet(captions, pictures):
    """Pictures in rows, each above its caption."""
    wide, tall = settings.PIXELS + MARGIN, settings.PIXELS + MARGIN + LABEL
    rows = -(-len(pictures) // ACROSS)
    page = Image.new("RGB", (ACROSS * wide + MARGIN, rows * tall + MARGIN), "white")
    pen = ImageDraw.Draw(page)
    for i, (text, picture) in enumerate(zip(captions, pictures)):
        left, top = MARGIN + i % ACROSS * wide, MARGIN + i // ACROSS * tall
        page.paste(picture, (left, top))
        pen.multiline_text((left, top + settings.PIXELS + 2), lines(text), fill=(60, 60, 60), spacing=1, font_size=10)
    return page


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--with", dest="library", choices=WITH, default="npdiffusion")
    parser.add_argument("--model", default=settings.WEIGHTS)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance", type=float, default=settings.GUIDANCE)
    parser.add_argument("-o", "--output", default=settings.WEIGHTS / "samples.png")
    args = parser.parse_args()
    artist = WITH[args.library](args.model, args.steps, args.guidance)
    sheet(CAPTIONS, list(artist.generate(list(CAPTIONS), list(range(len(CAPTIONS)))))).save(args.output, optimize=True)


if __name__ == "__main__":
    main()
