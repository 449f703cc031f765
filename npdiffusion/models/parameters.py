"""Parameters of a model by name: the attribute path is the checkpoint's key, so loading is a walk over the object.

    unet.down_blocks[0].resnets[1].conv1.weight   ↔   "down_blocks.0.resnets.1.conv1.weight"
"""
import math
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from npdiffusion.errors import UserError
from npdiffusion.kernels import machine, threads
from npdiffusion.kernels.arrays import as_float32
from npdiffusion.models.on_disk import OnDisk, scratch

MOST_THREADS = 8  # that read and pack tensors: more would take memory, and files are not delivered faster
SMALLEST_ON_DISK = 50_000      # numbers of a weight that is worth reading anew each time
SIZES = {"float32": 4, "bfloat16": 2, "int8": 1}       # bytes of a number that is kept so
SHOWN = 4         # how many wrong names an error message lists before it only counts,
LONGEST = 200     # and how many characters of each

# Weights that stay float32 in a model of bfloat16: the ends of the UNet and the VAE, where the picture itself passes,
# and the time embedding, which every block reads. They are less than one percent of all numbers, and rounding them
# would cost 1.5 dB of the 58 by which pictures of the embedded model agree with those of float32.
DELICATE = re.compile(r"(^|\.)(conv_in|conv_out|quant_conv|post_quant_conv|time_embedding\..*)\.weight$")

# Weights that are bfloat16 in a model of int8: those of the autoencoder, of encoders and of adapters, which run once or twice a
# picture, and what turns the time embedding into shifts. So are 3×3 kernels where the processor doesn't multiply bytes: there
# Winograd's algorithm saves more than bytes would.
IN_BFLOAT16 = re.compile(
    r"^(encoder|decoder|text_projection|vision_model|visual_projection|image_proj|adapter)\.|time_emb_proj")


def walk(module, path=()):
    """Yield (path, owner, attribute) for every array below `module`; lists count as attributes 0, 1, ..."""
    items = enumerate(module) if isinstance(module, list) else vars(module).items()
    for name, value in items:
        if isinstance(value, np.ndarray):
            yield ".".join((*path, str(name))), module, name
        elif isinstance(value, list) or hasattr(value, "__dict__"):
            yield from walk(value, (*path, str(name)))


def modules(module, path=()):
    """Yield (path, object) for every object below `module`, itself included; paths as in `walk`."""
    if not isinstance(module, list):
        yield ".".join(path), module
    for name, value in enumerate(module) if isinstance(module, list) else vars(module).items():
        if isinstance(value, list) or hasattr(value, "__dict__"):
            yield from modules(value, (*path, str(name)))


def shapes(module):
    """{name: shape} of every parameter."""
    return {name: getattr(owner, attribute).shape for name, owner, attribute in walk(module)}


def count(module):
    """How many numbers the parameters are, loaded, packed and on disk or still empty."""
    values = module if isinstance(module, list) else vars(module).values()
    return sum(math.prod(value.shape) if hasattr(value, "shape") else count(value) for value in values
               if hasattr(value, "shape") or isinstance(value, list) or hasattr(value, "__dict__"))


def nbytes(module, dtype):
    """Memory that the parameters take once they are loaded as `dtype`."""
    return sum(memory_of(parameter, dtype) for parameter in walk(module))


def memory_of(parameter, dtype):
    """Bytes that a parameter takes in a model that is loaded as `dtype`; parameter: what `walk` yields"""
    name, owner, attribute = parameter
    return SIZES[kept_as(name, owner, attribute, dtype)] * math.prod(getattr(owner, attribute).shape)


def is_large(owner, attribute):
    """Whether a parameter may stay on disk: weights of products and tables of embeddings that are worth it."""
    shape = getattr(owner, attribute).shape
    return attribute == "weight" and len(shape) > 1 and math.prod(shape) >= SMALLEST_ON_DISK


def is_packed(owner, attribute):
    """Whether a parameter is the weight of a product, for which kernels have a layout of their own."""
    return attribute == "weight" and hasattr(owner, "prepare")


def kept_as(name, owner, attribute, dtype):
    """One of `kernels.DTYPES`: how a parameter is kept in a model that is loaded as `dtype`."""
    if not is_packed(owner, attribute) or DELICATE.search(name):
        return "float32"
    if dtype == "int8" and (IN_BFLOAT16.search(name) or _winograd_is_faster(getattr(owner, attribute).shape)):
        return "bfloat16"
    return dtype


def _winograd_is_faster(shape):
    """Whether a weight (O, I, kh, kw) or (out, in) is a 3×3 kernel that bytes would not make faster on this machine."""
    return shape[2:] == (3, 3) and not machine.multiplies_bytes()


def load(module, tensors, source, dtype="float32"):
    """Give every parameter of `module` its array and bring it into the layout of the backend in use.

    tensors: mapping from name to a function that returns the array, with attributes `shape` and, for messages, `name`;
        float32, float16, or uint16, which means bfloat16; see checkpoints/tensors.py
    source: what error messages call the checkpoint
    dtype: "float32", or "bfloat16" or "int8" for the weights of most products, see `kept_as`
    Strict both ways: UserError names what is missing, unexpected, of another shape, or not finite.
    """
    matched = match(module, tensors, source)
    if unexpected := tensors.keys() - matched.keys():
        raise UserError(f"{source}: its tensors don't fit the model; {len(unexpected)} unexpected: {some(unexpected)}")
    fill(list(walk(module)), matched, source, dtype)


def fill(parameters, tensors, source, dtype="float32", on_disk=()):
    """What `load` does when tensors are known to fit; parameters: what `walk` found in the empty model, or some of it

    on_disk: names of those that are not read now but when they are used, see on_disk.py
    """
    def take(parameter):
        name, owner, attribute = parameter
        tensor, shape = tensors[name], getattr(owner, attribute).shape
        if name in on_disk:
            setattr(owner, attribute, OnDisk(tensor, shape, source))
            if is_packed(owner, attribute):
                owner.prepare(kept_as(name, owner, attribute, dtype))
            return
        if is_packed(owner, attribute):                      # copied at once, by `prepare`
            setattr(owner, attribute, tensor(scratch).reshape(shape))
            with threads.alone():
                owner.prepare(kept_as(name, owner, attribute, dtype))
        else:
            setattr(owner, attribute, as_float32(tensor().reshape(shape)))
        if not _is_finite(getattr(owner, attribute)):
            raise UserError(f"{source}: {tensor.name} holds values that are not finite (NaN or infinity)")

    # Each thread takes a tensor from the file to its layout, outside Python's lock; weights are packed as they are
    # stored. So there are one copy of the model and a tensor for each thread at any time. The largest come first, so
    # that no thread is left with one when the others are done.
    largest_first = sorted(parameters, key=lambda parameter: -math.prod(getattr(*parameter[1:]).shape))
    with ThreadPoolExecutor(min(threads.get_threads(), MOST_THREADS)) as pool:
        for _ in pool.map(take, largest_first):
            pass


def _is_finite(weight):
    """False if a number is infinite or NaN; packing has looked already."""
    return weight.is_finite if hasattr(weight, "is_finite") else bool(np.isfinite(as_float32(weight)).all())


def match(module, tensors, source, name_in_file=str):
    """{parameter: tensor}, when `tensors` has all parameters of `module`, in their shapes; reads no data

    name_in_file: from a parameter's name to the one in `tensors`; this is the only place that translates names
    A matrix may come as a 1×1 convolution, (O, I, 1, 1): the attention of original VAE files is written so.
    UserError that names what is missing or of another shape; what is left over is of no concern here.
    """
    named = {name: name_in_file(name) for name in shapes(module)}
    wanted = {named[name]: shape for name, shape in shapes(module).items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    missing, unexpected = wanted.keys() - found.keys(), found.keys() - wanted.keys()
    problems = []
    if missing:
        problems.append(f"{len(missing)} missing: {some(missing)}")
        if unexpected:                                                 # the same under other names, perhaps
            problems.append(f"{len(unexpected)} unexpected: {some(unexpected)}")
    other = [name for name in wanted.keys() & found.keys() if found[name] != wanted[name]
             and not (len(wanted[name]) == 2 and found[name] == (*wanted[name], 1, 1))]
    if other:
        shown = some(other, lambda name: f"{name} is {found[name]} instead of {wanted[name]}")
        problems.append(f"{len(other)} of another shape: {shown}")
    if problems:
        raise UserError(f"{source}: its tensors don't fit the model; {'; '.join(problems)}")
    return {name: tensors[other] for name, other in named.items()}


def some(names, describe=str):
    """The first few names in order, then a count; names come from files, so what can't be printed is escaped."""
    shown = [describe(name)[:LONGEST] for name in sorted(names)[:SHOWN]]
    shown = [text if text.isprintable() else ascii(text) for text in shown]
    return ", ".join(shown) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
