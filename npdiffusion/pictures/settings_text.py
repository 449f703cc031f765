"""The settings of a picture as text, the way AUTOMATIC1111's web interface writes it and other programs have learnt to.

    a red apple
    Negative prompt: blurry
    Steps: 50, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.5, Seed: 1, Size: 128x128, Model: v1-5, Version: …

The prompts are taken as they are, however many lines they have; the last line holds `key: value` pairs. A value with a
comma, a colon or a line break is written as a JSON string. text_inside.py says where this text is inside a file.

stable-diffusion.cpp writes the same with names of its own (Sampler: euler_a karras, RNG: cuda). A text that doesn't
name its RNG comes from the web interface's default, the numbers that a GPU draws.
"""
import json
import os
import re

from npdiffusion.settings import SETTINGS
from npdiffusion.version import __version__

NEGATIVE = "Negative prompt:"
PAIR = re.compile(r'(\w[\w \-/]{1,60}):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')       # as the web interface finds them
LONGEST_LINE = 65536                  # characters; more can't be settings
FEWEST_PAIRS = 3                      # that make the last line one of settings, not of the prompt

WITHOUT_SCHEDULE = ("ddpm", "ddim", "pndm", "lcm", "tcd")      # they keep to the training's time steps: little choice
AUTOMATIC = {"dpm++2m": "karras", "dpm++sde": "karras", "dpm2": "karras", "dpm2_a": "karras",
             "dpm++2m_sde": "exponential"}       # what "Automatic" stands for there; Uniform for all others
SD_CPP = "stable-diffusion.cpp"       # its Version
OTHER_GENERATORS = {"gpu": "a1111", "cuda": "a1111"}
SAMPLERS, SCHEDULES = SETTINGS["sampler"].values, SETTINGS["schedule"].values       # ours → theirs

# What isn't a setting of the picture itself, and follows one there: in the order in which the text is written.
AFTER = {"Seed": ("Size", "Model", "VAE")}
BEFORE = {"Masked area padding": ("Inpaint area",), "Refiner switch at": ("Refiner",)}
MODELS = {"model": "Model", "vae": "VAE", "refiner": "Refiner"}       # options that aren't a picture's own

WITHOUT_INFLUENCE = ("Version", "Size", "Inpaint area", "Model hash", "VAE hash", "Lora hashes", "TI hashes", "Init image hash",
                     "Batch size", "Batch pos", "User", "Guidance", "Unet", "TE", "Template", "Negative Template",
                     "Hashes", "Civitai resources", "Civitai metadata", "Created Date")
HIRES = {"Hires resize", "First pass size"}      # of hires fix too, without an option
AS_HERE = {"Emphasis": "Original", "Pad conds": "True"}      # what they may switch off isn't offered


# ---- writing

def parameters(prompt, negative_prompt="", *, width, height, model=None, vae=None, refiner=None, hashes=None,
               **settings):
    """The text for one picture. Settings by their names in `settings.Request`; what is None is left out.

    hashes: {key: text} of files that took part, which are for people and catalogues, and not read back
    """
    unknown = [name for name in settings if name not in SETTINGS or SETTINGS[name].key is None]
    if unknown:
        raise TypeError(f"settings that the text has no key for: {', '.join(sorted(unknown))}")
    pairs = dict.fromkeys(keys())
    for name, value in settings.items():
        row = SETTINGS[name]
        if value is not None:
            pairs[row.key] = row.values.get(value, row.kind.write(value))
    pairs |= {"Size": f"{width}x{height}", "Model": model, "VAE": vae, "Refiner": refiner}
    if settings.get("padding_mask_crop") is not None:
        pairs["Inpaint area"] = "Only masked"
    if settings.get("sampler") in WITHOUT_SCHEDULE and settings.get("schedule") == "discrete":
        pairs["Schedule type"] = None
    if settings.get("prompt_syntax") == SETTINGS["prompt_syntax"].default:
        pairs["Prompt syntax"] = None
    pairs |= (hashes or {}) | {"Version": f"npdiffusion {__version__}"}
    lines = [prompt, f"{NEGATIVE} {negative_prompt}"] if negative_prompt else [prompt]
    lines.append(", ".join(f"{key}: {quote(value)}" for key, value in pairs.items() if value is not None))
    return "\n".join(lines).strip()


def keys():
    """The keys of the text in the order in which they are written."""
    for key in dict.fromkeys(row.key for row in SETTINGS.values() if row.key):
        yield from (*BEFORE.get(key, ()), key, *AFTER.get(key, ()))


def model_name(model):
    """How --model is called in a picture's settings: a file or folder by its own name alone, an id as it is."""
    if model in (None, "embedded"):
        return "embedded"
    path = os.path.abspath(os.path.expanduser(model))
    return os.path.basename(path).removesuffix(".safetensors") if os.path.exists(path) else model


def quote(value):
    """Text of a value, as a JSON string where it would not end at the next comma otherwise; 7.0 is 7."""
    text = str(value).removesuffix(".0") if isinstance(value, float) else str(value)
    return json.dumps(text, ensure_ascii=False) if any(c in text for c in ",:\n") else text


# ---- reading

def parse_parameters(text):
    """A picture's text → prompt, negative prompt, {key: value}; all as they are there, and any of them may be empty."""
    *lines, last = text.strip().split("\n")
    pairs = find_pairs(last) if len(last) <= LONGEST_LINE else []
    if len(pairs) < FEWEST_PAIRS:
        lines, pairs = [*lines, last], []
    prompt, negative = [], []
    part = prompt
    for line in map(str.strip, lines):
        if line.startswith(NEGATIVE):
            part, line = negative, line.removeprefix(NEGATIVE).strip()
        part.append(line)
    return *("\n".join(part).lstrip("\n") for part in (prompt, negative)), {key: unquote(value) for key, value in pairs}


def find_pairs(line):
    """[(key, value), ...] of a line; JSON behind a key is one value, whatever looks like a setting inside"""
    pairs, end = [], 0
    while found := PAIR.search(line, end):
        key, value = found.groups()
        end = found.end()
        if value.startswith(("{", "[")):
            try:
                _, end = json.JSONDecoder().raw_decode(line, found.start(2))
                value = line[found.start(2):end]
            except (ValueError, RecursionError):
                pass                  # no JSON: it ends at the next comma, as any other value
        pairs.append((key, value))
    return pairs


def unquote(text):
    """The value that `quote` wrote."""
    if len(text) > 1 and text[0] == text[-1] == '"':
        try:
            return json.loads(text)
        except ValueError:
            pass                      # no JSON, whatever it looks like
    return text.strip()


def to_options(pairs):
    """{key: value} of `parse_parameters` → {option: text} in our names, {key: value} of what has no option here

    Whether an option takes the text isn't looked at.
    """
    options, unknown = {}, {}
    for key, value in pairs.items():
        name = NAMES.get(key.casefold())
        if key == "Eta" and pairs.get("Version") == SD_CPP and set(value) <= {*"0."}:
            continue                  # is there whatever the sampler is
        if key.casefold() == "size" and value:
            options["width"], _, options["height"] = value.partition("x")
        elif name is None:
            if key not in WITHOUT_INFLUENCE and AS_HERE.get(key) != value:
                unknown[key] = value
        elif value:
            options[name] = ours(value, SETTINGS[name].values) if name in SETTINGS else value
    if not pairs:
        return options, unknown
    read_hires(options, unknown)
    if "strength" in options and (HIRES & unknown.keys() or any(name.startswith("hires") for name in options)):
        options["hires_strength"] = options.pop("strength")
    if "sampler" in options:
        read_sampler(options, pairs.get("Version") == SD_CPP)
        foreign = not pairs.get("Version", "").startswith("npdiffusion")
        if foreign and options["schedule"] == "discrete" and options["sampler"] in SAMPLERS.keys() - WITHOUT_SCHEDULE:
            options["timestep_spacing"] = "linspace"       # the others' uniform schedule, whatever a model's files say
    elif options.get("schedule", "").casefold() == "automatic":
        del options["schedule"]       # the sampler's, which nobody named
    options["rng"] = OTHER_GENERATORS.get(options.get("rng", "GPU").casefold(), options.get("rng"))
    return options, unknown


def key_of(name):
    """The key in the text for an option; what a prompt is called, which has none."""
    if name in ("width", "height"):
        return "Size"
    return MODELS.get(name) or SETTINGS[name].key or name.replace("_", " ").capitalize()


# From a key, in lower case, to the option; of two with one key the first.
NAMES = {row.key.casefold(): name for name, row in reversed(SETTINGS.items()) if row.key} | {
    key.casefold(): name for name, key in MODELS.items()} | {      # SD.Next's
    "hires scale": "hires", "variation strength": "subseed_strength"}


def read_hires(options, unknown):
    """Put hires fix among the options where it is given as a size, and the upscaler that comes nearest to theirs."""
    scale = hires_scale(unknown.get("Hires resize", ""), options)
    if scale and float(scale) == hires_number(options.setdefault("hires", scale)):
        del unknown["Hires resize"]   # the same, said twice
    if "hires_upscaler" in options:
        options["hires_upscaler"] = "latent" if options["hires_upscaler"].casefold().startswith("latent") else "lanczos"


def hires_number(text):
    """The number that a text is, or None"""
    try:
        return float(text)
    except ValueError:
        return None


def hires_scale(size, options):
    """"1024x1024" or "1024x0", beside the picture's own size, as a factor, or None if both sides don't grow alike"""
    sides = [re.fullmatch(r"(\d{1,5})x(\d{1,5})", text) for text in (size, f"{options.get('width')}x{options.get('height')}")]
    if not all(sides):
        return None
    (width, height), (from_width, from_height) = (map(int, found.groups()) for found in sides)
    scales = {to / start for to, start in ((width, from_width), (height, from_height)) if to and start}
    return f"{scales.pop():g}" if len(scales) == 1 else None


def read_sampler(options, two_words):
    """Put our names of sampler and schedule among the options, from what any version of the others calls them.

    two_words: a program whose samplers have no spaces in their names writes "euler_a karras", and schedules that may be unknown
    """
    options["sampler"], schedule = split_sampler(options["sampler"])
    first, space, second = options["sampler"].partition(" ")
    if two_words and ours(first, SAMPLERS) in SAMPLERS and space:
        options["sampler"], schedule = ours(first, SAMPLERS), ours(second, SCHEDULES)
    options.setdefault("schedule", schedule or "discrete")
    if options["schedule"].casefold() == "automatic":
        options["schedule"] = AUTOMATIC.get(options["sampler"], "discrete")
    if options["sampler"].split(" ")[0] == "ddim_trailing":
        options |= {"sampler": "ddim", "timestep_spacing": "trailing"}


def split_sampler(text):
    """A sampler as older versions and stable-diffusion.cpp name it, "DPM++ 2M Karras" → sampler, schedule or None"""
    sampler, schedule = SETTINGS["sampler"].kind.with_schedule(text)
    return sampler or text, schedule


def ours(text, values):
    """Our name for a value, in whatever case it is written; the text itself if it has none."""
    names = {theirs.casefold(): str(name) for name, theirs in values.items()} | {str(name): str(name) for name in values}
    return names.get(text.casefold(), text)
