"""What values a setting takes, and how text becomes one.

    kind.read(text)           → value; `Unfit` says what is wrong with the text, for the command line and files
    kind.check(name, value)   → value; UserError names the setting, for Python
    kind.write(value)         → what is written of it into a picture, where `read` finds it again

Imports nothing heavy: --help is made of these.
"""
import math
import numbers
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from npdiffusion.errors import UserError, nearest

LONGEST_TEXT = 100_000                # characters: far more than fit into all chunks of a prompt
SMALLEST_SEED, LARGEST_SEED = -2**63, 2**64 - 1
SWITCHED = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
UNITS = {"": 1, "b": 1, "k": 1e3, "kb": 1e3, "kib": 2**10, "m": 1e6, "mb": 1e6, "mib": 2**20, "g": 1e9, "gb": 1e9,
         "gib": 2**30}
AMOUNT = re.compile(r"\s*(\d{1,15}(?:\.\d{0,9})?)\s*([A-Za-z]*)\s*")


class Unfit(ValueError):
    """A text that is no value of a setting; the message doesn't name the setting."""


class Kind:
    """Any text, and any value."""
    def read(self, text):
        return text

    def check(self, name, value):
        return value

    def write(self, value):
        return value


class Text(Kind):
    """A text of at most LONGEST_TEXT characters that can be written in UTF-8."""
    def read(self, text):
        if len(text) > LONGEST_TEXT:
            raise Unfit(f"the text has {len(text)} characters, at most {LONGEST_TEXT} are taken")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:    # bytes that the terminal's encoding has no characters for
            raise Unfit("the text is not valid UTF-8") from None
        return text

    def check(self, name, value):
        if not isinstance(value, str):
            raise UserError(f"{name} is {value!r:.60}: it must be a text")
        if len(value) > LONGEST_TEXT:
            raise UserError(f"{name} has {len(value)} characters, at most {LONGEST_TEXT} are taken")
        return value


@dataclass(frozen=True)
class Whole(Kind):
    """A whole number from low to high."""
    low: int
    high: int
    unit: str = ""

    def read(self, text):
        allowed = f"allowed are {self.low} to {self.high}"
        try:
            value = int(text)
        except ValueError:
            raise Unfit(f"{text[:40]!r} is no whole number, {allowed}") from None
        if not self.low <= value <= self.high:
            raise Unfit(f"{text[:40]} is out of range, {allowed}")
        return value

    def check(self, name, value):
        whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        if not whole or not self.low <= value <= self.high:
            what = f"a number of {self.unit}" if self.unit else "a whole number"
            raise UserError(f"{name} is {value!r:.60}: it must be {what} from {self.low} to {self.high}")
        return int(value)


@dataclass(frozen=True)
class Number(Kind):
    """A finite number from low, or only above it, to high."""
    low: float
    high: float
    above: bool = False
    unit: str = ""

    def read(self, text):
        allowed = f"allowed are numbers {'above' if self.above else 'from'} {self.low} {'and up ' * self.above}to {self.high}"
        try:
            value = float(text)
        except ValueError:
            raise Unfit(f"{text[:40]!r} is no number, {allowed}") from None
        if not self._fits(value):
            raise Unfit(f"{text[:40]} is out of range, {allowed}")
        return value

    def check(self, name, value):
        number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        if not number or not self._fits(value):
            what = f"a number of {self.unit}" if self.unit else "a number"
            where = f"above {self.low} and up to" if self.above else f"from {self.low} to"
            shown = value if number else repr(value)
            raise UserError(f"{name} is {shown!s:.60}: it must be {what} {where} {self.high}")
        return int(value) if isinstance(value, numbers.Integral) else float(value)

    def _fits(self, value):
        return self.low <= value <= self.high and not (self.above and value == self.low)        # NaN is not


class Seed(Kind):
    """A whole number of 64 bits; -1 is written for a random one, which is None."""
    def read(self, text):
        value = Whole(-1, LARGEST_SEED).read(text)
        return None if value == -1 else value

    def check(self, name, value):
        if not isinstance(value, numbers.Integral):
            raise UserError(f"{name} is {value!r:.60}: it must be a whole number")
        if not SMALLEST_SEED <= value <= LARGEST_SEED:
            raise UserError(f"{name} is {value}: it must be from {SMALLEST_SEED} to {LARGEST_SEED}")
        return int(value)


class ClipSkip(Kind):
    """How many of the text encoder's layers are left out; as text, AUTOMATIC1111's way: 1 leaves out none."""
    def read(self, text):
        return Whole(1, 99).read(text) - 1 or None

    def check(self, name, value):
        return Whole(0, 98).check(name, value) or None

    def write(self, value):
        return value + 1


@dataclass(frozen=True)
class Side(Kind):
    """Width or height in pixels. As text a multiple of 8, as all models of Stable Diffusion want it: a command is checked
    before it loads one. In Python the model decides."""
    largest: int

    def read(self, text):
        value = Whole(8, self.largest).read(text)
        if value % 8:
            below = value // 8 * 8
            raise Unfit(f"{value} is no multiple of 8, the nearest are {below} and {below + 8}")
        return value

    def check(self, name, value):
        if isinstance(value, bool) or not isinstance(value, numbers.Integral):
            raise UserError(f"{name} is {value!r:.60}: it must be a whole number")
        return int(value)


@dataclass(frozen=True)
class Choice(Kind):
    """One of some names; as text, - and _ are alike."""
    names: Sequence | Mapping

    def read(self, text):
        spelled = {name.replace("-", "_"): name for name in self.names}
        value = spelled.get(text.replace("-", "_"), text)
        if value not in self.names:
            hint = nearest(value, self.names, "did you mean {}? Known", "known")
            raise Unfit(f"{value[:40]!r} is unknown, {hint} are {', '.join(self.names)}")
        return value

    def check(self, name, value):
        if not isinstance(value, str):
            raise UserError(f"{name} is {value!r:.60}: known are {', '.join(self.names)}")
        spelled = {other.replace("-", "_"): other for other in self.names}.get(value.replace("-", "_"), value)
        if spelled not in self.names:
            raise UserError(f"unknown {name} {value[:40]!r}: {nearest(value, self.names)}known are {', '.join(self.names)}")
        return spelled


@dataclass(frozen=True)
class Switch(Kind):
    """True or False. off: its option switches something off, so that the word "true" behind it means False"""
    off: bool = False

    def read(self, text):
        word = text.strip().lower()
        if word not in SWITCHED:
            raise Unfit(f"{word[:40]!r} is unknown, known are {', '.join(SWITCHED)}")
        return SWITCHED[word] != self.off

    def check(self, name, value):
        if not isinstance(value, bool):
            raise UserError(f"{name} is {value!r:.60}: it must be True or False")
        return value


class Path(Kind):
    """The path of a file or folder, or another place that a text names."""


class Picture(Path):
    """The path of a picture; in Python a picture, too."""
    def check(self, name, value):
        return os.fspath(value) if isinstance(value, os.PathLike) else value


@dataclass(frozen=True)
class Sides(Kind):
    """How much a picture is extended: "left=64,right=64"; in Python also {"left": 64, …}"""
    largest: int

    def read(self, text):
        from npdiffusion.painting import outpainting
        try:
            found = outpainting.read(text, 8, self.largest)
        except UserError as error:
            raise Unfit(str(error).removeprefix("outpaint: ").removeprefix("outpaint ")) from None
        return ",".join(f"{side}={pixels}" for side, pixels in found.items() if pixels)


class Memory(Kind):
    """An amount of memory such as "4GB", "1.5 GB" or "900MiB"."""
    def read(self, text):
        if self.bytes(text) is None:
            raise Unfit(f"{text[:40]!r} is no amount of memory like 4GB or 900MB")
        return text

    def check(self, name, value):
        if self.bytes(value) is None:
            raise UserError(f"{name} is {value!r:.60}: an amount like 4GB or 900MB is needed")
        return value

    @staticmethod
    def bytes(value):
        """Bytes from a number or a text, None if it is no amount."""
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value) if 0 < value < math.inf else None
        match = AMOUNT.fullmatch(value) if isinstance(value, str) else None
        if not match or match[2].lower() not in UNITS or float(match[1]) == 0:
            return None
        return float(match[1]) * UNITS[match[2].lower()]


@dataclass(frozen=True)
class Several(Kind):
    """Values of one kind with commas between them, each once."""
    kind: Kind

    def read(self, text):
        values = [self.kind.read(part.strip()) for part in text.split(",")]
        if len(set(values)) < len(values):
            raise Unfit(f"{text[:40]!r} names one of them twice")
        return values
