"""Weights that stay in their files and are read whenever they are used: for models that are larger than the memory.

    file → array, as stored → layout of the kernel → one product → gone

A kernel takes such a weight like any other and asks it for its numbers, so that neither models nor samplers know of it,
and results are the same bit for bit. It is `read` with ordinary reads into memory of its own, not mapped: pages of a
mapped file would count as the process's until the system needs them.

Each weight of the UNet is used once in a step, so any of them may stay in memory: the largest do, which leaves the smallest
ones to be read, and with them the least memory to read them into. They are used in the same order in every step: while a
weight is packed and used, the system reads the file of the one that came after it last time. Of a table of embeddings the
rows that are asked for are read.
"""
import threading

import numpy as np

from npdiffusion.errors import UserError
from npdiffusion.kernels.arrays import as_float32

_local = threading.local()


class OnDisk:
    """A weight in a file. shape: the parameter's      tensor: gives the array when called, see checkpoints/tensors.py"""
    __slots__ = "following", "pack", "shape", "source", "tensor"      # no others: `parameters.walk` finds nothing below

    def __init__(self, tensor, shape, source):
        self.tensor, self.shape, self.source, self.pack = tensor, shape, source, None
        self.following = None             # the tensor that was read after this one

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
        array = self.tensor(scratch).reshape(self.shape)
        self._read_ahead()
        weight = as_float32(array) if self.pack is None else self.pack(array)
        if not (weight.is_finite if hasattr(weight, "is_finite") else np.isfinite(as_float32(weight)).all()):
            raise UserError(f"{self.source}: {self.tensor.name} holds values that are not finite (NaN or infinity)")
        return weight

    def rows(self, ids):
        """Its rows ids (…), as float32 (…, C); only those are read where they can be"""
        wanted, places = np.unique(ids, return_inverse=True)
        if not getattr(self.tensor, "in_rows", False) or wanted[0] < 0 or wanted[-1] >= self.shape[0]:
            return as_float32(self.read())[ids]
        found = np.concatenate([as_float32(self.tensor.rows(int(row), int(row) + 1)()) for row in wanted])
        if not np.isfinite(found).all():
            raise UserError(f"{self.source}: {self.tensor.name} holds values that are not finite (NaN or infinity)")
        return found[places.reshape(np.shape(ids))]

    def _read_ahead(self):
        """Have the system read what comes next, and remember what came after which"""
        before, _local.before = getattr(_local, "before", None), self
        if before is not None:
            before.following = self.tensor
        if hasattr(self.following, "read_ahead"):
            self.following.read_ahead()


def scratch(size):
    """Memory of so many bytes, uint8, that this thread's next call gives again: for numbers that are copied at once.

    The system clears memory before it hands it out, which takes longer than reading from a file that it remembers.
    """
    if getattr(_local, "memory", np.empty(0)).size < size:
        _local.memory = None
        _local.memory = np.empty(size, np.uint8)
    return _local.memory[:size]


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
