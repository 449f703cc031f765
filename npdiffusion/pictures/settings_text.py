"""The settings of a picture as text, the way AUTOMATIC1111's web interface writes it and other programs have learnt to.

    a red apple
    Negative prompt: blurry
    Steps: 50, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.5, Seed: 1, Size: 128x128, Model: v1-5, Version: …

The prompts are taken as they are, however many lines they have; the last line holds `key: value` pairs. A value with a
comma, a colon or a line break is written as a JSON string. Where this text is inside a file is told by text_inside.py.

stable-diffusion.cpp writes the same with names of its own (Sampler: euler_a karras, RNG: cuda). A text that doesn't
name its RNG comes from the web interface's default, the numbers that a GPU draws.
"""
import json
import re
from dataclasses import dataclass, field

from npdiffusion import __version__

NEGATIVE = "Negative prompt:"
PAIR = re.compile(r'(\w[\w \-/]{1,60}):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')       # as the web interface finds them
LONGEST_LINE = 65536                  # characters; more can't be settings
FEWEST_PAIRS = 3                      # that make the last line one of settings, not of the prompt

SAMPLERS = {                          # ours → that of the web interface, which knows PNDM as PLMS
    "ddpm": "DDPM", "ddim": "DDIM", "pndm": "PLMS", "lms": "LMS", "euler": "Euler", "euler_a": "Euler a",
    "heun": "Heun", "dpm2": "DPM2", "dpm2_a": "DPM2 a", "dpm++2m": "DPM++ 2M", "dpm++2m_sde": "DPM++ 2M SDE",
    "dpm++sde": "DPM++ SDE", "unipc": "UniPC", "deis": "DEIS", "lcm": "LCM", "tcd": "TCD",
}
SCHEDULES = {"discrete": "Uniform", "karras": "Karras", "exponential": "Exponential", "sgm_uniform": "SGM Uniform",
             "beta": "Beta", "align_your_steps": "Align Your Steps"}
WITHOUT_SCHEDULE = ("ddpm", "ddim", "pndm", "lcm", "tcd")      # they keep to the training's time steps: little choice
AUTOMATIC = {"dpm++2m": "karras", "dpm++sde": "karras", "dpm2": "karras", "dpm2_a": "karras",
             "dpm++2m_sde": "exponential"}       # what "Automatic" stands for there; Uniform for all others
GENERATORS = {"torch": "CPU", "numpy": "NumPy", "a1111": "NV"}      # "NV" is what a GPU draws, wherever it is run
SD_CPP = "stable-diffusion.cpp"       # its Version
OTHER_GENERATORS = {"gpu": "a1111", "cuda": "a1111"}


@dataclass(frozen=True)
class Setting:
    """One `key: value` pair. A new option that changes pictures needs a line in SETTINGS to be written and read."""
    name: str                         # of the option, and of generate's argument
    key: str                          # in the text
    values: dict = field(default_factory=dict)      # those with another name there: ours → theirs


SETTINGS = (                          # in the order in which they are written
    Setting("steps", "Steps"),
    Setting("sampler", "Sampler", SAMPLERS),
    Setting("schedule", "Schedule type", SCHEDULES),
    Setting("guidance_scale", "CFG scale"),
    Setting("seed", "Seed"),
    Setting("size", "Size"),          # width and height
    Setting("model", "Model"),
    Setting("vae", "VAE"),
    Setting("hires_strength", "Denoising strength"),        # only one of the two, since hires fix has no picture to
    Setting("strength", "Denoising strength"),              # start from; read as this one at first
    Setting("invert_mask", "Mask mode", {True: "Inpaint not masked", False: "Inpaint masked"}),
    Setting("mask_blur", "Mask blur"),
    Setting("inpaint_area", "Inpaint area"),                # follows from the next
    Setting("padding_mask_crop", "Masked area padding"),
    Setting("outpaint", "Outpaint"),                        # of our own
    Setting("hires", "Hires upscale"),
    Setting("hires_steps", "Hires steps"),
    Setting("hires_upscaler", "Hires upscaler", {"latent": "Latent", "lanczos": "Lanczos"}),
    Setting("rng", "RNG", GENERATORS),
    Setting("clip_skip", "Clip skip"),
    Setting("prompt_syntax", "Prompt syntax"),
    Setting("subseed", "Variation seed"),
    Setting("subseed_strength", "Variation seed strength"),
    Setting("eta", "Eta DDIM"),
    Setting("guidance_rescale", "CFG rescale"),
    Setting("timestep_spacing", "Timestep spacing"),
    Setting("prediction_type", "Prediction type"),
    Setting("rescale_betas_zero_snr", "Noise Schedule", {True: "Zero Terminal SNR", False: "Default"}),
)
WITHOUT_INFLUENCE = ("Version", "Model hash", "VAE hash", "Lora hashes", "TI hashes", "Init image hash", "Batch size",
                     "Batch pos", "User", "Guidance", "Unet", "TE", "Template", "Negative Template")


# ---- writing

def parameters(prompt, negative_prompt="", *, width, height, hashes=None, **settings):
    """The text for one picture. Names and values of settings are ours, see SETTINGS; what is None is left out.

    hashes: {key: text} of files that took part, which are for people and catalogues, and not read back
    """
    unknown = settings.keys() - {setting.name for setting in SETTINGS}
    if unknown:
        raise TypeError(f"settings that the text has no key for: {', '.join(sorted(unknown))}")
    values = settings | {"size": f"{width}x{height}"}
    if settings.get("padding_mask_crop") is not None:
        values["inpaint_area"] = "Only masked"
    if values.get("sampler") in WITHOUT_SCHEDULE and values.get("schedule") == "discrete":
        values["schedule"] = None
    if values.get("clip_skip"):       # layers that are left out; the web interface counts from 1, none
        values["clip_skip"] += 1
    if values.get("prompt_syntax") == "a1111":
        values["prompt_syntax"] = None
    pairs = {setting.key: setting.values.get(values[setting.name], values[setting.name])
             for setting in SETTINGS if values.get(setting.name) is not None}
    pairs |= (hashes or {}) | {"Version": f"npdiffusion {__version__}"}
    lines = [prompt, f"{NEGATIVE} {negative_prompt}"] if negative_prompt else [prompt]
    lines.append(", ".join(f"{key}: {quote(value)}" for key, value in pairs.items()))
    return "\n".join(lines).strip()


def quote(value):
    """Text of a value, as a JSON string where it would not end at the next comma otherwise; 7.0 is 7."""
    text = str(value).removesuffix(".0") if isinstance(value, float) else str(value)
    return json.dumps(text, ensure_ascii=False) if any(c in text for c in ",:\n") else text


# ---- reading

def parse(text):
    """A picture's text → prompt, negative prompt, {key: value}; all as they are there, and any of them may be empty."""
    *lines, last = text.strip().split("\n")
    pairs = PAIR.findall(last) if len(last) <= LONGEST_LINE else []
    if len(pairs) < FEWEST_PAIRS:
        lines, pairs = [*lines, last], []
    prompt, negative = [], []
    part = prompt
    for line in map(str.strip, lines):
        if line.startswith(NEGATIVE):
            part, line = negative, line.removeprefix(NEGATIVE).strip()
        part.append(line)
    return *("\n".join(part).lstrip("\n") for part in (prompt, negative)), {key: unquote(value) for key, value in pairs}


def unquote(text):
    """The value that `quote` wrote."""
    if len(text) > 1 and text[0] == text[-1] == '"':
        try:
            return json.loads(text)
        except ValueError:
            pass                      # no JSON, whatever it looks like
    return text.strip()


def to_options(pairs):
    """{key: value} of `parse` → {option: text} in our names, {key: value} of what has no option here

    Whether an option takes the text isn't looked at.
    """
    by_key = {setting.key.casefold(): setting for setting in SETTINGS}
    options, unknown = {}, {}
    for key, value in pairs.items():
        if key == "Eta" and pairs.get("Version") == SD_CPP and set(value) <= {*"0."}:
            continue                  # is there whatever the sampler is
        setting = by_key.get(key.casefold())
        if setting is None and key not in WITHOUT_INFLUENCE:
            unknown[key] = value
        elif setting is not None and value:
            options[setting.name] = ours(value, setting.values)
    if "size" in options:
        options["width"], _, options["height"] = options.pop("size").partition("x")
    if not pairs:
        return options, unknown
    options.pop("inpaint_area", None)
    if "hires" in options and "strength" in options:
        options["hires_strength"] = options.pop("strength")
    if "sampler" in options:
        read_sampler(options)
        foreign = not pairs.get("Version", "").startswith("npdiffusion")
        if foreign and options["schedule"] == "discrete" and options["sampler"] in SAMPLERS.keys() - WITHOUT_SCHEDULE:
            options["timestep_spacing"] = "linspace"       # the others' uniform schedule, whatever a model's files say
    options["rng"] = OTHER_GENERATORS.get(options.get("rng", "GPU").casefold(), options.get("rng"))
    return options, unknown


def key_of(name):
    """The key in the text for an option."""
    return "Size" if name in ("width", "height") else next(setting.key for setting in SETTINGS if setting.name == name)


def read_sampler(options):
    """Put our names of sampler and schedule among the options, from what any version of the others calls them."""
    options["sampler"], schedule = split_sampler(options["sampler"])
    options.setdefault("schedule", schedule or "discrete")
    if options["schedule"].casefold() == "automatic":
        options["schedule"] = AUTOMATIC.get(options["sampler"], "discrete")
    if options["sampler"].split(" ")[0] == "ddim_trailing":
        options |= {"sampler": "ddim", "timestep_spacing": "trailing"}


def split_sampler(text):
    """A sampler as older versions and stable-diffusion.cpp name it, "DPM++ 2M Karras" → sampler, schedule or None"""
    for schedule in {*SCHEDULES, *SCHEDULES.values()}:
        sampler = ours(text[:-len(schedule) - 1], SAMPLERS)
        if sampler in SAMPLERS and text.casefold().endswith(f" {schedule}".casefold()):
            return sampler, ours(schedule, SCHEDULES)
    return text, None


def ours(text, values):
    """Our name for a value, in whatever case it is written; the text itself if it has none."""
    names = {theirs.casefold(): name for name, theirs in values.items()} | {name: name for name in values}
    return names.get(text.casefold(), text)
