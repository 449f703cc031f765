"""The options of the command line: their names, what they may be, and one clear line for what they may not.

Everything that can be judged without the model is judged here, with exit code 2. Imports nothing heavy, so that --help
and --version answer at once.
"""
import argparse
import os

import npdiffusion
from npdiffusion import command, kernels
from npdiffusion.command.parser import (
    LARGEST_SIDE,
    ListOrKeep,
    Parser,
    memory,
    number,
    one_of,
    several,
    side,
    sides,
    text,
    whole,
)
from npdiffusion.diffusion import samplers
from npdiffusion.errors import UserError
from npdiffusion.jobs import prompts_file

SYNTAXES = ("a1111", "plain")         # of prompts
GENERATORS = ("torch", "a1111", "numpy")
SPACINGS = ("linspace", "leading", "trailing")
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
MOST_STEPS = 1000                     # the time steps of the training
LARGEST_SEED = 2**64 - 1
TILING = ("auto", "on", "off")         # of the autoencoder
PREVIEWS = ("linear", "taesd", "vae")
MOST_BY_ITSELF = 50                   # steps, where none are asked for
STRENGTH = 0.75                       # of image to image
UPSCALERS = ("latent", "lanczos")
LARGEST_BLUR = 1000                   # pixels
LARGEST_SCALE = 8
NEEDED = (                            # options that make no sense without one of some others
    ("strength", "how far a picture may be left", ["init_image"]),
    ("mask_image", "where a picture is repainted", ["init_image"]),
    ("outpaint", "by how much a picture is extended", ["init_image"]),
    ("mask_blur", "how a mask is feathered", ["mask_image", "outpaint"]),
    ("invert_mask", "how a mask is understood", ["mask_image"]),
    ("padding_mask_crop", "how much around a mask is looked at", ["mask_image", "outpaint"]),
    ("hires_strength", "how much of the noise is added again", ["hires"]),
    ("hires_steps", "how long a picture is denoised again", ["hires"]),
    ("hires_upscaler", "how a picture is enlarged before it is denoised again", ["hires"]),
)
WITHOUT_EFFECT = (                    # options that change nothing: when that is so, and how it is said
    ("eta", lambda asked: not samplers.SAMPLERS[asked.sampler].takes_eta, "with {sampler}"),
    ("negative_prompt", lambda asked: asked.guidance_scale <= 1, "with --cfg-scale {guidance_scale:g}"),
    ("guidance_rescale", lambda asked: asked.guidance_scale <= 1, "with --cfg-scale {guidance_scale:g}"),
    ("subseed", lambda asked: not asked.subseed_strength, "with --subseed-strength 0"),
    ("timestep_spacing", lambda asked: asked.schedule == "sgm_uniform", "with --schedule sgm_uniform"),
    ("apply_overlay", lambda asked: not (asked.mask_image or asked.outpaint), "without --mask-image or --outpaint"),
    ("preview_every", lambda asked: not (asked.preview or asked.preview_path or asked.steps_strip), "without --preview"),
    ("sampler", lambda asked: asked.compare_samplers, "with --compare-samplers"),
    ("steps", lambda asked: asked.compare_steps, "with --compare-steps"),
    ("no_metadata", lambda asked: asked.compare_samplers, "with --compare-samplers, whose sheet has no settings inside"),
)

EXAMPLES = """\
examples:
  npdiffusion "a red apple on a blue background"
  npdiffusion "a cat" -m sd-v1-5.safetensors --sampler dpm++2m --schedule karras --steps 25 -b 4 -o cats/
  npdiffusion "a cat in the snow" -i cat.png --strength 0.6
  npdiffusion "a dog" -i cat.png --mask where-the-cat-is.png --mask-blur 4
  npdiffusion "a castle" --hires 2

"""


def parse(argv=None):
    """The checked options of a command; SystemExit with code 2 and a line on stderr if they are wrong."""
    parser = build_parser()
    defaults, given = parser.layers(argv)
    inside = {}
    if given.get("like") is not None and not given.get("info"):
        from npdiffusion.command import like, prepare
        prepare.set_up(argparse.Namespace(**defaults | given))      # before NumPy is imported for it
        inside = like.read(given["like"], parser, given)
    layers = defaults | inside | given
    options = argparse.Namespace(**layers)
    if not options.info:
        options.pictures = pictures(layers, defaults, parser, given)
    return options


def pictures(layers, defaults, parser, given=()):
    """The options of each picture, checked. `path` is still None.

    `asked`: {option: value} of those that differ from the defaults; `given`: {option: how it is written} of those that the
    command line or a line of --prompts names
    """
    rows = [("", {})]
    if layers["compare_samplers"] is not None:
        for other in ("prompts", "grid"):
            if layers[other]:
                parser.error(f"--compare-samplers: it makes one sheet, so --{other} doesn't go with it")
        if layers["seed"] in (None, -1):
            layers = layers | {"seed": random_seed()}
        rows = [("", {"sampler": sampler, "steps": steps}) for steps in layers["compare_steps"] or [layers["steps"]]
                for sampler in layers["compare_samplers"]]
    elif layers["compare_steps"] is not None:
        parser.error("--compare-steps: it gives a sheet of --compare-samplers a row for each, so that is needed too")
    elif layers["prompts"] is not None:
        rows = prompts_file.read(layers["prompts"], parser)
    made = []
    for where, row in rows:
        named = {name: parser.written(name) for name in {*given, *(row if layers["prompts"] is not None else ())}}
        made += one_by_one(layers | row | {"given": named}, defaults, parser, where)
    if layers["compare_samplers"] is not None:
        made.sort(key=lambda picture: picture.seed)      # each seed has rows of its own on the sheet
    return made


def one_by_one(layers, defaults, parser, where):
    """The pictures that one set of options asks for: seeds count on, or sub-seeds, if they have influence."""
    options = check(argparse.Namespace(**layers), parser, where)
    asked = {name: layers[name] for name in (*prompts_file.PER_PICTURE, "model", "vae")
             if name not in ("batch_count", "seed", "subseed") and layers[name] != defaults[name]}
    counting = counting_seed(options)
    for number in range(options.batch_count):
        seeds = {"seed": options.seed, "subseed": options.subseed}
        seeds[counting] += number
        named = {name: seed for name, seed in seeds.items() if layers[name] not in (None, -1)}
        yield argparse.Namespace(**vars(options) | seeds | {"asked": asked | named, "path": None})


def without_effect(options, settings):
    """A line about each option that is given for a picture but changes nothing

    settings: {option: value} with those that the model decides
    """
    asked = argparse.Namespace(**vars(options) | settings)
    for name, is_so, said in WITHOUT_EFFECT:
        if name in asked.given and is_so(asked):
            yield f"{asked.given[name]} has no effect {said.format_map(vars(asked))}"


def counting_seed(options):
    """Which of the two seeds goes up from picture to picture"""
    return "subseed" if options.subseed_strength else "seed"


def random_seed():
    return int.from_bytes(os.urandom(4), "little")


def check(options, parser, where=""):
    """The options, with what follows from them filled in; SystemExit if they don't fit together.

    where: file and line that they are from, for the message
    """
    def error(message):
        parser.error(f"{where}: {message}" if where else message)

    if options.prompt is None:
        error('a prompt is missing, for example: npdiffusion "a red apple on a blue background" (more: --help)')
    for name, says, others in NEEDED:
        if getattr(options, name) not in (None, False) and not any(getattr(options, other) for other in others):
            needed = " or ".join(f"--{other.replace('_', '-')}" for other in others)
            error(f"--{name.replace('_', '-')}: it says {says}, so {needed} is needed too")
    if options.hires and options.init_image:
        error("--hires: it is for pictures made from words alone; with --init-image, choose a larger --width and --height")
    if options.padding_mask_crop is not None and not options.apply_overlay:
        error("--no-overlay: a part can't be painted without pasting it into the original, so not with --padding-mask-crop")
    options.strength = options.strength or (1.0 if options.mask_image or options.outpaint else STRENGTH)
    steps = options.steps or MOST_BY_ITSELF
    if options.init_image is not None and int(steps * options.strength) == 0:
        error(f"--strength: {options.strength:g} of {steps} steps leaves no step, raise one of them")
    if options.schedule and options.sampler:
        try:
            samplers.check_pair(options.sampler, options.schedule)
        except UserError as wrong:
            error(f"--schedule: {wrong}")
    if options.rescale_betas_zero_snr and options.timestep_spacing is None:
        options.timestep_spacing = "trailing"                    # the only one that visits the last time step
    if options.taesd is not None and options.preview != "taesd":
        error("--taesd: it is for --preview taesd")
    if options.subseed is not None and options.subseed_strength is None:
        error("--subseed: it has no influence without --subseed-strength, for example 0.1")
    if options.subseed_strength and options.subseed is None:
        error("--subseed-strength: it says how much of another seed's noise is mixed in, so --subseed is needed")
    options.seed = random_seed() if options.seed in (None, -1) else options.seed
    options.subseed = random_seed() if options.subseed == -1 else options.subseed
    counting, highest = counting_seed(options), LARGEST_SEED - options.batch_count + 1
    if getattr(options, counting) > highest:
        error(f"--{counting}: with {options.batch_count} pictures it can be at most {highest}")
    return options


def build_parser():
    """All options, in groups."""
    parser = Parser(prog="npdiffusion", usage='npdiffusion "prompt" [options]', add_help=False, allow_abbrev=False,
                    description="Pictures from words: Stable Diffusion on the CPU, in NumPy.",
                    epilog=EXAMPLES + command.overview(), formatter_class=argparse.RawDescriptionHelpFormatter)

    group = parser.add_argument_group("what to make")
    group.add_argument("prompt", nargs="?", type=text, help="what the picture shows, in quotes")
    group.add_argument("-n", "--negative-prompt", metavar="TEXT", type=text, default="", help="what it should not show")
    group.add_argument("-W", "--width", metavar="PIXELS", type=side, help="a multiple of 8 (default: the model's size)")
    group.add_argument("-H", "--height", metavar="PIXELS", type=side, help="likewise")
    group.add_argument("-b", "--batch-count", metavar="N", type=whole(1, 9999), default=1,
                       help="number of pictures, made one after the other with seeds S, S+1, ... (default: 1)")
    group.add_argument("--like", metavar="FILE",
                       help="take all settings from those inside a picture (PNG, JPEG, WebP; AUTOMATIC1111's and "
                            "stable-diffusion.cpp's too); other options override them")
    group.add_argument("-o", "--output", metavar="PATH",
                       help="PNG file, or folder (one that ends in / is created); an existing file is kept and the new "
                            "one gets a number (default: here, named after prompt and seed)")
    group.add_argument("--no-metadata", action="store_true",
                       help="leave out of the file the settings, which are written there as AUTOMATIC1111 does")

    group = parser.add_argument_group("many pictures")
    group.add_argument("--prompts", metavar="FILE",
                       help="a picture for each line: a prompt with options of its own behind it, or, in a .csv file, "
                            "columns named after options. -o is a folder, where manifest.jsonl tells what is done: the "
                            "same command goes on where it was stopped")
    group.add_argument("--wildcards", metavar="DIR",
                       help="folder of text files: __name__ in a prompt is a line of name.txt, chosen by the seed")
    group.add_argument("--grid", action="store_true", help="write a sheet with all pictures, too")
    group.add_argument("--compare-samplers", metavar="NAMES", type=several(one_of(samplers.SAMPLERS)),
                       help="make one sheet with a column for each, and the seconds: --compare-samplers euler,dpm++2m")
    group.add_argument("--compare-steps", metavar="NUMBERS", type=several(whole(1, MOST_STEPS)),
                       help="and a row for each number of steps: --compare-steps 10,25")

    group = parser.add_argument_group("prompt")
    group.add_argument("--clip-skip", metavar="N", type=clip_skip,
                       help="how the prompt is understood: 1 by all layers of the text encoder, 2 by all but the last, "
                            "and so on, as AUTOMATIC1111 counts (default: 1)")
    group.add_argument("--prompt-syntax", metavar="NAME", type=one_of(SYNTAXES), default="a1111",
                       help="a1111: (word:1.3) weighs more, [cat:dog:0.5] changes half-way, any length (npdiffusion "
                            "tokens shows it); plain: as it stands, cut off after 75 tokens (default: a1111)")
    group.add_argument("--embedding-dir", metavar="DIR",
                       help="folder with learnt words (textual inversion), which a prompt uses by their files' names")

    group = parser.add_argument_group("sampling")
    group.add_argument("--steps", metavar="N", type=whole(1, MOST_STEPS),
                       help="more are slower and finer (default: 50, or 4 with models that are made for few)")
    group.add_argument("--cfg-scale", "--guidance-scale", dest="guidance_scale", metavar="X", type=number(0, 100),
                       help="how closely to follow the prompt; 1 switches guidance off (default: the model's own, "
                            "which is 7.5 unless it says otherwise)")
    group.add_argument("--guidance-rescale", metavar="X", type=number(0, 1),
                       help="take back the contrast that a high guidance scale adds; 0.7 suits models with zero "
                            "terminal SNR (default: 0)")
    group.add_argument("-s", "--seed", metavar="S", type=whole(-1, LARGEST_SEED),
                       help="the same seed gives the same picture (default, and -1: a random one)")
    group.add_argument("--subseed", metavar="S", type=whole(-1, LARGEST_SEED),
                       help="the seed of a variation, mixed with the other one's noise; pictures count on from it")
    group.add_argument("--subseed-strength", metavar="X", type=number(0, 1),
                       help="how much of it: 0 is none, 1 all (default: 0)")
    group.add_argument("--rng", metavar="NAME", type=one_of(GENERATORS), default="torch",
                       help="whose random numbers: torch (pictures as with diffusers on a CPU), a1111 (as with "
                            "AUTOMATIC1111's web interface), numpy (default: torch)")
    group.add_argument("--sampler", metavar="NAME", type=one_of([*samplers.SAMPLERS, "help"]), action=ListOrKeep,
                       choices_described={name: sampler.description for name, sampler in samplers.SAMPLERS.items()},
                       help=f"{', '.join(samplers.SAMPLERS)}; or help, for a line on each (default: the model's own)")
    group.add_argument("--schedule", metavar="NAME", type=one_of([*samplers.SCHEDULES, "help"]), action=ListOrKeep,
                       choices_described=samplers.SCHEDULES,
                       help=f"how noise goes down: {', '.join(samplers.SCHEDULES)}; or help (default: the model's own)")
    group.add_argument("--eta", metavar="X", type=number(0, 1),
                       help="noise that ddim and tcd add in each step, 0 to 1 (default: 0)")
    group.add_argument("--timestep-spacing", metavar="NAME", type=one_of(SPACINGS),
                       help=f"which of the training's time steps: {', '.join(SPACINGS)} (default: the model's own)")
    group.add_argument("--prediction-type", metavar="NAME", type=one_of(PREDICTION_TYPES),
                       help=f"what the model predicts: {', '.join(PREDICTION_TYPES)} (default: as its files say)")
    group.add_argument("--zero-terminal-snr", dest="rescale_betas_zero_snr", action="store_true",
                       help="rescale the noise so that nothing of the picture is left at the last time step, for "
                            "models trained so; steps have trailing spacing then (default: as the model's files say)")

    group = parser.add_argument_group("image to image and inpainting")
    group.add_argument("-i", "--init-image", metavar="FILE", help="picture to start from; it is scaled and cut to size")
    group.add_argument("--strength", metavar="X", type=number(0, 1, above=True),
                       help="how far to go from that picture, above 0 (not at all) to 1 (all the way) (default: 0.75, or 1 "
                            "where a mask says what may be left)")
    group.add_argument("--mask-image", "--mask", metavar="FILE",
                       help="repaint the picture where this one is white; black stays as it was")
    group.add_argument("--invert-mask", action="store_true", help="repaint where it is black")
    group.add_argument("--mask-blur", metavar="PIXELS", type=number(0, LARGEST_BLUR),
                       help="feather the mask's edges (default: 0, or 4 with --outpaint)")
    group.add_argument("--padding-mask-crop", "--only-masked", metavar="PIXELS", type=whole(0, LARGEST_SIDE),
                       help="paint only the mask and so many pixels around it, enlarged to --width x --height, and paste it "
                            "back into the picture, which keeps its size")
    group.add_argument("--no-overlay", dest="apply_overlay", action="store_false",
                       help="leave out the last step, which puts the picture's own pixels back where the mask is black")
    group.add_argument("--outpaint", metavar="SIDES", type=sides,
                       help="extend the picture by multiples of 8 pixels and paint what is new: left=64,right=64,top=8,bottom=8")

    group = parser.add_argument_group("hires fix: enlarge the picture and denoise it again")
    group.add_argument("--hires", metavar="X", type=number(1, LARGEST_SCALE, above=True),
                       help="so many times as wide and high, for example 2")
    group.add_argument("--hires-strength", metavar="X", type=number(0, 1, above=True),
                       help="how much of the noise is added again, above 0 to 1 (default: 0.7)")
    group.add_argument("--hires-steps", metavar="N", type=whole(1, MOST_STEPS),
                       help="steps of the second pass (default: as many as --steps)")
    group.add_argument("--hires-upscaler", metavar="NAME", type=one_of(UPSCALERS),
                       help="latent (bilinear, needs a --hires-strength above 0.5) or lanczos (as a picture) (default: latent)")

    group = parser.add_argument_group("model")
    group.add_argument("-m", "--model", metavar="MODEL",
                       help="folder in diffusers layout, .safetensors file, Hugging Face id, or a name that "
                            "`npdiffusion models` lists (default: the embedded model, a small one that draws what "
                            "`npdiffusion subjects` shows, and nothing else)")
    group.add_argument("--model-dir", metavar="DIR",
                       help="folder of models, which -m can name without their path (default: $NPDIFFUSION_MODELS)")
    group.add_argument("--tokenizer", metavar="PATH",
                       help="folder with vocab.json and merges.txt, or an id, for a single file with none beside it")
    group.add_argument("--dtype", metavar="NAME", type=one_of(kernels.DTYPES),
                       help="how weights are kept: float32, or bfloat16, which halves memory, is faster on processors "
                            "that multiply it, and rounds a little (default: float32, or what --max-memory makes best)")

    group = parser.add_argument_group("adapters")
    group.add_argument("--lora-dir", metavar="DIR",
                       help="folder with LoRA files, which a prompt uses by name and strength: \"a cat <lora:ink:0.8>\"")

    group = parser.add_argument_group("decoding")
    group.add_argument("--vae", metavar="VAE",
                       help="file, folder or Hugging Face id of an autoencoder in place of the model's own: Stable "
                            "Diffusion's kind, or TAESD, which decodes much faster and a little coarser")
    group.add_argument("--vae-tiling", metavar="WHEN", type=one_of(TILING), default="auto",
                       help="on: code pictures in overlapping tiles, with less memory and slight changes; off; auto: "
                            "where one piece would take more than 2 GB (default: auto)")

    group = parser.add_argument_group("preview")
    group.add_argument("--preview", metavar="KIND", type=one_of(PREVIEWS),
                       help="show what the picture is going to be: linear (roughly, takes no time), taesd (by the tiny "
                            "autoencoder), vae (exactly, as slow as decoding)")
    group.add_argument("--preview-path", metavar="FILE",
                       help="PNG file that is written anew each time (default: preview.png beside the picture)")
    group.add_argument("--preview-every", metavar="K", type=whole(1, MOST_STEPS), default=1,
                       help="steps from one preview to the next (default: 1)")
    group.add_argument("--steps-strip", metavar="FILE", help="PNG file for all previews of a picture as one sheet")
    group.add_argument("--taesd", metavar="VAE",
                       help="file, folder or id of TAESD for --preview taesd (default: that of --vae, or "
                            "madebyollin/taesd from Hugging Face's cache)")

    group = parser.add_argument_group("machine")
    group.add_argument("-t", "--threads", metavar="N", type=whole(1, 4096),
                       help="how many cores work (default: the physical cores)")
    group.add_argument("--max-memory", metavar="AMOUNT", type=memory,
                       help="that the command may take, 4GB for example: chooses --dtype, tiles, and whether weights "
                            "stay on disk and are read in each step, which is slower (default: no limit)")
    group.add_argument("--backend", metavar="NAME", type=one_of(kernels.BACKENDS),
                       help="numba (compiled) or numpy (readable, slower) (default: $NPDIFFUSION_BACKEND, or numba)")

    group = parser.add_argument_group("about")
    group.add_argument("-v", "--verbose", action="store_true", help="all warnings, and where an error comes from")
    group.add_argument("--info", action="store_true", help="show versions, processor, backend and model")
    group.add_argument("--version", action="version", version=f"npdiffusion {npdiffusion.__version__}")
    group.add_argument("-h", "--help", action="help", help="show this text")
    return parser


def clip_skip(value):
    """The type of --clip-skip: layers to leave out, as the pipeline counts them; the option counts from 1, none."""
    return whole(1, 99)(value) - 1 or None
