"""The settings of a checkpoint's scheduler_config.json, under diffusers' names, checked; and the plan made from them.

    plan = NoiseSchedule.from_config(config).plan("dpm++2m", steps=25)
    for x, x0 in plan.sample(Denoiser(predict, plan), plan.start(noise()), noise): ...
"""
import math
import os
from dataclasses import dataclass, fields, replace
from functools import cached_property
from numbers import Integral, Real
from typing import Any

import numpy as np

from npdiffusion.diffusion import samplers
from npdiffusion.diffusion.schedules import betas, levels, scheduler_file
from npdiffusion.diffusion.schedules.plan import Plan
from npdiffusion.errors import UserError
from npdiffusion.settings import PREDICTION_TYPES, SPACINGS

KINDS = tuple(samplers.SCHEDULES)

USED_BY = {"use_karras_sigmas": "karras", "use_exponential_sigmas": "exponential", "use_beta_sigmas": "beta"}
FEW_STEPS = 15                                               # where the last step of deis is of first order
LEAST_ALPHA = 2.0**-24                                       # for ᾱ = 0 where one divides by it, as in diffusers


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
    timesteps: tuple[int, ...] | None = None                 # themselves, descending, in place of a number and a spacing
    steps_offset: int = 1                                    # of leading spacing
    set_alpha_to_one: bool | None = None                     # ᾱ after the last step: 1, or else ᾱ₀
    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    use_beta_sigmas: bool = False
    rescale_betas_zero_snr: bool = False                     # nothing of the picture is left at the last time step
    original_inference_steps: int = 50                       # of lcm and tcd: time steps of the distillation
    timestep_scaling: float = 10.0                           # of lcm
    # The checkpoint's own sampler, see scheduler_file.read_scheduler:
    class_name: str = "PNDMScheduler"
    own_sampler: str | None = "pndm"
    variant: str = ""
    ignored: tuple = ()

    @classmethod
    def from_config(cls, config: dict[str, Any], source: str | os.PathLike[str] = "scheduler_config.json",
                    pipeline: str | None = None) -> "NoiseSchedule":
        """The settings of a file, with what diffusers' pipelines correct in old ones, see scheduler_file.py

        config: the file's dictionary; pipeline: the class in the model_index.json beside it, or None
        Raises UserError naming `source` and the field that can't be used.
        """
        if not isinstance(config, dict):
            raise UserError(f"{source}: it must hold an object of settings, not a {type(config).__name__}")
        settings = scheduler_file.read_scheduler(config, pipeline)
        try:
            return cls(**{field.name: settings[field.name] for field in fields(cls) if field.name in settings})
        except UserError as error:
            raise UserError(f"{source}: {error}") from None

    def changed(self, **settings: Any) -> "NoiseSchedule":
        """The same but for these fields; None leaves a field as it is. UserError for a value without sense."""
        given = {name: value for name, value in settings.items() if value is not None}
        ignored = tuple(name for name in self.ignored if name not in given)
        return replace(self, **given, ignored=ignored) if given else self

    def of(self, sampler: str) -> "NoiseSchedule":
        """The settings for the sampler of that name; the checkpoint's own ignores those that its class lacks."""
        if sampler != self.own_sampler or not self.ignored:
            return self
        unset: dict[str, Any] = dict.fromkeys(self.ignored, False)
        return replace(self, **unset, ignored=())

    def __post_init__(self):
        T = self.num_train_timesteps
        _need(_is(T, Integral) and 1 <= T <= 100_000, "num_train_timesteps", T, "a whole number from 1 to 100000")
        _need(_is(self.steps_offset, Integral) and 0 <= self.steps_offset <= T, "steps_offset", self.steps_offset,
              f"a whole number from 0 to {T}")
        _need(self.prediction_type in PREDICTION_TYPES, "prediction_type", self.prediction_type,
              " or ".join(PREDICTION_TYPES))
        _need(self.timestep_spacing in (*SPACINGS, None), "timestep_spacing", self.timestep_spacing,
              " or ".join(SPACINGS))
        distilled = self.original_inference_steps
        _need(_is(distilled, Integral) and distilled >= 1, "original_inference_steps", distilled,
              "a whole number from 1 on")
        _need(_is(self.timestep_scaling, Real) and self.timestep_scaling > 0, "timestep_scaling", self.timestep_scaling,
              "a number above 0")
        for field in ("set_alpha_to_one", "rescale_betas_zero_snr", *USED_BY):
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
        last = float(self._trained_alphas_cumprod[-1])
        _need(last > 1e-8, "the last of alphas_cumprod", last,
              "above 1e-8, so that a trace of the picture is left: smaller betas")

    @cached_property
    def _trained_alphas_cumprod(self):                       # (T,) float64, before it is rescaled
        if self.trained_betas is not None:
            return betas.alphas_cumprod(np.array(self.trained_betas, np.float64))
        return betas.alphas_cumprod(
            betas.betas(self.beta_schedule, self.beta_start, self.beta_end, self.num_train_timesteps))

    @cached_property
    def alphas_cumprod(self) -> np.ndarray:  # (T,) float64; the last is 0 with zero terminal SNR
        abars = self._trained_alphas_cumprod
        return betas.zero_terminal_snr(abars) if self.rescale_betas_zero_snr else abars

    @cached_property
    def sigmas(self) -> np.ndarray:  # (T,) float64, ascending
        abars = self.above_zero(self.alphas_cumprod)
        return np.sqrt((1 - abars) / abars)

    @staticmethod
    def above_zero(alpha_cumprod: np.ndarray | float) -> np.ndarray:
        """ᾱ, or the least that may be divided by"""
        return np.maximum(alpha_cumprod, LEAST_ALPHA)

    @property
    def default_sampler(self) -> str:
        """The name of the sampler that the checkpoint was saved with. Raises UserError if it isn't among ours."""
        if self.own_sampler is None or self.variant:
            raise UserError(f"the checkpoint's own sampler, {self.class_name}{self.variant}, isn't offered here: "
                            f"name one of {', '.join(samplers.SAMPLERS)}")
        return self.own_sampler

    def default_kind(self, sampler: str) -> str:
        """The kind of σ that the checkpoint's file asks for if the sampler of that name can, else "discrete"."""
        used = self.of(sampler)
        asked = next((kind for field, kind in USED_BY.items() if getattr(used, field)), "discrete")
        return asked if asked in samplers.find_sampler(sampler).schedules else "discrete"

    def plan(self, sampler: str | None = None, steps: int = 50, kind: str | None = None, strength: float | None = None,
             eta: float = 0.0, above: float | None = None, below: float | None = None) -> Plan:
        """The noise levels that `sampler` visits in `steps` steps.

        sampler   a name in samplers.SAMPLERS; None is the checkpoint's own
        kind      a name in samplers.SCHEDULES; None is the file's
        strength  for image to image, in (0, 1]: only the last int(steps · strength) steps are walked
        eta       of ddim and tcd: 0 is deterministic, 1 as random as ddpm and lcm
        above     a time step: the run ends where the model would be called below it (diffusers' denoising_end)
        below     likewise, only what comes below it is walked (denoising_start); of either nothing may be left
        Raises UserError for an unknown sampler or kind, and for numbers out of range.
        """
        name = self.default_sampler if sampler is None else sampler
        used = self.of(name)
        method = samplers.find_sampler(name)
        kind = self.default_kind(name) if kind is None else samplers.find_schedule(kind)
        samplers.check_pair(name, kind)
        if not (_is(steps, Integral) and 1 <= steps <= self.num_train_timesteps):
            raise UserError(f"steps is {steps}: it must be a whole number from 1 to {self.num_train_timesteps}")
        if not (_is(eta, Real) and 0 <= eta <= 1):
            raise UserError(f"eta is {eta}: it must be a number from 0 to 1")

        if self.timesteps is not None:
            if method.levels not in levels.TAKE_TIMESTEPS or kind != "discrete":
                raise UserError(f"timesteps: {name} lays out its own; take lcm, tcd, or one over σ, such as euler, with evenly "
                                "spaced steps")
            if len(self.timesteps) != steps or self.timesteps[0] >= self.num_train_timesteps:
                raise UserError(f"timesteps: {len(self.timesteps)} from {self.timesteps[0]} on are given, for {steps} steps of "
                                f"the training's {self.num_train_timesteps}")
        count = steps if strength is None else _last_steps(steps, strength)
        spacing = "trailing" if kind == "sgm_uniform" else self.timestep_spacing or method.spacing
        options = {"eta": float(eta), "timestep_scaling": self.timestep_scaling, "lower_order_final": steps < FEW_STEPS,
                   "velocity": self.prediction_type == "v_prediction"}
        options = {option: options[option] for option in method.options}

        def run(skipped):
            asked = levels.Asked(steps, skipped, spacing, kind, float(eta), self.timesteps)
            return Plan(method, *levels.RULES[method.levels](used, asked), steps - skipped, self.prediction_type, options)

        plan = run(steps - count)
        if above is not None:
            plan = plan.ending(sum(t >= above for t in plan.times))
        if below is not None:
            late = run(steps - count + sum(t >= below for t in plan.times))
            plan = late.ending(len(late.times))
        if self.prediction_type == "epsilon" and any(level.alpha == 0 for level in plan.levels.values()):
            raise UserError(f"with zero terminal SNR {name} starts where the noise that a model predicts tells nothing "
                            "of the picture: a model trained so predicts v (prediction_type v_prediction)")
        return plan


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
