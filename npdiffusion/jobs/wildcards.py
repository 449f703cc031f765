"""Wildcards: __name__ in a prompt stands for a line of name.txt, chosen at random.

    a __colour__ __animals/pets__        colour.txt and animals/pets.txt in the folder; a line may hold wildcards again

The choice is driven by the picture's own seed, so the same seed and prompt give the same words. Empty lines and those
that begin with # are passed over. Names have letters, digits, - and _ alone, so that they never leave the folder.
"""
import functools
import os
import pathlib
import random
import re

from npdiffusion.checkpoints import text_files
from npdiffusion.errors import UserError, nearest

NAME = re.compile(r"__([\w-]+?(?:/[\w-]+?)*)__")
LARGEST_FILE = 16 << 20               # bytes
DEEPEST, MOST = 20, 1000              # lines within lines, and replacements in one prompt


class Wildcards:
    """The files of a folder; UserError if it is none."""
    def __init__(self, folder):
        self.folder = pathlib.Path(folder).expanduser()
        if not self.folder.is_dir():
            raise UserError(f"{folder}: there is no such folder of wildcards")
        self.lines = functools.cache(self.read)

    def expand(self, seed, *texts):
        """The texts with every wildcard replaced → list of str

        UserError for a name without a file, a file without lines, or one that leads back to itself.
        """
        chance, left = random.Random(seed), [MOST]

        def fill(text, depth):
            def replace(match):
                left[0] -= 1
                if depth == DEEPEST or left[0] < 0:
                    raise UserError(f"{self.folder}/{match[1]}.txt: "
                                    f"it leads back to itself, or to more than {MOST} others")
                lines = self.lines(match[1])
                line = lines[int(chance.random() * len(lines))]      # random() is the same in all Pythons
                return fill(line, depth + 1)
            return NAME.sub(replace, text)
        return [fill(text, 0) for text in texts]

    def read(self, name):
        """The lines to choose from."""
        path = self.folder / f"{name}.txt"
        if not path.resolve().is_relative_to(self.folder.resolve()):
            raise UserError(f"{path}: it links to a place outside of the folder")
        if not os.path.lexists(path):
            files = self.folder.rglob("*.txt")
            known = sorted(file.relative_to(self.folder).with_suffix("").as_posix() for file in files)
            hint = nearest(name, known, ", did you mean __{}__?")
            raise UserError(f"__{name}__: there is no {name}.txt in {self.folder}{hint}")
        text = text_files.read_text(path, LARGEST_FILE)
        lines = [line.strip() for line in text.splitlines()]
        lines = [line for line in lines if line and not line.startswith("#")]
        if not lines:
            raise UserError(f"{path}: there is no line in it to choose")
        return lines
