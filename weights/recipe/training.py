"""What all trainings of the recipe share: where they go on, the rate, the run in its folder.

Everything that learns is npdiffusion.training's: the models' own forward pass on a tape, Muon and AdamW, averaged
weights, states that are kept every two minutes and on Ctrl-C, from which a run goes on bit for bit.

    runs/vae/  runs/decoder/  runs/unet/  runs/controlnet/  runs/few_steps/
                                               one for each part of the plan, see npdiffusion/training/runs.py
"""

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
from safetensors import safe_open
from tqdm import tqdm

from npdiffusion.checkpoints.safetensors_file import read_file
from npdiffusion.checkpoints.text_files import read_json
from npdiffusion.kernels.threads import set_threads
from npdiffusion.models import parameters
from npdiffusion.training import initial, loop, runs
from npdiffusion.training.averages import Average
from npdiffusion.training.optimizers import muon_and_adamw

from . import settings

PARTS = ("vae", "unet", "decoder", "controlnet", "few_steps")                # of the plan, in its order
COUNTED = {"decoder": "vae", "text_encoder": "unet"}        # what learns with another, by whose name steps are counted


def parser(description):
    """Options that the whole recipe and each of its parts take."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--minutes", type=float, default=math.inf, help="stop after so long, to be continued")
    options.add_argument("--font", default=settings.FONT)
    options.add_argument("--runs", type=Path, default=settings.RUNS, help="folder of states, logs and caches")
    options.add_argument("--threads", type=int, default=None)
    return options


def prepared(options):
    """Options that have been read, after what they say has been done."""
    settings.RUNS = options.runs
    if options.threads:
        set_threads(options.threads)
    return options


def rate_at(step, end, fresh, warm_up, decay):
    """Share of the peak learning rate: a linear warm-up over `warm_up` steps, from `fresh`, the step at which the
    optimisers began; then level; then half a cosine down to zero over the last `decay` steps before `end`."""
    falling = 1 - (end - step) / decay
    return min(1.0, (step - fresh + 1) / warm_up) * 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, falling))))


def shipped_steps(part):
    """How many steps of a part the shipped model has behind it, 0 if there is none."""
    return read_json(settings.PROGRESS).get(COUNTED.get(part, part), 0) if settings.PROGRESS.exists() else 0


def begun(part):
    """The step at which the run of a part begins: told by its folder, else by the shipped model."""
    path = settings.RUNS / part / runs.SETTINGS
    if path.exists():
        return read_json(path)["begun"]
    return max(shipped_steps(part), settings.VAE_TRAINING["steps"] if part == "decoder" else 0)


def steps_behind(part):
    """How many steps the newest weights of a part have behind them."""
    kept = kept_state(part)
    return kept[1] if kept else begun(part)


def kept_state(part):
    """({name: Tensor}, step) of the state in a part's run, or None"""
    path = settings.RUNS / part / runs.STATE
    if not path.exists():
        return None
    with safe_open(path, framework="np") as file:
        return read_file(path), json.loads(file.metadata()["facts"])["step"]


def named(models):
    """{name: array} of the parameters of {folder: model}, those arrays themselves"""
    return {f"{folder}.{name}": value for folder, model in models.items() for name, value in initial.of(model).items()}


def at_random(folder, model):
    initial.begin(model, np.random.default_rng([settings.SEED, *folder.encode()]))


def fill(models, begin=at_random, from_runs=True):
    """Give {folder: model} their newest weights: averages of the runs (unless these shall not count), else the shipped ones,
    else what begin(folder, model) gives them."""
    wanted = named(models)
    for folder, model in models.items():
        if shipped_steps(folder):
            file, = (settings.MODEL / folder).glob("*.safetensors")
            for name, tensor in parameters.match(model, read_file(file), file).items():
                wanted[f"{folder}.{name}"][...] = tensor()
        else:
            begin(folder, model)
    if from_runs:
        fill_from_runs(wanted)
    return models


def fill_from_runs(wanted):
    """Give those of {name: array} that are in a run the averages there, in place."""
    for part in PARTS:
        for name, tensor in (kept_state(part) or [{}])[0].items():
            name = name.removeprefix("average.")
            if name in wanted:
                wanted[name][...] = tensor()


def newest_model():
    """The folder of the model that was exported from the runs, else of the shipped one"""
    return settings.RUNS / "model" if (settings.RUNS / "model").exists() else settings.MODEL


def learn(part, learnt, loss, plan, rate, end, minutes, after=None):
    """Train a part of the plan in its run → whether its last step is done

    learnt: {name: array}, what is trained, in place      loss(step): of the batch of a step, see loop.Training
    plan: with rate, averaging      rate(step): share of the peak      end: the last step      after: see loop.train
    """
    first = begun(part)
    training = loop.Training(
        lambda step, _: loss(step), muon_and_adamw(learnt, plain=plan["plain"]), lambda step: plan["rate"] * rate(step, first),
        Average(learnt, plan["averaging"]), seed=settings.SEED, begun=first)
    settings.RUNS.mkdir(parents=True, exist_ok=True)
    numbers = sum(value.size for value in learnt.values())
    with runs.Run(settings.RUNS / part, {"begun": first}) as run, \
            tqdm(total=end, initial=steps_behind(part), desc=f"{part}, {numbers:,} parameters", unit="step") as bar:

        def shown(values):
            bar.set_postfix(loss=f"{values['loss']:.4f}", refresh=False)
            bar.update()
        return loop.train(training, run, end, shown, after and (lambda step: after(step, training)), seconds=60 * minutes)


class Clock:
    """How many minutes are left of those that a run may take."""

    def __init__(self, minutes):
        self.end = time.monotonic() + 60 * minutes

    @property
    def left(self):
        return max(0.0, (self.end - time.monotonic()) / 60)
