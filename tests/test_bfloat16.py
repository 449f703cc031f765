"""Weights in bfloat16: rounding, packing, and products whose factors are bfloat16 and whose sums are float32."""
import platform

import numpy as np
import pytest
import torch

from npdiffusion.kernels import fast, reference
from npdiffusion.kernels.codegen import bfloat16
from npdiffusion.kernels.products import amx_tile, winograd_transforms
from npdiffusion.kernels.products.microkernel import LANES
from tests.differences import agree
from tests.operations import (
    ATTENTIONS,
    CONVOLUTIONS,
    LIMIT,
    PRODUCTS,
    assert_twin,
    convolution,
    doubled,
    error,
    queries_keys_values,
    values,
)
from tests.processes import output_of

SPECIAL = [0.0, -0.0, 1.0, -1.5, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, 3.4e38, 1e-40, np.inf, -np.inf, np.nan]
DIRECT, WINOGRAD = CONVOLUTIONS[:-4], CONVOLUTIONS[-4:]
ROUNDING = 2**-8                                         # half a unit in the last place, relative, at most


def by_torch(weight):
    """bits of the nearest bfloat16, by torch"""
    return torch.from_numpy(weight).bfloat16().view(torch.int16).numpy().view(np.uint16)


# ---- numbers

def test_rounding_is_torchs():
    x = np.concatenate([values(10_000), values(10_000, scale=1e-20), np.array(SPECIAL[:-1], np.float32)])
    np.testing.assert_array_equal(reference.to_bfloat16(x), by_torch(x))


@pytest.mark.parametrize("bits", [0x7fc00000, 0xffc00000, 0x7f800001, 0x7fffffff, 0xffffffff])
def test_nan_stays_nan(bits):
    x = np.array([bits], np.uint32).view(np.float32)
    assert np.isnan(reference.as_float32(reference.to_bfloat16(x))).all()
    assert np.isnan(reference.as_float32(fast.pack_linear(x[None], "bfloat16").unpack())).all()
    y = fast.linear(np.stack([np.ones(3, np.float32), np.repeat(x, 3)]), fast.pack_linear(values(40, 3), "bfloat16"))
    assert np.isfinite(y[0]).all() and np.isnan(y[1]).all()


# ---- packing

@pytest.mark.parametrize("shape", [
    (1, 1), (33, 7), (64, 320), (4, 320, 3, 3), (50, 3, 2, 3), (96, 20, 1, 1), (40, 129, 1, 3)])
@pytest.mark.parametrize("source", ["float32", "float16", "bfloat16"])
def test_packing_rounds_once_and_loses_nothing_else(shape, source):
    weight = {"float32": values(*shape), "float16": values(*shape).astype(np.float16),
              "bfloat16": by_torch(values(*shape))}[source]
    for dtype in ("float32", "bfloat16"):
        packed = fast.pack_conv2d(weight, dtype)
        assert (packed.shape, packed.dtype, packed.is_finite) == (shape, dtype, True)
        np.testing.assert_array_equal(packed.unpack(), reference.pack_conv2d(weight, dtype))


def test_every_float16_is_widened_exactly():
    weight = np.arange(2**16).astype(np.uint16).view(np.float16).reshape(2, -1)
    packed = fast.pack_linear(weight)
    np.testing.assert_array_equal(packed.unpack(), weight.astype(np.float32))
    assert not packed.is_finite


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_packing_sees_what_is_not_finite(value, dtype):
    weight = values(70, 33).astype(dtype)
    weight[69, 32] = value
    assert not fast.pack_linear(weight, "bfloat16").is_finite
    assert not fast.pack_linear(by_torch(weight.astype(np.float32))).is_finite


def test_bfloat16_takes_half_the_memory():
    weight = values(320, 320)
    assert 2 * fast.pack_linear(weight, "bfloat16").nbytes == weight.nbytes == fast.pack_linear(weight).nbytes


# ---- products

@pytest.mark.parametrize("rows, inputs, outputs", [*PRODUCTS, (30, 515, 64)])
def test_products_of_bfloat16_match_their_definition(rows, inputs, outputs):
    x, bias, residual = values(rows, inputs), values(outputs), values(rows, outputs)
    weight = reference.pack_linear(values(outputs, inputs), "bfloat16")
    assert_twin("linear", x, weight)
    assert_twin("linear", x, weight, bias, residual)
    assert_twin("linear_geglu", x, reference.pack_linear(values(2 * outputs, inputs), "bfloat16"), values(2 * outputs))


@pytest.mark.parametrize("image, channels, kernel, stride, padding", DIRECT)
def test_convolutions_of_bfloat16_match_their_definition(image, channels, kernel, stride, padding):
    if (kernel, stride) == (3, 1) and channels[0] % LANES == 0 and channels[1] >= LANES:
        pytest.skip("vectors of 4 lanes are filled by 4 channels: this is a case for Winograd there")
    x, weight, bias = convolution(image, channels, kernel)
    assert_twin("conv2d", x, reference.pack_conv2d(weight, "bfloat16"), bias, stride, padding)


def winograd_conv2d(x, weight, padding, narrow):
    """3×3 convolution by its 36 products, in float64, V and U rounded by `narrow`   x: (N, H, W, I)   weight: (O, I, 3, 3)"""
    top, bottom, left, right = padding
    height, width = x.shape[1] + top + bottom - 2, x.shape[2] + left + right - 2
    rows, columns = -(-height // 4), -(-width // 4)
    x = np.pad(x, ((0, 0), (top, 4 * rows + 2 - x.shape[1] - top), (left, 4 * columns + 2 - x.shape[2] - left), (0, 0)))
    d = np.lib.stride_tricks.sliding_window_view(x.astype(float), (6, 6), axis=(1, 2))[:, ::4, ::4]     # N r c I 6 6

    def both_ways(transform, x):                         # over the last two axes, moved to the front
        x = np.stack(transform(np.moveaxis(x, (-2, -1), (0, 1))))
        return np.stack(transform(x.swapaxes(0, 1))).swapaxes(0, 1)

    v = narrow(both_ways(winograd_transforms.input_transform, d).astype(np.float32)).astype(float)
    u = narrow(both_ways(winograd_transforms.weight_transform, weight.astype(float)).astype(np.float32)).astype(float)
    m = np.einsum("abnrci,aboi->nrcoab", v, u)
    y = both_ways(winograd_transforms.output_transform, m)                                              # 4 4 N r c O
    return y.transpose(2, 3, 0, 4, 1, 5).reshape(len(x), 4 * rows, 4 * columns, -1)[:, :height, :width]


def pairs(x):
    """float32 rounded to bfloat16 as the pairs of Winograd's kernel are: ties away from zero"""
    return ((x.view(np.uint32) + np.uint32(0x8000)) & np.uint32(0xffff0000)).view(np.float32)


@pytest.mark.parametrize("image, channels, kernel, stride, padding", WINOGRAD)
def test_winograd_of_bfloat16(image, channels, kernel, stride, padding):
    """V and U are rounded where vectors of the processor multiply pairs, elsewhere the weights alone, and its factors
    themselves where it has tile registers: the product is direct there."""
    x, weight, bias = convolution(image, channels, kernel)
    packed = fast.pack_conv2d(weight, "bfloat16")
    rounded = reference.as_float32(reference.pack_conv2d(weight, "bfloat16"))
    exact = reference.conv2d(x.astype(float), rounded.astype(float), bias, stride, padding)
    y = fast.conv2d(x, packed, bias, stride, padding)
    if amx_tile.HAS_BFLOAT16:
        assert_twin("conv2d", x, reference.pack_conv2d(weight, "bfloat16"), bias, stride, padding)
    elif bfloat16.HAS_DOT and channels[0] % (2 * LANES) == 0:
        expected = winograd_conv2d(x, rounded, padding, narrow=pairs) + bias[:, None, None]
        agree("bfloat16", "winograd of bfloat16",
              y, expected, 1e-3, relative=True)                 # a number next to a tie may fall to the other side
        assert 1e-3 < error(y, exact) < 0.03             # the price, of the largest value
    elif channels[0] % LANES == 0 and not bfloat16.HAS_DOT:
        agree("bfloat16", "winograd of bfloat16", y, exact, LIMIT, relative=True)
    else:
        assert_twin("conv2d", x, reference.pack_conv2d(weight, "bfloat16"), bias, stride, padding)


def test_winograd_of_bfloat16_passes_nan_on():
    x, weight, _ = convolution((1, 8, 8), (64, 32), 3)
    x[0, 1, 1, 5] = np.nan
    y = fast.conv2d(x, fast.pack_conv2d(weight, "bfloat16"), None, 1, (1, 1, 1, 1))
    assert np.isnan(y[0, :3, :3]).all() and np.isfinite(y[0, 4:, 4:]).all()


def test_winograd_by_numpy_is_a_convolution():
    x, weight, _ = convolution((2, 9, 14), (64, 10), 3)
    exact = reference.conv2d(x.astype(float), weight.astype(float), None, 1, (1, 0, 2, 1))
    agree("bfloat16", "winograd by numpy is a convolution",
          winograd_conv2d(x, weight, (1, 0, 2, 1), narrow=lambda x: x), exact, LIMIT, relative=True)


def test_packed_weights_give_the_same_as_rounded_ones():
    x, weight = values(9, 41), values(50, 41)
    packed, rounded = fast.pack_linear(weight, "bfloat16"), reference.pack_linear(weight, "bfloat16")
    for twin in (fast, reference):
        np.testing.assert_array_equal(twin.linear(x, packed), twin.linear(x, rounded))


def test_both_factors_are_rounded_and_sums_are_not():
    x, weight = values(20, 1000), values(30, 1000)
    x16, weight16 = (torch.from_numpy(a).bfloat16().double().numpy() for a in (x, weight))
    agree("bfloat16", "both factors are rounded and sums are not",
          fast.linear(x, fast.pack_linear(weight, "bfloat16")), x16 @ weight16.T, 1e-6, relative=True)
    assert error(x16 @ weight16.T, x.astype(float) @ weight.T.astype(float)) > ROUNDING / 4


# ---- attention

@pytest.mark.parametrize("n, t, s, heads, width, causal", ATTENTIONS)
def test_attention_of_bfloat16_matches_its_definition(n, t, s, heads, width, causal):
    """Powers of two differ in the last bit, and now and then that bit decides how one is rounded: hence 1e-4."""
    q, k, v = queries_keys_values(n, t, s, heads, width)
    dtype = "bfloat16" if bfloat16.HAS_DOT else "float32"                # which the fast twin falls back to
    exact = reference.attention(*map(doubled, (q, k, v)), heads, causal, dtype)
    y = fast.attention(q, k, v, heads, causal, "bfloat16")
    assert y.dtype == np.float32
    agree("bfloat16", "attention of bfloat16 matches its definition", y, exact, 1e-4, relative=True)
    agree("bfloat16", "attention of bfloat16 matches its definition",
          y, reference.attention(q, k, v, heads, causal), 4 * ROUNDING, relative=True)


def test_attention_of_bfloat16_survives_large_scores_and_passes_nan_on():
    q, k, v = queries_keys_values(1, 40, 70, 2, 16)
    assert np.isfinite(fast.attention(q * 30, k, v, 2, dtype="bfloat16")).all()
    k[0, 5, 3] = np.nan                                                  # of the first head
    y = fast.attention(q, k, v, 2, dtype="bfloat16")
    assert np.isnan(y[..., :16]).all() and np.isfinite(y[..., 16:]).all()


CHECKS_OF_ONE_CPU = """
from tests import test_bfloat16 as t
from npdiffusion.kernels.codegen import bfloat16
from npdiffusion.kernels.products import microkernel
for case in t.DIRECT[2:4] + t.DIRECT[-2:]:
    t.test_convolutions_of_bfloat16_match_their_definition(*case)
t.test_winograd_of_bfloat16(*t.WINOGRAD[1])
for case in t.PRODUCTS:
    t.test_products_of_bfloat16_match_their_definition(*case)
t.test_nan_stays_nan(0x7f800001)
t.test_attention_of_bfloat16_matches_its_definition(*t.ATTENTIONS[0])
print(microkernel.LANES, bfloat16.HAS_DOT)
"""


@pytest.mark.parametrize("cpu, lanes", [("haswell", 8), ("generic", 4)])
def test_processors_without_the_instruction_widen_tile_by_tile(cpu, lanes, tmp_path):
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("names x86 processors")
    out = output_of(CHECKS_OF_ONE_CPU, NUMBA_CPU_NAME=cpu, NUMBA_CPU_FEATURES="", NUMBA_CACHE_DIR=str(tmp_path))
    assert out.split() == [str(lanes), "False"]
