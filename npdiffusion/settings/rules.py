"""Which settings don't go together (RULES), and which have no effect (NO_EFFECT)."""
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from npdiffusion.diffusion import samplers
from npdiffusion.settings.kinds import LARGEST_SEED

STEPS = 50                            # where none are asked for and the model isn't made for few


@dataclass(frozen=True)
class Rule:
    """What settings may not be together.

    broken   from a request to whether they are
    reason   from a request and the names of settings to a text about it
    typed    it holds on the command line and in files, where a setting without effect is a mistake; a program may leave one
             in place
    """
    setting: str
    broken: Callable
    reason: Callable
    typed: bool = False


def highest_seed(request: Any) -> int:
    """The largest seed from which one can count on for all pictures."""
    return LARGEST_SEED - request.count + 1


RULES = (
    Rule("hires", lambda r: r.hires is not None and r.init_image is not None, lambda r, option: "it is for pictures made from "
         f"words alone; with {option.init_image}, choose a larger {option.width} and {option.height}"),
    Rule("apply_overlay", lambda r: r.padding_mask_crop is not None and not r.apply_overlay, lambda r, option:
         f"a part can't be painted without pasting it into the original, so not with {option.padding_mask_crop}"),
    Rule("t2i_image", lambda r: r.t2i_image is not None and r.padding_mask_crop is not None, lambda r, option:
         f"a T2I-Adapter leads the whole picture, so not with {option.padding_mask_crop}"),
    Rule("strength", lambda r: r.init_image is not None and int((r.steps or STEPS) * r.strength_used) == 0, lambda r, option:
         f"{r.strength_used:g} of {r.steps or STEPS} steps leaves no step, raise one of them"),
    Rule("timesteps", lambda r: r.timesteps is not None and r.steps not in (None, len(r.timesteps)), lambda r, option:
         f"they are {len(r.timesteps)}, so {option.steps} can't be {r.steps}"),
    Rule("schedule", lambda r: r.sampler and r.schedule and r.schedule not in samplers.SAMPLERS[r.sampler].schedules,
         lambda r, option: samplers.why_not(r.sampler, r.schedule)),
    *(Rule(name, lambda r, name=name: r.counting == name and (getattr(r, name) or 0) > highest_seed(r), lambda r, option:
           f"with {r.count} pictures it can be at most {highest_seed(r)}") for name in ("seed", "subseed")),
    Rule("subseed", lambda r: r.subseed is not None and r.subseed_strength is None, lambda r, option:
         f"it has no influence without {option.subseed_strength}, for example 0.1", typed=True),
)


# Settings without effect: which, from what a picture comes to (`request.Resolved`) to whether it is so, and to why.
NO_EFFECT = (
    ("eta", lambda v: not samplers.SAMPLERS[v.sampler].takes_eta, lambda v, option: f"with {v.sampler}"),
    ("negative_prompt", lambda v: v.guidance_scale <= 1,
     lambda v, option: f"with {option.guidance_scale} {v.guidance_scale:g}"),
    ("guidance_rescale", lambda v: v.guidance_scale <= 1,
     lambda v, option: f"with {option.guidance_scale} {v.guidance_scale:g}"),
    ("subseed", lambda v: not v.request.subseed_strength, lambda v, option: f"with {option.subseed_strength} 0"),
    ("timestep_spacing", lambda v: v.schedule == "sgm_uniform", lambda v, option: f"with {option.schedule} sgm_uniform"),
    *((name, lambda v: not v.family.added, lambda v, option: f"with {v.family.name}") for name in (
        "prompt_2", "negative_prompt_2", "original_size", "crops_coords_top_left", "target_size")),
    *((name, lambda v: not v.scored, lambda v, option: "without XL's refiner")
      for name in ("aesthetic_score", "negative_aesthetic_score")),
    ("refiner_at", lambda v: v.request.refiner_at != 1 and v.passes[-1].refining is None,
     lambda v, option: f"with {v.steps} steps: none is left for the refiner"),
    ("apply_overlay", lambda v: v.request.mask_image is None and v.request.outpaint is None,
     lambda v, option: f"without {option.mask_image} or {option.outpaint}"),
)
