"""Reading a command line: options made from rows of settings, errors in one line that name the nearest known option."""
import argparse

from npdiffusion.command.talk import print_line
from npdiffusion.errors import nearest
from npdiffusion.settings.kinds import Kind, Listed, Switch, Unfit

# Options of other programs that have no place here, and what to do instead.
ELSEWHERE = {
    **dict.fromkeys(("--device", "--cpu", "--gpu", "--cuda", "--use-cpu", "--vae-on-cpu", "--clip-on-cpu", "--control-net-cpu",
                     "--offload-to-cpu", "--xformers"), "everything runs on the CPU here, so leave it out"),
    **dict.fromkeys(("--type", "--precision", "--half", "--no-half", "--fp16", "--bf16"),
                    "weights are kept as float32 or bfloat16: --dtype bfloat16 takes half the memory"),
    **dict.fromkeys(("--lowvram", "--medvram"), "--max-memory 4GB says how much memory may be taken"),
    **dict.fromkeys(("--flash-attn", "--fa", "--diffusion-fa", "--vae-conv-direct", "--diffusion-conv-direct"),
                    "the fastest way is always taken, so leave it out"),
    **dict.fromkeys(("--upscale-model", "--upscale-repeats"),
                    "there are no networks for upscaling here; --hires 2 enlarges a picture and denoises it again"),
    **dict.fromkeys(("--mode", "-M"), "what is given says it: -i starts from a picture, --mask repaints a part of it"),
    **dict.fromkeys(("--outdir", "--out-dir"), "-o names a folder by a / at the end: -o pictures/"),
    "--lora": 'adapters stand in the prompt, "a cat <lora:ink:0.8>", and --lora-dir is their folder',
    "--tiling": "pictures that repeat seamlessly aren't offered; --vae-tiling is about memory",
    "--restore-faces": "there are no networks for faces here",
}

ALIKE = 0.65                          # for errors.nearest: lets "output-path" be --output, and keeps "iters" from being --taesd


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage."""
    def error(self, message):
        self.exit(2, f"npdiffusion: error: {message.removeprefix('argument ')}\n")

    def add(self, row, to=None, **changes):
        """The option of a `settings.Setting`; to: a group of options, else the parser; changes: to argparse's arguments"""
        arguments = {"help": row.help.replace("%", "%%"), "default": row.default}      # argparse formats it
        if isinstance(row.kind, Switch):
            arguments |= {"action": "store_const", "const": not row.kind.off}
        elif isinstance(row.kind, Listed):
            arguments |= {"action": Append, "type": reader(row.kind), "metavar": row.metavar}
        elif row.shown:
            arguments |= {"action": ListOrKeep, "shown": row.shown, "type": reader(row.kind, "help"),
                     "metavar": row.metavar}
        else:
            arguments |= {"type": reader(row.kind), "metavar": row.metavar}
        group = to or self
        group.add_argument(*row.written, dest=row.name, **arguments | changes)
        if row.synonyms:
            hidden = {name: value for name, value in arguments.items() if name != "shown"} | {"help": argparse.SUPPRESS}
            if row.shown:
                hidden |= {"action": ListOrKeep, "shown": row.shown}
            group.add_argument(*row.synonyms, dest=row.name, **hidden)

    def read(self, argv, positional="prompt"):
        """The options of a command line; an error names what is unknown, and the nearest option that is known.

        positional: what the one word without an option's name is
        """
        options, unknown = self.parse_known_args([self.hyphenated(word) for word in argv])
        if unknown:
            flag = unknown[0].partition("=")[0]
            if elsewhere := ELSEWHERE.get(flag) or ELSEWHERE.get(hyphens(flag)):
                self.error(f"{flag}: {elsewhere}")
            if not flag.startswith("-"):
                quotes = ": put the whole prompt in quotes" if positional == "prompt" else ""
                self.error(f"only one {positional} is taken, {unknown[0]!r} is left over{quotes}")
            known = {name.lstrip("-"): name for action in self._actions for name in action.option_strings}
            shown = [name.lstrip("-") for action in self._actions for name in action.option_strings
                     if name.startswith("--") and (action.help != argparse.SUPPRESS or action.dest == "prompt_option")]
            if flag in self._option_string_actions:      # behind --, which ends the options
                self.error(f"{flag}: options stand before the --, behind it is the {positional} alone")
            name = flag.lstrip("-")
            begun = name if name in known else next((each for each in shown if len(name) > 3 and each.startswith(name)), "")
            near = begun or nearest(name, shown, "{}", cutoff=ALIKE)
            self.error(f"unknown option {flag}" + (f", did you mean {known[near]}?" if near else " (all options: --help)"))
        return options

    def hyphenated(self, word):
        """An option as it is known here, if only its case or _ for - differ; any other word as it is"""
        flag, equals, value = word.partition("=")
        known = hyphens(flag)
        return known + equals + value if flag.startswith("--") and known in self._option_string_actions else word

    def layers(self, argv):
        """{option: value} of the defaults, and of what the command line names"""
        defaults = {action.dest: action.default for action in self._actions if action.default != argparse.SUPPRESS}
        for action in self._actions:
            action.default = argparse.SUPPRESS
        return defaults, vars(self.read(argv))


def hyphens(flag):
    """A long option in small letters, with - for _"""
    return "--" + flag[2:].lower().replace("_", "-")


def reader(kind: Kind, *words):
    """A kind's `read` with argparse's exception; the words stay as they are."""
    def read(text):
        try:
            return text if text in words else kind.read(text)
        except Unfit as error:
            raise argparse.ArgumentTypeError(str(error)) from None
    return read


class Append(argparse.Action):
    """Values of an option that may be repeated, in their order."""
    def __call__(self, parser, namespace, value, option_string=None):
        setattr(namespace, self.dest, (getattr(namespace, self.dest, None) or ()) + value)


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
        for name, implied in getattr(value, "implied", {}).items():      # by "DPM++ 2M Karras"
            if not hasattr(namespace, name):
                setattr(namespace, name, implied)
