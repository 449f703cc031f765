"""Every operation of Stable Diffusion in plain NumPy: the specification that the fast twins must reproduce.

Channels last everywhere: N images, H × W pixels, C channels, so a pixel is a row and tokens ↔ image is a reshape;
T queries, S keys, h heads of width D. Arrays are float32 in and out; scalars are Python numbers, because a NumPy
scalar would promote to float64. Arguments are not modified. Weights have the shapes of the checkpoint.
"""
import math

import numpy as np

from .arrays import Array, Weight, as_float32
from .int8 import Int8, rounded_rows

PATCH_BYTES = 256 << 20       # im2col works on bands of rows, so that its matrix stays below this size


# --- weights: the plain twins use them as the checkpoint stores them, bfloat16 (which NumPy lacks) as uint16 ----------

def pack_linear(weight: Array, dtype: str = "float32") -> Array | Int8:
    """The layout `linear` wants: here a copy (out, in) as stored, or rounded to bfloat16 or int8 if that is the dtype."""
    if dtype == "bfloat16":
        return to_bfloat16(as_float32(weight))
    if dtype == "int8":
        return Int8.nearest(as_float32(weight))
    return weight.copy() if weight.dtype == np.float32 else as_float32(weight)


def pack_conv2d(weight: Array, dtype: str = "float32") -> Array | Int8:
    """The layout `conv2d` wants: here a copy (O, I, kh, kw) as stored, or rounded if dtype says so."""
    return pack_linear(weight, dtype)


def to_bfloat16(x: Array) -> Array:
    """The nearest numbers that are the upper half of a float32, ties to even; NaN stays NaN      → uint16, that half"""
    bits = np.asarray(x, np.float32).view(np.uint32)
    nearest = (bits + (0x7fff + (bits >> 16 & 1))) >> 16
    return np.where(np.isnan(x), bits >> 16 | 0x40, nearest).astype(np.uint16)


def rounded(x: Array) -> Array:
    """The nearest numbers that bfloat16 can hold, in the type of x."""
    return as_float32(to_bfloat16(x)).astype(x.dtype, copy=False)


def stored(weight: Weight) -> Array | Int8:
    """The array of the checkpoint, also when a fast twin has packed it (anything with `unpack`) or it is not in memory
    (anything with `read`)."""
    if hasattr(weight, "read"):
        weight = weight.read()
    return weight.unpack() if hasattr(weight, "unpack") else weight


def factors(x: Array, weight: Weight) -> tuple[Array, Array]:
    """x and W as they are multiplied: as they are, or both rounded to bfloat16 or int8 if W is kept so. Sums are float32.

    (Winograd's convolution rounds elsewhere: its transformed factors, or the weights alone.)
    """
    weight = stored(weight)
    if isinstance(weight, Int8):
        return rounded_rows(x), weight.widened()
    if weight.dtype != np.uint16:
        return x, weight
    return rounded(x), as_float32(weight)


# --- products --------------------------------------------------------------------------------------------------------

def linear(x: Array, weight: Weight, bias: Array | None = None, residual: Array | None = None) -> Array:
    """y = x Wᵀ + b (+ r)      x: (..., in)   weight: (out, in)   bias: (out,)   residual: (..., out)   → (..., out)"""
    x, weight = factors(x, weight)
    y = x.reshape(-1, x.shape[-1]) @ weight.T
    if bias is not None:
        y += bias
    y = y.reshape(*x.shape[:-1], weight.shape[0])
    if residual is not None:
        y += residual
    return y


def im2col(x: Array, kernel: tuple[int, int], stride: int, rows: range) -> Array:
    """The patches under a kernel, as rows of a matrix      docs/notes/10-convolution.md

    x: (N, H, W, C), padded; kernel: (kh, kw); rows: range of output rows → (N · len(rows) · W_out, kh · kw · C)
    """
    kh, kw = kernel
    width = (x.shape[2] - kw) // stride + 1
    taps = [x[:, rows.start * stride + i:(rows.stop - 1) * stride + i + 1:stride, j:j + (width - 1) * stride + 1:stride]
            for i in range(kh) for j in range(kw)]
    return np.concatenate(taps, axis=-1).reshape(-1, kh * kw * x.shape[3])


def conv2d(x: Array, weight: Weight, bias: Array | None = None, stride: int = 1,
           padding: tuple[int, int, int, int] = (0, 0, 0, 0), residual: Array | None = None) -> Array:
    """y[n, i, j] = Σ over u, v of W[:, :, u, v] x[n, s·i + u, s·j + v] + b (+ r), as one matrix product (im2col).

    x: (N, H, W, I)   weight: (O, I, kh, kw)   bias: (O,), or (N, O) to shift each image by its own time embedding
    padding: zeros added at (top, bottom, left, right)   residual: like the result   → (N, H_out, W_out, O)
    im2col: Chellapilla, Puri & Simard 2006, "High performance convolutional neural networks for document processing".
    As a matrix, and its transpose: docs/notes/10-convolution.md
    """
    x, weight = factors(x, weight)
    out_channels, in_channels, kh, kw = weight.shape
    top, bottom, left, right = padding
    n = x.shape[0]
    x = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))
    height, width = (x.shape[1] - kh) // stride + 1, (x.shape[2] - kw) // stride + 1
    matrix = weight.transpose(2, 3, 1, 0).reshape(kh * kw * in_channels, out_channels)
    y = np.empty((n, height, width, out_channels), np.result_type(x, weight, np.float32))
    band = max(1, PATCH_BYTES // (4 * n * width * kh * kw * in_channels))
    for start in range(0, height, band):
        rows = range(start, min(start + band, height))
        y[:, rows.start:rows.stop] = (im2col(x, (kh, kw), stride, rows) @ matrix).reshape(n, len(rows), width, -1)
    if bias is not None:
        y += bias if bias.ndim == 1 else bias[:, None, None, :]
    if residual is not None:
        y += residual
    return y


def linear_geglu(x: Array, weight: Weight, bias: Array | None) -> Array:
    """value · GELU(gate), where (value, gate) = x Wᵀ + b      x: (..., in)   weight: (2 C, in)   → (..., C)

    GEGLU (Shazeer 2020, arXiv:2002.05202): the first half of the outputs is the value, the second half the gate.
    """
    value, gate = np.split(linear(x, weight, bias), 2, axis=-1)
    return value * gelu(gate)


# --- normalisation ---------------------------------------------------------------------------------------------------

def group_norm(x: Array, weight: Array, bias: Array, groups: int, eps: float) -> Array:
    """y = γ (x − μ) / √(σ² + ε) + β, with μ and σ² over the H · W pixels and C / groups channels of a group.

    x: (N, H, W, C)   weight γ, bias β: (C,)   → (N, H, W, C)          Wu & He 2018, arXiv:1803.08494
    What it ignores, and its gradient: docs/notes/11-normalisation.md
    """
    n, h, w, c = x.shape
    x = x.reshape(n, h * w, groups, c // groups)
    mean = x.mean(axis=(1, 3), keepdims=True, dtype=np.float64).astype(weight.dtype)
    variance = np.square(x - mean).mean(axis=(1, 3), keepdims=True, dtype=np.float64).astype(weight.dtype)
    x = (x - mean) / np.sqrt(variance + eps)
    return x.reshape(n, h, w, c) * weight + bias


def group_norm_silu(x: Array, weight: Array, bias: Array, groups: int, eps: float) -> Array:
    """silu(group_norm(x)), the head of every residual branch in the UNet and the VAE."""
    return silu(group_norm(x, weight, bias, groups, eps))


def layer_norm(x: Array, weight: Array, bias: Array, eps: float) -> Array:
    """y = γ (x − μ) / √(σ² + ε) + β over the last axis      x: (..., C)          Ba et al. 2016, arXiv:1607.06450

    docs/notes/11-normalisation.md
    """
    mean = x.mean(axis=-1, keepdims=True)
    variance = np.square(x - mean).mean(axis=-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + eps) * weight + bias


# --- activations: scipy.special takes a tenth of a second to import, which the fast twins need not wait for ----------

def silu(x: Array) -> Array:
    """x · σ(x)          Elfwing et al. 2017, arXiv:1702.03118; docs/notes/11-normalisation.md"""
    from scipy.special import expit
    return x * expit(x)


def gelu(x: Array) -> Array:
    """x · Φ(x) = x/2 · (1 + erf(x/√2)), exact      Hendrycks & Gimpel 2016, arXiv:1606.08415; docs/notes/11-normalisation.md"""
    from scipy.special import erf
    return 0.5 * x * (1 + erf(x * math.sqrt(0.5)))


def quick_gelu(x: Array) -> Array:
    """x · σ(1.702 x), the approximation of GELU that CLIP was trained with (Radford et al. 2021, arXiv:2103.00020)"""
    from scipy.special import expit
    return x * expit(1.702 * x)


def relu(x: Array) -> Array:
    """max(x, 0)          Nair & Hinton 2010, which found it better than sigmoids for training"""
    return np.maximum(x, 0)


def softmax(x: Array) -> Array:
    """eˣ / Σ eˣ over the last axis, shifted by its maximum so that nothing overflows      docs/notes/09-attention.md"""
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


# --- attention -------------------------------------------------------------------------------------------------------

def attention(q: Array, k: Array, v: Array, heads: int, causal: bool = False, dtype: str = "float32") -> Array:
    """softmax(Q Kᵀ / √D) V for each head      q: (N, T, h·D)   k, v: (N, S, h·D)   → (N, T, h·D)

    With `causal`, query t sees keys 0..t alone (T = S).          Vaswani et al. 2017, arXiv:1706.03762, eq. 1
    Why √D, and how gradients go back: docs/notes/09-attention.md
    With dtype "bfloat16" the factors of both products are rounded: q log₂ e / √D, k, v, and powers 2^(x − m), where x
    are scores and m is their maximum as a whole number; what powers are divided by is the sum of unrounded ones.
    """
    def split(x):                                                        # (N, T, h·D) → (N, h, T, D)
        return x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)

    q, k, v = split(q), split(k), split(v)
    scale = 1 / math.sqrt(q.shape[-1])
    if dtype == "bfloat16":
        q = np.float32(math.log2(math.e) * scale) * q.astype(np.float32)
        q, k, v, scale = rounded(q).astype(k.dtype), rounded(k), rounded(v), 1
    scores = (q * scale) @ k.swapaxes(-1, -2)                            # (N, h, T, S)
    if causal:
        scores = np.where(np.tri(*scores.shape[-2:], dtype=bool), scores, np.float32(-np.inf))
    if dtype == "bfloat16":
        powers = np.exp2(scores - np.rint(scores.max(axis=-1, keepdims=True)))
        y = rounded(powers) @ v / powers.sum(axis=-1, keepdims=True)
    else:
        y = softmax(scores) @ v
    return y.swapaxes(1, 2).reshape(y.shape[0], y.shape[2], -1)


# --- resampling, embeddings ------------------------------------------------------------------------------------------

def upsample_nearest(x: Array, height: int, width: int) -> Array:
    """y[i, j] = x[⌊i · H / height⌋, ⌊j · W / width⌋]      x: (N, H, W, C)   → (N, height, width, C)"""
    rows = np.arange(height) * x.shape[1] // height
    columns = np.arange(width) * x.shape[2] // width
    return x[:, rows[:, None], columns]


def upsample_conv2d(x: Array, weight: Weight, bias: Array | None, height: int, width: int) -> Array:
    """conv2d(upsample_nearest(x, height, width)), padded by 1      x: (N, H, W, I)   weight: (O, I, 3, 3)   bias: (O,)

    → (N, height, width, O): how the UNet and the VAE's decoder enlarge an image
    """
    return conv2d(upsample_nearest(x, height, width), weight, bias, padding=(1, 1, 1, 1))


def embedding(ids: Array, weight: Weight) -> Array:
    """Row ids[...] of the table      ids: integers (...)   weight: (vocabulary, C)   → (..., C)"""
    return weight.rows(ids) if hasattr(weight, "rows") else stored(weight)[ids]


def timestep_embedding(timesteps: Array, dim: int, flip_sin_to_cos: bool = True, freq_shift: float = 0) -> Array:
    """cos(t ωᵢ), sin(t ωᵢ) with ωᵢ = 10000^(−i / (dim/2 − freq_shift)), cosines first if `flip_sin_to_cos`.

    timesteps: (N,), may be fractional   → (N, dim)          Ho et al. 2020, arXiv:2006.11239, after Vaswani et al. 2017
    """
    half = dim // 2
    exponents = -math.log(10000) * np.arange(half, dtype=np.float32) / (half - freq_shift)
    frequencies = np.exp(exponents, dtype=np.float64).astype(np.float32)      # t is up to 999 times as sensitive to an ulp
    angles = np.asarray(timesteps, np.float32)[:, None] * frequencies
    parts = [np.cos(angles), np.sin(angles)] if flip_sin_to_cos else [np.sin(angles), np.cos(angles)]
    return np.concatenate(parts, axis=-1)
