"""Wildcards: __name__ in a prompt stands for a line of name.txt, chosen at random.

    a __colour__ __animals/pets__        colour.txt and animals/pets.txt in the folder; a line may hold wildcards again

The choice is driven by the picture's own seed, so the same seed and prompt give the same words. Empty lines and those
that begin with # are passed over. Names have letters, digits, - and _, and spaces and points between them, so that they
never leave the folder.
"""
import contextlib
import functools
import os
import pathlib
import random
import re
import warnings

from npdiffusion.checkpoints import text_files
from npdiffusion.checkpoints.folder_walk import TooMany, walk
from npdiffusion.errors import UserError, nearest
from npdiffusion.settings.kinds import LONGEST_TEXT

PART = r"[\w-](?:(?:(?!__)[\w .-]){0,100}?[\w-])??"               # as short as it may be
NAME = re.compile(f"__({PART}(?:/{PART}){{0,20}}?)__")
LARGEST_FILE = 16 << 20               # bytes
DEEPEST, MOST = 20, 1000              # lines within lines, or folders within folders, and replacements in one prompt


class Wildcards:
    """The files of a folder; UserError if it is none."""
    def __init__(self, folder):
        self.folder = pathlib.Path(folder).expanduser()
        if not self.folder.is_dir():
            raise UserError(f"{folder}: there is no such folder of wildcards")
        self.lines = functools.cache(self.read)

    def expand(self, seed, *texts):
        """The texts with every wildcard replaced → list of str

        UserError for a name without a file, a file without lines, one that leads back to itself, or lines that are
        longer together than a prompt may be.
        """
        chance, left, room = random.Random(seed), MOST, LONGEST_TEXT

        def fill(text, depth):
            def replace(match):
                nonlocal left, room
                left -= 1
                if depth == DEEPEST or left < 0:
                    raise UserError(f"{self.folder}/{match[1]}.txt: "
                                    f"it leads back to itself, or to more than {MOST} others")
                lines = self.lines(match[1])
                line = lines[int(chance.random() * len(lines))]      # random() is the same in all Pythons
                room -= len(line)
                if room < 0:
                    raise UserError(f"{self.folder}/{match[1]}.txt: its lines, and those that they lead to, make the "
                                    f"prompt longer than {LONGEST_TEXT} characters")
                return fill(line, depth + 1)
            return NAME.sub(replace, text)
        return [fill(text, 0) for text in texts]

    def read(self, name):
        """The lines to choose from."""
        path = self.folder / f"{name}.txt"
        if not path.resolve().is_relative_to(self.folder.resolve()):
            raise UserError(f"{path}: it links to a place outside of the folder")
        if not os.path.lexists(path):
            known = []
            with contextlib.suppress(TooMany):                       # the hint is then one of those that were found
                known.extend(file.relative_to(self.folder).with_suffix("").as_posix()
                             for file in walk(self.folder, DEEPEST) if file.suffix == ".txt")
            hint = nearest(name, known, ", did you mean __{}__?")
            raise UserError(f"__{name}__: there is no {name}.txt in {self.folder}{hint}")
        text = text_files.read_text(path, LARGEST_FILE)
        lines = [line.strip() for line in text.splitlines()]
        lines = [line for line in lines if line and not line.startswith("#")]
        if not lines:
            raise UserError(f"{path}: there is no line in it to choose")
        return lines


def note_unfilled(texts):
    """Warn of the first wildcard in texts for which no folder is given."""
    found = next(filter(None, map(NAME.search, texts)), None)
    if found:
        warnings.warn(f"{found[0][:60]} in the prompt is taken as words: --wildcards names the folder of such lists",
                      stacklevel=2)
