"""Everything that there is to see of one picture, gathered while it is made: what a report shows.

    look = look_at(pipeline, resolved)           the picture, every layer, attention maps, every step
    finish(pipeline, look)                       what needs further pictures: each word left out, the picture once more
"""
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from npdiffusion.study import arithmetic
from npdiffusion.study.attention import AttentionMaps, Recorder
from npdiffusion.study.leaving_out import MOST, Without, again, leave_out, shorter
from npdiffusion.study.making import make
from npdiffusion.study.steps import Seen, StepRecorder
from npdiffusion.study.strips import evenly
from npdiffusion.study.tracing import Trace, Tracer

MOST_SHOWN = 50                # steps whose pictures are shown
MOST_WORK = 4e12               # floating-point operations that further pictures may take: some seconds, a minute at most


@dataclass
class Look:
    """What was seen. without: the picture without each word; same: whether it is the picture made without looking"""
    resolved: object
    image: Image.Image
    seen: list[Seen]
    maps: AttentionMaps
    trace: Trace
    sums: list[dict] = field(default_factory=list)      # the arithmetic of each step, see `add_up`
    without: list[Without] = field(default_factory=list)
    same: bool | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def work(self):
        """Floating-point operations that the picture took."""
        return sum(layer.flop * layer.calls for layer in self.trace.layers.values())

    @property
    def affordable(self):
        """How many further pictures may be made."""
        return int(MOST_WORK // max(self.work / max(self.resolved.request.count, 1), 1))


def look_at(pipeline, resolved, callback=None, preview=None):
    """Make the pictures of a `Resolved` and look at the first one → Look; callback, preview: as for `pipeline.make`"""
    shown = evenly(resolved.planned, MOST_SHOWN)
    tracer, maps, steps = Tracer(pipeline), Recorder(pipeline, resolved), StepRecorder(pipeline, resolved, shown)

    def step(*arguments):
        for each in filter(None, (tracer.step, maps.step, steps.step, callback)):
            each(*arguments)

    def seen(*arguments):
        steps.preview(*arguments)
        if preview:
            preview(*arguments)

    tracer.found.images = make(pipeline, resolved, [maps.watch, steps.watch, tracer.watch], step, seen)
    found = Look(resolved, tracer.found.images[0], steps.seen, maps.finish(tracer.found.images), tracer.found)
    found.sums = add_up(resolved, steps)
    found.notes += [*found.maps.notes, *found.trace.notes]
    if len(shown) < resolved.planned:
        found.notes.append(f"of {resolved.planned} steps, {len(shown)} are shown")
    return found


def add_up(resolved, steps):
    """The arithmetic of each step beside what the code did → [{terms, noise, difference or rest, example}, ...]

    difference   the largest one between Σ factor · array and the state, where no noise was added; None if arrays are missing
    relative     the same over the largest number that is summed
    rest         where noise was added: the deviation of what is left, over the size that the noise has; about 1
    example      the numbers at the middle of the picture, in the first channel: of each array, and of the state
    """
    found = []
    for way, states, denoised in zip(resolved.passes, steps.states, steps.denoised):
        for step in arithmetic.steps(way.plan):
            row = {"terms": step.terms, "noise": step.noise, "difference": None, "rest": None, "example": None}
            arrays = {"x": states, "D": denoised}
            if step.number in states and all(number in arrays[kind] for kind, number, _ in step.terms if kind != "z"):
                rest = states[step.number] - step.value(states, denoised)
                if step.noise:
                    row["rest"] = float(rest.std() / step.noise)
                else:
                    row["difference"] = float(np.abs(rest).max())
                    row["relative"] = row["difference"] / max(abs(factor) * float(np.abs(arrays[kind][number]).max())
                                                              for kind, number, factor in step.terms)
                middle = (rest.shape[0] // 2, rest.shape[1] // 2, 0)
                row["example"] = [None if kind == "z" else float(arrays[kind][number][middle])
                                  for kind, number, _ in step.terms]
                row["result"] = float(states[step.number][middle])
            found.append(row)
    return found


def finish(pipeline, look):
    """Make the further pictures, unless they would take too long; tells in `notes` what was left out"""
    if not look.affordable:
        look.notes.append("the picture isn't made once more, nor without each of its words: that would take long with a model "
                          "of this size")
        return look
    words = shorter(look.resolved.request.prompt)
    plain, = again(pipeline, look.resolved, look.resolved.request.prompt)
    look.same = bool(np.array_equal(np.asarray(plain), np.asarray(look.image)))
    count = min(len(words), MOST, look.affordable - 1)
    look.without = list(leave_out(pipeline, look.resolved, look.image, count))
    if count < len(words):
        why = "would take long with a model of this size" if count < MOST else "a report has no more"
        look.notes.append(f"{count} of {len(words)} words are left out in turn: more {why}")
    return look
