"""What both trainings share: a rate that follows the clock, averaged weights, a state that survives an interruption."""

import math
import os
import time

import torch

from . import settings

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def half_precision():
    """Context in which matrix products and convolutions run in bfloat16."""
    return torch.autocast(DEVICE.type, torch.bfloat16)


def rate_at(progress, step, warm_up):
    """Share of the peak learning rate: a linear warm-up over steps, then half a cosine over the time that was granted.

    progress: share of the granted time that has gone, so that the rate reaches zero with the time, on any machine.
    """
    return min(1.0, (step + 1) / warm_up) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def set_rate(optimizers, rate):
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate


class Averaged:
    """Exponential moving average of a model's parameters, which draws better than the last step alone."""

    def __init__(self, model, decay):
        self.decay = decay
        self.parameters = [p.detach().clone() for p in model.parameters()]

    @torch.no_grad()
    def update(self, model, step):
        decay = min(self.decay, (1 + step) / (10 + step))                      # forget the random beginning quickly
        torch._foreach_lerp_(self.parameters, [p.detach() for p in model.parameters()], 1 - decay)

    def load(self, parameters):
        self.parameters = [theirs.to(mine.device) for mine, theirs in zip(self.parameters, parameters)]

    @torch.no_grad()
    def swap(self, model):
        """Exchange the model's parameters with the averaged ones; a second call exchanges them back."""
        for mine, its in zip(self.parameters, model.parameters()):
            its.data, mine.data = mine.data, its.data


def state(name):
    """What runs/<name>.pt holds, or None."""
    path = settings.RUNS / f"{name}.pt"
    return torch.load(path, weights_only=True, map_location="cpu") if path.exists() else None


def averaged_into(models, parameters):
    """Put averaged parameters, in the order of training, into the models."""
    parameters = iter(parameters)
    for model in models:
        for p in model.parameters():
            p.data = next(parameters)


def save_atomically(values, path):
    """Write beside, then move: an interruption leaves the old state or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".part")
    torch.save(values, beside)
    os.replace(beside, path)


class Clock:
    """Seconds of training, counted on across interruptions."""

    def __init__(self, minutes, elapsed=0.0):
        self.granted, self.started = minutes * 60, time.monotonic() - elapsed

    @property
    def elapsed(self):
        return time.monotonic() - self.started

    @property
    def progress(self):
        return self.elapsed / self.granted


def log(name, **values):
    """One line on the screen and in runs/<name>.log."""
    shown = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in values.items()}
    line = "  ".join(f"{key} {value}" for key, value in shown.items())
    print(line, flush=True)
    settings.RUNS.mkdir(parents=True, exist_ok=True)
    with open(settings.RUNS / f"{name}.log", "a") as file:
        file.write(time.strftime("%H:%M:%S  ") + line + "\n")
