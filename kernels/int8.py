"""int8: products of whole numbers of 8 bits, each kept with the scale of its row.

    W = s_o q_o      one scale for each output o (and tap of a kernel): the largest |W| there is 127     once, when it is packed
    x = s_r q_r      one scale for each row r and BLOCK of its terms                anew in each product
    y = Σ over blocks of s_r s_o Σ q_r q_o          the inner sum is a whole number below 2²⁴, so it is exact

A row of x is a pixel's channels, under 3×3 kernels as well: the sums of a tap have the scale of the pixel that it sees, and so
a pixel is rounded once for all taps. Scales of x come from x itself just before ("dynamic quantisation"), so that nothing has
to be calibrated. By rows, as in Dettmers et al. 2022, arXiv:2208.07339 ("vector-wise"); blocks keep one large number from
making all others of its row coarse. What is lost is the rounding of W and x to 1/254 of their largest at most.

Weights that come so take a byte for each number; processors with VNNI multiply four of them in the time of one float32.
"""
import numpy as np

BLOCK = 1024                                             # terms of a row that share a scale
HIGHEST = 127
_SHARE = np.float32(1 / HIGHEST)


class Int8:
    """A weight: numbers (out, in), int8, and scale (out,), float32; of a convolution (O, I, kh, kw) and (O, kh, kw)."""
    dtype = np.dtype(np.int8)

    def __init__(self, numbers, scale):
        self.numbers, self.scale = numbers, scale
        self.shape, self.nbytes = numbers.shape, numbers.nbytes + scale.nbytes

    @classmethod
    def nearest(cls, weight):
        """The nearest to a weight (out, in) or (O, I, kh, kw), float32"""
        scale = np.abs(weight).max(axis=1) * _SHARE
        return cls(np.rint(weight * _inverse(scale)[:, None]).astype(np.int8), scale)

    def widened(self):
        """The weight as float32"""
        return self.numbers * self.scale[:, None]


def rounded_rows(x):
    """What an int8 product multiplies in place of x (..., K), float32: s q, with a scale s for each BLOCK of a row"""
    rounded = np.empty_like(x)
    for start in range(0, x.shape[-1], BLOCK):
        some = x[..., start:start + BLOCK]
        scale = np.abs(some).max(axis=-1, keepdims=True) * _SHARE
        rounded[..., start:start + BLOCK] = np.rint(some * _inverse(scale)) * scale
    return rounded


def _inverse(scale):
    """1 / scale, 0 where that is 0: there is nothing but zeros then"""
    return np.divide(1, scale, out=np.zeros_like(scale), where=scale > 0)
