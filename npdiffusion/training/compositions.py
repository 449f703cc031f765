"""Pictures with captions, made of digits: what `train sd` learns from, and what its judge is tested on.

    "a seven"                one, somewhere near the middle of 32×32 pixels
    "a three and an eight"   two side by side, in the order in which they are named

A digit is cut out where its ink begins. Alone it is 20 pixels high or wide, as in MNIST; of two each is 14, so that they
don't touch.
"""
from dataclasses import dataclass

import numpy as np
from PIL import Image

SIDE = 32
BOXES = 20, 14                             # pixels of the longer side of one, and of each of two
WANDER = (3, 3), (4, 0)                    # pixels off its place, at most, down and across: of one, of each of two
INK = 32                                   # a pixel from here on belongs to a digit


@dataclass(frozen=True)
class Compositions:
    """images (N, 32, 32) uint8      classes [(7,), (3, 8), ...]: what each shows, from left to right"""
    images: np.ndarray
    classes: list

    def captions(self, names):
        """What each shows in words; names: a word for each class"""
        return [caption(each, names) for each in self.classes]


def caption(classes, names):
    """(3, 8) → "a three and an eight" """
    return " and ".join(f"{article(names[each])} {names[each]}" for each in classes)


def article(word):
    return "an" if word[0] in "aeiu" else "a"            # no word here begins with an o that is spoken as one


def compose(images, labels, count, rng, pairs=0.5):
    """Digits (N, 28, 28) and their labels → `count` Compositions, `pairs` of which show two

    Classes are drawn first, each as likely, then one of its pictures.
    """
    by_class = {int(each): np.flatnonzero(labels == each) for each in np.unique(labels)}
    whole, classes = np.zeros((count, SIDE, SIDE), np.uint8), []
    for canvas in whole:
        shown = rng.choice([*by_class], 2 if rng.random() < pairs else 1)
        classes.append(tuple(map(int, shown)))
        for number, each in enumerate(classes[-1]):
            digit = fitted(cut_out(images[rng.choice(by_class[int(each)])]), BOXES[len(shown) - 1])
            down, across = WANDER[len(shown) - 1]
            middle = (SIDE // 2 + rng.integers(-down, down + 1),
                      SIDE * (2 * number + 1) // (2 * len(shown)) + rng.integers(-across, across + 1))
            top, left = (int(place - size // 2) for place, size in zip(middle, digit.shape))
            canvas[top:top + digit.shape[0], left:left + digit.shape[1]] = digit
    return Compositions(whole, classes)


def cut_out(image):
    """The part of a picture (H, W) that has ink; one pixel where there is none"""
    rows, columns = (np.flatnonzero((image >= INK).any(axis=axis)) for axis in (1, 0))
    return image[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1] if len(rows) else image[:1, :1]


def fitted(image, box):
    """A picture (H, W) uint8 whose longer side is `box`"""
    height, width = (max(1, round(size * box / max(image.shape))) for size in image.shape)
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def as_pixels(images):
    """(N, H, W) uint8 → (N, H, W, 3) float32 in [−1, 1], the three colours alike: what an autoencoder takes"""
    return np.repeat(images[..., None].astype(np.float32) / 127.5 - 1, 3, axis=-1)
