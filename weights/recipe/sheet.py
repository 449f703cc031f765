"""The sheet of samples: fixed captions, seeds 0, 1, 2, …, the first try of each.

    python -m weights.recipe.sheet             writes weights/samples.webp
"""

from PIL import Image, ImageDraw

from . import settings
from .exam import Question
from .judge import Artist, arguments

CAPTIONS = (
    "a red apple on a blue background", "a blue apple on a yellow background", "a cat on a green background",
    "a purple cat on a meadow", "a rocket at night", "a penguin in the snow",
    "a small fox in the top left corner on a yellow background", "a big octopus on a white background",
    "a castle at sunset", "a cactus on an orange background", "a ghost on the left on a purple background",
    "a sailboat at sea", "a cat and a rocket on a white background",
    "a dog on the left and a balloon on the right on a yellow background", "a dinosaur and a unicorn on a meadow",
    "two strawberries on a pink background", "three owls at night", "three blue hearts on a white background",
    "panda on red", "green background, a small turtle at the bottom", "a crab on the beach",
    "an oil painting of a lion, masterpiece, on a brown background", "a dragonish wobbly teapot on gray",
    "a night sky with stars",
)
SAMPLES = settings.MODEL / "samples.webp"
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
    parser = arguments(__doc__)
    parser.add_argument("-o", "--output", default=SAMPLES)
    args = parser.parse_args()
    artist = Artist(args.model, args.steps, args.guidance, args.sampler)
    questions = [Question("sample", None, text, seed) for seed, text in enumerate(CAPTIONS)]
    sheet(CAPTIONS, list(artist.generate(questions))).save(args.output, optimize=True, quality=90)


if __name__ == "__main__":
    main()
