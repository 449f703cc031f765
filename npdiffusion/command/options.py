"""The options of the command that makes pictures: a picture's settings, and what else there is to say about a run.

    argv → options of the run, with `entries`: a checked request for each picture

Everything that can be judged without the model is judged here, with exit code 2. Imports nothing heavy, so that --help
and --version answer at once.
"""
import argparse
import itertools
import sys

import npdiffusion
from npdiffusion import command
from npdiffusion.command.parser import Parser, reader
from npdiffusion.jobs.entries import one_by_one
from npdiffusion.settings import ABOUT, GROUPS, MAKE, ON_COMMAND_LINE, SETTINGS, Request, SettingError, check_typed
from npdiffusion.settings.kinds import LONGEST_TEXT, Unfit
from npdiffusion.settings.run import NO_EFFECT, OPTIONS

EXAMPLES = """\
examples:
  npdiffusion "a red apple on a blue background"
  npdiffusion "a cat" -m sd-v1-5.safetensors --sampler dpm++2m --schedule karras --steps 25 -b 4 -o cats/
  npdiffusion "a cat in the snow" -i cat.png --strength 0.6
  npdiffusion "a dog" -i cat.png --mask where-the-cat-is.png --mask-blur 4
  npdiffusion "a castle" --hires 2

"""


def build_parser():
    """All options, in groups."""
    parser = Parser(prog="npdiffusion", usage='npdiffusion "prompt" [options]', add_help=False, allow_abbrev=False,
                    description="Pictures from words: Stable Diffusion on the CPU, in NumPy.",
                    epilog=EXAMPLES + command.overview(), formatter_class=argparse.RawDescriptionHelpFormatter)
    groups = {title: parser.add_argument_group(title) for title in GROUPS}
    prompt = SETTINGS["prompt"]
    groups[MAKE].add_argument("prompt", nargs="?", type=reader(prompt.kind), help=prompt.help)
    groups[MAKE].add_argument(*prompt.synonyms, dest="prompt_option", type=reader(prompt.kind), help=argparse.SUPPRESS)
    for row in (*SETTINGS.values(), *OPTIONS.values()):
        if row is not prompt:
            parser.add(row, groups[row.group])
    groups[ABOUT].add_argument("--version", action="version", version=f"npdiffusion {npdiffusion.__version__}")
    groups[ABOUT].add_argument("-h", "--help", action="help", help="show this text")
    return parser


def parse_options(argv=None):
    """The checked options of a run: those in OPTIONS, and `entries`, the pictures to be made (unless `info` is asked for).

    SystemExit with code 2 and a line on stderr if they are wrong.
    """
    parser = build_parser()
    defaults, given = parser.layers(argv)
    defaults.pop("prompt_option")
    if "prompt_option" in given:
        if "prompt" in given:
            parser.error("only one prompt is taken, and --prompt is a second one")
        given["prompt"] = given.pop("prompt_option")
    if given.get("prompt") == "-":
        given["prompt"] = from_standard_input(parser)
    liked, inside = None, {}
    if given.get("like") is not None and not given.get("info"):
        from npdiffusion.command import like, prepare
        prepare.set_up(argparse.Namespace(**defaults | given))      # before NumPy is imported for it
        liked = like.settings_like(given["like"], given)
        inside = liked.found
    layers = defaults | inside | given
    options = argparse.Namespace(**{name: layers[name] for name in OPTIONS})
    if options.info:
        return options
    if options.cluster is not None:
        if options.prompts is None:
            parser.error("--cluster: it is for the pictures of --prompts")
        for other in "preview", "preview_path", "steps_strip", "inside", "like":
            if getattr(options, other) is not None:
                parser.error(f"--cluster: it doesn't go with {OPTIONS[other].option}")
    if "control" in given and layers["control_image"] is None and options.prompts is None:
        parser.error("--control: --control-image, the picture that leads it, is missing")
    if options.inside is not None and options.refiner is not None:
        parser.error("--inside: it looks into one model, so it doesn't go with --refiner")
    if options.taesd is not None and options.preview != "taesd":
        parser.error("--taesd: it is for --preview taesd")
    settings = {name: layers[name] for name in SETTINGS if layers[name] is not None}
    options.named, options.liked = frozenset(given), liked
    options.entries = entries(options, settings, parser)
    return options


def from_standard_input(parser):
    """The prompt that another program writes: echo "a red apple" | npdiffusion -"""
    content = b"" if sys.stdin is None else sys.stdin.buffer.read(4 * LONGEST_TEXT + 1)
    try:
        return SETTINGS["prompt"].kind.read(content.decode("utf-8-sig").strip()) or None
    except (UnicodeDecodeError, Unfit) as error:
        parser.error(f"-: the prompt from standard input: {error}")


def entries(options, settings, parser):
    """The pictures that a command asks for → list of jobs.entries.Entry

    settings: {name: value} that the command line and --like name, for all of them
    """
    if options.compare_samplers is not None:
        for other in ("prompts", "grid", "inside"):
            if getattr(options, other):
                parser.error(f"--compare-samplers: it makes one sheet, so --{other} doesn't go with it")
        compared = {"steps": options.compare_steps or [settings.get("steps")], "sampler": options.compare_samplers}
        asked = request_of(settings, options, options.named, parser)
        seeds, subseeds = asked.seeds()
        first = {"seed": seeds[0], "subseed": subseeds[0] if subseeds else asked.subseed}     # the same for all of them
        rows = [("", dict(zip(compared, way)) | first) for way in itertools.product(*compared.values())]
    elif options.compare_steps is not None:
        parser.error("--compare-steps: it gives a sheet of --compare-samplers a row for each, so that is needed too")
    elif options.prompts is not None:
        from npdiffusion.jobs import prompts_file
        rows = prompts_file.read_prompts(options.prompts)
    else:
        rows = [("", {})]
    found = []
    for where, row in rows:
        named = options.named | row.keys() if options.prompts is not None else options.named
        request = request_of(settings | row, options, named | row.keys(), parser, where)
        found += one_by_one(request, named, {
            name: getattr(options, name) for name in ("model", "vae", "unet", "control", "refiner", "ip_adapter", "ip_encoder",
                                                      "t2i_adapter")})
    if options.compare_samplers is not None:
        found.sort(key=lambda entry: entry.request.seed)      # each seed has rows of its own on the sheet
    return found


def request_of(settings, options, named, parser, where=""):
    """The request that these settings make; SystemExit if they don't fit together.

    named: those that --like has no say in      where: file and line, for the message
    """
    before = f"{where}: " if where else ""
    if settings.get("prompt") is None:
        parser.error(f'{before}a prompt is missing, for example: npdiffusion "a red apple on a blue background" (more: --help)')
    found = {} if options.liked is None else options.liked.found
    typed = named | {name for name, value in found.items() if value is None}

    def check(settings):
        check_typed(Request.of(**settings), typed)
    try:
        if found:
            settings = options.liked.suited(settings, found.keys() - named, check)
        check(settings)
    except SettingError as error:
        parser.error(f"{before}{SETTINGS[error.setting].option}: {error.reason(ON_COMMAND_LINE)}")
    return Request.of(**settings)


def without_effect(options, entry, resolved):
    """A line about each option that was given for a picture but changes nothing"""
    yield from resolved.notes(ON_COMMAND_LINE, entry.named)
    rows = SETTINGS | OPTIONS
    for name, so, why in NO_EFFECT:
        if name in entry.named and so(options):
            yield f"{rows[name].option} has no effect {why}"
