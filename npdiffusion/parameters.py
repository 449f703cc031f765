"""Parameters of a model by name: the attribute path is the checkpoint's key, so loading is a walk over the object.

    unet.down_blocks[0].resnets[1].conv1.weight   ↔   "down_blocks.0.resnets.1.conv1.weight"
"""
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from npdiffusion.errors import UserError

READERS = 4       # threads that read tensors
SHOWN = 4         # how many wrong names an error message lists before it only counts,
LONGEST = 200     # and how many characters of each


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


def same_name(name):
    """The spelling of a checkpoint that calls a parameter what its attribute path is."""
    return name


def load(module, tensors, source, spelling=same_name):
    """Give every parameter of `module` its array and bring it into the layout of the backend in force.

    tensors: mapping from name to a function without arguments that returns the float32 array, with attribute `shape`
    source: what error messages call the checkpoint
    spelling: from a parameter's name to the one in `tensors`
    Strict both ways: UserError names what is missing, unexpected, of another shape, or not finite.
    """
    check(module, tensors, source, spelling)
    parameters = list(walk(module))

    def read(parameter):
        name, owner, attribute = parameter
        array = tensors[spelling(name)]().reshape(getattr(owner, attribute).shape)
        if not np.isfinite(array).all():
            raise UserError(f"{source}: {spelling(name)} holds values that are not finite (NaN or infinity)")
        return array

    # Reading waits for files and converts numbers, both without Python's lock; layouts are prepared here, one by one.
    # What has been packed is dropped at once, so there is about one copy of the model at any time.
    with ThreadPoolExecutor(READERS) as pool:
        for (_, owner, attribute), array in zip(parameters, pool.map(read, parameters)):
            setattr(owner, attribute, array)
            if attribute == "weight" and hasattr(owner, "prepare"):
                owner.prepare()


def check(module, tensors, source, spelling=same_name):
    """UserError unless `tensors` has exactly the parameters of `module`, in their shapes; reads no data.

    A matrix may come as a 1×1 convolution, (O, I, 1, 1): the attention of original VAE files is written so.
    """
    wanted = {spelling(name): shape for name, shape in shapes(module).items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    problems = []
    for kind, names in (("missing", wanted.keys() - found.keys()), ("unexpected", found.keys() - wanted.keys())):
        if names:
            problems.append(f"{len(names)} {kind}: {some(names)}")
    other = [name for name in wanted.keys() & found.keys() if found[name] != wanted[name]
             and not (len(wanted[name]) == 2 and found[name] == (*wanted[name], 1, 1))]
    if other:
        shown = some(other, lambda name: f"{name} is {found[name]} instead of {wanted[name]}")
        problems.append(f"{len(other)} of another shape: {shown}")
    if problems:
        raise UserError(f"{source}: its tensors don't fit the model; {'; '.join(problems)}")


def some(names, describe=str):
    """The first few names in order, then a count; names come from files, so what can't be printed is escaped."""
    shown = [describe(name)[:LONGEST] for name in sorted(names)[:SHOWN]]
    shown = [text if text.isprintable() else ascii(text) for text in shown]
    return ", ".join(shown) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
