"""What `print` shows of a model: the tree of its parts, with their shapes and how many numbers each holds.

    print(unet)    a line for each part, as deep as LINES suffice; equal neighbours share one: resnets.0–1
    repr(unet)     one line

The channels of a part are those into its first layer and out of its last one. A line of several equal parts has the numbers
of all of them; what stands below it is one of them.
"""
from dataclasses import dataclass

from npdiffusion.models.layers import Embedding
from npdiffusion.models.parameters import count

LINES = 60       # that a tree has at most


class Module:
    """What is made of layers. It says what it is, and does nothing else."""

    def __repr__(self):
        what = f"{type(self).__name__}: {count(self) / 1e6:.1f} million parameters"
        return f"<{what}, {self.config}>" if hasattr(self, "config") else f"<{what}>"

    def __str__(self):
        return tree(self)


@dataclass(frozen=True)
class Part:
    """A module or layer and what is below it; equal ones have the same kinds and shapes throughout.

    ends      channels into its first layer and out of its last one     numbers   how many it holds
    parts     (name, Part), in the order of its attributes, of lists one by one
    """
    label: str
    ends: tuple
    numbers: int
    parts: tuple = ()


def tree(module):
    """A module as lines: name, kind and channels in → out, how many numbers; down to where it would be more than LINES"""
    whole = part(module)
    rows, depth = lines(whole, 1), 1
    while len(rows) < len(deeper := lines(whole, depth + 1)) <= LINES - 2:
        rows, depth = deeper, depth + 1
    rows = [(type(module).__name__, f"{whole.ends[0]} → {whole.ends[1]}", f"{whole.numbers:,}"), *rows]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    text = [f"{name:<{widths[0]}}  {label:<{widths[1]}}  {numbers:>{widths[2]}}" for name, label, numbers in rows]
    return "\n".join([*text, "(print a part to see what is in it)"] if len(deeper) > len(rows) - 1 else text)


def lines(whole, depth, indent="    "):
    """(name, kind, numbers) of all parts down to `depth`; a run of equal parts is one line, with the numbers of all"""
    found, parts = [], list(whole.parts)
    while parts:
        name, first = parts[0]
        run = 1
        while run < len(parts) and parts[run][1] == first and name_of_list(parts[run][0]) == name_of_list(name) != "":
            run += 1
        last = parts[run - 1][0].rpartition(".")[2]
        found.append((indent + (f"{name}–{last}" if run > 1 else name), f"{run} × {first.label}" if run > 1 else first.label,
                      f"{run * first.numbers:,}"))
        if depth > 1:
            found += lines(first, depth - 1, indent + "    ")
        del parts[:run]
    return found


def name_of_list(name):
    """resnets.1 → resnets, conv1 → nothing"""
    return name.rpartition(".")[0]


def part(module):
    """The Part of a module or layer; a layer is what has a weight, and its own repr says what it is"""
    if hasattr(module, "weight"):
        shape = module.weight.shape
        ends = shape if isinstance(module, Embedding) else (shape[len(shape) > 1], shape[0])
        return Part(repr(module), ends, count(module))
    parts = tuple((name, part(value)) for name, value in below(module))
    ends = (parts[0][1].ends[0], parts[-1][1].ends[1])
    return Part(f"{type(module).__name__} {ends[0]} → {ends[1]}", ends, count(module), parts)


def below(module):
    """(name, module or layer) of each attribute and of each entry of a list that holds numbers"""
    for name, value in vars(module).items():
        entries = [(f"{name}.{i}", each) for i, each in enumerate(value)] if isinstance(value, list) else [(name, value)]
        yield from ((name, each) for name, each in entries
                    if hasattr(each, "__dict__") and not hasattr(each, "shape") and count(each))
