"""Schedules of the learning rate: a share of its peak, from 0 to 1, for each step.

    warm-up      step / warm_up, for Adam's averages are of little worth at first (Goyal et al. 2017, arXiv:1706.02677)
    constant     1
    linear       (steps − step) / (steps − warm_up)
    cosine       ½ (1 + cos(π (step − warm_up) / (steps − warm_up)))       Loshchilov & Hutter 2016, arXiv:1608.03983
    level        1, and half a cosine down to 0 over the last third

steps and warm_up are whole numbers; step counts from 0. The first three equal those of diffusers.optimization.
"""
import math

SCHEDULES = ("constant", "linear", "cosine", "level")


def rate(step, peak, steps, schedule="constant", warm_up=0):
    """The learning rate of a step, a Python float; ValueError for a schedule that isn't one of SCHEDULES."""
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule {schedule!r} is unknown: choose one of {', '.join(SCHEDULES)}")
    if step < warm_up:
        return peak * step / warm_up
    done = min(1.0, (step - warm_up) / max(1, steps - warm_up))
    if schedule == "linear":
        return peak * (1 - done)
    if schedule == "level":
        done = max(0.0, 3 * done - 2)
    return peak * (1.0 if schedule == "constant" else 0.5 * (1 + math.cos(math.pi * done)))
