"""What image to image is for: a scribble of coloured shapes becomes a scene.

    python -m weights.recipe.scribble          writes weights/scribble.png, the drawing as a child would make it
    python -m npdiffusion "a fox and an apple on a meadow" --init-image weights/scribble.png --strength 0.8 --seed 0
"""

from PIL import Image, ImageDraw

from . import settings


def scribble():
    """→ RGB image, 128 × 128: blue above green, an orange triangle to the left, a red blob to the right"""
    picture = Image.new("RGB", (settings.PIXELS,) * 2, (150, 200, 245))
    pen = ImageDraw.Draw(picture)
    pen.rectangle((0, 86, 127, 127), fill=(96, 170, 72))
    pen.polygon(((12, 46), (54, 46), (33, 92)), fill=(245, 130, 40))
    pen.ellipse((72, 42, 118, 90), fill=(215, 40, 40))
    return picture


if __name__ == "__main__":
    scribble().save(settings.WEIGHTS / "scribble.png", optimize=True)
