"""Every setting of a picture, in one table: the fields of `Request`.

A row says what values a setting takes (kinds.py), what it is by default, what it means, how it is written on the command
line, by diffusers, and in the text inside a picture. Options, columns of CSV files, checks, the arguments of `generate`,
keys in PNG files and help are made from it, so a new setting is one row here and the place that uses it.

    prompt: str = setting(Text(), "what the picture shows")
    │       │             │       └ for --help                        Request(prompt=…) is checked when it is made, is
    │       └ its type    └ what it may be                            frozen, and goes to JSON and back without loss
    └ its name in Python

What doesn't go together, or has no effect: rules.py. Imports nothing heavy, so that --help answers at once.
"""
import functools
import io
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, fields, replace
from types import SimpleNamespace
from typing import Any

from npdiffusion.diffusion import samplers
from npdiffusion.errors import UserError, nearest
from npdiffusion.settings.kinds import (
    Choice,
    ClipSkip,
    Descending,
    Kind,
    Listed,
    Map,
    Number,
    Pair,
    Picture,
    Sampler,
    Seed,
    Side,
    Sides,
    Switch,
    Text,
    Whole,
)
from npdiffusion.settings.rules import RULES, STEPS

LARGEST_SIDE = 8192                   # pixels
LARGEST_BLUR = 1000                   # pixels
LARGEST_SCALE = 8                     # of hires fix
MOST_STEPS = 1000                     # the time steps of the training
RNGS = ("torch", "a1111", "numpy")
# What other programs call samplers and schedules: diffusers, AUTOMATIC1111's web interface, ComfyUI, stable-diffusion.cpp
OTHER_SAMPLERS = {
    "plms": "pndm", "k_lms": "lms", "k_euler": "euler", "euler_ancestral": "euler_a", "k_euler_a": "euler_a",
    "euler a": "euler_a", "k_heun": "heun", "dpm_2": "dpm2", "kdpm2": "dpm2", "dpm_2_ancestral": "dpm2_a", "dpm2 a": "dpm2_a",
    "dpmpp_2m": "dpm++2m", "dpm++ 2m": "dpm++2m", "dpmpp_2m_sde": "dpm++2m_sde", "dpm++ 2m sde": "dpm++2m_sde",
    "dpmpp_2m_sde_gpu": "dpm++2m_sde", "dpmpp_sde": "dpm++sde", "dpmpp_sde_gpu": "dpm++sde", "dpm++ sde": "dpm++sde",
    "uni_pc": "unipc", "uni_pc_bh2": "unipc", **samplers.CLASSES}
SCHEDULE = Choice(samplers.SCHEDULES, {
    "ays": "align_your_steps", "simple": "sgm_uniform", "normal": "discrete", "uniform": "discrete", "default": "discrete"})
LARGEST_SAID = 1 << 16                # pixels of a picture that XL is told of
SIZE = Pair(1, LARGEST_SAID, "x", True, "height, width")
SYNTAXES = ("a1111", "plain")
SPACINGS = ("linspace", "leading", "trailing")
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
UPSCALERS = ("latent", "lanczos")
TILING = ("auto", "on", "off")

# Maps that are made of a picture for a ControlNet, see pictures/maps.py: (what each number is, from, to, customary)
MAPS = {"none": (), "invert": (), "canny": (("low threshold", 1, 2000, 100), ("high threshold", 1, 2000, 200)),
        "scribble": (("threshold", 1, 255, 32),), "tile": (("factor", 1, 16, 1),), "blur": (("pixels", 1, 100, 9),)}

GROUPS = ("what to make", "many pictures", "prompt", "sampling", "image to image and inpainting",
          "hires fix: enlarge the picture and denoise it again", "model", "adapters", "decoding", "preview", "machine",
          "about")                    # of options, in the order of --help
MAKE, MANY, PROMPT, SAMPLING, PAINTING, HIRES, MODEL, ADAPTERS, DECODING, PREVIEW, MACHINE, ABOUT = GROUPS


@dataclass(frozen=True)
class Setting:
    """One row. Of a picture's settings `name` is the field of `Request`; options of the command have rows like it."""
    kind: Kind                        # what it may be
    help: str
    default: Any = None               # None: whatever suits the model
    group: str = MAKE                 # in --help
    name: str = ""
    flags: tuple = ()                 # how the option is written, if not --its-name
    synonyms: tuple = ()              # other names for the option, not shown
    metavar: str | None = None
    shown: dict | None = None         # {value: a line about it}, listed for the value "help"
    customary: Any = None             # what None stands for, where that doesn't depend on the model
    diffusers: str | None = None      # its name in diffusers' pipelines, if it is another one
    key: str | None = None            # in the text inside a picture
    values: dict = field(default_factory=dict)      # {value: how it is called there}, where that is another name
    needs: tuple = ()                 # settings of which one must be given too, on the command line and in files
    says: str = ""                    # what it says about them
    per_picture: bool = True          # whether each picture of a list may have its own

    @property
    def options(self) -> tuple[str, ...]:
        """How it is written on the command line: its names there, those that aren't shown included."""
        return (*self.written, *self.synonyms)

    @property
    def written(self) -> tuple[str, ...]:
        """Its names on the command line, as --help shows them."""
        return self.flags or (f"--{self.name.replace('_', '-')}",)

    @property
    def option(self) -> str:
        """The first long one of these names, for messages; that of an argument without a dash is its name."""
        return next((flag for flag in self.written if flag.startswith("--")), self.name)


def setting(kind: Kind, help: str, default: Any = None, **row: Any) -> Any:
    """The row of a field of `Request`."""
    return field(default=default, metadata={"row": Setting(kind, help, default, **row)})


class SettingError(UserError):
    """A setting that doesn't go together with others. `reason(option)` says why, with the names by which settings are called
    where they were given: attributes of `option`, which is IN_PYTHON or ON_COMMAND_LINE."""
    def __init__(self, setting: str, reason: Callable[[Any], str]) -> None:
        super().__init__(f"{setting}: {reason(IN_PYTHON)}")
        self.setting, self.reason = setting, reason

    def __reduce__(self):                                # without the function, to other processes
        return UserError, self.args


@dataclass(frozen=True)
class Request:
    """What a picture is asked for. Raises UserError when it is made with a value out of range, or with settings that
    don't go together; None leaves a choice to the model (see request.py, which resolves it)."""

    prompt: str = field(metadata={"row": Setting(
        Text(), "what the picture shows, in quotes; - reads it from standard input", synonyms=("-p", "--prompt"))})
    negative_prompt: str = setting(Text(), "what it should not show", "", flags=("-n", "--negative-prompt"), metavar="TEXT",
                                   synonyms=("--neg",))
    prompt_2: str | None = setting(
        Text(), "what the second text encoder of Stable Diffusion XL reads, if not the same", group=PROMPT, metavar="TEXT",
        key="Prompt 2")
    negative_prompt_2: str | None = setting(
        Text(), "and of what it should not show", group=PROMPT, metavar="TEXT", key="Negative prompt 2")
    init_image: Any = setting(
        Picture(), "picture to start from; it is scaled and cut to size", group=PAINTING, flags=("-i", "--init-image"),
        metavar="FILE", diffusers="image", synonyms=("--init-img", "--image"))
    mask_image: Any = setting(
        Picture(), "repaint the picture where this one is white; black stays as it was", group=PAINTING,
        flags=("--mask-image", "--mask"), metavar="FILE", needs=("init_image",), says="where a picture is repainted")
    apply_overlay: bool = setting(
        Switch(off=True), "leave out the last step, which puts the picture's own pixels back where the mask is black", True,
        group=PAINTING, flags=("--no-overlay",))
    width: int | None = setting(
        Side(LARGEST_SIDE), "a multiple of 8 (default: the model's size)", flags=("-W", "--width"), metavar="PIXELS")
    height: int | None = setting(Side(LARGEST_SIDE), "likewise", flags=("-H", "--height"), metavar="PIXELS")
    count: int = setting(
        Whole(1, 9999), "number of pictures, made one after the other with seeds S, S+1, ... (default: 1)", 1,
        flags=("-b", "--batch-count"), metavar="N", diffusers="num_images_per_prompt",
        synonyms=("--num-images-per-prompt", "--num-images", "--n-iter", "--n-samples", "--batch-size"))
    steps: int | None = setting(
        Whole(1, MOST_STEPS), f"more are slower and finer (default: {STEPS}, or 4 with models that are made for few)",
        group=SAMPLING, metavar="N", diffusers="num_inference_steps", key="Steps",
        synonyms=("--num-inference-steps", "--num-steps", "--sampling-steps", "--sample-steps", "--ddim-steps"))
    sampler: str | None = setting(
        Sampler(samplers.SAMPLERS, OTHER_SAMPLERS, SCHEDULE),
        f"{', '.join(samplers.SAMPLERS)}; or help, for a line on each (default: the model's own)",
        group=SAMPLING, metavar="NAME", shown={name: each.description for name, each in samplers.SAMPLERS.items()},
        key="Sampler", synonyms=("--sampling-method", "--sample-method", "--sampler-name"), values={
            "ddpm": "DDPM", "ddim": "DDIM", "pndm": "PLMS", "lms": "LMS", "euler": "Euler", "euler_a": "Euler a",
            "heun": "Heun", "dpm2": "DPM2", "dpm2_a": "DPM2 a", "dpm++2m": "DPM++ 2M", "dpm++2m_sde": "DPM++ 2M SDE",
            "dpm++sde": "DPM++ SDE", "unipc": "UniPC", "deis": "DEIS", "lcm": "LCM", "tcd": "TCD"})
    schedule: str | None = setting(
        SCHEDULE, f"how noise goes down: {', '.join(samplers.SCHEDULES)}; or help (default: the model's own)",
        group=SAMPLING, metavar="NAME", shown=samplers.SCHEDULES, key="Schedule type",
        synonyms=("--scheduler",), values={
            "discrete": "Uniform", "karras": "Karras", "exponential": "Exponential", "sgm_uniform": "SGM Uniform",
            "beta": "Beta", "align_your_steps": "Align Your Steps"})
    guidance_scale: float | None = setting(
        Number(0, 100), "how closely to follow the prompt; 1 switches guidance off (default: the model's own, which is 7.5 "
        "unless it says otherwise)", group=SAMPLING, flags=("--cfg-scale", "--guidance-scale"), metavar="X", key="CFG scale",
        synonyms=("--cfg", "--guidance", "--scale"))
    seed: int | None = setting(
        Seed(), "the same seed gives the same picture (default, and -1: a random one)", group=SAMPLING,
        flags=("-s", "--seed"), metavar="S", key="Seed")
    strength: float | None = setting(
        Number(0, 1, above=True), "how far to go from that picture, above 0 (not at all) to 1 (all the way) (default: 0.75, or "
        "1 where a mask says what may be left)", group=PAINTING, metavar="X", customary=0.75, key="Denoising strength",
        synonyms=("--denoising-strength", "--denoise"),
        needs=("init_image",), says="how far a picture may be left")
    invert_mask: bool = setting(
        Switch(), "repaint where it is black", False, group=PAINTING, key="Mask mode",
        values={True: "Inpaint not masked", False: "Inpaint masked"}, needs=("mask_image",), says="how a mask is understood")
    mask_blur: float | None = setting(
        Number(0, LARGEST_BLUR, unit="pixels"), "feather the mask's edges (default: 0, or 4 with --outpaint)", group=PAINTING,
        metavar="PIXELS", key="Mask blur", needs=("mask_image", "outpaint"), says="how a mask is feathered")
    padding_mask_crop: int | None = setting(
        Whole(0, LARGEST_SIDE, unit="pixels"), "paint only the mask and so many pixels around it, enlarged to --width x "
        "--height, and paste it back into the picture, which keeps its size", group=PAINTING,
        flags=("--padding-mask-crop", "--only-masked"), metavar="PIXELS", key="Masked area padding",
        needs=("mask_image", "outpaint"), says="how much around a mask is looked at")
    outpaint: Any = setting(
        Sides(LARGEST_SIDE), "extend the picture by multiples of 8 pixels and paint what is new: "
        "left=64,right=64,top=8,bottom=8", group=PAINTING, metavar="SIDES", key="Outpaint", needs=("init_image",),
        says="by how much a picture is extended")
    hires: float | None = setting(
        Number(1, LARGEST_SCALE, above=True), "so many times as wide and high, for example 2", group=HIRES, metavar="X",
        key="Hires upscale")
    hires_strength: float | None = setting(
        Number(0, 1, above=True), "how much of the noise is added again, above 0 to 1 (default: 0.7)", group=HIRES,
        metavar="X", customary=0.7, key="Denoising strength", needs=("hires",), says="how much of the noise is added again")
    hires_steps: int | None = setting(
        Whole(1, MOST_STEPS), "steps of the second pass (default: as many as --steps)", group=HIRES, metavar="N",
        key="Hires steps", needs=("hires",), says="how long a picture is denoised again")
    hires_upscaler: str | None = setting(
        Choice(UPSCALERS), "latent (bilinear, needs a --hires-strength above 0.5) or lanczos (as a picture) (default: latent)",
        group=HIRES, metavar="NAME", customary="latent", key="Hires upscaler",
        values={"latent": "Latent", "lanczos": "Lanczos"},
        needs=("hires",), says="how a picture is enlarged before it is denoised again")
    rng: str = setting(
        Choice(RNGS, {"cpu": "torch", "cuda": "a1111", "gpu": "a1111", "nv": "a1111", "std_default": "torch"}),
        "whose random numbers: torch (pictures as with diffusers on a CPU), a1111 (as with AUTOMATIC1111's web interface), "
        "numpy (default: torch)", "torch", group=SAMPLING, metavar="NAME", key="RNG",
        values={"torch": "CPU", "numpy": "NumPy", "a1111": "NV"})      # "NV" is what a GPU draws, wherever it is run
    clip_skip: int | None = setting(
        ClipSkip(), "how the prompt is understood: 1 by all layers of the text encoder, 2 by all but the last, and so on, as "
        "AUTOMATIC1111 counts (default: 1)", group=PROMPT, metavar="N", key="Clip skip")
    prompt_syntax: str = setting(
        Choice(SYNTAXES), "a1111: (word:1.3) weighs more, [cat:dog:0.5] changes half-way, any length (npdiffusion tokens shows "
        "it); plain: as it stands, cut off after 75 tokens (default: a1111)", "a1111", group=PROMPT, metavar="NAME",
        key="Prompt syntax")
    control_image: Any = setting(
        Listed(Picture()), "picture that the ControlNet of --control is led by, as it was trained: edges, a pose, depths; "
        "it is scaled and cut to size; for several in their order", group=PAINTING, metavar="FILE")
    control_from: str | tuple[str, ...] | None = setting(
        Listed(Map(MAPS)), "make that map of a picture first: canny (edges; canny:100-200 are its thresholds), scribble, tile, "
        "blur, invert (dark lines on white), or none (default: none)", group=PAINTING, metavar="MAP", customary="none",
        key="Control map", needs=("control_image",), says="what is made of the picture that leads")
    control_scale: float | tuple[float, ...] | None = setting(
        Listed(Number(0, 10)), "how much it counts; once for all of several, or repeated (default: 1)", group=PAINTING,
        metavar="X", customary=1.0, key="Control weight", diffusers="controlnet_conditioning_scale",
        synonyms=("--control-strength", "--controlnet-conditioning-scale"), needs=("control_image",),
        says="how much a ControlNet counts")
    control_start: float | tuple[float, ...] | None = setting(
        Listed(Number(0, 1)), "from which share of the steps on (default: 0)", group=PAINTING, metavar="X", customary=0.0,
        key="Control start", diffusers="control_guidance_start", needs=("control_image",), says="when a ControlNet begins")
    control_end: float | tuple[float, ...] | None = setting(
        Listed(Number(0, 1)), "up to which share of the steps (default: 1)", group=PAINTING, metavar="X", customary=1.0,
        key="Control end", diffusers="control_guidance_end", needs=("control_image",), says="when a ControlNet ends")
    guess_mode: bool = setting(
        Switch(), "let the ControlNet lead more than the prompt, which may be empty", False, group=PAINTING, key="Guess mode",
        needs=("control_image",), says="how a ControlNet is followed")
    ip_image: Any = setting(
        Listed(Picture()), "picture that stands in the prompt, by --ip-adapter: what it shows, its colours, its style; for "
        "several in their order", group=PROMPT, metavar="FILE", diffusers="ip_adapter_image")
    ip_scale: float | tuple[float, ...] | None = setting(
        Listed(Number(0, 10)), "how much it counts beside the words; once for all of several, or repeated (default: 1)",
        group=PROMPT, metavar="X", customary=1.0,
        key="IP-Adapter scale", diffusers="ip_adapter_scale", needs=("ip_image",), says="how much an IP-Adapter counts")
    t2i_image: Any = setting(
        Picture(), "picture that --t2i-adapter is led by, as it was trained: edges, a sketch, depths", group=PAINTING,
        metavar="FILE")
    t2i_scale: float | None = setting(
        Number(0, 10), "how much it counts (default: 1)", group=PAINTING, metavar="X", customary=1.0, key="T2I-Adapter scale",
        diffusers="adapter_conditioning_scale", needs=("t2i_image",), says="how much a T2I-Adapter counts")
    t2i_end: float | None = setting(
        Number(0, 1), "up to which share of the steps (default: 1)", group=PAINTING, metavar="X", customary=1.0,
        key="T2I-Adapter end", diffusers="adapter_conditioning_factor", needs=("t2i_image",), says="when a T2I-Adapter ends")
    original_size: tuple[int, int] | None = setting(
        SIZE, "with XL: how large the picture is said to have been; small ones are blurred (default: its own size)",
        group=PROMPT, metavar="WxH", key="Original size")
    crops_coords_top_left: tuple[int, int] | None = setting(
        Pair(0, LARGEST_SAID, ":", False, "top, left"), "with XL: how many pixels above and left of it are said to have been "
        "cut off (default: 0:0, the subject is in the middle)", group=PROMPT, flags=("--crop",), metavar="TOP:LEFT", key="Crop",
        synonyms=("--crops-coords-top-left",))
    target_size: tuple[int, int] | None = setting(
        SIZE, "with XL: how large it is said to be now (default: its own size)", group=PROMPT, metavar="WxH", key="Target size")
    aesthetic_score: float | None = setting(
        Number(0, 10), "with XL's refiner: how beautiful the picture is said to be, of 10 (default: 6)", group=PROMPT,
        metavar="X", customary=6.0, key="Aesthetic score")
    negative_aesthetic_score: float | None = setting(
        Number(0, 10), "and what it should not show (default: 2.5)", group=PROMPT, metavar="X", customary=2.5,
        key="Negative aesthetic score")
    refiner_at: float | None = setting(
        Number(0, 1, above=True), "which share of the way to the picture is the model's; the rest is the refiner's, 1 leaves "
        "it nothing (default: 0.8)", group=SAMPLING, metavar="X", customary=0.8, key="Refiner switch at")
    subseed: int | None = setting(
        Seed(), "the seed of a variation, mixed with the other one's noise; pictures count on from it", group=SAMPLING,
        metavar="S", key="Variation seed")
    subseed_strength: float | None = setting(
        Number(0, 1), "how much of it: 0 is none, 1 all (default: 0)", group=SAMPLING, metavar="X", customary=0.0,
        key="Variation seed strength")
    eta: float | None = setting(
        Number(0, 1), "noise that ddim and tcd add in each step, 0 to 1 (default: 0)", group=SAMPLING, metavar="X",
        customary=0.0, key="Eta DDIM")
    guidance_rescale: float | None = setting(
        Number(0, 1), "take back the contrast that a high guidance scale adds; 0.7 suits models with zero terminal SNR "
        "(default: 0)", group=SAMPLING, metavar="X", customary=0.0, key="CFG rescale")
    timestep_spacing: str | None = setting(
        Choice(SPACINGS), f"which of the training's time steps: {', '.join(SPACINGS)} (default: the model's own)",
        group=SAMPLING, metavar="NAME", key="Timestep spacing")
    timesteps: tuple[int, ...] | None = setting(
        Descending(0, MOST_STEPS - 1), "the training's time steps themselves, in place of --steps: 999,749,499,249 for DMD2, "
        "800 for Hyper-SD in one step; with lcm, tcd, euler and others over σ", group=SAMPLING, metavar="T,T", key="Timesteps")
    prediction_type: str | None = setting(
        Choice(PREDICTION_TYPES), f"what the model predicts: {', '.join(PREDICTION_TYPES)} (default: as its files say)",
        group=SAMPLING, metavar="NAME", key="Prediction type")
    rescale_betas_zero_snr: bool | None = setting(
        Switch(), "rescale the noise so that nothing of the picture is left at the last time step, for models trained so; "
        "steps have trailing spacing then (default: as the model's files say)", group=SAMPLING, flags=("--zero-terminal-snr",),
        key="Noise Schedule", values={True: "Zero Terminal SNR", False: "Default"})
    vae_tiling: str = setting(
        Choice(TILING), "on: code pictures in overlapping tiles, with less memory and slight changes; off; auto: where one "
        "piece would take more than 2 GB (default: auto)", "auto", group=DECODING, metavar="WHEN", per_picture=False)

    def __post_init__(self):
        for name, row in SETTINGS.items():
            value = getattr(self, name)
            if value is not None or row.default is not None or name == "prompt":
                object.__setattr__(self, name, row.kind.check(name, value))
        for rule in RULES:
            if not rule.typed and rule.broken(self):
                raise SettingError(rule.setting, functools.partial(rule.reason, self))

    @classmethod
    def of(cls, **settings: Any) -> "Request":
        """From settings by our names or diffusers'. TypeError for a name that is unknown or there twice."""
        found = {}
        for name, value in settings.items():
            own = DIFFUSERS.get(name, name)
            if own not in SETTINGS:
                hint = nearest(name, [*SETTINGS, *DIFFUSERS], ", did you mean {}?")
                raise TypeError(f"generate has no setting {name!r}{hint}")
            if own in found:
                raise TypeError(f"{DIFFUSED[own]} and {own} are the same setting")
            found[own] = value
        return cls(**found)

    def changed(self, **settings: Any) -> "Request":
        """The same but for these settings."""
        return replace(self, **settings)

    def value(self, name: str) -> Any:
        """A setting, or what None stands for where that doesn't depend on the model."""
        found = getattr(self, name)
        return SETTINGS[name].customary if found is None else found

    def given(self) -> dict[str, Any]:
        """{name: value} of the settings that differ from their defaults."""
        values = {name: getattr(self, name) for name in SETTINGS}
        return {name: value for name, value in values.items()
                if value is not SETTINGS[name].default and value != SETTINGS[name].default}

    @property
    def strength_used(self) -> float:
        """How far the picture may leave the one it starts from."""
        masked = self.mask_image is not None or self.outpaint is not None
        return 1.0 if self.strength is None and masked else self.value("strength")

    @property
    def counting(self) -> str:
        """Which of the two seeds goes up from picture to picture: with a variation that of the variation."""
        return "subseed" if self.subseed_strength else "seed"

    def seeds(self) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
        """A seed for each picture, counting on from the first, and sub-seeds, or None; random first ones for None.

        With a variation strength the sub-seeds count on, and the seed is the same for all.
        """
        first, other = (int.from_bytes(os.urandom(4), "little") if seed is None else seed for seed in (self.seed, self.subseed))
        if self.counting == "seed":
            return tuple(range(first, first + self.count)), None
        return (first,) * self.count, tuple(range(other, other + self.count))

    def to_json(self) -> str:
        """A JSON text from which `from_json` makes an equal request; pictures in memory become PNG inside."""
        import json
        return json.dumps({name: as_json(value) for name, value in self.given().items()}, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> "Request":
        """The request that `to_json` wrote. UserError for anything else."""
        import json
        try:
            settings = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"a request in JSON was expected ({error})") from None
        if not isinstance(settings, dict):
            raise UserError(f"a request is an object in JSON, not a {type(settings).__name__}")
        for name in settings:
            if name not in SETTINGS:
                raise UserError(f"{name[:40]!r} is no setting of a picture{nearest(name, SETTINGS, ', did you mean {}?')}")
        if "prompt" not in settings:
            raise UserError("a request in JSON needs a prompt")
        return cls(**{name: from_json(name, value) for name, value in settings.items()})


SETTINGS = {each.name: replace(each.metadata["row"], name=each.name) for each in fields(Request)}
DIFFUSERS = {row.diffusers: name for name, row in SETTINGS.items() if row.diffusers}      # their name → ours
DIFFUSED = {name: theirs for theirs, name in DIFFUSERS.items()}


def as_json(value: Any) -> Any:
    """A value as JSON has it; a picture in memory as {"png": its file in base64}"""
    if isinstance(value, tuple):
        return [as_json(each) for each in value]
    if value is None or isinstance(value, (str, int, float, dict)):
        return value
    import base64
    file = io.BytesIO()
    value.save(file, format="PNG")
    return {"png": base64.b64encode(file.getvalue()).decode("ascii")}


def from_json(name: str, value: Any) -> Any:
    """A setting's value from what `as_json` made of it; UserError for a picture that can't be read."""
    if isinstance(SETTINGS[name].kind, Listed) and isinstance(value, list):
        return tuple(from_json(name, each) for each in value)
    if is_picture(name) and isinstance(value, dict):
        import base64

        from npdiffusion.pictures.images import from_bytes
        try:
            content = base64.b64decode(value["png"], validate=True)
        except (KeyError, TypeError, ValueError):
            raise UserError(f"{name}: a picture in JSON is {{\"png\": base64}}") from None
        return from_bytes(content, name)
    return value


def is_picture(name: str) -> bool:
    """Whether a setting is a picture, or several"""
    kind = SETTINGS[name].kind
    return isinstance(kind.kind if isinstance(kind, Listed) else kind, Picture)


# ---- what goes together

IN_PYTHON = SimpleNamespace(**{name: name for name in SETTINGS})
ON_COMMAND_LINE = SimpleNamespace(**{name: row.option for name, row in SETTINGS.items()})


def several(request: Request, name: str) -> tuple:
    """The values of a setting that may be listed, or the customary one"""
    found = request.value(name)
    return found if isinstance(found, tuple) else (found,)


def _needs(row, option):
    return f"it says {row.says}, so {' or '.join(getattr(option, other) for other in row.needs)} is needed too"


def check_typed(request: Request, named: Collection[str]) -> None:
    """SettingError for settings without effect, where they were typed; named: those that were, by name"""
    for name, row in SETTINGS.items():
        there = getattr(request, name) not in (None, False)
        if there and row.needs and not any(getattr(request, other) not in (None, False) for other in row.needs):
            raise SettingError(name, functools.partial(_needs, row))
    for rule in RULES:
        if rule.typed and rule.broken(request):
            raise SettingError(rule.setting, functools.partial(rule.reason, request))
    if request.subseed_strength and request.subseed is None and "subseed" not in named:
        raise SettingError("subseed_strength", lambda option: "it says how much of another seed's noise is mixed in, so "
                           f"{option.subseed} is needed")
