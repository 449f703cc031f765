"""A folder of pictures with captions, to learn from.

    cat1.png  cat1.txt      a caption stands in the text file of the same name, unless one prompt is for all
    cat2.jpg  cat2.txt

Pictures are scaled and cut to the nearest of a few sizes of about the same area, so that little is cut off and pictures of
one size make a batch ("buckets", NovelAI 2022): sides are multiples of a step, and up to twice as long as wide.
"""
import math
import pathlib
import warnings
from dataclasses import dataclass

import numpy as np

from npdiffusion.checkpoints.text_files import read_text
from npdiffusion.errors import UserError
from npdiffusion.pictures.images import open_image, to_array

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".avif"}
LARGEST_CAPTION = 1 << 16                  # bytes
MOST = 100_000                             # pictures in a folder
LONGEST = 2.0                              # of long to short side; what is longer is cut off


@dataclass(frozen=True)
class Example:
    """A picture to learn from: pixels (H, W, 3) float32 in [−1, 1], what it shows, and its weight in the loss"""
    pixels: np.ndarray
    caption: str
    name: str
    weight: float = 1.0


def read_examples(folder, size, step, prompt=None, strict=False):
    """The pictures of a folder → [Example, ...], in the order of their names

    size: side in pixels of a square one; others have about its area      step: what sides are multiples of
    prompt: the caption of all, or None if each has its own      strict: a picture that can't be read is a UserError;
    else it is left out with a warning. UserError for a folder without pictures, pictures without captions, and captions
    without pictures.
    """
    folder = pathlib.Path(folder).expanduser()
    try:
        names = sorted(path.name for path in folder.iterdir() if path.is_file())
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror or error} (a folder of pictures was expected)") from None
    pictures = [name for name in names if pathlib.Path(name).suffix.lower() in SUFFIXES]
    stems = {pathlib.Path(name).stem for name in pictures}
    lonely = [name for name in names if name.endswith(".txt") and pathlib.Path(name).stem not in stems]
    if not pictures or len(pictures) > MOST:
        some = f", only captions such as {lonely[0]}" if lonely else ""
        raise UserError(f"{folder}: {'more than ' + str(MOST) if pictures else 'no'} pictures in it{some}")
    if lonely and prompt is None:
        raise UserError(f"{folder}: {lonely[0]} is a caption without a picture ({len(lonely)} of these)")
    captions = {name: prompt if prompt is not None else caption_of(folder / name) for name in pictures}
    examples = []
    for name in pictures:
        try:
            image = open_image(folder / name)
        except UserError as error:
            if strict:
                raise
            warnings.warn(f"{error}; it is left out", stacklevel=2)
            continue
        width, height = bucket(*image.size, size, step)
        if image.width < width / 2 and image.height < height / 2:
            warnings.warn(f"{folder / name}: {image.width}×{image.height} pixels are few, it is enlarged to {width}×{height}",
                          stacklevel=2)
        examples.append(Example(to_array(image, width, height), captions[name], name))
    if not examples:
        raise UserError(f"{folder}: none of its {len(pictures)} pictures can be read")
    return examples


def caption_of(path):
    """The text beside a picture, on one line; UserError without one"""
    beside = path.with_suffix(".txt")
    if not beside.exists():
        raise UserError(f"{path}: it has no caption; write {beside.name} beside it, or give one --prompt for all")
    text = " ".join(read_text(beside, LARGEST_CAPTION).split())
    if not text:
        raise UserError(f"{beside}: the caption is empty")
    return text


def bucket(width, height, size, step):
    """The size, of about size² pixels and multiples of `step`, whose shape is nearest to a picture's → (width, height)"""
    shape = math.sqrt(min(max(width / height, 1 / LONGEST), LONGEST))
    return max(step, round(size * shape / step) * step), max(step, round(size / shape / step) * step)


def batches(sizes, batch, seed, epoch):
    """The batches of an epoch: indices of examples of one size each, at most `batch`, in an order that seed and epoch decide

    sizes: of all examples, in their order
    """
    rng = np.random.default_rng([seed, epoch])
    found = []
    for size in dict.fromkeys(sizes):
        order = rng.permutation([i for i, other in enumerate(sizes) if other == size])
        found += [order[start:start + batch] for start in range(0, len(order), batch)]
    return [found[i] for i in rng.permutation(len(found))]
