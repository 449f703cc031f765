"""A Brownian path over σ that depends on its seed alone, not on where it is looked at.

    W(0) = 0      W(b) − W(a) ~ N(0, b − a)      independent over intervals that don't overlap

Levy's construction: W at the end of the range first, then at the middle, then at the middles of both halves, and so on,
each given its neighbours: W(m) = (W(a) + W(b)) / 2 + √((b − a) / 4) z. Each z has a seed of its own, made from the
path's seed and the place in this tree. Samplers of stochastic flows that use such a path give nearly the same picture with
more steps, where fresh noise would give another one. The seeds are those of torchsde's BrownianInterval with
halfway_tree, which k-diffusion and the programs built on it use.
"""
import math

import numpy as np

DIGITS = 6                # decimals to which times differ
POOL = 24                 # words in which a seed is mixed


class BrownianPath:
    """W over [start, end], an array of any shape at each time.

    normal(seed) → float32 N(0, 1) of that shape
    """
    def __init__(self, start, end, seed, normal):
        self.start, self.end = round(start, DIGITS), round(end, DIGITS)
        self.seed, self.normal = seed, normal
        self.whole = math.sqrt(end - start) * normal(self._seed_of())
        self.latest = None, None      # time and W: the next interval of a walk begins where the last one ended

    def increment(self, a, b):
        """W(b) − W(a), over its standard deviation √|b − a|; a may lie above b"""
        before, after = self.at(a), self.at(b)
        return (after - before) / math.sqrt(abs(b - a))

    def at(self, time):
        """W(time) − W(start)"""
        time = min(max(round(time, DIGITS), self.start), self.end)
        if time != self.latest[0]:
            self.latest = time, self._descend(time)
        return self.latest[1]

    def _descend(self, time):
        start, end, change, place, depth = self.start, self.end, self.whole, 0, 0
        before = np.zeros_like(change)
        while time not in (start, end):
            middle = round((start + end) / 2, DIGITS)
            left, right, z = middle - start, end - middle, self.normal(self._seed_of(place, depth))
            change_left = left / (end - start) * change + math.sqrt(left * right / (end - start)) * z
            place, depth = 2 * place, depth + 1
            if time <= middle:
                end, change = middle, change_left
            else:
                start, before, change, place = middle, before + change_left, change - change_left, place + 1
        return before if time == start else before + change

    def _seed_of(self, *place):
        return int(np.random.SeedSequence(self.seed, spawn_key=place, pool_size=POOL).generate_state(1)[0])
