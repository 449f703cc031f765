"""Noise schedules: how much noise there is at each time step of the training, and which levels a sampler visits.

    x_t = √ᾱ_t x₀ + √(1 − ᾱ_t) ε      ᾱ_t = ∏ (1 − β_s), s ≤ t      σ_t = √((1 − ᾱ_t) / ᾱ_t)

β, ᾱ and the names of the settings are those of DDPM (Ho et al. 2020, arXiv:2006.11239) and of a checkpoint's
scheduler_config.json; σ, the noise on an x₀ of unscaled size, is that of Karras et al. 2022 (arXiv:2206.00364).

    settings.py   NoiseSchedule: a checkpoint's settings      levels.py   the levels of each family of samplers
    betas.py      β and ᾱ over the training's time steps      sigmas.py   rules by which σ goes down
    plan.py       Plan: what one run of a sampler visits      scheduler_file.py   what counts of scheduler_config.json

T time steps 0 … T−1 of the training; schedules are float64 arrays, and the levels handed to samplers Python floats.
"""
from npdiffusion.diffusion.schedules.plan import Plan
from npdiffusion.diffusion.schedules.settings import NoiseSchedule
from npdiffusion.diffusion.schedules.sigmas import karras_sigmas

__all__ = ["NoiseSchedule", "Plan", "karras_sigmas"]
