"""The settings of a checkpoint's scheduler_config.json, under diffusers' names, checked; and the plan made from them.

    plan = NoiseSchedule.from_config(config).plan("dpm++2m", steps=25)
    for x in plan.sample(Denoiser(predict, plan), plan.start(noise()), noise): ...
"""
import math
from dataclasses import dataclass, fields
from functools import cached_property
from numbers import Integral, Real

import numpy as np

from npdiffusion import samplers
from npdiffusion.errors import UserError
from npdiffusion.schedules import betas, levels
from npdiffusion.schedules.plan import Plan

KINDS = ("discrete", "karras")
SPACINGS = ("linspace", "leading", "trailing")
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")

CLASSES = {                                                  # diffusers' class in scheduler_config.json → our name
    "DDPMScheduler": "ddpm", "DDIMScheduler": "ddim", "PNDMScheduler": "pndm", "EulerDiscreteScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "euler_a", "HeunDiscreteScheduler": "heun",
    "DPMSolverMultistepScheduler": "dpm++2m",
}
FILE_DEFAULTS = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}      # diffusers', for a silent file
ONLY = {                                                     # each changes the picture; another value is an error
    "rescale_betas_zero_snr": False, "thresholding": False, "use_exponential_sigmas": False, "use_beta_sigmas": False,
    "use_lu_lambdas": False, "use_flow_sigmas": False, "final_sigmas_type": "zero", "interpolation_type": "linear",
    "timestep_type": "discrete",
}


@dataclass(frozen=True)
class NoiseSchedule:
    """The settings of a checkpoint's scheduler_config.json; the defaults are those of Stable Diffusion v1.

    None stands for what diffusers takes by default, which depends on the sampler. UserError for a value without sense.
    """
    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "scaled_linear"                     # √β grows linearly, or β ("linear")
    trained_betas: tuple | None = None
    prediction_type: str = "epsilon"
    timestep_spacing: str | None = None
    steps_offset: int = 1                                    # of leading spacing
    set_alpha_to_one: bool | None = None                     # ᾱ after the last step: 1, or else ᾱ₀
    skip_prk_steps: bool = True
    use_karras_sigmas: bool = False
    class_name: str = "PNDMScheduler"

    @classmethod
    def from_config(cls, config, source="scheduler_config.json"):
        """config: the file's dictionary. Raises UserError naming `source` and the field that can't be used."""
        if not isinstance(config, dict):
            raise UserError(f"{source}: it must hold an object of settings, not a {type(config).__name__}")
        known = {field.name: config[field.name] for field in fields(cls) if config.get(field.name) is not None}
        try:
            for field, only in ONLY.items():
                _need(config.get(field) in (only, None), field, config.get(field), repr(only))
            return cls(**FILE_DEFAULTS | known | {"class_name": str(config.get("_class_name") or "PNDMScheduler")})
        except UserError as error:
            raise UserError(f"{source}: {error}") from None

    def __post_init__(self):
        T = self.num_train_timesteps
        _need(_is(T, Integral) and 1 <= T <= 100_000, "num_train_timesteps", T, "a whole number from 1 to 100000")
        _need(_is(self.steps_offset, Integral) and 0 <= self.steps_offset < T, "steps_offset", self.steps_offset,
              f"a whole number from 0 to {T - 1}")
        _need(self.prediction_type in PREDICTION_TYPES, "prediction_type", self.prediction_type,
              " or ".join(PREDICTION_TYPES))
        _need(self.timestep_spacing in (*SPACINGS, None), "timestep_spacing", self.timestep_spacing,
              " or ".join(SPACINGS))
        for field in ("set_alpha_to_one", "skip_prk_steps", "use_karras_sigmas"):
            _need(getattr(self, field) in (True, False, None), field, getattr(self, field), "true or false")
        if self.trained_betas is not None:
            given = self.trained_betas
            right = isinstance(given, (tuple, list)) and all(_is(b, Real) and 1e-8 < b < 1 for b in given)
            _need(right and len(given) == T, "trained_betas", "something else", f"{T} numbers between 1e-8 and 1")
            object.__setattr__(self, "trained_betas", tuple(given))          # frozen, and so hashable
        else:
            for field in ("beta_start", "beta_end"):
                value = getattr(self, field)
                _need(_is(value, Real) and 1e-8 < value < 1, field, value, "a number between 1e-8 and 1")
            _need(self.beta_schedule in betas.BETA_SCHEDULES, "beta_schedule", self.beta_schedule,
                  " or ".join(betas.BETA_SCHEDULES))
        _need(self.alphas_cumprod[-1] > 1e-8, "the last of alphas_cumprod", float(self.alphas_cumprod[-1]),
              "above 1e-8, so that a trace of the picture is left: smaller betas")

    @cached_property
    def alphas_cumprod(self):                                # (T,) float64
        if self.trained_betas is not None:
            return betas.alphas_cumprod(np.array(self.trained_betas, np.float64))
        return betas.alphas_cumprod(betas.betas(self.beta_schedule, self.beta_start, self.beta_end, self.num_train_timesteps))

    @cached_property
    def sigmas(self):                                        # (T,) float64, ascending
        return np.sqrt((1 - self.alphas_cumprod) / self.alphas_cumprod)

    @property
    def default_sampler(self):
        """The name of the sampler that the checkpoint was saved with. Raises UserError if it isn't among ours."""
        if self.class_name not in CLASSES:
            raise UserError(f"the checkpoint's own sampler, {self.class_name}, isn't offered here: "
                            f"name one of {', '.join(samplers.SAMPLERS)}")
        return CLASSES[self.class_name]

    def default_kind(self, sampler):
        """"karras" if the checkpoint's file asks for it and the sampler of that name can, else "discrete"."""
        return "karras" if self.use_karras_sigmas and samplers.find(sampler).karras else "discrete"

    def plan(self, sampler=None, steps=50, kind=None, strength=None, eta=0.0):
        """The noise levels that `sampler` visits in `steps` steps.

        sampler   a name in samplers.SAMPLERS; None is the checkpoint's own
        kind      "discrete": evenly spaced time steps; "karras": σ by equation 5 of arXiv:2206.00364; None: the file's
        strength  for image to image, in (0, 1]: only the last int(steps · strength) steps are walked
        eta       of ddim: 0 is deterministic, 1 as random as ddpm
        Raises UserError for an unknown sampler or kind, and for numbers out of range.
        """
        name = self.default_sampler if sampler is None else sampler
        method = samplers.find(name)
        if kind is None:
            kind = self.default_kind(name)
        if kind not in KINDS:
            raise UserError(f"unknown schedule {kind!r}: known are {', '.join(KINDS)}")
        if kind == "karras" and not method.karras:
            offered = ", ".join(name for name, other in samplers.SAMPLERS.items() if other.karras)
            raise UserError(f"{name} walks over the time steps of the training: the karras schedule is for {offered}")
        if not (_is(steps, Integral) and 1 <= steps <= self.num_train_timesteps):
            raise UserError(f"steps is {steps}: it must be a whole number from 1 to {self.num_train_timesteps}")
        if not (_is(eta, Real) and 0 <= eta <= 1):
            raise UserError(f"eta is {eta}: it must be a number from 0 to 1")

        count = steps if strength is None else _last_steps(steps, strength)
        spacing = self.timestep_spacing or method.spacing
        walk, visited, scale = levels.RULES[method.levels](self, steps, steps - count, spacing, kind)
        options = {"eta": float(eta)} if name == "ddim" else {}
        if name == "pndm":
            options["velocity"] = self.prediction_type == "v_prediction"
        return Plan(method, walk, visited, scale, count, self.prediction_type, options)


def _last_steps(steps, strength):
    if not (_is(strength, Real) and 0 < strength <= 1):
        raise UserError(f"strength is {strength}: it must be a number above 0 and up to 1")
    if int(steps * strength) == 0:
        raise UserError(f"strength {strength} of {steps} steps leaves no step: raise one of them")
    return int(steps * strength)


def _is(value, kind):
    """A finite number of that kind; True and False are none."""
    number = isinstance(value, kind) and not isinstance(value, bool)
    return number and (isinstance(value, Integral) or math.isfinite(value))


def _need(fine, field, value, wanted):
    if not fine:
        raise UserError(f"{field} is {value!r}: it must be {wanted}")
