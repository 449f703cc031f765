"""Weights that stay in their files and are read whenever they are used: for models that are larger than the memory.

    file → array, as stored → layout of the kernel → one product → gone

A kernel takes such a weight like any other and asks it for its numbers, so that neither models nor samplers know of it,
and results are the same bit for bit. It is `read` with ordinary reads into memory of its own, not mapped: pages of a
mapped file would count as the process's until the system needs them.

Each weight of the UNet is used once in a step, so any of them may stay: the largest do, which leaves the smallest ones
to be read, and with them the least memory to read them into.
"""
import numpy as np

from npdiffusion.errors import UserError
from npdiffusion.kernels.arrays import as_float32


class OnDisk:
    """A weight in a file. shape: as the checkpoint's

    tensor: gives the array when called, see `checkpoint.Tensor`     source, name: what messages call it
    """
    __slots__ = "tensor", "shape", "source", "name", "pack"       # no others: `parameters.walk` finds nothing below

    def __init__(self, tensor, shape, source, name):
        self.tensor, self.shape, self.source, self.name, self.pack = tensor, shape, source, name, None

    @property
    def size(self):
        """How many numbers it has."""
        return int(np.prod(self.shape))

    def packed_by(self, pack):
        """The same, brought into a kernel's layout by `pack` each time      pack: array → weight"""
        self.pack = pack
        return self

    def read(self):
        """Its numbers, as a kernel wants them; UserError if they can't be read, or are not finite."""
        array = getattr(self.tensor, "lent", self.tensor)().reshape(self.shape)
        weight = as_float32(array) if self.pack is None else self.pack(array)
        if not (weight.is_finite if hasattr(weight, "is_finite") else np.isfinite(as_float32(weight)).all()):
            raise UserError(f"{self.source}: {self.name} holds values that are not finite (NaN or infinity)")
        return weight


def keep(weights, room):
    """Which of some weights to hold in memory: the largest that fit → set of their names, bytes that they take

    weights: {name: bytes}     room: bytes
    """
    kept, taken = set(), 0
    for name, size in sorted(weights.items(), key=lambda item: -item[1]):
        if taken + size <= room:
            kept.add(name)
            taken += size
    return kept, taken
