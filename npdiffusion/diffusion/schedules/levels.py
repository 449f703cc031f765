"""Which noise levels a sampler visits: one rule per family of samplers, as in diffusers.

A rule takes (schedule, asked: Asked) and gives what the sampler walks over, {the number by which it names a level:
Level} in the order of the visit, and the scale of the first noise.
"""
import math
from typing import NamedTuple

import numpy as np

from npdiffusion.diffusion.samplers.between import Between
from npdiffusion.diffusion.schedules import sigmas as sigma_rules
from npdiffusion.diffusion.schedules.plan import Level
from npdiffusion.errors import UserError

ALIGN_YOUR_STEPS = 999, 850, 736, 645, 545, 455, 343, 233, 124, 24       # optimised for Stable Diffusion v1


class Asked(NamedTuple):
    """What a run is asked for."""
    steps: int
    skipped: int = 0              # of them, at the noisy end, left out (image to image)
    spacing: str = "linspace"     # of the time steps, see `times`
    kind: str = "discrete"        # evenly spaced time steps, or one of sigmas.RULES
    eta: float = 0.0
    times: tuple | None = None    # themselves, for the rules in TAKE_TIMESTEPS

    @property
    def layout(self):
        """How time steps are spaced"""
        return self.kind if self.kind == "align_your_steps" else self.spacing


# ---- over time steps

def ddpm(schedule, asked):
    t = times(schedule, asked.steps, asked.spacing)[asked.skipped:]
    abars = [*abar(schedule, t), 1.0]
    return list(zip(t, abars, abars[1:])), time_levels(schedule, t), 1.0


def ddim(schedule, asked):
    """Each step goes T // steps down, wherever the next one starts; that differs with linspace spacing alone."""
    t = times(schedule, asked.steps, asked.spacing)[asked.skipped:]
    final = 1.0 if schedule.set_alpha_to_one is not False else None
    below = abar(schedule, [t - schedule.num_train_timesteps // asked.steps for t in t], final)
    return list(zip(t, abar(schedule, t), below)), time_levels(schedule, t), 1.0


def pndm(schedule, asked):
    """The second time step comes twice (901, 801, 801, 701, …), first for the look at the first interval's far end.

    Image to image leaves out the first calls and starts afresh: what is then the second, wherever it lies, is taken
    for that look.
    """
    stride = schedule.num_train_timesteps // asked.steps
    t = times(schedule, asked.steps, asked.spacing)
    t = (t[:1] + t[1:2] + t[1:])[asked.skipped:]
    start = t[:1] + [t + stride for t in t[1:2]] + t[2:]
    final = 1.0 if schedule.set_alpha_to_one else None
    abars = [float(schedule.above_zero(a)) for a in abar(schedule, start)]   # it divides by √ᾱ
    walk = zip(t, abars, abar(schedule, [t - stride for t in start], final))
    return list(walk), time_levels(schedule, t, schedule.above_zero), 1.0


def lcm(schedule, asked):
    """Time steps of the distillation, of which there were fewer than in the training: T/50 − 1, 2T/50 − 1, …, T − 1."""
    t = distilled_times(schedule, asked)[asked.skipped:]
    abars = [*abar(schedule, t), 1.0]
    return list(zip(t, abars, abars[1:])), time_levels(schedule, t), 1.0


def tcd(schedule, asked):
    """Likewise, down to t = 0, and ᾱ_s with s = ⌊(1 − η) t_next⌋, in float32 as diffusers computes it"""
    t = distilled_times(schedule, asked)[asked.skipped:]
    below = [*t[1:], 0]
    jumps = [int(np.float32(1 - asked.eta) * np.float32(t)) for t in below]
    walk = zip(t, *(abar(schedule, each) for each in (t, below, jumps)))
    return list(walk), time_levels(schedule, t), 1.0


# ---- over σ

def k_diffusion(schedule, asked, rounded=()):
    """Evenly spaced, not rounded time steps, σ interpolated between those of the training.

    rounded: kinds whose time steps are whole
    """
    t = list(map(float, asked.times or times(schedule, asked.steps, asked.layout, whole=False)))
    sigmas = np.interp(t, np.arange(schedule.num_train_timesteps), schedule.sigmas)
    if asked.kind in sigma_rules.RULES:
        sigmas = sigma_rules.RULES[asked.kind](float(sigmas[0]), float(sigmas[-1]), asked.steps)
        t = time_of(schedule, sigmas)
        t = (t.round() if asked.kind in rounded else t).tolist()
    scale = math.hypot(sigmas[0], 1) if asked.spacing == "leading" else float(sigmas[0])
    return *sigma_walk(schedule, asked, t, sigmas), scale


def dpm2(schedule, asked):
    return k_diffusion(schedule, asked, rounded=("karras",))


def dpm_solver(schedule, asked, final=0.0):
    """One more point than steps, the lowest left out; other kinds take their ends from the whole training.

    Time steps are whole: rounded, but cut where exponential and beta made them, as in diffusers, whose float32 falls
    short of the very last one, so that these begin at T − 2.
    """
    t = times(schedule, asked.steps, asked.layout, spare=1)
    sigmas = schedule.sigmas[t]
    if asked.kind in sigma_rules.RULES:
        sigmas = sigma_rules.RULES[asked.kind](float(schedule.sigmas[-1]), float(schedule.sigmas[0]), asked.steps)
        t = time_of(schedule, sigmas)
        cut = np.floor(np.minimum(t, schedule.num_train_timesteps - 1 - 1e-6))
        t = (t.round() if asked.kind == "karras" else cut).tolist()
    return *sigma_walk(schedule, asked, t, sigmas, final), math.hypot(sigmas[0], 1)


def deis(schedule, asked):
    """Ends at the training's lowest σ instead of 0"""
    return dpm_solver(schedule, asked, final=float(schedule.sigmas[0]))


RULES = {"ddpm": ddpm, "ddim": ddim, "pndm": pndm, "lcm": lcm, "tcd": tcd, "k-diffusion": k_diffusion, "dpm2": dpm2,
         "dpm-solver": dpm_solver, "deis": deis}
TAKE_TIMESTEPS = "lcm", "tcd", "k-diffusion", "dpm2"


# ---- time steps and their ᾱ and σ

def times(schedule, steps, spacing, spare=0, whole=True):
    """Descending time steps, as table 2 of arXiv:2305.08891 names their spacing: ints if whole, else floats.

        linspace   both ends of the training, evenly       999, 899.1, … 99.9, 0      10 of 1000
        leading    multiples of T // steps, shifted up     901, 801, … 1              steps_offset 1
        trailing   down from the last one                  999, 899, … 99
        align_your_steps                                   999, 850, 736, … 24

    spare: lay out so many more, and leave out the lowest.
    """
    T = schedule.num_train_timesteps
    if spacing == "linspace":
        t = np.linspace(0, T - 1, steps + spare)[::-1][:steps]
    elif spacing == "leading":
        t = np.arange(steps + spare)[::-1][:steps] * (T // (steps + spare)) + float(schedule.steps_offset)
    elif spacing == "align_your_steps":
        t = align_your_steps(schedule, steps)
    else:
        t = (T - np.arange(steps) * (T / steps)).round() - 1
    if whole:
        t = t.round().astype(np.int64)                       # halves to even
    if t[0] >= T or np.any(np.diff(t) >= 0):
        raise UserError(f"steps is {steps}: with {spacing} spacing that doesn't fit the training's {T}, take fewer")
    return t.tolist()


def align_your_steps(schedule, steps):
    """The ten of Sabour et al. 2024, arXiv:2404.14507; for other numbers log σ is interpolated, as they advise."""
    if ALIGN_YOUR_STEPS[0] >= schedule.num_train_timesteps:
        raise UserError(f"align_your_steps is for models trained with 1000 steps, not {schedule.num_train_timesteps}")
    if steps == len(ALIGN_YOUR_STEPS):
        return np.array(ALIGN_YOUR_STEPS, np.float64)
    known = np.log(schedule.sigmas[[*ALIGN_YOUR_STEPS, 0]])
    position = np.linspace(0, len(ALIGN_YOUR_STEPS), steps + 1)[:-1]
    return time_of(schedule, np.exp(np.interp(position, np.arange(len(known)), known)))


def abar(schedule, times, final=None):
    """ᾱ of whole time steps; below the first one it is `final`, or ᾱ₀."""
    abars = schedule.alphas_cumprod.tolist()
    return [abars[t] if t >= 0 else final or abars[0] for t in times]


def distilled_times(schedule, asked):
    """As many of the time steps that a consistency model was distilled on, evenly, from the last one down"""
    if asked.times:
        return list(asked.times)
    steps = asked.steps
    count = schedule.original_inference_steps
    if count > schedule.num_train_timesteps:
        raise UserError(f"original_inference_steps is {count}: the training had {schedule.num_train_timesteps}")
    if steps > count:
        raise UserError(f"steps is {steps}: lcm and tcd take at most the {count} that such models are distilled on")
    distilled = np.arange(count, 0, -1) * (schedule.num_train_timesteps // count) - 1
    return distilled[np.linspace(0, count, steps, endpoint=False).astype(np.int64)].tolist()


def time_levels(schedule, times, limited=float):
    levels = zip(times, map(limited, abar(schedule, times)))
    return {t: Level(float(t), math.sqrt(a), math.sqrt(1 - a)) for t, a in levels}


def time_of(schedule, sigmas):
    """The time step that has this σ, interpolated in log σ."""
    known = np.arange(schedule.num_train_timesteps, dtype=np.float64)
    return np.interp(np.log(sigmas), np.log(schedule.sigmas), known)


def sigma_walk(schedule, asked, times, sigmas, final=0.0):
    sigmas = sigmas.tolist()
    levels = SigmaLevels(schedule, list(zip(times, sigmas))[asked.skipped:], (sigmas[0], sigmas[-1]))
    return [*sigmas[asked.skipped:], final], levels


class SigmaLevels(dict):
    """σ → Level. Those that the schedule laid out are its items; any other σ has a level too, and so has a `Between`.

    ends: the highest and the lowest σ of the schedule, of which a run may leave out the highest
    """
    def __init__(self, schedule, laid_out, ends):
        super().__init__((sigma, Level(float(t), 1.0, sigma)) for t, sigma in laid_out)
        self.schedule, self.ends = schedule, ends

    def __getitem__(self, sigma):
        if sigma in self and not isinstance(sigma, Between):
            return super().__getitem__(sigma)
        return Level(float(time_of(self.schedule, sigma)), 1.0, float(sigma))
