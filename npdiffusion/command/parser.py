"""Reading a command line: options made from rows of settings, errors in one line that name the nearest known option."""
import argparse

from npdiffusion.command.talk import print_line
from npdiffusion.errors import nearest
from npdiffusion.settings.kinds import Choice, Kind, Switch, Unfit


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage."""
    def error(self, message):
        self.exit(2, f"npdiffusion: error: {message.removeprefix('argument ')}\n")

    def add(self, row, to=None, **changes):
        """The option of a `settings.Setting`; to: a group of options, else the parser; changes: to what argparse is told"""
        told = {"help": row.help, "default": row.default}
        if isinstance(row.kind, Switch):
            told |= {"action": "store_const", "const": not row.kind.off}
        elif row.shown:
            told |= {"action": ListOrKeep, "shown": row.shown, "type": reader(Choice([*row.shown, "help"])),
                     "metavar": row.metavar}
        else:
            told |= {"type": reader(row.kind), "metavar": row.metavar}
        (to or self).add_argument(*row.options, dest=row.name, **told | changes)

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


def reader(kind: Kind):
    """A kind's `read` with argparse's exception."""
    def read(text):
        try:
            return kind.read(text)
        except Unfit as error:
            raise argparse.ArgumentTypeError(str(error)) from None
    return read


class ListOrKeep(argparse.Action):
    """Keeps a name; for the word "help" prints all names, each with a line about it, and ends."""
    def __init__(self, *arguments, shown, **options):
        super().__init__(*arguments, **options)
        self.shown = shown

    def __call__(self, parser, namespace, value, option_string=None):
        if value == "help":
            width = max(map(len, self.shown))
            print_line("\n".join(f"{name:<{width}}  {line}" for name, line in self.shown.items()))
            parser.exit()
        setattr(namespace, self.dest, value)
