"""The command line: a prompt and options → pictures in files, with progress on stderr and the files' names on stdout.

    npdiffusion "a red apple on a blue background" --steps 20 --seed 1 -o apple.png

Whatever can be found wrong is found before the model is loaded. Each picture is in its file before the next one is
begun, so that an error or Ctrl-C loses only the one at work. Exit code 0: all is done, 1: it could not be done, 2: the
command can't be understood. The options themselves are in options.py. A first word that names a subcommand, `tokens` for
example, leads to its file in command/ instead.
"""
import logging
import os
import pathlib
import re
import sys
import time
import traceback

import npdiffusion
from npdiffusion import command, kernels, machine
from npdiffusion.command.talk import Progress, explain, one_line_warnings, print_line, say
from npdiffusion.errors import UserError
from npdiffusion.options import parse

# NumPy, numba and Pillow are imported where they are used: --help and --version answer at once, and how many threads
# NumPy's BLAS starts has to be settled before it is there.

BLAS_VARIABLES = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
OTHER_FORMATS = (".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".ppm")
LONGEST_NAME = 200                    # bytes of a file name that is given
LONGEST_WORDS = 60                    # bytes of the prompt in a file name that is made


def main(argv=None):
    """Run the command; returns its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    subcommand = command.find(argv)
    try:
        options = subcommand.parse(argv[1:]) if subcommand else parse(argv)
    except SystemExit as end:         # after --help, --version or a message
        return end.code
    try:
        with one_line_warnings(options.verbose):
            if subcommand:
                return subcommand.run(options)
            return show_info(options) if options.info else run(options)
    except KeyboardInterrupt:
        say("npdiffusion: stopped")
        return 1
    except Exception as error:
        if options.verbose:
            traceback.print_exc()
        say(f"npdiffusion: error: {explain(error)}")
        return 1


def run(options):
    """Make the pictures that are asked for and tell about it."""
    start = time.perf_counter()
    backend, threads = set_up(options)
    from npdiffusion.images import open_image
    from npdiffusion.metadata import parameters
    folder, name = find_output(options.output)
    init_image = None if options.init_image is None else open_image(options.init_image)

    say(f"loading {options.model or 'the embedded model'}, {backend} backend, {precision(options.dtype)}, "
        f"{threads} thread{'s' * (threads > 1)}")
    loading = time.perf_counter()
    pipeline = npdiffusion.load(options.model, dtype=options.dtype, threads=threads, tokenizer=options.tokenizer)
    loaded = time.perf_counter()
    seconds = {"loading": loaded - loading}
    if backend == "numba" and compile_kernels(options.dtype):
        seconds["compiling"] = time.perf_counter() - loaded

    settings = choose_settings(options, pipeline)
    width, height = settings["width"], settings["height"]
    if init_image is not None and init_image.size != (width, height):
        was = f"{init_image.width}x{init_image.height}"
        say(f"{options.init_image}: its {was} pixels are scaled and cut to {width}x{height}")

    planned = options.steps if init_image is None else int(options.steps * options.strength)
    what = f"{width}x{height} pixels, {planned} step{'s' * (planned > 1)} of {settings['sampler']}"
    saved, steps = [], 0
    try:
        for number in range(options.batch_count):
            seed = options.seed + number
            which = f"picture {number + 1} of {options.batch_count}: " if options.batch_count > 1 else ""
            say(f"{which}seed {seed}, {what}")
            with Progress("step", planned) as progress:
                image, = pipeline.generate(options.prompt, options.negative_prompt, seed=seed, init_image=init_image,
                                           strength=options.strength, callback=progress, **settings)
            text = parameters(options.prompt, options.negative_prompt, seed=seed, model=model_name(options.model),
                              strength=None if init_image is None else options.strength, **settings)
            saved.append(save(image, text, folder / (name or default_name(options.prompt, seed)), saved))
            steps += progress.done
            for stage, duration in pipeline.timings.items():
                seconds[stage] = seconds.get(stage, 0) + duration
    finally:
        if 0 < len(saved) < options.batch_count:
            say(f"{len(saved)} of {options.batch_count} pictures are saved")

    if init_image is None:
        seconds.pop("encoding", None)
    seconds["total"] = time.perf_counter() - start
    notes = {"sampling": f" ({seconds['sampling'] / max(steps, 1):.3f} s/step)"}
    say(", ".join(f"{stage} {duration:.2f} s{notes.get(stage, '')}" for stage, duration in seconds.items()))
    return 0


def show_info(options):
    """Print what --info asks for."""
    _, threads = set_up(options)
    from npdiffusion import info
    for line in info.report(options.model, threads):
        print_line(line)
    return 0


# ---- before the model is there

def set_up(options):
    """Put backend and threads in force → (name of the backend, number of threads)"""
    if options.verbose:
        logging.basicConfig(format="%(name)s: %(message)s")
        logging.getLogger("npdiffusion").setLevel(logging.INFO)
    if options.backend:
        npdiffusion.use_backend(options.backend)
    try:
        backend = kernels.backend()
    except ValueError as error:
        raise UserError(f"NPDIFFUSION_BACKEND: {error}") from None

    threads = options.threads or machine.physical_cores()
    if threads > machine.logical_cores():
        say(f"--threads: {threads} is more than there are cores here, {machine.logical_cores()} will be used")
        threads = machine.logical_cores()
    if backend == "numpy":            # its matrix products are BLAS's, which reads these when NumPy is imported
        for name in BLAS_VARIABLES:
            if options.threads or name not in os.environ:
                os.environ[name] = str(threads)
    return backend, threads


def find_output(output):
    """--output → (folder, file name, or None where each picture is named after its prompt and seed)

    UserError unless files can be written there. A folder that ends in a slash is created.
    """
    from npdiffusion.images import check_folder
    if output == "":
        raise UserError("--output: the name is empty")
    folder, name = pathlib.Path(output or "."), None
    if output and output.endswith(("/", os.sep)):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--output: the folder {folder} can't be created ({error.strerror or error})") from None
    elif not os.path.isdir(folder):
        folder, name = folder.parent, folder.name
        if not os.path.isdir(folder):
            raise UserError(f"--output: there is no folder {folder} (to have it created, end the path in /)")
        if name.lower().endswith(OTHER_FORMATS):
            raise UserError(f"--output: {name}: pictures are written as PNG, so the name should end in .png")
        name = name if name.lower().endswith(".png") else name + ".png"
        if len(os.fsencode(name)) > LONGEST_NAME:
            raise UserError(f"--output: the file name is too long, at most {LONGEST_NAME} bytes are allowed")
    check_folder(folder)
    return folder, name


def precision(dtype):
    """How --dtype is told: bfloat16 has a note where the processor can't multiply it."""
    note = "" if dtype == "float32" or machine.multiplies_bfloat16() else ", widened to float32 for products"
    return f"{dtype} weights{note}"


def compile_kernels(dtype):
    """Compile what isn't on disk from an earlier run, visibly: it takes a while → whether there was anything."""
    from npdiffusion.kernels import fast
    if fast.is_cached(dtype):
        return False
    say("Compiling kernels (first run only) ...")
    with Progress("kernel") as progress:
        fast.warm_up(lambda name, number, total: progress(number, total), dtype)
        progress(progress.bar.total, progress.bar.total)
    return True


# ---- settings and names

def choose_settings(options, pipeline):
    """The arguments of `generate`, those that the model decides included."""
    sampler = options.sampler or pipeline.default_sampler
    guidance = pipeline.default_guidance if options.cfg_scale is None else options.cfg_scale
    return dict(steps=options.steps, guidance_scale=guidance, sampler=sampler, rng=options.rng,
                schedule=options.schedule or pipeline.schedule.default_kind(sampler),
                width=options.width or pipeline.size[0], height=options.height or pipeline.size[1])


def save(image, text, wanted, saved):
    """Write a picture and its settings, print the path it got and return it; `saved` are the paths before it."""
    from npdiffusion import images, metadata
    path = images.save_png(image, wanted, metadata.png_info(text))
    if path != wanted and wanted not in saved:
        say(f"{wanted} is there already and stays as it is, the picture goes to {path}")
    print_line(path)
    return path


def default_name(prompt, seed):
    """File name of a picture: words of its prompt, then the seed."""
    words = "-".join(re.findall(r"\w+", prompt.lower()))
    short = words.encode()[:LONGEST_WORDS].decode(errors="ignore")
    if short != words:                # no half word, unless it is the only one
        short = short.rpartition("-")[0] or short
    return f"{short or 'picture'}-{seed}.png"


def model_name(model):
    """How --model is called in a picture's settings: a file or folder by its own name alone, an id as it is."""
    if model is None:
        return "embedded"
    path = os.path.abspath(os.path.expanduser(model))
    return os.path.basename(path).removesuffix(".safetensors") if os.path.exists(path) else model
