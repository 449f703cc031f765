"""What `generate` is asked for: every setting, and a job made of them, checked before anything is computed.

    Request   the settings as they were given; None is whatever suits the model
    Job       what they come to for one model: a canvas, one or two passes over it, seeds, guidance
"""
import functools
import math
import numbers
import secrets
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from npdiffusion.diffusion import defaults, noise
from npdiffusion.diffusion.noise.seeds import LARGEST, SMALLEST
from npdiffusion.errors import UserError, nearest
from npdiffusion.memory import estimates, tiles
from npdiffusion.models.conditioning import guidance_embedding
from npdiffusion.painting import inpainting, outpainting
from npdiffusion.painting.canvas import Canvas, originals
from npdiffusion.painting.hires import STRENGTH, SecondPass
from npdiffusion.text.reading import check_syntax

LARGEST_SIDE = 8192          # pixels
DIFFUSERS = {"num_inference_steps": "steps", "num_images_per_prompt": "count", "image": "init_image"}      # theirs → ours
CUSTOMARY_STRENGTH = 0.75    # of image to image


@dataclass(frozen=True)
class Request:
    """Settings of pictures, by diffusers' names where it has one; four of them are shorter here, see DIFFUSERS.

    sampler, schedule   names in `samplers.SAMPLERS` and `schedules.KINDS`; None is the checkpoint's own
    steps               None is 50, or 4 for models that are made for few (see defaults.py)
    guidance_scale      s of ε_u + s (ε_c − ε_u), arXiv:2207.12598; up to 1 the negative prompt has no influence;
                        None is the checkpoint's own: 7.5 unless its model_index.json says otherwise
    seed                of the first picture, the others count on from it; None is a random one
    width, height       pixels, multiples of the VAE's reduction; None is the size the model was trained on, or, when
                        outpainting, that of the extended picture
    init_image          PIL image or path to start from; `strength` in (0, 1] is how far the picture may leave it;
                        None is 0.75, or 1 where a mask says what may be left
    count               how many pictures
    callback            called as callback(step, steps, latents) after each step, step from 1
    Sampling, see samplers/ and schedules/:
    rng                 whose noise a seed stands for: "torch" on the CPU, "a1111" (the web interface's), "numpy"
    subseed             noise that the seed's is mixed with, on an arc, by subseed_strength from 0 to 1; while that is
                        above 0 the sub-seeds count on instead of the seeds, as in AUTOMATIC1111's web interface
    eta                 of ddim and tcd: 0 is deterministic, 1 as random as ddpm and lcm
    guidance_rescale    φ of arXiv:2305.08891, from 0 to 1: takes back the contrast that a high guidance scale adds
    timestep_spacing, prediction_type, rescale_betas_zero_snr
                        as in diffusers' schedulers, in place of the checkpoint's own; see `NoiseSchedule`
    Words, see prompts/:
    clip_skip           how many of the text encoder's last layers are left out; None is 0
    prompt_syntax       "a1111": (weights:1.3), [editing:when], any length; "plain": at most 75 tokens
    Parts of init_image, see painting/:
    mask_image          PIL image or path: white is repainted, black is kept; invert_mask swaps them
    mask_blur           standard deviation of its feathering in pixels; None is 0, or 4 when outpainting
    padding_mask_crop   work on the mask and that many pixels around it, at width × height; None is the whole picture
    apply_overlay       put the original's pixels back where the mask is black; if not, the VAE has changed them a bit
    outpaint            "left=64,right=64" or {"left": 64, …}: extend the picture, and paint what is new
    Hires fix, for pictures from words alone:
    hires               a number above 1: enlarge by it and denoise again with `hires_steps` (None: as many as `steps`)
                        from `hires_strength`; hires_upscaler is "latent" (bilinear) or "lanczos" (as a picture)
    Decoding, see tiling.py and preview.py:
    vae_tiling          "on": the autoencoder takes the picture in overlapping tiles, which needs less memory and
                        changes it a little; "off"; "auto": where one piece would be too large
    preview             called as preview(step, steps, x0) after each step, with the denoised estimate of the latents;
                        `preview.Previews` makes pictures of it
    """
    prompt: str
    negative_prompt: str = ""
    steps: int | None = None
    guidance_scale: float | None = None
    sampler: str | None = None
    schedule: str | None = None
    seed: int | None = None
    width: int | None = None
    height: int | None = None
    init_image: Any = None
    strength: float | None = None
    count: int = 1
    callback: Callable | None = None
    rng: str = "torch"
    subseed: int | None = None
    subseed_strength: float = 0.0
    eta: float = 0.0
    guidance_rescale: float = 0.0
    timestep_spacing: str | None = None
    prediction_type: str | None = None
    rescale_betas_zero_snr: bool | None = None
    clip_skip: int | None = None
    prompt_syntax: str = "a1111"
    mask_image: Any = None
    mask_blur: float | None = None
    invert_mask: bool = False
    padding_mask_crop: int | None = None
    apply_overlay: bool = True
    outpaint: Any = None
    hires: float | None = None
    hires_strength: float = STRENGTH
    hires_steps: int | None = None
    hires_upscaler: str = "latent"
    vae_tiling: str = "auto"
    preview: Callable | None = None

    @classmethod
    def of(cls, given, more):
        """given: {name: value}; more: others, by our names or diffusers'. TypeError for a name that is unknown or twice."""
        known = [field.name for field in fields(cls)]
        settings = dict(given)
        for name, value in more.items():
            own = DIFFUSERS.get(name, name)
            if own not in known:
                hint = nearest(name, [*known, *DIFFUSERS], ", did you mean {}?")
                raise TypeError(f"generate has no setting {name!r}{hint}")
            if own != name and settings.get(own) not in (None, getattr(cls, own, None)):
                raise TypeError(f"{name} and {own} are the same setting")
            settings[own] = value
        return cls(**settings)


class Pass(NamedTuple):
    """One way from noise to latents; `start(latents, draw)` begins it, after the latents of the pass before."""
    canvas: Canvas
    plan: Any                # schedules.Plan
    steps: int               # that were asked for, by which prompts are scheduled
    start: Callable


class Job:
    """A request for the models of a pipeline; UserError for a value out of range or what doesn't go together.

    canvas, passes    what is painted on, and the one or two passes over it; `planned` steps altogether
    seeds, subseeds   of each picture; subseeds is None where they play no part
    guidance          the scale that is left to be applied, 1 if the model is told it by `timestep_cond` (1, D)
    tile              what the autoencoder works on at once, see memory/tiles.py; None for all of it
    """
    def __init__(self, request, pipeline):
        self.request, self.vae, self.unet = request, pipeline.vae, pipeline.unet
        whole("count", request.count, 1)
        pipeline.check_clip_skip(request.clip_skip)
        check_syntax(request.prompt_syntax)
        asked = pipeline.defaults(request.sampler)
        steps = asked.steps if request.steps is None else request.steps
        self.tell_guidance(asked.guidance_scale if request.guidance_scale is None else request.guidance_scale)
        number("guidance_rescale", request.guidance_rescale, 0, 1)
        self.canvas = self.prepare_canvas(pipeline.size)
        self.plan_passes(pipeline.schedule, steps)
        self.seeds, self.subseeds = all_seeds(request.seed, request.count, request.subseed, request.subseed_strength)
        self.make_room(pipeline.budget)
        self.draw(self.canvas)                               # an unknown rng is found here

    def tell_guidance(self, scale):
        """A model that guidance is distilled into is told the scale, and needs none."""
        number("guidance_scale", scale)
        size = self.unet.config.time_cond_proj_dim
        self.guidance = scale if size is None else 1
        self.timestep_cond = None if size is None else guidance_embedding(scale, size)

    def prepare_canvas(self, model_size):
        r, f = self.request, self.vae.config.reduction
        picture, mask = originals(r.init_image, r.mask_image, r.mask_blur, r.invert_mask, r.outpaint, f)
        width, height = outpainting.working_size(r, picture and picture.size, model_size, f)
        for name, value in (("width", width), ("height", height)):
            whole(name, value)
            if value % f or not f <= value <= LARGEST_SIDE:
                near = min(max(f, round(value / f) * f), LARGEST_SIDE)
                raise UserError(f"{name} is {value}: it must be a multiple of {f} up to {LARGEST_SIDE}, for example {near}")
        return Canvas(picture, mask, width, height, r.padding_mask_crop, r.apply_overlay)

    def plan_passes(self, schedule, steps):
        r, canvas = self.request, self.canvas
        strength = r.strength
        if strength is None:
            strength = CUSTOMARY_STRENGTH if canvas.mask is None else 1.0
        schedule = schedule.changed(timestep_spacing=r.timestep_spacing, prediction_type=r.prediction_type,
                                    rescale_betas_zero_snr=r.rescale_betas_zero_snr)
        make_plan = functools.partial(schedule.plan, r.sampler, kind=r.schedule, eta=r.eta)
        plan = make_plan(steps, strength=None if canvas.picture is None else strength)
        self.passes = [Pass(canvas, plan, steps, lambda latents, draw: inpainting.start(
            self.vae, self.unet, plan, canvas, strength, draw, self.tile))]
        if r.hires is not None:
            hires_steps = steps if r.hires_steps is None else r.hires_steps
            second = SecondPass(canvas, make_plan, self.vae.config.reduction, r.hires, r.hires_strength,
                                hires_steps, r.hires_upscaler)
            self.passes.append(Pass(second.canvas, second.plan, hires_steps, lambda latents, draw: second.start(
                self.vae, self.unet, latents, draw, self.tile)))
        self.planned = sum(len(each.plan) for each in self.passes)

    def make_room(self, budget):
        """Choose the autoencoder's tiles; UserError if the pictures don't fit into memory, or into a `budget.Budget`."""
        (width, height), count, config = self.passes[-1].canvas.size, self.request.count, self.vae.config
        self.tile = (budget or tiles).choose(config, width, height, self.request.vae_tiling)
        maps = max(estimates.picture(config, width, height, self.tile),
                   estimates.step(self.unet.config, width // config.reduction, height // config.reduction,
                               count if self.guidance <= 1 else 2 * count))
        for each in filter(None, (budget, estimates)):
            each.require(maps, f"{count} × {width}×{height} pixels")

    def draw(self, canvas):
        """The noise of the seeds, from its beginning, for latents of a canvas → noise.LatentNoise"""
        width, height = (side // self.vae.config.reduction for side in canvas.size)
        return noise.latent_noise(self.request.rng, self.seeds, height, width, self.vae.config.latent_channels,
                                  self.subseeds, self.request.subseed_strength)

    def finish(self, images):
        """Decoded pictures → the results, each with its seed in `info`"""
        images = [self.canvas.finish(image) for image in images]
        for image, seed, subseed in zip(images, self.seeds, self.subseeds or [None] * len(images)):
            image.info |= {"seed": seed} if subseed is None else {"seed": seed, "subseed": subseed}
        return images


def number(name, value, low=-math.inf, high=math.inf):
    """UserError unless value is a finite number from low to high."""
    if not isinstance(value, numbers.Real) or not math.isfinite(value) or not low <= value <= high:
        wanted = f"from {low} to {high}" if math.isfinite(low) else "for example 7.5"
        raise UserError(f"{name} is {value}: it must be a finite number, {wanted}")


def whole(name, value, low=-math.inf):
    """UserError unless value is a whole number, not below `low`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < low:
        raise UserError(f"{name} is {value!r}: it must be a whole number" + (f" from {low} on" if low > -math.inf else ""))


def all_seeds(seed, count, subseed, strength):
    """A seed for each picture, counting on from the first, and sub-seeds, or None; random first ones for None.

    With a variation strength the sub-seeds count on, and the seed is the same for all.
    """
    number("subseed_strength", strength, 0, 1)
    counting = "subseed" if strength else "seed"
    for name, given in (("seed", seed), ("subseed", subseed)):
        if given is None:
            continue
        if not isinstance(given, numbers.Integral):
            raise UserError(f"{name} is {given!r}: it must be a whole number")
        more = count - 1 if name == counting else 0
        if not SMALLEST <= given <= LARGEST - more:
            pictures = f" for {count} pictures" if more else ""
            raise UserError(f"{name} is {given}: it must be from {SMALLEST} to {LARGEST - more}{pictures}")
    first, other = (secrets.randbelow(2**32) if given is None else int(given) for given in (seed, subseed))
    if strength == 0:
        return range(first, first + count), None
    return [first] * count, range(other, other + count)
