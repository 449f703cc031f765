"""What values a setting takes, and how text becomes one.

    kind.read(text)           → value; `Unfit` says what is wrong with the text, for the command line and files
    kind.check(name, value)   → value; UserError names the setting, for Python
    kind.write(value)         → what is written of it into a picture, where `read` finds it again

Imports nothing heavy: --help is made of these. `eq=False`, since nobody compares kinds, and dataclasses write and compile
each method that they add, which takes --help 5 ms.
"""
import itertools
import math
import numbers
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from npdiffusion.errors import UserError, nearest

LONGEST_TEXT = 100_000                # characters: far more than fit into all chunks of a prompt
NETWORKS = ("depth", "openpose", "pose", "hed", "softedge", "lineart", "mlsd", "normal", "normalbae", "seg",
            "segmentation", "pidinet")
MOST_LISTED = 16                      # values of one setting
LONGEST_NAME = 100                    # characters of a choice: what is longer is none
SMALLEST_SEED, LARGEST_SEED = -2**63, 2**64 - 1
SWITCHED = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
LEAST_MEMORY = 1e6                    # bytes that may be asked for by command: less is a unit forgotten
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


@dataclass(eq=False)
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


@dataclass(eq=False)
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


class Threads(Whole):
    """How many threads; -1, as stable-diffusion.cpp has it, is as many as there are cores, which is None."""
    def read(self, text):
        return None if text.strip() == "-1" else super().read(text)


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
        return None if text.strip() == "-1" else Whole(1, 99).read(text) - 1 or None      # -1: stable-diffusion.cpp's default

    def check(self, name, value):
        return Whole(0, 98).check(name, value) or None

    def write(self, value):
        return value + 1


@dataclass(eq=False)
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


@dataclass(eq=False)
class Descending(Kind):
    """Whole numbers from low to high with commas between them, each below the one before."""
    low: int
    high: int

    def read(self, text):
        try:
            return self.check("it", [Whole(self.low, self.high).read(part.strip()) for part in text.split(",")])
        except UserError as error:
            raise Unfit(str(error)) from None

    def check(self, name, value):
        if not isinstance(value, (tuple, list)) or not value:
            raise UserError(f"{name} is {value!r:.60}: it must be a list of whole numbers")
        found = tuple(Whole(self.low, self.high).check(name, each) for each in value)
        if any(later >= earlier for earlier, later in itertools.pairwise(found)):
            raise UserError(f"{name} is {value!r:.60}: each number must be below the one before")
        return found

    def write(self, value):
        return ",".join(map(str, value))


@dataclass(eq=False)
class Pair(Kind):
    """Two whole numbers from low to high, (a, b).

    between: what stands between them in text      what: what they are, for messages
    turned: whether text has b first, as sizes are written: 768x512 for (512, 768)
    """
    low: int
    high: int
    between: str
    turned: bool
    what: str

    def read(self, text):
        parts = text.lower().split(self.between)
        if len(parts) != 2:
            raise Unfit(f"{text[:40]!r} is no {self.what}, as {self.write((512, 768))} is")
        found = tuple(Whole(self.low, self.high).read(part.strip()) for part in parts)
        return found[::-1] if self.turned else found

    def check(self, name, value):
        if not isinstance(value, (tuple, list)) or len(value) != 2:
            raise UserError(f"{name} is {value!r:.60}: it must be two numbers, {self.what}")
        return tuple(Whole(self.low, self.high, "pixels").check(name, each) for each in value)

    def write(self, value):
        return self.between.join(map(str, value[::-1] if self.turned else value))


def plain(name):
    """A name as it is compared: in lower case, with _ for - and spaces."""
    return name.strip().lower().replace("-", "_").replace(" ", "_")


@dataclass(eq=False)
class Choice(Kind):
    """One of some names; as text in whatever case, - and _ alike.

    other: {how another program calls it: name}, which are taken silently
    """
    names: Sequence | Mapping
    other: Mapping = field(default_factory=dict)

    def named(self, text):
        """The name that a text means, or None"""
        spelled = {plain(other): name for other, name in self.other.items()} | {plain(name): name for name in self.names}
        return spelled.get(plain(text))

    def read(self, text):
        value = self.named(text)
        if value is None:
            hint = nearest(text, self.names, "did you mean {}? Known", "known")
            raise Unfit(f"{text[:40]!r} is unknown, {hint} are {', '.join(self.names)}")
        return value

    def check(self, name, value):
        if not isinstance(value, str):
            raise UserError(f"{name} is {value!r:.60}: known are {', '.join(self.names)}")
        found = self.named(value)
        if found is None:
            raise UserError(f"unknown {name} {value[:40]!r}: {nearest(value, self.names)}known are {', '.join(self.names)}")
        return found


class Named(str):
    """A name, and the values of other settings that the text implied where they aren't given."""
    def __new__(cls, name, implied):
        found = super().__new__(cls, name)
        found.implied = implied
        return found


@dataclass(eq=False)
class Sampler(Choice):
    """The name of a sampler. Other programs write the schedule behind it, "DPM++ 2M Karras": see `with_schedule`."""
    schedules: Choice | None = None

    def with_schedule(self, text):
        """A text → sampler, schedule, or None for either that isn't named"""
        words = plain(text).split("_") if len(text) <= LONGEST_NAME else []
        for cut in range(len(words), 0, -1):
            sampler, schedule = self.named("_".join(words[:cut])), "_".join(words[cut:])
            if sampler and (not schedule or self.schedules.named(schedule)):
                return sampler, self.schedules.named(schedule) if schedule else None
        return None, None

    def read(self, text):
        sampler, schedule = self.with_schedule(text)
        return Named(sampler, {"schedule": schedule} if schedule else {}) if sampler else super().read(text)


@dataclass(eq=False)
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
    """The path of a file or folder, or another place that a text names. A ~ that the shell left in place is the home folder."""
    def read(self, text):
        return os.path.expanduser(text)


class Picture(Path):
    """The path of a picture; in Python a picture, or an array, which becomes one, too."""
    def check(self, name, value):
        numpy = sys.modules.get("numpy")                 # without it there are no arrays
        if numpy is not None and isinstance(value, numpy.ndarray):
            from npdiffusion.pictures.images import from_array
            return from_array(value, name, grey=name == "mask_image")
        return os.fspath(value) if isinstance(value, os.PathLike) else value


@dataclass(eq=False)
class Sides(Kind):
    """How much a picture is extended: "left=64,right=64"; in Python also {"left": 64, …}"""
    largest: int

    def read(self, text):
        from npdiffusion.painting import outpainting
        try:
            found = outpainting.read_sides(text, 8, self.largest)
        except UserError as error:
            raise Unfit(str(error).removeprefix("outpaint: ").removeprefix("outpaint ")) from None
        return ",".join(f"{side}={pixels}" for side, pixels in found.items() if pixels)


@dataclass(eq=False)
class Listed(Kind):
    """One value of a kind, or several in their order: a tuple. An option of it is repeated; in one text there are commas
    between them; paths stand alone."""
    kind: Kind

    def read(self, text):
        parts = [text] if isinstance(self.kind, Path) else text.split(",")
        return tuple(self.kind.read(part.strip()) for part in parts)

    def check(self, name, value):
        values = value if isinstance(value, (tuple, list)) else (value,)
        if not 1 <= len(values) <= MOST_LISTED:
            raise UserError(f"{name}: {len(values)} given, there can be 1 to {MOST_LISTED}")
        return tuple(self.kind.check(name, each) for each in values)

    def write(self, value):
        return ", ".join(f"{each:g}" if isinstance(each, float) else str(each) for each in value)


@dataclass(eq=False)
class Map(Kind):
    """The name of a map, perhaps with numbers: canny, canny:50-150. maps: as table.MAPS has them"""
    maps: Mapping

    def read(self, text):
        name, colon, numbers = text.strip().lower().partition(":")
        if name in NETWORKS:
            raise Unfit(f"{name} is found by a network, which isn't here: make that map with another program")
        if name not in self.maps:
            raise Unfit(f"{name[:40]!r} is unknown, {nearest(name, self.maps, 'did you mean {}? Known', 'known')} are "
                        f"{', '.join(self.maps)}")
        rows, given = self.maps[name], numbers.split("-") if colon else []
        if len(given) > len(rows):
            raise Unfit(f"{name} takes {len(rows)} numbers")
        for (what, low, high, _), number in zip(rows, given):
            try:
                Whole(low, high).read(number)
            except Unfit as error:
                raise Unfit(f"{name}, {what}: {error}") from None
        return name + colon + numbers

    def check(self, name, value):
        if not isinstance(value, str):
            raise UserError(f"{name} is {value!r:.60}: known are {', '.join(self.maps)}")
        try:
            return self.read(value)
        except Unfit as error:
            raise UserError(f"{name}: {error}") from None


class Memory(Kind):
    """An amount of memory such as "4GB", "1.5 GB" or "900MiB"."""
    def read(self, text):
        amount = self.bytes(text)
        if amount is None:
            raise Unfit(f"{text[:40]!r} is no amount of memory like 4GB or 900MB")
        if amount < LEAST_MEMORY:
            raise Unfit(f"{text[:40]!r} is {amount:.0f} bytes, and nothing fits into so few: amounts are like 4GB or 900MB")
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


@dataclass(eq=False)
class Several(Kind):
    """Values of one kind with commas between them, each once."""
    kind: Kind

    def read(self, text):
        values = [self.kind.read(part.strip()) for part in text.split(",")]
        if len(set(values)) < len(values):
            raise Unfit(f"{text[:40]!r} names one of them twice")
        return values
