"""The gradient of every operation in plain NumPy, in the order of reference.py.

L is the loss, y the result of an operation, g = ∂L/∂y, an array like y. The chain rule asks for dx = ∂L/∂x = Jᵀ g, where
J = ∂y/∂x. Nobody writes J down: dxᵢ = Σⱼ gⱼ ∂yⱼ/∂xᵢ, so each rule asks which results an argument reaches, and how
strongly.

Under an operation's name stand rules, one under each argument's name, or one for several (`q_k_v`, a tuple of theirs).
What a rule takes is what must be kept from the forward pass: arguments of the operation, its result y, or the shape of x
alone, `x_shape`. Where a weight is frozen its rule is not asked, and the input of that product is not kept.

N, H, W, C, T, S, h, D as in reference.py; float32 in and out, and a gradient has the shape of what it belongs to. Where
weights are bfloat16, g is rounded where it is multiplied by them, as x is forwards; rounding itself has slope 0 nearly
everywhere and is left out ("straight through", Bengio et al. 2013, arXiv:1308.3432). The compiled twins round both factors
of dW as well where the processor multiplies bfloat16 in tile registers.

Derived in docs/notes: attention in docs/notes/09-attention.md, convolution in docs/notes/10-convolution.md, norms and
activations in docs/notes/11-normalisation.md
"""
import math

import numpy as np

from . import reference
from .arrays import as_float32
from .reference import factors, stored

_SQRT_HALF, _DENSITY = math.sqrt(0.5), 1 / math.sqrt(2 * math.pi)


def matrix(weight):
    """A weight as float32 numbers in the checkpoint's shape, whatever it is kept as."""
    return as_float32(stored(weight))


def rows(x):
    """(..., C) → (rows, C)"""
    return x.reshape(-1, x.shape[-1])


def over_pixels(g, shape):
    """The gradient of a bias that was added to all pixels      g: (N, H, W, O)   shape: (O,) or (N, O), → that"""
    return g.sum(axis=(1, 2)) if len(shape) == 2 else rows(g).sum(axis=0)


def total(a, b, owned=False):
    """What was used twice gets the sum of both gradients      owned: whether a itself may become it"""
    if owned:
        a += b
        return a
    return a + b


# --- weights: their layout changes, not their numbers ----------------------------------------------------------------

class pack_linear:
    """Wₚ = W in another order, rounded or not      dW = g, which comes in the order of the checkpoint"""
    def weight(g):
        return g


class pack_conv2d(pack_linear):
    """As `pack_linear`."""


# --- products --------------------------------------------------------------------------------------------------------

class linear:
    """y = x Wᵀ + b + r      dx = g W      dW = gᵀ x      db = Σ g over rows      dr = g

    y_o = Σᵢ W_oᵢ xᵢ + b_o + r_o: an input xᵢ reaches every output of its row by W_oᵢ; a weight W_oᵢ reaches output o
    of every row by that row's xᵢ.      g: (..., out)
    """
    def x(g, weight):                                                    # → (..., in)
        g, weight = factors(g, weight)
        return (rows(g) @ weight).reshape(*g.shape[:-1], -1)

    def weight(g, x):                                                    # → (out, in)
        return rows(g).T @ rows(x)

    def bias(g):                                                         # → (out,)
        return rows(g).sum(axis=0)

    def residual(g):
        return g


class conv2d:
    """y[n, i, j] = Σ over u, v of W[:, :, u, v] x[n, s·i + u − top, s·j + v − left] + b + r

    dx[n, p, q] = Σ Wᵀ[:, :, u, v] g[n, i, j] over all taps with s·i + u − top = p, s·j + v − left = q: for stride 1 a
        convolution of g with the flipped kernel, in and out exchanged; for stride s of g with s − 1 zeros between pixels
    dW[:, :, u, v] = Σ g[n, i, j] x[n, s·i + u − top, s·j + v − left]ᵀ: for each output pixel, g by the patch it saw
    db = Σ g over pixels      dr = g      g: (N, H_out, W_out, O)
    """
    def x(g, weight, x_shape, stride, padding):                          # → (N, H, W, I)
        g, weight = factors(g, weight)
        spread = spread_out(g, weight.shape[2:], x_shape, stride, padding)
        return reference.conv2d(spread, flipped(weight))

    def weight(g, x, weight_shape, stride, padding):                     # → (O, I, kh, kw)
        outputs, inputs, kh, kw = weight_shape
        top, bottom, left, right = padding
        x = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))
        gradient = np.zeros((outputs, kh * kw * inputs), np.result_type(x, g))
        n, height, width = g.shape[:3]
        band = max(1, reference.PATCH_BYTES // (4 * n * width * kh * kw * inputs))
        for start in range(0, height, band):
            band_rows = range(start, min(start + band, height))
            patches = reference.im2col(x, (kh, kw), stride, band_rows)
            gradient += rows(g[:, band_rows.start:band_rows.stop]).T @ patches
        return np.ascontiguousarray(gradient.reshape(outputs, kh, kw, inputs).transpose(0, 3, 1, 2))

    def bias(g, bias_shape):                                             # → (O,) or (N, O)
        return over_pixels(g, bias_shape)

    def residual(g):
        return g


def flipped(weight):
    """The kernel turned by 180°, inputs and outputs exchanged      (O, I, kh, kw) → (I, O, kh, kw)"""
    return np.ascontiguousarray(weight[:, :, ::-1, ::-1].swapaxes(0, 1))


def spread_out(g, kernel, x_shape, stride, padding):
    """g with zeros between its pixels and around, such that an unpadded convolution of it is as large as x.

    Row i of g goes to row s·i + kh − 1 − top, from where the flipped kernel's last tap reaches row s·i − top of x, the
    first that g's row i has seen. Rows that only saw zeros around x fall away.      → (N, H + kh − 1, W + kw − 1, O)
    """
    sizes = [x_shape[axis + 1] + kernel[axis] - 1 for axis in (0, 1)]
    places, seen = [], []
    for axis, size in enumerate(sizes):
        at = stride * np.arange(g.shape[axis + 1]) + kernel[axis] - 1 - padding[2 * axis]
        inside = (at >= 0) & (at < size)
        places.append(at[inside])
        seen.append(inside)
    spread = np.zeros((len(g), *sizes, g.shape[3]), g.dtype)
    spread[:, places[0][:, None], places[1]] = g[:, seen[0]][:, :, seen[1]]
    return spread


class linear_geglu:
    """y = v · GELU(w), (v, w) = x Wᵀ + b      dv = g · GELU(w)      dw = g · v · GELU′(w)      then as `linear`

    v and w are computed again: together they are eight times as large as x. GELU′(w) = Φ(w) + w φ(w).
    """
    def x(g, x, weight, bias):
        return linear.x(before_gating(g, x, weight, bias), weight)

    def x_weight_bias(g, x, weight, bias):
        g = before_gating(g, x, weight, bias)
        return linear.x(g, weight), linear.weight(g, x), linear.bias(g)


def before_gating(g, x, weight, bias):
    """The gradient of (v, w) = x Wᵀ + b      g: (..., C) → (..., 2 C)"""
    value, gate = np.split(reference.linear(x, weight, bias), 2, axis=-1)
    return np.concatenate([g * reference.gelu(gate), gelu.x(g * value, gate)], axis=-1)


# --- normalisation ---------------------------------------------------------------------------------------------------

def normalized(x, axes, eps):
    """x̂ = (x − μ) r and r = 1 / √(σ² + ε), μ and σ² over some axes; sums of the definition's precision"""
    mean = x.mean(axis=axes, keepdims=True, dtype=np.float64).astype(x.dtype)
    variance = np.square(x - mean).mean(axis=axes, keepdims=True, dtype=np.float64).astype(x.dtype)
    scale = 1 / np.sqrt(variance + eps)
    return (x - mean) * scale, scale


def before_normalizing(g, x, scale, axes):
    """dx = r (d − mean(d) − x̂ mean(d x̂)), d = ∂L/∂x̂: what would move μ or stretch σ has no effect on x̂

    From ∂x̂ⱼ/∂xᵢ = r (δᵢⱼ − 1/n − x̂ᵢ x̂ⱼ / n), where ∂μ/∂xᵢ = 1/n and ∂σ²/∂xᵢ = 2 (xᵢ − μ) / n.      x: x̂
    """
    mean, slope = (each.mean(axis=axes, keepdims=True, dtype=np.float64).astype(x.dtype) for each in (g, g * x))
    return scale * (g - mean - x * slope)


class group_norm:
    """y = γ x̂ + β      d = g γ, dx as in `before_normalizing`      dγ = Σ g x̂      dβ = Σ g over images and pixels

    g: (N, H, W, C)
    """
    def x(g, x, weight, groups, eps):                                    # → (N, H, W, C)
        grouped, scale = normalized(in_groups(x, groups), (1, 3), eps)
        return before_normalizing(in_groups(g * weight, groups), grouped, scale, (1, 3)).reshape(g.shape)

    def weight(g, x, groups, eps):                                       # → (C,)
        return rows(g * normalized(in_groups(x, groups), (1, 3), eps)[0].reshape(x.shape)).sum(axis=0)

    def bias(g):                                                         # → (C,)
        return rows(g).sum(axis=0)


def in_groups(x, groups):
    """(N, H, W, C) → (N, H · W, G, C / G)"""
    return x.reshape(len(x), -1, groups, x.shape[-1] // groups)


class group_norm_silu:
    """y = silu(z), z = group_norm(x)      dz = g silu′(z), with z computed again; then as `group_norm`"""
    def x(g, x, weight, bias, groups, eps):
        return group_norm.x(before_silu(g, x, weight, bias, groups, eps), x, weight, groups, eps)

    def weight(g, x, weight, bias, groups, eps):
        return group_norm.weight(before_silu(g, x, weight, bias, groups, eps), x, groups, eps)

    def bias(g, x, weight, bias, groups, eps):
        return group_norm.bias(before_silu(g, x, weight, bias, groups, eps))


def before_silu(g, x, weight, bias, groups, eps):
    """The gradient of group_norm(x), whose silu has gradient g"""
    return silu.x(g, reference.group_norm(x, weight, bias, groups, eps))


class layer_norm:
    """y = γ x̂ + β over the last axis      d = g γ, dx as in `before_normalizing`      dγ = Σ g x̂      dβ = Σ g over rows"""
    def x(g, x, weight, eps):                                            # → (..., C)
        x, scale = normalized(x, -1, eps)
        return before_normalizing(g * weight, x, scale, -1)

    def weight(g, x, eps):                                               # → (C,)
        return rows(g * normalized(x, -1, eps)[0]).sum(axis=0)

    def bias(g):                                                         # → (C,)
        return rows(g).sum(axis=0)


# --- activations: dx = g f′(x), element by element -------------------------------------------------------------------

class silu:
    """y = x σ(x)      dx = g (σ + x σ (1 − σ)), from σ′ = σ (1 − σ)"""
    def x(g, x):
        from scipy.special import expit
        sigmoid = expit(x)
        return g * (sigmoid + x * sigmoid * (1 - sigmoid))


class gelu:
    """y = x Φ(x)      dx = g (Φ(x) + x φ(x)), from Φ′ = φ, the density of the normal distribution"""
    def x(g, x):
        from scipy.special import erf
        return g * (0.5 * (1 + erf(x * _SQRT_HALF)) + x * _DENSITY * np.exp(-0.5 * x * x))


class quick_gelu:
    """y = x σ(a x), a = 1.702      dx = g (σ + a x σ (1 − σ))"""
    def x(g, x):
        from scipy.special import expit
        sigmoid = expit(1.702 * x)
        return g * (sigmoid + 1.702 * x * sigmoid * (1 - sigmoid))


class relu:
    """y = max(x, 0)      dx = g where y > 0, else 0; at 0 itself, where there is no slope, 0 as elsewhere in the field"""
    def x(g, y):
        return np.where(y > 0, g, g.dtype.type(0))


class softmax:
    """yⱼ = e^xⱼ / Σ e^x      dx = y (g − Σ g y), from ∂yⱼ/∂xᵢ = yⱼ (δᵢⱼ − yᵢ); the sum over the last axis"""
    def x(g, y):
        return y * (g - (g * y).sum(axis=-1, keepdims=True))


# --- attention -------------------------------------------------------------------------------------------------------

class attention:
    """Y = P V, P = softmax(s Q Kᵀ), s = 1/√D, for each head

    dV = Pᵀ G      dP = G Vᵀ      dS = P (dP − Σ dP P), where the sum over keys is Σ G Y over the head's width
    dQ = s dS K      dK = s dSᵀ Q      Rows of dS sum to 0, so a bias of all keys has gradient 0.      G: (N, T, h·D)
    """
    def q_k_v(g, y, q, k, v, heads, causal):                             # → (N, T, h·D), (N, S, h·D) twice
        def split(x):                                                    # (N, T, h·D) → (N, h, T, D)
            return x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)

        def joined(x):
            return x.swapaxes(1, 2).reshape(len(x), x.shape[2], -1)

        g, y, q, k, v = map(split, (g, y, q, k, v))
        scale = 1 / math.sqrt(q.shape[-1])
        scores = (q * scale) @ k.swapaxes(-1, -2)                        # (N, h, T, S)
        if causal:
            scores = np.where(np.tri(*scores.shape[-2:], dtype=bool), scores, np.float32(-np.inf))
        p = reference.softmax(scores)
        d_scores = p * (g @ v.swapaxes(-1, -2) - (g * y).sum(axis=-1, keepdims=True))
        return joined(d_scores @ k) * scale, joined(d_scores.swapaxes(-1, -2) @ q) * scale, joined(p.swapaxes(-1, -2) @ g)


# --- resampling, embeddings ------------------------------------------------------------------------------------------

class upsample_nearest:
    """y[i, j] = x[r(i), c(j)]      dx[r, c] = Σ g[i, j] over the cell of pixels that x[r, c] was copied to"""
    def x(g, x_shape):                                                   # (N, height, width, C) → (N, H, W, C)
        n, height, width, channels = x_shape
        if g.shape[1] % height == g.shape[2] % width == 0:               # all cells are alike
            return g.reshape(n, height, g.shape[1] // height, width, -1, channels).sum(axis=(2, 4))
        gradient = np.zeros(x_shape, g.dtype)
        cells = np.arange(g.shape[1]) * height // g.shape[1], np.arange(g.shape[2]) * width // g.shape[2]
        np.add.at(gradient, (slice(None), cells[0][:, None], cells[1]), g)
        return gradient


class upsample_conv2d:
    """y = conv2d(e), e = upsample_nearest(x)      the rules of both, one after the other; e is computed again"""
    def x(g, weight, x_shape):
        enlarged = x_shape[0], *g.shape[1:3], x_shape[3]
        return upsample_nearest.x(conv2d.x(g, weight, enlarged, 1, (1, 1, 1, 1)), x_shape)

    def weight(g, x, weight_shape):
        return conv2d.weight(g, reference.upsample_nearest(x, *g.shape[1:3]), weight_shape, 1, (1, 1, 1, 1))

    def bias(g, bias_shape):
        return over_pixels(g, bias_shape)


class embedding:
    """y = W[ids]      dW[id] = Σ g of all places where this id stands; rows that were not looked up get 0"""
    def weight(g, ids, weight_shape):                                    # (..., C) → (vocabulary, C)
        gradient = np.zeros(weight_shape, g.dtype)
        np.add.at(gradient, ids, g)
        return gradient


class timestep_embedding:
    """y = (cos t ω, sin t ω) or (sin, cos)      dt = Σ ωᵢ (−g_cos sin t ωᵢ + g_sin cos t ωᵢ)"""
    def timesteps(g, y, flip_sin_to_cos, freq_shift):                    # (N, dim) → (N,)
        half = g.shape[1] // 2
        frequencies = np.exp(-math.log(10000) * np.arange(half) / (half - freq_shift)).astype(g.dtype)
        first, second = g[:, :half] * y[:, half:], g[:, half:] * y[:, :half]
        return ((second - first if flip_sin_to_cos else first - second) * frequencies).sum(axis=1)
