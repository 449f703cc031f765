"""The normal numbers of torch's CPU generator.

The Mersenne Twister mt19937 (Matsumoto & Nishimura 1998, doi:10.1145/272991.272995) turns a 32-bit seed into a sequence
of 32-bit words with period 2^19937 − 1. NumPy's RandomState seeds and runs it as torch does (Knuth's multiplier
1812433253), so the words come from there. The transform of Box and Muller (1958, doi:10.1214/aoms/1177706645) makes two
independent normal numbers of two uniform ones, an angle and a radius in the plane:

    r = √(−2 ln u₁)     θ = 2π u₂     z₁ = r cos θ     z₂ = r sin θ          u₁ in (0, 1], u₂ in [0, 1)

How words become uniforms and which uniforms meet is torch's choice, and differs between long and short draws.
"""
import math
import operator

import numpy as np

from npdiffusion.diffusion.noise.seeds import wrapped


class TorchGenerator:
    """The numbers of torch.randn(shape, generator=torch.Generator().manual_seed(seed)), float32 on the CPU.

    Seeds from −2⁶³ to 2⁶⁴ − 1 are taken, as torch does; only the low 32 bits count, so −1 and 2³² − 1 are the same
    seed. Why two uniform numbers make two normal ones: docs/notes/01-probability.md

    Exactness: the uniforms are torch's own, bit for bit. Of 10⁶ normals in a long draw about five in six are equal too
    and none is further off than 3 units in the last place (5e-7), because torch's vectorised logarithm, sine and cosine
    are not rounded correctly, and these are (computed in float64, then rounded). torch on a processor without AVX2
    rounds θ differently and is up to 2.4e-6 away. Short draws, which torch computes in double as well, are equal.
    """

    def __init__(self, seed):
        self._words = np.random.RandomState(wrapped(seed) % 2**32)
        self._kept = None                                           # the second normal of a short draw's last pair

    def normal(self, shape):
        """Standard normal numbers: shape (an int or a tuple) → float32 array of that shape, filled in C order."""
        count = math.prod(shape) if isinstance(shape, (tuple, list)) else operator.index(shape)
        values = self._long_draw(count) if count >= 16 else self._short_draw(count)
        return values.reshape(shape)

    def _uniform(self, count):
        """count words → float32 in [0, 1): their low 24 bits, as many as a float32 holds exactly."""
        words = self._words.randint(2**32, size=count, dtype=np.uint32)
        return (words & 0xFFFFFF).astype(np.float32) * np.float32(2**-24)

    def _long_draw(self, count):
        """16 values or more: uniforms in blocks of 16, of which j and j + 8 become the normals j and j + 8.

        If 16 does not divide the size, the last 16 values are drawn afresh, over the end of the full blocks.
        """
        values = self._uniform(count)
        whole = count - count % 16
        values[:whole] = _box_muller(values[:whole])
        if whole < count:
            values[-16:] = _box_muller(self._uniform(16))
        return values

    def _short_draw(self, count):
        """Fewer than 16 values: double precision, pair by pair; a second one not needed waits for the next call."""
        values = np.empty(count, np.float32)
        for i in range(count):
            if self._kept is not None:
                values[i], self._kept = self._kept, None
                continue
            angle, distance = (self._double_uniform() for _ in range(2))
            radius, theta = math.sqrt(-2.0 * math.log1p(-distance)), 2.0 * math.pi * angle
            values[i], self._kept = radius * math.cos(theta), radius * math.sin(theta)
        return values

    def _double_uniform(self):
        """Two words, the first one high, → [0, 1): the low 53 bits, as many as a double holds exactly."""
        high, low = self._words.randint(2**32, size=2, dtype=np.uint32).tolist()
        return ((high << 32 | low) & (2**53 - 1)) * 2.0**-53


def _box_muller(uniform):
    """float32 uniforms, blocks of 16 → float32 normals, in place of their uniforms.

    Every operation rounds to float32, in torch's order; the functions that a float32 library may miss by a bit are
    taken in float64. 1 − u lies in (0, 1] and keeps the logarithm finite.
    """
    u1, u2 = uniform.reshape(-1, 2, 8).swapaxes(0, 1)
    theta = (u2 * np.float32(2.0 * math.pi)).astype(np.float64)
    radius = np.sqrt(np.float32(-2.0) * np.log(1.0 - u1.astype(np.float64)).astype(np.float32))
    normal = np.stack([radius * np.cos(theta).astype(np.float32), radius * np.sin(theta).astype(np.float32)], axis=1)
    return normal.reshape(-1)
