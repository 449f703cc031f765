"""A tensor of a file: its name, kind and shape are known when the file is opened, its numbers are read when it is called.

Three kinds come as they are stored: float32, float16, and bfloat16, whose bits come as uint16, since NumPy has no such
type. All others are decoded a piece at a time (quantized.py), so that no second copy of a large tensor is in memory.
"""
import contextlib
import math
import os
import pathlib
from dataclasses import dataclass, replace

import numpy as np

from npdiffusion.checkpoints.quantized import DECODED, Kind
from npdiffusion.errors import UserError
from npdiffusion.kernels.arrays import as_float32

STORED_AS = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
KINDS = {name: Kind(1, np.dtype(stored).itemsize, stored) for name, stored in STORED_AS.items()} | DECODED
UNKNOWN = Kind(1, 4, "<f4")
PIECE = 1 << 20         # bytes of a file that are decoded at once


@dataclass(frozen=True)
class Tensor:
    """One tensor of a file, whose numbers are read when it is called."""
    path: pathlib.Path
    name: str
    dtype: str              # as the file says: "F32", "F16", "BF16", "I64", "Q8_0", ...
    shape: tuple
    start: int              # where in the file its numbers begin

    @property
    def nbytes(self):
        """Bytes of the array that calling it gives."""
        return math.prod(self.shape) * np.dtype(KINDS[self.dtype].gives).itemsize if self.dtype in KINDS else 0

    @property
    def stored(self):
        """Bytes of its numbers in the file."""
        kind = KINDS.get(self.dtype, UNKNOWN)
        return -(-math.prod(self.shape) // kind.values) * kind.size

    @property
    def in_rows(self):
        """Whether each of its rows is so many bytes of the file."""
        return math.prod(self.shape[1:]) % KINDS.get(self.dtype, UNKNOWN).values == 0

    def rows(self, start, stop):
        """The tensor of its rows start … stop − 1 alone; only those are read."""
        kind = KINDS.get(self.dtype, UNKNOWN)
        numbers = math.prod(self.shape[1:])
        if not self.in_rows:
            raise UserError(f"{self.path}: {self.name[:200]!a} is quantised in blocks that are no parts of its rows")
        row = numbers // kind.values * kind.size
        return replace(self, shape=(stop - start, *self.shape[1:]), start=self.start + start * row)

    def read_ahead(self):
        """Have the system read its numbers into its own memory while this process does something else, if it can"""
        if hasattr(os, "posix_fadvise"):
            with contextlib.suppress(OSError), self.path.open("rb", buffering=0) as file:
                os.posix_fadvise(file.fileno(), self.start, self.stored, os.POSIX_FADV_WILLNEED)

    def __call__(self, into=None):
        """Its numbers → array of `shape`: float32, float16, or uint16 for bfloat16

        into: a function from a number of bytes to memory, uint8, to read them into; new memory without it, or if they are
        decoded. Raises UserError if weights have no such kind, or if the file has become shorter since it was opened.
        """
        check_kind(self)
        kind = KINDS[self.dtype]
        if kind.decode is None:
            memory = np.empty(self.nbytes, np.uint8) if into is None else into(self.nbytes)
            self._read((memory,))
            return memory.view(kind.gives).reshape(self.shape)
        array = np.empty(math.prod(self.shape), kind.gives)
        self._read(self._pieces(kind, array))
        return array.reshape(self.shape)

    def _pieces(self, kind, array):
        """Memory to read the next piece into, which is decoded into the array when the one after it is asked for"""
        blocks = max(1, PIECE // kind.size)
        for first in range(0, array.size, blocks * kind.values):
            part = array[first:first + blocks * kind.values]
            memory = np.empty(-(-part.size // kind.values) * kind.size, np.uint8)
            yield memory
            part[:] = kind.decode(memory.reshape(-1, kind.size)).reshape(-1)[:part.size]

    def _read(self, pieces):
        """Fill pieces of memory, one after the other, with what is in the file."""
        try:
            with self.path.open("rb", buffering=0) as file:
                file.seek(self.start)
                for memory in pieces:
                    read = 0
                    while read < memory.size and (count := file.readinto(memory[read:])):      # at most 2 GB at a time
                        read += count
                    if read < memory.size:
                        raise UserError(f"{self.path}: it was cut short while it was read")
        except OSError as error:
            raise UserError(f"{self.path}: {error.strerror or error}") from None


class Stacked:
    """Several tensors as one, one below the other: a parameter that a file keeps in parts. They differ in their rows alone;
    of different kinds of numbers they are float32 together."""
    def __init__(self, *tensors):
        self.tensors, self.name, self.path = tensors, tensors[0].name, tensors[0].path
        self.dtype = tensors[0].dtype if len({tensor.dtype for tensor in tensors}) == 1 else "F32"
        self.shape = (sum(tensor.shape[0] for tensor in tensors), *tensors[0].shape[1:])

    @property
    def nbytes(self):
        """As a `Tensor`'s."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def stored(self):
        """As a `Tensor`'s."""
        return sum(tensor.stored for tensor in self.tensors)

    def __call__(self, into=None):
        """As a `Tensor`'s."""
        arrays = [tensor() for tensor in self.tensors]
        alike = len({array.dtype for array in arrays}) == 1
        return np.concatenate(arrays if alike else [as_float32(array) for array in arrays])


class Transposed:
    """A matrix whose rows and columns are exchanged: the file's x @ W is our x @ Wᵀ."""
    def __init__(self, tensor):
        self.tensor, self.name, self.path, self.dtype = tensor, tensor.name, tensor.path, tensor.dtype
        self.shape = tensor.shape[::-1]

    @property
    def nbytes(self):
        """As a `Tensor`'s."""
        return self.tensor.nbytes

    @property
    def stored(self):
        """As a `Tensor`'s."""
        return self.tensor.stored

    def __call__(self, into=None):
        """As a `Tensor`'s."""
        return np.ascontiguousarray(self.tensor().T)


def cut(tensors, ending, *parts):
    """{name: Tensor}, in which those whose names end so are cut into equal numbers of rows, one for each of other endings

    cut(tensors, ".in_proj_weight", ".q_proj.weight", ".k_proj.weight", ".v_proj.weight"): (3·D, D) → three times (D, D)
    What can't be cut so stays as it is.
    """
    found = {}
    for name, tensor in tensors.items():
        rows = tensor.shape[0] if tensor.shape else 0
        if not name.endswith(ending) or not rows or rows % len(parts):
            found[name] = tensor
            continue
        step = rows // len(parts)
        for i, part in enumerate(parts):
            found[name.removesuffix(ending) + part] = tensor.rows(i * step, (i + 1) * step)
    return found


def check_kind(*tensors):
    """UserError if weights have no such kind of numbers: integers, or quantised in a way that is not known."""
    for tensor in tensors:
        if tensor.dtype not in KINDS:
            raise UserError(f"{tensor.path}: {tensor.name[:200]!a} is of type {tensor.dtype}, but weights are read as "
                            f"{', '.join(KINDS)} alone")
