"""Reading GGUF files, in which stable-diffusion.cpp and ComfyUI keep quantised models: a table of contents, then numbers.

    "GGUF"   u32 version   u64 tensors   u64 settings         all little endian
    settings, each:  name   u32 type   value                  a name, or text: u64 length, UTF-8
    tensors, each:   name   u32 axes   u64 length of each, the fastest axis first   u32 kind of numbers   u64 offset
    the numbers, from the next multiple of `general.alignment` on, to which offsets are relative

Nobody checks such a table but this file: lengths, counts and offsets are compared with what the file has before anything
is read or allocated for, and tensors may not overlap. Two kinds of files are known: whole models without any settings, in
original names (stable-diffusion.cpp), and a UNet alone whose convolutions are reshaped to rows of 256 numbers, so that
they can be quantised (ComfyUI); `comfy.gguf.orig_shape.NAME` then holds the tensor's own shape.

Source: the specification in ggml's docs/gguf.md.
"""
import math
import pathlib
import struct

from npdiffusion.checkpoints.tensors import KINDS, Tensor
from npdiffusion.errors import UserError

MAGIC = b"GGUF"
LARGEST_TABLE = 16 << 20               # bytes; that of Stable Diffusion XL takes 0.3 MB
MOST = 1 << 16                         # tensors, and settings
MOST_AXES = 8
NUMBERS = {0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "<u1", 10: "<u8", 11: "<i8", 12: "<f8"}
TEXT, ARRAY = 8, 9
TYPES = {0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K",
         13: "Q5_K", 14: "Q6_K", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 30: "BF16"}
SHAPE_OF = "comfy.gguf.orig_shape."


def read_file(path):
    """The tensors of a GGUF file: {name: Tensor}; no numbers are read yet. UserError for a table that can't be right."""
    path = pathlib.Path(path)
    try:
        with path.open("rb") as file:
            return Table(path, file).tensors()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None


class Table:
    """The table of contents of an open file."""
    def __init__(self, path, file):
        self.path, self.file, self.size = path, file, path.stat().st_size

    def fail(self, what):
        raise UserError(f"{self.path}: not a GGUF file, damaged or cut short ({what})")

    def take(self, count):
        """The next bytes."""
        end = self.file.tell() + count
        if end > self.size:
            self.fail("its table of contents goes beyond its end")
        if end > LARGEST_TABLE:
            self.fail(f"its table of contents has more than {LARGEST_TABLE >> 20} MB")
        return self.file.read(count)

    def number(self, form):
        """One number, of struct's format"""
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def text(self):
        try:
            return self.take(self.number("<Q")).decode()
        except UnicodeDecodeError:
            self.fail("a name is not UTF-8")

    def count(self, what):
        found = self.number("<Q")
        if found > MOST:
            self.fail(f"{found} {what}, at most {MOST} are possible")
        return found

    def tensors(self):
        """{name: Tensor} of the whole file"""
        if self.take(4) != MAGIC:
            self.fail("it doesn't begin with GGUF")
        version = self.number("<I")
        if version not in (2, 3):
            self.fail(f"its version is {version}, 2 and 3 are known")
        tensors, settings = self.count("tensors"), self.count("settings")
        found = {}
        for _ in range(settings):
            name = self.text()
            found[name] = self.setting(name)
        entries = {}
        for _ in range(tensors):
            name = self.text()
            if name in entries:
                self.fail(f"{name[:200]!a} is there twice")
            entries[name] = self.entry(name, found)
        alignment = found.get("general.alignment") or 32
        first = -(-self.file.tell() // alignment) * alignment
        entries = {name: Tensor(self.path, name, kind, shape, first + offset)
                   for name, (kind, shape, offset) in entries.items()}
        self.check_places(entries.values())
        if not entries:
            raise UserError(f"{self.path}: there are no tensors in it")
        return entries

    def setting(self, name):
        """A setting's value if it is one that matters, else None: it is passed over"""
        kind = self.number("<I")
        if name == "general.alignment":
            value = self.number("<I") if kind == 4 else 0
            return value if 1 <= value <= 1 << 20 else self.fail("its alignment is no whole number up to a million")
        if name.startswith(SHAPE_OF):
            of = self.number("<I") if kind == ARRAY else None
            axes = self.number("<Q") if of in (4, 5) else 0
            if not 1 <= axes <= MOST_AXES:
                self.fail(f"{name[:200]!a} is no list of up to {MOST_AXES} lengths")
            return struct.unpack(f"<{axes}i", self.take(4 * axes))
        self.skip(kind, name)
        return None

    def skip(self, kind, name, within=False):
        """Pass over a value of that type"""
        if kind in NUMBERS:
            self.take(int(NUMBERS[kind][2]))
        elif kind == TEXT:
            self.take(self.number("<Q"))
        elif kind == ARRAY and not within:
            kind, length = self.number("<I"), self.number("<Q")
            if kind in NUMBERS:
                self.take(length * int(NUMBERS[kind][2]))
            else:
                for _ in range(length):                # each takes some bytes, so it ends with the file at the latest
                    self.skip(kind, name, within=True)
        else:
            self.fail(f"{name[:200]!a} is of type {kind}")

    def entry(self, name, settings):
        """What the table says of a tensor → kind, shape, offset"""
        axes = self.number("<I")
        if axes > MOST_AXES:
            self.fail(f"{name[:200]!a} has {axes} axes")
        shape = struct.unpack(f"<{axes}Q", self.take(8 * axes))[::-1]
        number, offset = self.number("<I"), self.number("<Q")
        kind = TYPES.get(number, f"GGUF {number}")
        if kind in KINDS and shape and shape[-1] % KINDS[kind].values:
            self.fail(f"{name[:200]!a} has rows of {shape[-1]} numbers in blocks of {KINDS[kind].values}")
        own = settings.get(SHAPE_OF + name)
        if own is not None:
            if math.prod(own) != math.prod(shape) or min(own) < 1:
                self.fail(f"{name[:200]!a} has {math.prod(shape)} numbers, but its own shape is {own}")
            shape = own
        return kind, shape, offset

    def check_places(self, tensors):
        """Numbers are within the file, and no two tensors share any."""
        end = 0
        for tensor in sorted(tensors, key=lambda tensor: tensor.start):
            if tensor.start < end:
                self.fail(f"{tensor.name[:200]!a} begins before the tensor before it ends")
            end = tensor.start + (tensor.stored if tensor.dtype in KINDS else 0)
            if end > self.size:
                self.fail(f"{tensor.name[:200]!a} goes beyond its end")
