"""Reading a command line: errors in one line that name the nearest known option, and the types that options have.

A type is a function from text to value; argparse.ArgumentTypeError says what is wrong with the text.
"""
import argparse

from npdiffusion.command.talk import print_line
from npdiffusion.errors import UserError, nearest

LARGEST_SIDE = 8192                   # pixels
LONGEST_PROMPT = 100_000              # characters: far more than fit into all chunks, so that it is refused at once

SWITCHED = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage."""
    def error(self, message):
        self.exit(2, f"npdiffusion: error: {message.removeprefix('argument ')}\n")

    def read(self, argv, positional="prompt"):
        """The options of a command line; an error names what is unknown, and the nearest option that is known.

        positional: what the one word without an option's name is
        """
        options, unknown = self.parse_known_args(argv)
        if unknown:
            flag = unknown[0].partition("=")[0]
            if not flag.startswith("-"):
                quotes = ": put the whole prompt in quotes" if positional == "prompt" else ""
                self.error(f"only one {positional} is taken, {unknown[0]!r} is left over{quotes}")
            known = [name.lstrip("-") for action in self._actions for name in action.option_strings]
            hint = nearest(flag.lstrip("-"), known, ", did you mean --{}?", " (all options: --help)")
            self.error(f"unknown option {flag}{hint}")
        return options

    def layers(self, argv):
        """{option: value} of the defaults, and of what the command line names"""
        defaults = {action.dest: action.default for action in self._actions if action.default != argparse.SUPPRESS}
        for action in self._actions:
            action.default = argparse.SUPPRESS
        return defaults, vars(self.read(argv))

    def written(self, option):
        """How an option is written: its longest name"""
        return max({action.dest: action for action in self._actions}[option].option_strings, key=len, default=option)

    def value(self, option, text):
        """What an option makes of a text. ArgumentTypeError if it doesn't take it, KeyError if there is none."""
        action = {action.dest: action for action in self._actions}[option]
        if action.nargs == 0:         # a switch
            word = str(text).strip().lower()
            if word not in SWITCHED:
                raise argparse.ArgumentTypeError(f"{word[:40]!r} is unknown, known are {', '.join(SWITCHED)}")
            return action.const if SWITCHED[word] else not action.const
        value = action.type(text) if action.type else text
        if isinstance(action, ListOrKeep) and value == "help":
            raise argparse.ArgumentTypeError("'help' is for the command line")
        return value


class ListOrKeep(argparse.Action):
    """Keeps a name; for the word "help" prints all names, each with a line about it, and ends."""
    def __init__(self, *arguments, choices_described, **options):
        super().__init__(*arguments, **options)
        self.described = choices_described

    def __call__(self, parser, namespace, value, option_string=None):
        if value == "help":
            width = max(map(len, self.described))
            print_line("\n".join(f"{name:<{width}}  {line}" for name, line in self.described.items()))
            parser.exit()
        setattr(namespace, self.dest, value)


def text(value):
    """A prompt; bytes that the terminal's encoding has no characters for can't be tokenized."""
    if len(value) > LONGEST_PROMPT:
        raise argparse.ArgumentTypeError(f"the text has {len(value)} characters, at most {LONGEST_PROMPT} are taken")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError("the text is not valid UTF-8") from None
    return value


def whole(low, high):
    """The type of an option that takes a whole number from low to high."""
    def read(value):
        allowed = f"allowed are {low} to {high}"
        try:
            result = int(value)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{value[:40]!r} is no whole number, {allowed}") from None
        if not low <= result <= high:
            raise argparse.ArgumentTypeError(f"{value[:40]} is out of range, {allowed}")
        return result
    return read


def number(low, high, above=False):
    """The type of an option that takes a number from low (or only above it) to high."""
    def read(value):
        allowed = f"allowed are numbers {'above' if above else 'from'} {low} {'and up ' * above}to {high}"
        try:
            result = float(value)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{value[:40]!r} is no number, {allowed}") from None
        if not low <= result <= high or (above and result == low):                  # NaN is not
            raise argparse.ArgumentTypeError(f"{value[:40]} is out of range, {allowed}")
        return result
    return read


def side(value):
    """The type of an option that takes a width or height."""
    result = whole(8, LARGEST_SIDE)(value)
    if result % 8:
        below = result // 8 * 8
        raise argparse.ArgumentTypeError(f"{result} is no multiple of 8, the nearest are {below} and {below + 8}")
    return result


def sides(value):
    """The type of an option that takes how much a picture is extended: the same text, in one order, without zeros."""
    from npdiffusion.painting import outpainting
    try:
        found = outpainting.read(value, 8, LARGEST_SIDE)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("outpaint: ").removeprefix("outpaint ")) from None
    return ",".join(f"{side}={pixels}" for side, pixels in found.items() if pixels)


def memory(value):
    """The type of an option that takes an amount of memory: the same text."""
    from npdiffusion.memory.amounts import amount
    try:
        amount(value)
    except UserError:
        raise argparse.ArgumentTypeError(f"{value[:40]!r} is no amount of memory like 4GB or 900MB") from None
    return value


def one_of(names):
    """The type of an option that takes one of some names, in which - and _ are alike."""
    spelled = {name.replace("-", "_"): name for name in names}

    def read(value):
        value = spelled.get(value.replace("-", "_"), value)
        if value not in names:
            hint = nearest(value, names, "did you mean {}? Known", "known")
            raise argparse.ArgumentTypeError(f"{value[:40]!r} is unknown, {hint} are {', '.join(names)}")
        return value
    return read


def several(kind):
    """The type of an option that takes values of a type with commas between them."""
    def read(value):
        values = [kind(part.strip()) for part in value.split(",")]
        if len(set(values)) < len(values):
            raise argparse.ArgumentTypeError(f"{value[:40]!r} names one of them twice")
        return values
    return read
