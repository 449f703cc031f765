"""What a request comes to for one model: `resolve(request, model) → Resolved`, before anything is computed.

    Request    settings as they were given, None for a choice that is left to the model      settings/
    Resolved   those choices made: canvas, one or two passes over it, seeds, guidance, notes

Whoever needs to know what a picture will be reads a `Resolved`: the pipeline that makes it, the command that announces
it, the text inside its file, the manifest of a long run.
"""
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from npdiffusion.adapters import image_prompts
from npdiffusion.checkpoints.families import Family
from npdiffusion.diffusion import noise
from npdiffusion.errors import UserError
from npdiffusion.given import NOTHING, Given
from npdiffusion.memory import estimates, tiles
from npdiffusion.models.conditioning import guidance_embedding
from npdiffusion.painting import canvas as canvases
from npdiffusion.painting import control, outpainting, refining
from npdiffusion.painting.canvas import Canvas
from npdiffusion.painting.hires import SecondPass, enlarged, second_pass
from npdiffusion.painting.inpainting import FirstPass
from npdiffusion.pictures.images import to_images
from npdiffusion.settings import LARGEST_SIDE, NO_EFFECT, Request, several

Size = tuple[int, int]                           # (width, height) in pixels


@dataclass(frozen=True)
class Resolved:
    """What a request comes to for a model. Settings without influence on this model's picture keep their values.

    size          (width, height) of the first pass in pixels
    strength      how far the picture may leave the one it starts from, or None where it starts from none
    guidance      the scale left to be applied: 1 where `timestep_cond` (1, D) gives the scale to the model instead
    seeds         of each picture; `subseeds` likewise, or None where they play no part
    passes        one, or two with hires fix; a refiner takes over in the last one
    tile          side of the tiles in pixels that the autoencoder works in, or None for whole pictures
    families      the rows in checkpoints/families.py of the model, and of its refiner if it has one
    given         latents, states and the like from Python that no request holds, see given.py
    reason        why steps and guidance scale are not the customary ones, where the model decided so; else None
    """
    request: Request
    steps: int
    sampler: str
    schedule: str
    guidance_scale: float
    size: tuple[int, int]
    strength: float | None
    timestep_spacing: str | None
    mask_blur: float | None
    guidance: float
    timestep_cond: np.ndarray | None
    seeds: tuple[int, ...]
    subseeds: tuple[int, ...] | None
    passes: tuple[FirstPass | SecondPass, ...]
    tile: int | None
    families: tuple[Family, ...]
    reason: str | None
    given: Given = NOTHING

    @property
    def planned(self) -> int:
        """Steps of all passes."""
        return sum(refining.states(way) for way in self.passes)

    @property
    def family(self) -> Family:
        """The model's row in checkpoints/families.py."""
        return self.families[0]

    @property
    def scored(self) -> bool:
        """Whether a model is told how beautiful the picture is."""
        return any("aesthetic_score" in family.added for family in self.families)

    @property
    def canvas(self) -> Canvas:
        """The one that the result is finished on."""
        return self.passes[0].canvas

    def settings(self) -> dict[str, Any]:
        """{name: value} of what the picture's text and a manifest say of it, the model's choices included."""
        r = self.request
        found = dict(
            steps=self.steps, sampler=self.sampler, guidance_scale=self.guidance_scale, seed=self.seeds[0], rng=r.rng,
            schedule=self.schedule, eta=r.eta or None, guidance_rescale=r.guidance_rescale or None,
            subseed=self.subseeds[0] if self.subseeds else r.subseed, subseed_strength=r.subseed_strength or None,
            timestep_spacing=self.timestep_spacing, timesteps=r.timesteps, prediction_type=r.prediction_type,
            rescale_betas_zero_snr=r.rescale_betas_zero_snr or None, width=self.size[0], height=self.size[1],
            clip_skip=r.clip_skip, strength=self.strength, prompt_syntax=r.prompt_syntax, mask_blur=self.mask_blur,
            invert_mask=r.invert_mask or None, padding_mask_crop=r.padding_mask_crop, outpaint=r.outpaint, hires=r.hires,
            hires_steps=r.hires_steps)
        if r.control_image is not None:
            found |= {name: several(r, name) for name in control.OF_EACH}
            found["guess_mode"] = r.guess_mode or None
            found["control_from"] = r.control_from
        if r.ip_image is not None:
            found["ip_scale"] = several(r, "ip_scale")
        if r.t2i_image is not None:
            found |= {name: r.value(name) for name in ("t2i_scale", "t2i_end")}
        found["refiner_at"] = None if self.passes[-1].refining is None else r.value("refiner_at")
        if self.family.added:
            found |= {name: getattr(r, name) for name in (
                "prompt_2", "negative_prompt_2", "original_size", "crops_coords_top_left", "target_size")}
        if self.scored:
            found |= {name: getattr(r, name) for name in ("aesthetic_score", "negative_aesthetic_score")}
        if r.hires is not None:
            found |= {name: r.value(name) for name in ("hires_strength", "hires_upscaler")}
        return {name: value for name, value in found.items() if value is not None}

    def notes(self, option: Any, named: Collection[str] | None = None) -> Iterator[str]:
        """A line about each setting that was given but has no effect.

        option: how settings are called, settings.IN_PYTHON or settings.ON_COMMAND_LINE
        named: those that are meant, if not all that differ from their defaults
        """
        given = self.request.given() if named is None else named
        for name, so, why in NO_EFFECT:
            if name in given and so(self):
                yield f"{getattr(option, name)} has no effect {why(self, option)}"

    def sizes(self, size: Size, family: Family) -> list[np.ndarray] | None:
        """The sizes that XL, or its refiner, is told of a picture of size (width, height): two arrays (D,), for the prompt and
        the negative one, or None with other families"""
        own, r = size[::-1], self.request
        told = {"original_size": r.original_size or own, "crops_coords_top_left": r.crops_coords_top_left or (0, 0),
                "target_size": r.target_size or own, "aesthetic_score": (r.value("aesthetic_score"),)}
        said = [np.array([number for name in family.added for number in (told | other)[name]], np.float32)
                for other in ({}, {"aesthetic_score": (r.value("negative_aesthetic_score"),)})]
        return said if family.added else None

    def noise_for(self, canvas: Canvas, vae: Any) -> noise.LatentNoise:
        """The noise of the seeds, from its beginning, for latents of a canvas → noise.LatentNoise"""
        width, height = (side // vae.config.reduction for side in canvas.size)
        first = self.given.latents if canvas is self.canvas else None
        return noise.latent_noise(self.request.rng, self.seeds, height, width, vae.config.latent_channels, self.subseeds,
                                  self.request.value("subseed_strength"), first)

    def finish(self, decoded: Iterable[np.ndarray]) -> list[Image.Image] | np.ndarray:
        """Decoded pictures, (1, H, W, 3) in [−1, 1] one by one → the results, each with its seed in `info`; or, where those
        are asked for, arrays in [0, 1]"""
        if self.given.output_type == "np":
            return np.concatenate([np.clip(picture / 2 + 0.5, 0, 1) for picture in decoded])
        images = [self.canvas.finish(to_images(picture)[0]) for picture in decoded]
        for image, seed, subseed in zip(images, self.seeds, self.subseeds or [None] * len(images)):
            image.info |= {"seed": seed} if subseed is None else {"seed": seed, "subseed": subseed}
        return images


def resolve(request: Request, model: Any, inputs: Any = None, given: Given = NOTHING) -> Resolved:
    """Request → Resolved, for a model: a pipeline, of which configurations, schedule, defaults and budget are looked at.

    inputs: what `painting.canvas.open_inputs` makes of the request, if it has been called before
    given: what `generate` was given beside it
    Raises UserError for what this model can't make, or what there is no memory for.
    """
    unet, f = model.unet.config, model.vae.config.reduction
    check_clip_skip(request.clip_skip, model.text_encoder.config.num_hidden_layers)
    sampler = request.sampler or model.default_sampler
    asked = model.defaults(request.sampler)
    steps = len(request.timesteps or ()) or (asked.steps if request.steps is None else request.steps)
    scale = asked.guidance_scale if request.guidance_scale is None else request.guidance_scale
    embedded = unet.time_cond_proj_dim                       # width of the scale's embedding where guidance is distilled in

    control.check(request, len(model.controlnets))
    for name, what, does in (("ip", "an IP-Adapter", "reads"), ("t2i", "a T2I-Adapter", "is led by")):
        if (getattr(request, f"{name}_image") is None) != (getattr(model, f"{name}_adapter") is None):
            raise UserError(f"{what} and the picture that it {does} go together: name the one that is missing (in Python "
                            f"load_{name}_adapter, {name}_image; on the command line --{name}-adapter, --{name}-image)")
    image_prompts.check(request, len(model.ip_adapter.adapters) if model.ip_adapter else 0)
    if model.refiner is None and request.refiner_at is not None:
        raise UserError("refiner_at says when a refiner takes over, and there is none: name it (in Python load(refiner=…), on "
                        "the command line --refiner)")
    if model.refiner is not None and any(each is not None for each in given.embeds):
        raise UserError("prompt_embeds: a refiner has a text encoder of its own, so say it in words")
    picture, mask = canvases.originals(request, inputs, f)
    size = outpainting.working_size(request, picture and picture.size, model.size, f)
    width, height = size
    check_size(width, height, f)
    if given.latents is not None and given.latents.shape[1:3] != (height // f, width // f):
        rows, columns = given.latents.shape[1:3]
        raise UserError(f"latents are for a picture of {columns * f}x{rows * f} pixels, asked for are {width}x{height}")
    canvas = Canvas(picture, mask, width, height, request.padding_mask_crop, request.apply_overlay)
    strength = None if picture is None else request.strength_used

    # Only trailing spacing visits the very last time step, which such noise is made for.
    spacing = request.timestep_spacing or ("trailing" if request.rescale_betas_zero_snr else None)
    schedule = model.schedule.changed(timestep_spacing=spacing, timesteps=request.timesteps,
                                      prediction_type=request.prediction_type,
                                      rescale_betas_zero_snr=request.rescale_betas_zero_snr)

    def make_plans(steps, strength, refined=model.refiner is not None):
        asked = dict(strength=strength, kind=request.schedule, eta=request.value("eta"))
        if not refined:
            return schedule.plan(sampler, steps, **asked), None
        return refining.plans(schedule, model.refiner.schedule, request.value("refiner_at"), sampler, steps, **asked)

    plan, late = make_plans(steps, strength, request.hires is None and model.refiner is not None)
    passes = [FirstPass(canvas, plan, steps, strength, late)]
    if request.hires is not None:
        passes.append(second_pass(request, canvas, make_plans, f, steps))

    guidance = scale if embedded is None else 1.0
    seeds, subseeds = request.seeds()
    seeds = given.seeds or seeds
    return Resolved(
        request, steps, sampler, request.schedule or schedule.default_kind(sampler), scale, size, strength, spacing,
        outpainting.CUSTOMARY_BLUR if request.outpaint and request.mask_blur is None else request.mask_blur, guidance,
        None if embedded is None else guidance_embedding(scale, embedded), seeds, subseeds, tuple(passes),
        tile_for(model, request, guidance, passes[-1].canvas.size),
        tuple(each.family for each in (model, model.refiner) if each), asked.reason, given)


def check_size(width: int, height: int, reduction: int) -> None:
    """UserError unless both are multiples of the autoencoder's reduction, and not too large."""
    for name, value in (("width", width), ("height", height)):
        if value % reduction or not reduction <= value <= LARGEST_SIDE:
            near = min(max(reduction, round(value / reduction) * reduction), LARGEST_SIDE)
            raise UserError(f"{name} is {value}: it must be a multiple of {reduction} up to {LARGEST_SIDE}, "
                            f"for example {near}")


def check_clip_skip(clip_skip: int | None, layers: int) -> None:
    """UserError unless a text encoder of so many layers can leave so many out."""
    if clip_skip is not None and clip_skip >= layers:
        raise UserError(f"clip_skip is {clip_skip!r}: of this text encoder's {layers} layers, 0 to {layers - 1} can be "
                        "left out")


def largest_size(request: Request, trained: Size, reduction: int) -> Size:
    """(width, height) of the largest pass over a picture; trained: of those that the model knows"""
    picture = canvases.open_inputs(request).picture if request.outpaint else None
    size = outpainting.working_size(request, picture and extended_size(request, picture.size), trained, reduction)
    return enlarged(size, request.hires, reduction) if request.hires else size


def extended_size(request: Request, size: Size) -> Size:
    """(width, height) of the picture that is painted on, extended if that is asked for"""
    if request.outpaint is None:
        return size
    return outpainting.extended(size, **outpainting.read_sides(request.outpaint, 8, LARGEST_SIDE))


def tile_for(model: Any, request: Request, guidance: float, size: Size) -> int | None:
    """The autoencoder's tiles; UserError if the pictures don't fit into memory, or into a `memory.budget.Budget`."""
    (width, height), count, config, budget = size, request.count, model.vae.config, model.budget
    tile = (budget or tiles).choose(config, width, height, request.vae_tiling)
    together = count if guidance <= 1 else 2 * count
    latent = width // config.reduction, height // config.reduction, together
    maps = max(estimates.step(each.unet.config, *latent) for each in filter(None, (model, model.refiner)))
    maps = max(maps + estimates.control(model.unet.config, *latent) * bool(model.controlnets),
               estimates.picture(config, width, height, tile))
    for each in filter(None, (budget, estimates)):
        each.require(maps, f"{count} × {width}×{height} pixels")
    return tile
