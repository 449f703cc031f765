"""diffusers' schedulers, driven as its pipelines drive them, and a small nonlinear model in place of the UNet."""
import copy
import functools
import inspect
import math

import diffusers
import numpy as np
import torch
from diffusers.schedulers import AysSchedules

from npdiffusion.diffusion.schedules.scheduler_file import CLASSES

diffusers.logging.set_verbosity_error()                              # it tells of each setting that a class ignores

REFERENCE = {ours: getattr(diffusers, theirs) for theirs, ours in CLASSES.items() if "Parallel" not in theirs}
REFERENCE["dpm++2m_sde"] = functools.partial(diffusers.DPMSolverMultistepScheduler.from_config,
                                             algorithm_type="sde-dpmsolver++")
FLAGS = {"karras": {"use_karras_sigmas": True}, "exponential": {"use_exponential_sigmas": True},
         "beta": {"use_beta_sigmas": True}, "sgm_uniform": {"timestep_spacing": "trailing"}}
SHAPE = (2, 6, 5, 4)


def toy_model(x, t, call=0):
    """Not linear, different in every element, and sensitive to the time step."""
    grid = np.linspace(-1, 1, x.size, dtype=np.float32).reshape(x.shape)
    phase = float(t) / 300
    return 0.8 * x + 0.5 * np.tanh(1.5 * x - grid + math.sin(phase)) - 0.3 * np.sin(2 * x + phase)


class Noise:
    """N(0, 1) of torch's generator; or the increments that a scheduler takes from its Brownian tree, at its own σ."""
    def __init__(self, seed, scheduler=None):
        self.generator, self.tree = torch.Generator().manual_seed(seed), None
        if scheduler is not None:
            self.tree = scheduler.noise_sampler
            times = scheduler.sigmas[scheduler.sigmas > 0].unique().log().neg()          # in float32, as it asks for them
            self.known = torch.cat([times, times[1:] + (times[:-1] - times[1:]) * 0.5]).neg().exp().numpy()

    def __call__(self):
        return torch.randn(SHAPE, generator=self.generator).numpy()

    def path(self, *ends):
        if self.tree is None:
            return lambda *interval: self()
        return lambda *interval: self.tree(*map(self.nearest, interval)).numpy()

    def nearest(self, sigma):
        """The scheduler's own float32 for a σ of ours, which is the same but for rounding."""
        found = self.known[np.abs(self.known - sigma).argmin()]
        assert abs(found - sigma) <= 1e-4 * sigma
        return torch.tensor(found)


def seed_trees(monkeypatch):
    """DPMSolverSDEScheduler draws from a Brownian tree of its own (torchsde), which gets a seed here."""
    from diffusers.schedulers import scheduling_dpmsolver_sde
    make = scheduling_dpmsolver_sde.BrownianTreeNoiseSampler
    monkeypatch.setattr(scheduling_dpmsolver_sde, "BrownianTreeNoiseSampler",
                        lambda x, low, high, seed: make(x, low, high, 7 if seed is None else seed))


def make(name, config, kind="discrete"):
    """diffusers' scheduler for our name of a sampler and a schedule."""
    return copy.deepcopy(_fresh(name, tuple((config | FLAGS.get(kind, {})).items())))


@functools.cache
def _fresh(name, settings):
    """Some classes take long to be made: they lay out all steps of the training at once."""
    reference = REFERENCE[name]
    return getattr(reference, "from_config", reference)(dict(settings))


def set_steps(scheduler, steps, kind, times=None):
    """times: those of align_your_steps, if it isn't the table itself"""
    if kind != "align_your_steps":
        return scheduler.set_timesteps(steps)
    return scheduler.set_timesteps(timesteps=times or AysSchedules["StableDiffusionTimesteps"])


def run(scheduler, noise, init=None, skipped=0, generator=None, eta=0.0):
    """The loops of StableDiffusionPipeline and StableDiffusionImg2ImgPipeline, after set_timesteps → the final sample

    skipped: steps that are left out because of `strength`
    """
    times, noise = scheduler.timesteps, torch.from_numpy(noise)
    if init is None:
        x = noise * scheduler.init_noise_sigma
    else:
        times = times[skipped * scheduler.order:]
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(skipped * scheduler.order)
        x = scheduler.add_noise(torch.from_numpy(init), noise, times[:1].repeat(len(init)))
    extra = {"generator": generator, "eta": eta}
    extra = {key: extra[key] for key in inspect.signature(scheduler.step).parameters if key in extra}
    for i, t in enumerate(times):
        if isinstance(scheduler, diffusers.LMSDiscreteScheduler):
            extra["order"] = min(i + 1, 4)       # as many slopes as there are; its own count takes skipped steps for some
        output = toy_model(scheduler.scale_model_input(x, t).numpy(), t)
        x = scheduler.step(torch.from_numpy(output), t, x, **extra, return_dict=False)[0]
    return x.numpy()
