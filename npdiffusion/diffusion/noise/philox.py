"""The normal numbers that AUTOMATIC1111's web interface takes: those of torch on a GPU, computed anywhere.

Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", doi:10.1145/2063384.2063405) has no
state: four words of counter and two of key become four random words, so that each element of an array has its own.

    ten times:  (c₀, c₁, c₂, c₃) ← (hi(M₁ c₂) ⊕ c₁ ⊕ k₀,  lo(M₁ c₂),  hi(M₀ c₀) ⊕ c₃ ⊕ k₁,  lo(M₀ c₀))
                (k₀, k₁) ← (k₀ + W₀, k₁ + W₁)                                    hi, lo: halves of the 64-bit product
"""
import math

import numpy as np

from npdiffusion.diffusion.noise.seeds import wrapped

MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
WEYL = 0x9E3779B9, 0xBB67AE85                # of the golden ratio and of √3 − 1
TO_UNIT = 2.0**-32                           # of a word
TO_ANGLE = float(np.float32(2.0**-32 * 6.2831855))


def philox(counter, key):
    """Philox4x32-10: counter (4, n) and key (2,), words → (4, n) uint32"""
    c = [np.asarray(word, np.uint64) for word in counter]
    k = [int(word) for word in key]
    low = np.uint64(0xFFFFFFFF)
    for _ in range(10):
        first, second = c[0] * np.uint64(MULTIPLIERS[0]), c[2] * np.uint64(MULTIPLIERS[1])
        c = [second >> np.uint64(32) ^ c[1] ^ np.uint64(k[0]), second & low,
             first >> np.uint64(32) ^ c[3] ^ np.uint64(k[1]), first & low]
        k = [(word + weyl) % 2**32 for word, weyl in zip(k, WEYL)]
    return np.stack(c).astype(np.uint32)


class PhiloxGenerator:
    """The numbers of a GPU's torch.randn(shape) after torch.manual_seed(seed), as the web interface computes them.

    Element i of draw d has the counter (d, 0, i, 0) and the seed as key; two of the four words make a normal number by
    the transform of Box and Muller (1958): √(−2 ln u) sin v, where no u is 0. All 64 bits of a seed count.
    """
    def __init__(self, seed):
        self._key = wrapped(seed) % 2**32, wrapped(seed) >> 32
        self._draws = 0

    def normal(self, shape):
        """Standard normal numbers: shape (an int or a tuple) → float32 array of that shape, filled in C order."""
        count = math.prod(np.atleast_1d(np.asarray(shape, np.int64)).tolist())
        counter = np.zeros((4, count), np.uint64)
        counter[0], counter[2] = self._draws, np.arange(count, dtype=np.uint64)
        self._draws += 1
        x, y, _, _ = philox(counter, self._key).astype(np.float64)
        u, v = (x + 0.5) * TO_UNIT, (y + 0.5) * TO_ANGLE
        return (np.sqrt(-2 * np.log(u)) * np.sin(v)).astype(np.float32).reshape(shape)
