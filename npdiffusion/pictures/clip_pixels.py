"""A picture as CLIP's image encoder reads it: its shorter side scaled to S pixels, the middle cut out, normalised.

    x = (level / 255 − mean) / deviation      of each colour, over the pictures that CLIP was trained on
"""
import numpy as np
from PIL import Image

MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
DEVIATION = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


def clip_pixels(image: Image.Image, side: int) -> np.ndarray:
    """A PIL image in RGB → (1, side, side, 3), float32"""
    shorter = min(image.size)
    width, height = (max(side, int(side * length / shorter)) for length in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - side) // 2, (height - side) // 2
    levels = np.asarray(image.crop((left, top, left + side, top + side)), np.float32)[None]
    return (levels / 255 - MEAN) / DEVIATION
