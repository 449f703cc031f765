"""Which noise levels a sampler visits: one rule per family of samplers, as in diffusers.

Each rule takes (schedule, steps, skipped, spacing, kind) and gives what the sampler walks over, {the number by which it
names a level: Level}, and the scale of the first noise.

    skipped   steps at the noisy end that are left out (image to image)
    spacing   of the time steps, see `times`
    kind      "discrete", evenly spaced time steps, or a rule of sigmas.py
"""
import math

import numpy as np

from npdiffusion.errors import UserError
from npdiffusion.schedules.plan import Level
from npdiffusion.schedules.sigmas import karras_sigmas


def ddpm(schedule, steps, skipped, spacing, kind):
    t = times(schedule, steps, spacing)[skipped:]
    abars = [*abar(schedule, t), 1.0]
    return list(zip(t, abars, abars[1:])), time_levels(schedule, t), 1.0


def ddim(schedule, steps, skipped, spacing, kind):
    """Each step goes T // steps down, wherever the next one starts; that differs with linspace spacing alone."""
    t = times(schedule, steps, spacing)[skipped:]
    final = 1.0 if schedule.set_alpha_to_one is not False else None
    below = abar(schedule, [t - schedule.num_train_timesteps // steps for t in t], final)
    return list(zip(t, abar(schedule, t), below)), time_levels(schedule, t), 1.0


def pndm(schedule, steps, skipped, spacing, kind):
    """The second time step comes twice (901, 801, 801, 701, …), first for the look at the first interval's far end.

    Image to image leaves out the first calls and starts afresh: what is then the second, wherever it lies, is taken
    for that look.
    """
    if not schedule.skip_prk_steps:
        raise UserError("skip_prk_steps is false: pndm starts without Runge-Kutta steps, choose another sampler")
    stride = schedule.num_train_timesteps // steps
    t = times(schedule, steps, spacing)
    t = (t[:1] + t[1:2] + t[1:])[skipped:]
    start = t[:1] + [t + stride for t in t[1:2]] + t[2:]
    final = 1.0 if schedule.set_alpha_to_one else None
    walk = zip(t, abar(schedule, start), abar(schedule, [t - stride for t in start], final))
    return list(walk), time_levels(schedule, t), 1.0


def k_diffusion(schedule, steps, skipped, spacing, kind):
    """Evenly spaced, not rounded time steps, σ interpolated between those of the training."""
    t = times(schedule, steps, spacing, whole=False)
    sigmas = np.interp(t, np.arange(schedule.num_train_timesteps), schedule.sigmas)
    if kind == "karras":
        sigmas = karras_sigmas(sigmas[0], sigmas[-1], steps)
        t = time_of(schedule, sigmas).tolist()
    scale = math.hypot(sigmas[0], 1) if spacing == "leading" else float(sigmas[0])
    return *sigma_walk(t[skipped:], sigmas.tolist()[skipped:]), scale


def dpm_solver(schedule, steps, skipped, spacing, kind):
    """One more point than steps, the lowest left out; karras takes its ends from the whole training."""
    t = times(schedule, steps, spacing, spare=1)
    sigmas = schedule.sigmas[t]
    if kind == "karras":
        sigmas = karras_sigmas(schedule.sigmas[-1], schedule.sigmas[0], steps)
        t = time_of(schedule, sigmas).round().tolist()
    return *sigma_walk(t[skipped:], sigmas.tolist()[skipped:]), math.hypot(sigmas[0], 1)


RULES = {"ddpm": ddpm, "ddim": ddim, "pndm": pndm, "k-diffusion": k_diffusion, "dpm-solver": dpm_solver}


# ---- time steps and their ᾱ and σ

def times(schedule, steps, spacing, spare=0, whole=True):
    """Descending time steps, as table 2 of arXiv:2305.08891 names their spacing: ints if whole, else floats.

        linspace   both ends of the training, evenly       999, 899.1, … 99.9, 0      10 of 1000
        leading    multiples of T // steps, shifted up     901, 801, … 1              steps_offset 1
        trailing   down from the last one                  999, 899, … 99

    spare: lay out so many more, and leave out the lowest.
    """
    T = schedule.num_train_timesteps
    if spacing == "linspace":
        t = np.linspace(0, T - 1, steps + spare)[::-1][:steps]
    elif spacing == "leading":
        t = np.arange(steps + spare)[::-1][:steps] * (T // (steps + spare)) + float(schedule.steps_offset)
    else:
        t = (T - np.arange(steps) * (T / steps)).round() - 1
    if whole:
        t = t.round().astype(np.int64)                       # halves to even
    if t[0] >= T or np.any(np.diff(t) >= 0):
        raise UserError(f"steps is {steps}: with {spacing} spacing that doesn't fit the training's {T}, take fewer")
    return t.tolist()


def abar(schedule, times, final=None):
    """ᾱ of whole time steps; below the first one it is `final`, or ᾱ₀."""
    abars = schedule.alphas_cumprod.tolist()
    return [abars[t] if t >= 0 else final or abars[0] for t in times]


def time_levels(schedule, times):
    return {t: Level(float(t), math.sqrt(a), math.sqrt(1 - a)) for t, a in zip(times, abar(schedule, times))}


def time_of(schedule, sigmas):
    """The time step that has this σ, interpolated in log σ."""
    known = np.arange(schedule.num_train_timesteps, dtype=np.float64)
    return np.interp(np.log(sigmas), np.log(schedule.sigmas), known)


def sigma_walk(times, sigmas):
    return [*sigmas, 0.0], {sigma: Level(float(t), 1.0, sigma) for t, sigma in zip(times, sigmas)}
