"""A sampler's step as arithmetic: x₈ = 0.9715 x₇ + 0.0402 x̂₀ − 0.0117 x̂₀ before it.

Every step of every sampler is a sum of arrays, each times a number that depends on the noise levels alone. To find these
numbers, the sampler itself is run on `Form`s instead of arrays: sums of names with factors, which can be added and scaled.
So what is shown is what the code does, whichever sampler it is.
"""
from dataclasses import dataclass

import numpy as np

SMALLEST = 1e-12               # a factor below it comes from rounding


class Form:
    """Σ factor · name      terms: {(kind, number): factor}; kinds: x a state, D a x̂₀ of the model, z noise"""
    __array_ufunc__ = None     # so that NumPy's scalars leave the arithmetic to this class

    def __init__(self, terms):
        self.terms = terms

    def __add__(self, other):
        if not isinstance(other, Form):                      # sum() begins with 0
            return self
        names = [*self.terms, *(name for name in other.terms if name not in self.terms)]
        return Form({name: self.terms.get(name, 0.0) + other.terms.get(name, 0.0) for name in names})

    def __mul__(self, factor):
        return Form({name: float(factor) * value for name, value in self.terms.items()})

    __radd__, __rmul__ = __add__, __mul__

    def __sub__(self, other):
        return self + -1 * other

    def __neg__(self):
        return -1 * self

    def __truediv__(self, factor):
        return self * (1 / factor)


@dataclass
class Step:
    """One step: x_number = Σ factor · array      terms: [(kind, number, factor), ...]; calls of the model that it made"""
    number: int
    terms: list
    calls: list

    def value(self, states, denoised):
        """The sum of all terms but noise      states: {number: x}, denoised: {call: x̂₀}; KeyError if one is missing"""
        arrays = {"x": states, "D": denoised}
        return sum(np.float32(factor) * arrays[kind][number] for kind, number, factor in self.terms if kind != "z")

    @property
    def noise(self):
        """The size of the noise that is added; independent draws add up in squares."""
        return sum(factor**2 for kind, _, factor in self.terms if kind == "z") ** 0.5


def steps(plan):
    """A `Plan` → [Step, ...], one for each state that its sampler yields; x_0 is where it starts, calls count from 0"""
    calls, draws, found, before = [0], [0], [], 0

    def denoise(x, level):
        calls[0] += 1
        return Form({("D", calls[0] - 1): 1.0})

    def noise():
        draws[0] += 1
        return Form({("z", draws[0] - 1): 1.0})

    for number, (x, _) in enumerate(plan.sample(denoise, Form({("x", 0): 1.0}), noise), start=1):
        terms = [(*name, factor) for name, factor in x.terms.items() if abs(factor) > SMALLEST]
        order = {"x": 0, "D": 1, "z": 2}
        terms.sort(key=lambda term: (order[term[0]], -term[1]))
        found.append(Step(number, terms, [*range(before, calls[0])]))
        before = calls[0]
        x.terms = {("x", number): 1.0}                       # the sampler goes on from a state that is known by its name
    return found
