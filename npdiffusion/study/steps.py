"""What each step of a sampler sees and does: x_t, what the model predicts without and with the prompt, x̂₀.

    x  →  unet(x / √(α² + σ²), t)  →  ε(∅), ε(c)  →  ε̂ = ε(∅) + s (ε(c) − ε(∅))  →  x̂₀  →  the next x

All of it is read off operations that are watched: the input of the UNet's first layer, the output of its last one, and the
time step that is embedded. h × w latent pixels, C channels (last), the first picture of a batch.
"""
import math
from dataclasses import dataclass

import numpy as np

from npdiffusion.diffusion.guidance import guide
from npdiffusion.study.names import Names

MOST_BYTES = 64 << 20          # of states that are kept to follow the arithmetic


@dataclass
class Seen:
    """One step. Arrays are (h, w, C) and may be None where they aren't kept; root mean squares and cosines are numbers."""
    number: int                    # from 1, over all passes
    t: float                       # the time step of the training
    alpha: float
    sigma: float
    x: np.ndarray | None           # the state before, on the scale of the training: x / √(α² + σ²)
    without: np.ndarray | None     # what the model predicts for the negative prompt; None where there is no guidance
    given: np.ndarray | None       # and for the prompt
    x0: np.ndarray | None
    calls: int = 1
    norms: dict | None = None      # root mean square of x, without, given, added (given − without), x0; cosine of the last two


class StepRecorder:
    """Collects a `Seen` for each step: `watch` is for kernels.watched, `step` and `preview` for the pipeline's callbacks.

    shown: the numbers of the steps whose arrays are kept
    """
    def __init__(self, pipeline, resolved, shown):
        self.names, self.resolved, self.shown = Names(pipeline), resolved, shown
        self.channels = pipeline.vae.config.latent_channels
        self.ends = np.cumsum([len(way.plan) for way in resolved.passes]).tolist()
        self.seen, self._calls, self._t = [], [], None
        self.states, self.denoised, self.call = [{} for _ in self.ends], [{} for _ in self.ends], 0       # for each pass
        self.after, self.kept = None, 0

    @property
    def way(self):
        """The number of the pass that the next step belongs to."""
        return next((number for number, end in enumerate(self.ends) if len(self.seen) < end), len(self.ends) - 1)

    def watch(self, operation, arguments, result):
        if operation == "timestep_embedding" and self._t is None:     # XL embeds sizes after it
            self._t = float(arguments["timesteps"][0])
        elif "weight" in arguments:
            name = self.names.of(operation, arguments)
            if name == "unet.conv_in":
                self._x = arguments["x"][0, ..., :self.channels].copy()
            elif name == "unet.conv_out":
                guided = self.resolved.guidance > 1
                without = result[0].copy() if guided else None
                self._calls.append((self._t, self._x, without, result[len(result) // 2 if guided else 0].copy()))
                self._t = None

    def step(self, done, total, latents):
        self.after = latents[0]

    def preview(self, done, total, x0):
        if not self._calls:                                      # a model that isn't made of watched operations
            return
        way = self.way
        plan, first = self.resolved.passes[way].plan, self.ends[way - 1] if way else 0
        t, x, without, given = self._calls[0]
        levels = {float(np.float32(level.t)): level for level in plan.levels.values()}
        level = levels.get(t) or next(iter(plan.levels.values()))
        if done == first + 1:
            self.call = 0
            self._keep(self.states[way], 0, x * np.float32(math.hypot(level.alpha, level.sigma)))
        for number, call in enumerate(self._calls):
            last = number == len(self._calls) - 1
            self._keep(self.denoised[way], self.call, x0[0] if last else self._denoised(plan, levels.get(call[0]), *call[1:]))
            self.call += 1
        self._keep(self.states[way], done - first, self.after)
        norms = {"x": rms(x), "given": rms(given), "x0": rms(x0[0])}
        if without is not None:
            added = given - without
            norms |= {"without": rms(without), "added": rms(added), "cosine": cosine(added, without)}
        kept = done in self.shown
        self.seen.append(Seen(done, t, level.alpha, level.sigma, x if kept else None, without if kept else None,
                              given if kept else None, x0[0].copy() if kept else None, len(self._calls), norms))
        self._calls = []

    def _denoised(self, plan, level, x, without, given):
        """x̂₀ of a call that isn't the step's last, as diffusion/denoiser.py computes it; None at a level of its own"""
        if level is None:
            return None
        request, resolved = self.resolved.request, self.resolved
        output = given if without is None else guide(
            without[None], given[None], resolved.guidance, request.value("guidance_rescale"))[0]
        size = math.hypot(level.alpha, level.sigma)
        if plan.prediction_type == "epsilon":
            return (x * size - level.sigma * output) / level.alpha
        return (level.alpha * x - level.sigma * output) / size if plan.prediction_type == "v_prediction" else output

    def _keep(self, into, number, array):
        if array is not None and self.kept + array.nbytes <= MOST_BYTES:
            self.kept += array.nbytes
            into[number] = np.array(array, np.float32)


def rms(x):
    """√ mean x²"""
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))


def cosine(a, b):
    """Of the angle between two arrays as vectors"""
    return float(np.vdot(a, b) / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-12))
