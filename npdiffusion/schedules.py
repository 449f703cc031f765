"""Noise schedules: how much noise there is at each time step of the training, and which levels a sampler visits.

    x_t = √ᾱ_t x₀ + √(1 − ᾱ_t) ε      ᾱ_t = ∏ (1 − β_s), s ≤ t      σ_t = √((1 − ᾱ_t) / ᾱ_t)

β, ᾱ and the names of the settings are those of DDPM (Ho et al. 2020, arXiv:2006.11239) and of a checkpoint's
scheduler_config.json; σ, the noise on an x₀ of unscaled size, is that of Karras et al. 2022 (arXiv:2206.00364).

    plan = NoiseSchedule.from_config(config).plan("dpm++2m", steps=25)
    for x in plan.sample(Denoiser(predict, plan), plan.start(noise()), noise): ...

T time steps 0 … T−1 of the training; schedules are float64 arrays, and the levels handed to samplers Python floats.
"""
import math
from dataclasses import dataclass, fields
from functools import cached_property
from numbers import Integral, Real
from typing import NamedTuple

import numpy as np

from . import samplers
from .errors import UserError

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


class Level(NamedTuple):
    """A noise level: x = alpha · x₀ + sigma · ε, which the model knows as time step t."""
    t: float
    alpha: float
    sigma: float


@dataclass(frozen=True)
class Plan:
    """What one run of a sampler visits. `len(plan)` is the number of states that `sample` yields."""
    sampler: samplers.Sampler
    steps: list                   # what the sampler walks over: (t, ᾱ_t, ᾱ_{t−1}) per step, or the σs
    levels: dict                  # the number by which it names a noise level (t or σ) → Level
    scale: float                  # of the initial noise
    count: int
    prediction_type: str
    options: dict

    def __len__(self):
        return self.count

    def start(self, noise, init=None):
        """The first state, from N(0, 1): noise alone, or the latents `init` under as much of it as the first level has.

        noise and init: float32 arrays of one shape, (N, H, W, C) → the same shape.
        """
        if init is None:
            return self.scale * noise
        first = next(iter(self.levels.values()))
        return first.alpha * init + first.sigma * noise

    def sample(self, denoise, x, noise):
        """Yields the state after each step, an array like x; the last one is x₀. noise() gives N(0, 1) like x."""
        random = {"noise": noise} if self.sampler.takes_noise else {}
        return self.sampler.function(denoise, x, self.steps, **random, **self.options)


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
            betas = self.trained_betas
            right = isinstance(betas, (tuple, list)) and all(_is(b, Real) and 1e-8 < b < 1 for b in betas)
            _need(right and len(betas) == T, "trained_betas", "something else", f"{T} numbers between 1e-8 and 1")
            object.__setattr__(self, "trained_betas", tuple(betas))          # frozen, and so hashable
        else:
            for field in ("beta_start", "beta_end"):
                value = getattr(self, field)
                _need(_is(value, Real) and 1e-8 < value < 1, field, value, "a number between 1e-8 and 1")
            _need(self.beta_schedule in ("linear", "scaled_linear"), "beta_schedule", self.beta_schedule,
                  "linear or scaled_linear")
        _need(self.alphas_cumprod[-1] > 1e-8, "the last of alphas_cumprod", float(self.alphas_cumprod[-1]),
              "above 1e-8, so that a trace of the picture is left: smaller betas")

    @cached_property
    def alphas_cumprod(self):                                # (T,) float64
        if self.trained_betas is not None:
            betas = np.array(self.trained_betas, np.float64)
        elif self.beta_schedule == "linear":
            betas = np.linspace(self.beta_start, self.beta_end, self.num_train_timesteps)
        else:
            betas = np.linspace(math.sqrt(self.beta_start), math.sqrt(self.beta_end), self.num_train_timesteps) ** 2
        return np.cumprod(1 - betas)

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
        lay_out = {"ddpm": self._ddpm, "ddim": self._ddim, "pndm": self._pndm, "k-diffusion": self._k_diffusion,
                   "dpm-solver": self._dpm_solver}[method.levels]
        walk, levels, scale = lay_out(steps, steps - count, spacing, kind == "karras")
        options = {"eta": float(eta)} if name == "ddim" else {}
        if name == "pndm":
            options["velocity"] = self.prediction_type == "v_prediction"
        return Plan(method, walk, levels, scale, count, self.prediction_type, options)

    # ---- one rule per family, as in diffusers: → (what the sampler walks over, its levels, scale of the first noise).
    # `skipped` steps at the noisy end are left out (image to image).

    def _ddpm(self, steps, skipped, spacing, karras):
        times = self._times(steps, spacing)[skipped:]
        abars = [*self._abar(times), 1.0]
        return list(zip(times, abars, abars[1:])), self._time_levels(times), 1.0

    def _ddim(self, steps, skipped, spacing, karras):
        """Each step goes T // steps down, wherever the next one starts; that differs with linspace spacing alone."""
        times = self._times(steps, spacing)[skipped:]
        final = 1.0 if self.set_alpha_to_one is not False else None
        below = self._abar([t - self.num_train_timesteps // steps for t in times], final)
        return list(zip(times, self._abar(times), below)), self._time_levels(times), 1.0

    def _pndm(self, steps, skipped, spacing, karras):
        """The second time step comes twice (901, 801, 801, 701, …), first for the look at the first interval's far end.

        Image to image leaves out the first calls and starts afresh: what is then the second, wherever it lies, is taken
        for that look.
        """
        if not self.skip_prk_steps:
            raise UserError("skip_prk_steps is false: pndm starts without Runge-Kutta steps, choose another sampler")
        stride = self.num_train_timesteps // steps
        times = self._times(steps, spacing)
        times = (times[:1] + times[1:2] + times[1:])[skipped:]
        start = times[:1] + [t + stride for t in times[1:2]] + times[2:]
        final = 1.0 if self.set_alpha_to_one else None
        walk = zip(times, self._abar(start), self._abar([t - stride for t in start], final))
        return list(walk), self._time_levels(times), 1.0

    def _k_diffusion(self, steps, skipped, spacing, karras):
        """Evenly spaced, not rounded time steps, σ interpolated between those of the training."""
        times = self._times(steps, spacing, whole=False)
        sigmas = np.interp(times, np.arange(self.num_train_timesteps), self.sigmas)
        if karras:
            sigmas = karras_sigmas(sigmas[0], sigmas[-1], steps)
            times = self._time_of(sigmas).tolist()
        scale = math.hypot(sigmas[0], 1) if spacing == "leading" else float(sigmas[0])
        return *_sigma_walk(times[skipped:], sigmas.tolist()[skipped:]), scale

    def _dpm_solver(self, steps, skipped, spacing, karras):
        """One more point than steps, the lowest left out; karras takes its ends from the whole training."""
        times = self._times(steps, spacing, spare=1)
        sigmas = self.sigmas[times]
        if karras:
            sigmas = karras_sigmas(self.sigmas[-1], self.sigmas[0], steps)
            times = self._time_of(sigmas).round().tolist()
        return *_sigma_walk(times[skipped:], sigmas.tolist()[skipped:]), math.hypot(sigmas[0], 1)

    # ---- time steps and their ᾱ and σ

    def _times(self, steps, spacing, spare=0, whole=True):
        """Descending time steps, as table 2 of arXiv:2305.08891 names their spacing: ints if whole, else floats.

            linspace   both ends of the training, evenly       999, 899.1, … 99.9, 0      10 of 1000
            leading    multiples of T // steps, shifted up     901, 801, … 1              steps_offset 1
            trailing   down from the last one                  999, 899, … 99

        spare: lay out so many more, and leave out the lowest.
        """
        T = self.num_train_timesteps
        if spacing == "linspace":
            times = np.linspace(0, T - 1, steps + spare)[::-1][:steps]
        elif spacing == "leading":
            times = np.arange(steps + spare)[::-1][:steps] * (T // (steps + spare)) + float(self.steps_offset)
        else:
            times = (T - np.arange(steps) * (T / steps)).round() - 1
        if whole:
            times = times.round().astype(np.int64)           # halves to even
        if times[0] >= T or np.any(np.diff(times) >= 0):
            raise UserError(f"steps is {steps}: with {spacing} spacing that doesn't fit the training's {T}, take fewer")
        return times.tolist()

    def _abar(self, times, final=None):
        """ᾱ of whole time steps; below the first one it is `final`, or ᾱ₀."""
        abars = self.alphas_cumprod.tolist()
        return [abars[t] if t >= 0 else final or abars[0] for t in times]

    def _time_levels(self, times):
        return {t: Level(float(t), math.sqrt(a), math.sqrt(1 - a)) for t, a in zip(times, self._abar(times))}

    def _time_of(self, sigmas):
        """The time step that has this σ, interpolated in log σ."""
        return np.interp(np.log(sigmas), np.log(self.sigmas), np.arange(self.num_train_timesteps, dtype=np.float64))


def karras_sigmas(sigma_max, sigma_min, steps, rho=7.0):
    """Descending σ, denser near 0: equation 5 of Karras et al. 2022 (arXiv:2206.00364), without the 0 at its end.

        σ_i = (σ_max^{1/ρ} + i/(n−1) (σ_min^{1/ρ} − σ_max^{1/ρ}))^ρ
    """
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return (high + np.linspace(0, 1, steps) * (low - high)) ** rho


def _sigma_walk(times, sigmas):
    return [*sigmas, 0.0], {sigma: Level(float(t), 1.0, sigma) for t, sigma in zip(times, sigmas)}


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
