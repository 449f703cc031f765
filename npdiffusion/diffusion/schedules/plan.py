"""A plan: the noise levels that one run of a sampler visits, and where it starts: docs/notes/04-forward-process.md"""
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from npdiffusion.diffusion import samplers


class Level(NamedTuple):
    """A noise level: x = alpha · x₀ + sigma · ε, which the model knows as time step t."""
    t: float
    alpha: float
    sigma: float


@dataclass(frozen=True)
class Plan:
    """What one run of a sampler visits. `len(plan)` is the number of states that `sample` yields; it may end early."""
    sampler: samplers.Sampler
    steps: list                   # what the sampler walks over: (t, ᾱ_t, ᾱ_{t−1}) per step, or the σs
    levels: dict                  # the number by which it names a noise level (t or σ) → Level
    scale: float                  # of the initial noise
    count: int
    prediction_type: str
    options: dict

    def __len__(self):
        return self.count

    def start(self, noise: np.ndarray, init: np.ndarray | None = None) -> np.ndarray:
        """The first state, from N(0, 1): noise alone, or the latents `init` under as much of it as the first level has.

        noise and init: float32 arrays of one shape, (N, H, W, C) → the same shape.
        """
        if init is None:
            return self.scale * noise
        first = next(iter(self.levels.values()))
        return first.alpha * init + first.sigma * noise

    @property
    def times(self) -> list[float]:
        """The time step of each entry of `steps` at which the model is called"""
        return [self.levels[at].t for at in self.steps[:-1]] if self.sampler.over_sigmas else [step[0] for step in self.steps]

    def ending(self, entries: int) -> "Plan":
        """The same run, ended after so many entries of `steps`: the noise that is left is another model's work"""
        first = self.sampler.first
        steps = self.steps[:entries] if first else self.steps           # others look at what lies beyond the end
        return replace(self, steps=steps, count=max(entries - first, min(entries, 1)))

    def sample(self, denoise: Callable[..., Any], x: np.ndarray,
               noise: Callable[..., np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields after each step the state and the x̂₀ that led there, arrays like x; the last state is x₀, unless it ends
        before.

        noise() gives N(0, 1) like x. For samplers that take increments of a path, noise.path(σ_max, σ_min) makes
        noise(σ, σ_next) of it, if there is such an attribute (see noise.LatentNoise).
        """
        random = {"noise": noise} if self.sampler.noise else {}
        if self.sampler.noise == "path":
            path = getattr(noise, "path", None)
            random["noise"] = path(*self.levels.ends) if path else lambda *interval: noise()
        return islice(self.sampler.function(denoise, x, self.steps, **random, **self.options), self.count)
