"""Products of float32 in tile registers: numbers as sums of three bfloat16, and what is multiplied that way."""
import itertools

import numba
import numpy as np
import pytest

from npdiffusion.kernels import fast, fast_gradients, reference, threads
from npdiffusion.kernels.backward import split_weights
from npdiffusion.kernels.products import amx_tile, split_matmul, splitting
from npdiffusion.kernels.products.patches import rows_of_a_matrix
from tests.differences import agree
from tests.operations import assert_twin, convolution, values

pytestmark = pytest.mark.skipif(not amx_tile.HAS_BFLOAT16, reason="this processor has no tile registers (AMX)")

LIMIT = 1e-6                                             # as near as vectors of float32 come, or nearer


def parts_of(x):
    """float32 numbers, a multiple of 32 → their parts (3, n)"""
    words = len(x) // 2

    @numba.njit
    def run(x, memory):
        splitting.split_run(x, 0, memory, 1, len(x), words + 3)

    memory = np.full(1 + 3 * (words + 3), np.nan, np.float32)
    run(x, memory)
    return np.stack([reference.as_float32(memory[1 + i * (words + 3):][:words].view(np.uint16)) for i in range(3)])


def test_three_parts_are_the_number():
    exponents = np.random.default_rng(1).integers(-100, 120, 960)
    x = values(960) * np.exp2(exponents).astype(np.float32)
    x[:4] = 0, -0.0, 1 + 2 ** -23, -(2 - 2 ** -23)
    parts = parts_of(x)
    np.testing.assert_array_equal(parts.astype(float).sum(axis=0), x)
    assert (np.abs(parts[1]) <= np.abs(x) * 2 ** -8).all() and (np.abs(parts[2]) <= np.abs(x) * 2 ** -16).all()


def test_what_has_no_parts_is_not_a_number():
    x = np.ones(32, np.float32)
    x[:4] = np.nan, np.inf, -np.inf, 3.4e38              # the last is finite, but its x₁ isn't
    with np.errstate(invalid="ignore"):
        sums = parts_of(x).sum(axis=0)
    assert not np.isfinite(sums[:4]).any() and (sums[4:] == 1).all()


@pytest.mark.parametrize("rows", [16, 17, 33, 64, 70, 500])
def test_products_of_ragged_shapes_match_their_definition(rows):
    for inputs, outputs in itertools.product((32, 64, 160, 192, 352), (1, 32, 50, 97)):
        weight = fast.pack_linear(values(outputs, inputs))
        assert split_matmul.suits(values(rows, inputs), rows_of_a_matrix(rows, inputs), weight, rows)
        assert_twin("linear", values(rows, inputs), reference.pack_linear(values(outputs, inputs)), values(outputs),
                    values(rows, outputs, seed=3), limit=LIMIT)


@pytest.mark.parametrize("channels", [20, 64, 72])
def test_a_gate_is_multiplied_as_well(channels):
    assert_twin("linear_geglu", values(2, 45, 96), values(2 * channels, 96, scale=0.1), values(2 * channels), limit=LIMIT)


@pytest.mark.parametrize("image, channels, kernel, stride, padding", [
    ((3, 9, 12), (64, 70), 3, 2, (1, 1, 1, 1)), ((2, 8, 5), (32, 32), 3, 2, (0, 1, 0, 1)),
    ((1, 8, 9), (96, 40), (2, 3), 1, (2, 0, 1, 3)), ((2, 13, 7), (320, 33), 1, 1, (0, 0, 0, 0))])
def test_convolutions_match_their_definition(image, channels, kernel, stride, padding):
    x, weight, bias = convolution(image, channels, kernel)
    assert_twin("conv2d", x, weight, bias, stride, padding, limit=LIMIT)


def test_an_image_gets_the_same_numbers_in_any_batch():
    x, weight = values(5, 33, 96), fast.pack_linear(values(70, 96))
    y = fast.linear(x, weight)
    np.testing.assert_array_equal(fast.linear(x[2:3], weight), y[2:3])
    short = values(40, 7, 96)                            # too few rows for tiles, however many images there are
    np.testing.assert_array_equal(fast.linear(short[:1], weight), fast.linear(short, weight)[:1])
    before = threads.get_threads()
    try:
        threads.set_threads(1)
        np.testing.assert_array_equal(fast.linear(x, weight), y)
    finally:
        threads.set_threads(before)


def test_nan_stays_in_its_row_and_its_column():
    x, weight = values(40, 64), values(50, 64)
    x[7, 63], weight[33, 3] = np.nan, np.inf
    y = fast.linear(x, fast.pack_linear(weight))
    assert np.isnan(y[7]).all() and not np.isfinite(y[:, 33]).any()
    assert np.isfinite(np.delete(np.delete(y, 7, axis=0), 33, axis=1)).all()


def test_sums_of_a_job_are_nearer_than_those_of_vectors(monkeypatch):
    x, weight = values(300, 1280), values(64, 1280)
    exact = x.astype(float) @ weight.T.astype(float)
    by_tiles = fast.linear(x, fast.pack_linear(weight))
    monkeypatch.setattr(split_matmul, "suits", lambda *_: False)
    by_vectors = fast.linear(x, fast.pack_linear(weight))
    assert not np.array_equal(by_tiles, by_vectors)
    agree("compiled twins", "linear, three bfloat16 for a float32", by_tiles, exact,
          float(np.abs(by_vectors - exact).max() / np.abs(exact).max()), relative=True)


@pytest.mark.parametrize("terms", [256, 257, 300, 415, 1000, 2049])
def test_gradients_of_matrices_match_their_definition(terms):
    for outputs, inputs in ((16, 32), (48, 96), (528, 32), (32, 544)):
        g, x = values(terms, outputs), values(terms, inputs, seed=1)
        assert split_weights.suits(g, x)
        found = fast_gradients.linear.weight(g[:, None], x[:, None], np.zeros((outputs, inputs)))
        agree("gradients", "linear.weight, three bfloat16 for a float32", found, g.astype(float).T @ x.astype(float), LIMIT,
              relative=True)


def test_what_is_not_finite_is_found_in_its_row_and_its_column_of_a_gradient():
    g, x = values(300, 32), values(300, 64)
    g[7, 5], x[299, 33] = np.nan, np.inf
    found = fast_gradients.linear.weight(g, x, np.zeros((32, 64)))
    assert np.isnan(found[5]).all() and not np.isfinite(found[:, 33]).any()
    assert np.isfinite(np.delete(np.delete(found, 5, axis=0), 33, axis=1)).all()
