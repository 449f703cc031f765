"""Forty digits of MNIST, four of each class, which stand in tests/digits.png: ten columns, one for each class.

MNIST is by Yann LeCun, Corinna Cortes and Christopher J. C. Burges, made of NIST's Special Databases 1 and 3; these digits
are used under CC BY-SA 3.0, and the picture says so inside.
"""
import gzip
import pathlib

import numpy as np
from PIL import Image


def digits():
    """→ images (40, 28, 28), labels (40,), uint8, classes in turns"""
    picture = np.asarray(Image.open(pathlib.Path(__file__).with_name("digits.png")))
    return picture.reshape(4, 28, 10, 28).transpose(0, 2, 1, 3).reshape(40, 28, 28), np.tile(np.arange(10, dtype=np.uint8), 4)


def idx(array):
    """The bytes of an IDX file"""
    return bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape) + array.tobytes()


def write(folder, compress=False, held_out=False):
    """The digits as a folder of IDX files; held_out: the last ten are a t10k"""
    images, labels = digits()
    parts = {"train": slice(0, 30), "t10k": slice(30, 40)} if held_out else {"train": slice(0, 40)}
    for part, which in parts.items():
        for name, array in ((f"{part}-images-idx3-ubyte", images[which]), (f"{part}-labels-idx1-ubyte", labels[which])):
            if compress:
                (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
            else:
                (folder / name).write_bytes(idx(array))
    return folder
