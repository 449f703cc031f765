"""What both trainings share: a rate that follows the clock, averaged weights, a state that survives an interruption."""

import json
import math
import os
import signal
import time

import torch
from safetensors.torch import load_file

from . import settings

PROGRESS = settings.RECIPE / "progress.json"                # steps that the shipped model has behind it
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def half_precision():
    """Context in which matrix products and convolutions run in bfloat16."""
    return torch.autocast(DEVICE.type, torch.bfloat16)


def rate_at(step, end, fresh, warm_up, decay):
    """Share of the peak learning rate: a linear warm-up over `warm_up` steps, from `fresh`, the step at which the
    optimisers began; then level; then half a cosine down to zero over the last `decay` steps before `end`."""
    falling = 1 - (end - step) / decay
    return min(1.0, (step - fresh + 1) / warm_up) * 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, falling))))


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


def begun(name, models):
    """Where a training goes on: at its state in runs/, else at the shipped model, else at the beginning.

    models: {folder of the shipped model: model}, filled with parameters
    → dict(averaged=[...], optimizers=[...] or None, step=..., fresh=step at which the optimisers began)
    """
    if saved := state(name):
        for folder, model in models.items():
            model.load_state_dict(saved["model"][folder])
        return saved
    step = json.loads(PROGRESS.read_text())[name] if PROGRESS.exists() else 0
    if step:
        for folder, model in models.items():
            file, = (settings.MODEL / folder).glob("*.safetensors")
            model.load_state_dict({key: value.float() for key, value in load_file(file).items()})
    averaged = [p.detach().clone() for model in models.values() for p in model.parameters()]
    return dict(averaged=averaged, optimizers=None, step=step, fresh=step)


def save(name, models, optimizers, averaged, step, fresh):
    """What `begun` finds again."""
    save_atomically(dict(model={folder: model.state_dict() for folder, model in models.items()},
                         optimizers=[optimizer.state_dict() for optimizer in optimizers],
                         averaged=averaged.parameters, step=step, fresh=fresh), settings.RUNS / f"{name}.pt")


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
    """Minutes that a run may take; the plan itself counts steps, so a run that is stopped is continued later.

    A request to end (SIGTERM) lets the step finish, too, so that its state is saved.
    """

    def __init__(self, minutes):
        self.end = time.monotonic() + minutes * 60
        signal.signal(signal.SIGTERM, self.stop)

    def stop(self, *_):
        self.end = 0.0

    @property
    def over(self):
        return time.monotonic() > self.end


def log(name, **values):
    """One line on the screen and in runs/<name>.log."""
    shown = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in values.items()}
    line = "  ".join(f"{key} {value}" for key, value in shown.items())
    print(line, flush=True)
    settings.RUNS.mkdir(parents=True, exist_ok=True)
    with open(settings.RUNS / f"{name}.log", "a") as file:
        file.write(time.strftime("%H:%M:%S  ") + line + "\n")
