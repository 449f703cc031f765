"""Parameters of a model by name: the attribute path is the checkpoint's key, so loading is a walk over the object.

    unet.down_blocks[0].resnets[1].conv1.weight   ↔   "down_blocks.0.resnets.1.conv1.weight"
"""
import numpy as np

from npdiffusion.errors import UserError

SHOWN = 4     # how many wrong names an error message lists before it only counts


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


def load(module, tensors, source):
    """Give every parameter of `module` its array and bring it into the layout of the backend in force.

    tensors: mapping from name to a function without arguments that returns the float32 array, with attribute `shape`
    source: what error messages call the checkpoint
    Strict both ways: UserError names what is missing, unexpected, of another shape, or not finite.
    """
    wanted = shapes(module)
    check_names(wanted, {name: tensor.shape for name, tensor in tensors.items()}, source)
    for name, owner, attribute in list(walk(module)):
        array = tensors[name]()
        if not np.isfinite(array).all():
            raise UserError(f"{source}: {name} holds values that are not finite (NaN or infinity)")
        setattr(owner, attribute, array)
        if attribute == "weight" and hasattr(owner, "prepare"):
            owner.prepare()


def check_names(wanted, found, source):
    """UserError unless the two mappings from name to shape are equal."""
    problems = []
    for kind, names in (("missing", wanted.keys() - found.keys()), ("unexpected", found.keys() - wanted.keys())):
        if names:
            problems.append(f"{len(names)} {kind}: {_some(sorted(names))}")
    other = sorted(name for name in wanted.keys() & found.keys() if tuple(wanted[name]) != tuple(found[name]))
    if other:
        problems.append(f"{len(other)} of another shape: " + _some(
            [f"{name} is {tuple(found[name])} instead of {tuple(wanted[name])}" for name in other]))
    if problems:
        raise UserError(f"{source}: its tensors don't fit the model; {'; '.join(problems)}")


def _some(names):
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
