"""Samplers: from noise to a picture, given a denoiser and a list of noise levels.

Each is a generator that yields the state after every step, and the x̂₀ that led there, the latest where there were two;
so previews, progress and stopping belong to the caller.
What they follow, and what an order is: docs/notes/08-samplers.md
Two families, by the scale of their state (see denoiser.py):

    ddpm  ddim  pndm  lcm  tcd     x = √ᾱ_t x₀ + √(1 − ᾱ_t) ε     walk over time steps: (t, ᾱ_t, ᾱ_{t−1}) for each step
    all others                     x = x₀ + σ ε                   walk over descending σ, the last of which is 0

    denoise(x, t) or denoise(x, σ) → x̂₀, an array like x          noise() → a fresh array of N(0, 1) like x

    ddpm.py         ddpm, ddim            two_stage.py    heun, dpm2, dpm2_a          adams.py     lms, deis
    pndm.py         pndm                  dpm_solver.py   dpm++2m, dpm++2m_sde,       unipc.py     unipc
    euler.py        euler, euler_a                        dpm++sde                    consistency.py   lcm, tcd
    ancestral.py    a step further down than σ_next, then noise back up       between.py     a σ between two levels

Arrays are of any shape and keep their dtype: levels are Python floats. The x that is passed in isn't modified.
"""
from collections.abc import Callable
from dataclasses import dataclass

from npdiffusion.diffusion.samplers.adams import deis, lms
from npdiffusion.diffusion.samplers.consistency import lcm, tcd
from npdiffusion.diffusion.samplers.ddpm import ddim, ddpm
from npdiffusion.diffusion.samplers.dpm_solver import dpmpp_2m, dpmpp_2m_sde, dpmpp_sde
from npdiffusion.diffusion.samplers.euler import euler, euler_a
from npdiffusion.diffusion.samplers.pndm import pndm
from npdiffusion.diffusion.samplers.two_stage import dpm2, dpm2_a, heun
from npdiffusion.diffusion.samplers.unipc import unipc
from npdiffusion.errors import UserError, nearest

SCHEDULES = {                         # how the noise goes down, see schedules/
    "discrete": "the training's time steps, evenly spaced (--timestep-spacing)",
    "karras": "dense where little noise is left, arXiv:2206.00364",
    "exponential": "even in the logarithm of the noise",
    "sgm_uniform": "evenly spaced time steps, from the very last one down (discrete with trailing spacing)",
    "beta": "dense at both ends, arXiv:2407.12173",
    "align_your_steps": "found by optimisation for 10 steps of Stable Diffusion v1, arXiv:2404.14507",
}
CLASSES = {                           # diffusers' class, in scheduler_config.json for example → our name
    "DDPMScheduler": "ddpm", "DDPMParallelScheduler": "ddpm", "DDIMScheduler": "ddim", "DDIMParallelScheduler": "ddim",
    "PNDMScheduler": "pndm", "LMSDiscreteScheduler": "lms", "EulerDiscreteScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "euler_a", "HeunDiscreteScheduler": "heun", "KDPM2DiscreteScheduler": "dpm2",
    "KDPM2AncestralDiscreteScheduler": "dpm2_a", "DPMSolverMultistepScheduler": "dpm++2m",
    "DPMSolverSDEScheduler": "dpm++sde", "UniPCMultistepScheduler": "unipc", "DEISMultistepScheduler": "deis",
    "LCMScheduler": "lcm", "TCDScheduler": "tcd",
}
EVEN = ("discrete", "sgm_uniform")    # those that keep to the training's time steps
ALL = tuple(SCHEDULES)


@dataclass(frozen=True)
class Sampler:
    """What there is to know of a sampler besides its algorithm."""
    function: Callable
    levels: str                       # the rule by which a schedule lays out its noise levels, see schedules/levels.py
    schedules: tuple                  # names in SCHEDULES that it can walk over
    noise: str | None                 # None: it draws none, "fresh": as often as it likes, "path": increments of a path
    order: str                        # with which the error falls: 2 means to a quarter with twice the steps
    calls: int                        # of the model per step
    summary: str
    first: int = 0                    # calls that the first step needs beside these
    options: tuple = ()               # further arguments of the function, see `NoiseSchedule.plan`

    @property
    def over_sigmas(self) -> bool:
        """Whether its state is x₀ + σ ε, on a schedule of σ; the others walk over time steps of the training."""
        return self.schedules == ALL

    @property
    def spacing(self) -> str:
        """The timestep_spacing that diffusers takes for it when the checkpoint's file names none."""
        return "linspace" if self.over_sigmas else "leading"

    @property
    def takes_eta(self) -> bool:
        """Whether eta says how much noise it adds; the others ignore eta."""
        return "eta" in self.options

    @property
    def description(self) -> str:
        """One line of a list: deterministic or not, order, calls, what it is"""
        kind = "random" if self.noise else "deterministic"
        kind = "deterministic (random with --eta)" if self.takes_eta else kind
        calls = f"{self.calls} call{'s' * (self.calls > 1)}" + (f" ({self.first} more at first)" if self.first else "")
        return f"{kind}, order {self.order}, {calls} per step: {self.summary}"


SAMPLERS = {
    "ddpm": Sampler(ddpm, "ddpm", EVEN, "fresh", "1", 1, "the training's noise taken back; wants many steps"),
    "ddim": Sampler(ddim, "ddim", EVEN, "fresh", "1", 1, "to the picture, and part of the way back", options=("eta",)),
    "pndm": Sampler(pndm, "pndm", EVEN, None, "2-4", 1, "Stable Diffusion v1's own, PLMS", first=1,
                    options=("velocity",)),
    "lms": Sampler(lms, "k-diffusion", ALL, None, "4", 1, "a cubic through the last four slopes"),
    "euler": Sampler(euler, "k-diffusion", ALL, None, "1", 1, "the plainest; smooth pictures"),
    "euler_a": Sampler(euler_a, "k-diffusion", ALL, "fresh", "1", 1, "Euler with fresh noise in each step"),
    "heun": Sampler(heun, "k-diffusion", ALL, None, "2", 2, "the mean of the slopes at both ends"),
    "dpm2": Sampler(dpm2, "dpm2", ALL, None, "2", 2, "the slope at mid-step"),
    "dpm2_a": Sampler(dpm2_a, "dpm2", ALL, "fresh", "1", 2, "dpm2 with fresh noise in each step"),
    "dpm++2m": Sampler(dpmpp_2m, "dpm-solver", ALL, None, "2", 1, "good in 20 to 30 steps, with karras"),
    "dpm++2m_sde": Sampler(dpmpp_2m_sde, "dpm-solver", ALL, "path", "1", 1, "dpm++2m with fresh noise"),
    "dpm++sde": Sampler(dpmpp_sde, "k-diffusion", ALL, "path", "1", 2, "fresh noise, two looks a step"),
    "unipc": Sampler(unipc, "dpm-solver", ALL, None, "3", 1, "dpm++2m, each step corrected by the next call"),
    "deis": Sampler(deis, "deis", ALL, None, "2", 1, "a line through two slopes, in the logarithm of the noise",
                    options=("lower_order_final",)),
    "lcm": Sampler(lcm, "lcm", ("discrete",), "fresh", "1", 1, "for LCM models and LCM-LoRA, 2 to 8 steps",
                   options=("timestep_scaling",)),
    "tcd": Sampler(tcd, "tcd", ("discrete",), "fresh", "1", 1, "for TCD models and TCD-LoRA, 4 to 8 steps", options=("eta",)),
}


def find_sampler(name: str) -> Sampler:
    """The `Sampler` of that name; UserError names the nearest known one if there is none."""
    return _look_up(name, SAMPLERS, "sampler")


def find_schedule(name: str) -> str:
    """The name of a schedule, in which - may stand for _; UserError names the nearest known one if there is none."""
    spelled = str(name).replace("-", "_")
    return spelled if spelled in SCHEDULES else _look_up(name, SCHEDULES, "schedule")


def check_pair(name: str, schedule: str) -> None:
    """UserError unless the sampler of that name can walk over the schedule of that name."""
    if schedule not in SAMPLERS[name].schedules:
        raise UserError(why_not(name, schedule))


def why_not(name: str, schedule: str) -> str:
    """Why a sampler can't walk over a schedule, and which samplers can."""
    offered = ", ".join(other for other, sampler in SAMPLERS.items() if schedule in sampler.schedules)
    return f"{name} walks over the time steps of the training: the {schedule} schedule is for {offered}"


def _look_up(name, known, what):
    if name in known:
        return known[name]
    raise UserError(f"unknown {what} {name!r}: {nearest(name, known)}known are {', '.join(known)}")
