"""The loop of a training: batch → loss → gradients → step, until it is done, stopped, or goes wrong.

    for each step t:      random numbers from the seed (seed, t), so that a run that goes on draws what it would have drawn
        L, g              mean loss of the batch and its gradients, by tape.py; several small batches can make one
        g                 shortened to a largest length, clipping.py
        θ                 moved by the optimiser at this step's rate, optimizers.py and rates.py
        a                 the average follows, averages.py

Ctrl-C, and SIGTERM, let the step finish; then the state is kept. A second one ends at once, with the last state kept.
"""
import contextlib
import functools
import math
import signal
import threading
import time

import numpy as np

from npdiffusion import kernels
from npdiffusion.errors import UserError
from npdiffusion.memory.malloc import memory_reused
from npdiffusion.training.clipping import accumulated, clipped, norm
from npdiffusion.training.tape import Tape

SAVE_EVERY = 120.0                 # seconds from one state that is kept to the next
LARGEST_NORM = 1.0                 # to which gradients are clipped where nothing else is said


class Training:
    """All that changes from step to step.

    loss        loss(number, rng) → mean loss of the small batch of that number, counted from 0, a scalar array that
                depends on the optimiser's parameters; rng: for whatever is random in it
    optimizer   see optimizers.py; its `parameters`, {name: array}, are those that are trained, in place
    rate        rate(step) → learning rate of a step, counted from 0
    average     an averages.Average of the same parameters, or None
    clip        largest length of a step's gradients
    batches     how many small batches make a step
    begun       how many steps the parameters have behind them when all this begins: steps are counted on from there,
                while optimiser and average are new
    """
    def __init__(self, loss, optimizer, rate, average=None, clip=LARGEST_NORM, batches=1, seed=0, begun=0):
        self.loss, self.optimizer, self.rate, self.average = loss, optimizer, rate, average
        self.clip, self.batches, self.seed, self.begun, self.step = clip, batches, seed, begun, begun

    def advance(self):
        """One step → {"step", "loss", "norm", "rate"}, Python numbers. UserError if loss or gradients are not finite."""
        losses, gradients = zip(*(self._gradients(self.step * self.batches + part) for part in range(self.batches)))
        gradients, loss = accumulated(gradients), sum(losses) / len(losses)
        length, rate = norm(gradients), self.rate(self.step)
        if not math.isfinite(loss) or not math.isfinite(length):
            self.explain(gradients, loss)
        self.optimizer.step(clipped(gradients, self.clip), rate)
        if self.average:
            self.average.update()
        self.step += 1
        return {"step": self.step, "loss": loss, "norm": length, "rate": rate}

    def _gradients(self, number):
        tape = Tape(self.optimizer.parameters)
        with np.errstate(all="ignore"):                    # what isn't finite is noticed by `advance`
            with tape:
                loss = self.loss(number, self.random(number))
            return float(loss), tape.backward(loss)

    def random(self, number):
        """The generator for the small batch of a number; nothing else draws from it."""
        return np.random.default_rng([self.seed, number])

    def explain(self, gradients, loss):
        """UserError that says where the first value that is not finite appears: in which layer, or in which gradient."""
        names = {id(value): name for name, value in self.optimizer.parameters.items()}
        found = []

        def watch(operation, arguments, output):
            if not found and not np.isfinite(output).all():
                layer = next((names[id(value)] for value in arguments.values() if id(value) in names), None)
                found.append(layer or operation)
        with kernels.watched(watch), np.errstate(all="ignore"):
            for number in range(self.step * self.batches, (self.step + 1) * self.batches):
                self.loss(number, self.random(number))
        found += [f"the gradient of {name}" for name, gradient in reversed(gradients.items())
                  if not np.isfinite(gradient).all()]
        where = f"the first such value appears in {found[0]}" if found else "all layers are finite, the loss itself is not"
        raise UserError(f"step {self.step + 1}: a value is not finite (loss {loss:.4g}); {where}; the last good state is kept; "
                        "a smaller learning rate may help")

    # ---- what is kept

    def state(self):
        """{name: array} of everything, and {"step"}: what `go_on_from` takes"""
        tensors = {f"parameters.{name}": value for name, value in self.optimizer.parameters.items()}
        tensors |= {f"optimizer.{name}": value for name, value in self.optimizer.memory.items()}
        if self.average:
            tensors |= {f"average.{name}": value for name, value in self.average.values.items()}
        return tensors, {"step": self.step}

    def go_on_from(self, tensors, facts):
        """Take up a state, in place."""
        for name, value in self.state()[0].items():
            value[...] = tensors[name]
        self.step = facts["step"]
        self.optimizer.steps = self.step - self.begun
        if self.average:
            self.average.updates = self.step - self.begun


def train(training, run, steps, listener=None, after=None, save_every=SAVE_EVERY, seconds=math.inf):
    """Go on with a training in its run folder up to so many steps → whether it got there, or was stopped before

    listener   called after each step with what `advance` returns; its "seconds" are those since the step before
    after      after(step) may add to the step's line in the log: returns {name: number}, or None
    seconds    after so long no step is begun
    UserError if something isn't finite or can't be written; the state that was kept last stays.
    """
    kept = run.state({name: value.shape for name, value in training.state()[0].items()})
    if kept is not None:
        training.go_on_from(*kept)
    with interruptible() as stop, memory_reused():
        last = begun = time.monotonic()
        end = last + seconds
        while training.step < steps and begun < end and not stop.is_set():
            values = training.advance()
            now = time.monotonic()
            values |= {"seconds": round(now - begun, 4)} | ((after and after(training.step)) or {})
            begun = now
            run.write(**values)
            if listener:
                listener(values)
            if now - last > save_every:
                run.save(*training.state())
                last = now
        run.save(*training.state())
    return training.step >= steps


def shuffled(number, count, size, seed):
    """Which of `count` examples are in the small batch of a number: all are gone through in an order that each epoch
    draws anew, and what doesn't fill a batch is left out of it      → indices (size,), or (count,) if there are fewer"""
    size = min(size, count)
    epoch, part = divmod(number, count // size)
    return _order(epoch, count, seed)[part * size:(part + 1) * size]


@functools.lru_cache(maxsize=2)
def _order(epoch, count, seed):
    return np.random.default_rng([seed, epoch, count]).permutation(count)


@contextlib.contextmanager
def interruptible():
    """Within, a first Ctrl-C or SIGTERM sets the event that this yields; a second one is a KeyboardInterrupt."""
    asked = threading.Event()

    def ask(*_):
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
    if threading.current_thread() is not threading.main_thread():          # signals reach that one alone
        yield asked
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
