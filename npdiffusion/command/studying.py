"""What the subcommands that look inside share: their options, the pipeline, where a file goes."""
import pathlib

from npdiffusion.command.parser import Parser, reader
from npdiffusion.errors import UserError
from npdiffusion.settings import SETTINGS, Request, SettingError
from npdiffusion.settings.run import OPTIONS

ASKED = ("negative_prompt", "steps", "sampler", "schedule", "guidance_scale", "seed", "width", "height", "eta", "clip_skip")
RUN = ("model", "model_dir", "tokenizer", "dtype", "vae", "threads", "backend", "verbose")


def study_parser(name, description, output=None):
    """A parser with a prompt, some settings of a picture, and those of a run; output: help of -o, if there is one"""
    parser = Parser(prog=f"npdiffusion {name}", usage=f'npdiffusion {name} "prompt" [options]', allow_abbrev=False,
                    description=description)
    parser.add_argument("prompt", type=reader(SETTINGS["prompt"].kind), help="what the picture shows, in quotes")
    for setting in ASKED:
        parser.add(SETTINGS[setting])
    for option in RUN:
        parser.add(OPTIONS[option])
    if output:
        parser.add(OPTIONS["output"], help=output)
    return parser


def checked(parser, arguments):
    """The options, with `request` {setting: value}; SystemExit with code 2 if they don't go together."""
    options = parser.read(arguments)
    options.request = {name: getattr(options, name) for name in ASKED if getattr(options, name) is not None}
    try:
        Request.of(prompt=options.prompt, **options.request)
    except SettingError as error:
        parser.error(str(error))
    return options


def start_pipeline(options):
    """The pipeline, kernels compiled"""
    from npdiffusion.command.prepare import compile_kernels, set_up
    backend, threads = set_up(options)
    import npdiffusion
    from npdiffusion.checkpoints import library
    pipeline = npdiffusion.load(library.resolve(options.model, options.model_dir), dtype=options.dtype, threads=threads,
                                tokenizer=options.tokenizer, vae=options.vae)
    if backend == "numba":
        compile_kernels(options.dtype or "float32")
    return pipeline


def file_for(path, default, suffixes, option="--output"):
    """Where a file goes; UserError, before anything is computed, for a name that it can't have"""
    from npdiffusion.pictures.images import check_folder
    path = pathlib.Path(path or default)
    if path.name == "" or path.is_dir():
        raise UserError(f"{option}: {path} is a folder, a file was expected")
    path = path if path.suffix else path.with_name(path.name + suffixes[0])
    if path.suffix.lower() not in suffixes:
        raise UserError(f"{option}: the name {path.name} should end in {' or '.join(suffixes)}")
    if not path.parent.is_dir():
        raise UserError(f"{option}: there is no folder {path.parent}")
    check_folder(path.parent)
    return path
