"""Products in AMX's tile registers: against their definition, with and without the processor's permission."""
import hashlib
import itertools

import numba
import numpy as np
import pytest

from npdiffusion.kernels import environment, fast, fast_gradients, gradients, machine, reference
from npdiffusion.kernels.backward import paired_weights, partial_sums
from npdiffusion.kernels.products import amx_tile, windows, winograd
from npdiffusion.kernels.products.patches import Geometry
from tests.differences import agree
from tests.operations import LIMIT, assert_twin, convolution, error, values
from tests.processes import output_of

has_tiles = pytest.mark.skipif(not amx_tile.HAS_BFLOAT16, reason="this processor has no tile registers (AMX)")


def rounded(x):
    """float32 numbers that are bfloat16"""
    return reference.as_float32(reference.to_bfloat16(x))


# ---- the tile

@has_tiles
@pytest.mark.parametrize("rows", [amx_tile.SIDE, amx_tile.ROWS])
@pytest.mark.parametrize("words", [16, 48])
@pytest.mark.parametrize("further", [False, True])
def test_a_tile_is_a_matrix_product(rows, words, further):
    tile = amx_tile.make_amx_tile(rows, "tdpbf16ps")

    @numba.njit
    def run(a, b, c, begin):
        amx_tile.configure()
        tile(a, 3, words + 5, b, 0, c, 2, 40, words, c, begin, 40)
        amx_tile.release()

    a, b, c = rounded(values(rows, 2 * words)), rounded(values(32, 2 * words, seed=1)), values(rows, 40, seed=2)
    memory = np.full(3 + rows * (words + 5), np.nan, np.float32)          # NaN lies all around the rows of A
    memory[3:].reshape(rows, -1)[:, :words] = reference.to_bfloat16(a).view(np.float32)
    sums = np.concatenate([np.full(2, 7, np.float32), c.reshape(-1)])
    run(memory, fast.pack_linear(b, "bfloat16").panels, sums, 2 if further else -1)
    expected = a.astype(float) @ b.T.astype(float) + (c[:, :32] if further else 0)
    agree("bfloat16", "a tile of AMX is a matrix product", sums[2:].reshape(rows, 40)[:, :32], expected, LIMIT, relative=True)
    np.testing.assert_array_equal(sums[2:].reshape(rows, 40)[:, 32:], c[:, 32:])


# ---- products

@has_tiles
@pytest.mark.parametrize("rows", [1, 15, 16, 17, 33, 70])
def test_products_of_all_ragged_shapes_match_their_definition(rows):
    for inputs, outputs in itertools.product((1, 31, 32, 33, 66, 97, 513 + 32), (1, 32, 50)):
        weight = reference.pack_linear(values(outputs, inputs), "bfloat16")
        assert_twin("linear", values(rows, inputs), weight, values(outputs))


@has_tiles
def test_rows_of_a_large_product_are_those_of_small_ones():
    x, weight = values(900, 650), fast.pack_linear(values(100, 650), "bfloat16")
    y = fast.linear(x, weight)
    for first, last in ((0, 1), (5, 22), (880, 900), (100, 333)):
        np.testing.assert_array_equal(fast.linear(x[first:last], weight), y[first:last])


@has_tiles
def test_nan_stays_in_its_row_and_its_column():
    x, weight = values(40, 70), values(50, 70)
    x[7, 69], weight[33, 3] = np.nan, np.inf
    y = fast.linear(x, fast.pack_linear(weight, "bfloat16"))
    assert np.isnan(y[7]).all() and not np.isfinite(y[:, 33]).any()
    assert np.isfinite(np.delete(np.delete(y, 7, axis=0), 33, axis=1)).all()


@has_tiles
@pytest.mark.parametrize("height, width", [(10, 14), (9, 11), (5, 7)])
def test_an_enlarged_image_is_convolved_without_being_written(height, width):
    x, weight, _ = convolution((2, 5, 7), (32, 40), 3)
    assert_twin("upsample_conv2d", x, reference.pack_conv2d(weight, "bfloat16"), values(40), height, width)


@has_tiles
@pytest.mark.parametrize("image, channels, kernel, padding", [
    ((2, 16, 32), (64, 40), (3, 3), (1, 1, 1, 1)), ((1, 128, 128), (32, 40), (3, 3), (1, 1, 1, 1)),
    ((2, 1, 512), (32, 33), (3, 3), (1, 1, 1, 1)), ((1, 8, 64), (32, 33), (3, 3), (1, 1, 1, 1)),
    ((3, 8, 96), (32, 70), (3, 3), (1, 1, 1, 1)), ((1, 9, 33), (96, 32), (2, 2), (0, 0, 0, 0)),
    ((1, 8, 32), (320, 32), (3, 3), (1, 1, 1, 1)),       # a patch of more terms than a block has
    ((2, 16, 16), (64, 40), (3, 3), (1, 1, 1, 1)), ((1, 12, 20), (64, 33), (5, 5), (2, 2, 2, 2)),        # tiles run on
    ((1, 13, 24), (32, 40), (2, 3), (0, 1, 1, 1)), ((1, 16, 16), (512, 33), (3, 3), (1, 1, 1, 1))])      # pixels apart
def test_windows_are_read_as_they_lie(image, channels, kernel, padding):
    x, weight, bias = convolution(image, channels, kernel)
    packed = fast.pack_conv2d(weight, "bfloat16")
    out = image[1] + padding[0] + padding[1] - kernel[0] + 1, image[2] + padding[2] + padding[3] - kernel[1] + 1
    assert windows.of(Geometry(*image[1:], channels[0], *kernel, 1, padding[0], padding[2], *out, *image[1:]), packed)
    assert_twin("conv2d", x, reference.pack_conv2d(weight, "bfloat16"), bias, 1, padding)


@has_tiles
def test_windows_of_enlarged_images():
    x, weight, _ = convolution((2, 8, 16), (32, 40), 3)
    assert_twin("upsample_conv2d", x, reference.pack_conv2d(weight, "bfloat16"), values(40), 16, 32)


@has_tiles
def test_three_by_three_is_direct_with_tiles_and_as_exact_as_its_rounded_factors():
    x, weight, _ = convolution((1, 12, 13), (64, 40), 3)
    packed = fast.pack_conv2d(weight, "bfloat16")
    assert not winograd.suits(Geometry(12, 13, 64, 3, 3, 1, 1, 1, 12, 13, 12, 13), packed)
    exact = reference.conv2d(rounded(x).astype(float), rounded(weight).astype(float), None, 1, (1, 1, 1, 1))
    assert error(fast.conv2d(x, packed, None, 1, (1, 1, 1, 1)), exact) < LIMIT


# ---- gradients

@has_tiles
@pytest.mark.parametrize("rows, inputs, outputs", [(1, 1, 1), (70, 33, 50), (1100, 64, 100)])
def test_the_gradient_of_a_matrix_is_that_of_rounded_factors(rows, inputs, outputs):
    g, x, weight = values(rows, outputs), values(rows, inputs), values(outputs, inputs)
    found = fast_gradients.linear.weight(g, x, fast.pack_linear(weight, "bfloat16"))
    expected = gradients.linear.weight(rounded(g).astype(float), rounded(x).astype(float))
    agree("gradients", "weights by tiles of bfloat16", found, expected, LIMIT, relative=True)
    assert fast_gradients.linear.weight(g, x, fast.pack_linear(weight)).dtype == np.float32


@has_tiles
@pytest.mark.parametrize("image, channels, kernel, padding", [
    ((2, 9, 14), (20, 70), (3, 3), (1, 1, 1, 1)), ((1, 6, 6), (2, 5), (2, 3), (2, 0, 1, 3)),
    ((1, 3, 300), (33, 32), (3, 3), (1, 1, 1, 1)),       # rows that are longer than a run
    ((1, 23, 22), (33, 40), (20, 20), (0, 0, 0, 0)),     # 400 taps: a block of one tile is more than a job's share
    ((3, 8, 8), (100, 30), (1, 1), (0, 0, 0, 0)), ((1, 40, 33), (32, 40), (3, 3), (0, 2, 3, 0))])
def test_the_gradient_of_a_kernel_is_that_of_rounded_factors(image, channels, kernel, padding):
    x, weight, _ = convolution(image, channels, kernel)
    g = values(*reference.conv2d(x, weight, None, 1, padding).shape)
    found = fast_gradients.conv2d.weight(g, x, fast.pack_conv2d(weight, "bfloat16"), 1, padding)
    expected = gradients.conv2d.weight(rounded(g).astype(float), rounded(x).astype(float), weight.shape, 1, padding)
    agree("gradients", "kernels by tiles of bfloat16", found, expected, LIMIT, relative=True)


@has_tiles
@pytest.mark.parametrize("image", [(7, 4, 4), (1, 40, 5), (2, 5, 90), (1, 1, 700)])
@pytest.mark.parametrize("factors", [1 << 10, 1 << 14])
def test_a_gradient_is_the_same_in_many_small_blocks_bands_and_runs(monkeypatch, image, factors):
    kernel, padding = ((1, 1), (0, 0, 0, 0)) if image[1] == 1 else ((3, 3), (1, 1, 1, 1))
    x, weight, _ = convolution(image, (70, 75), kernel)
    g, packed = values(*image, 75), fast.pack_conv2d(weight, "bfloat16")
    whole = fast_gradients.conv2d.weight(g, x, packed, 1, padding)
    monkeypatch.setattr(paired_weights, "FACTORS", factors)
    monkeypatch.setattr(paired_weights, "C_FLOATS", 9 * 32 * 40)
    monkeypatch.setattr(paired_weights, "RUN", (32, 128))
    found = fast_gradients.conv2d.weight(g, x, packed, 1, padding)
    agree("gradients", "kernels by tiles of bfloat16, in pieces", found, whole, LIMIT, relative=True)
    assert not np.array_equal(found, whole)              # sums are made in another order


@has_tiles
@pytest.mark.parametrize("outputs", [40, 3])
def test_the_gradient_of_a_kernel_on_an_enlarged_image_is_that_of_rounded_factors(outputs):
    x, weight, _ = convolution((2, 5, 7), (32, outputs), 3)
    g = values(2, 10, 14, outputs)
    found = fast_gradients.upsample_conv2d.weight(g, x, fast.pack_conv2d(weight, "bfloat16"))
    expected = gradients.upsample_conv2d.weight(rounded(g).astype(float), rounded(x).astype(float), weight.shape)
    agree("gradients", "enlarged images by tiles of bfloat16", found, expected, LIMIT, relative=True)


@has_tiles
def test_pixels_are_shared_out_only_as_far_as_threads_would_be_idle():
    assert [partial_sums.shared(blocks, 2) for blocks in (1, 2, 3, 4, 5)] == [2, 1, 2, 1, 1]
    assert partial_sums.shared(40, 16) == 1                    # each part of a weight of 1280 × 1280 × 9 takes 59 MB
    assert partial_sums.shared(1, 16) == 13 and partial_sums.shared(5, 16) == 3     # 3 and 1 of 16 threads have none


# ---- permission

def test_features_that_the_system_refuses_are_left_out(monkeypatch):
    monkeypatch.setattr(numba.config, "CPU_FEATURES", "+avx512f,+amx-tile,+amx-bf16,+amx-int8,+fma")
    monkeypatch.setattr(environment, "may_use_tiles", lambda: False)
    assert environment.target()[1] == "+avx512f,+fma"
    monkeypatch.setattr(environment, "may_use_tiles", lambda: True)
    assert environment.target()[1] == numba.config.CPU_FEATURES


def test_other_systems_are_not_asked(monkeypatch):
    monkeypatch.setattr(machine.sys, "platform", "darwin")
    assert not machine.may_use_tiles.__wrapped__()


WITHOUT = """
from npdiffusion.kernels import machine
if {refused}:
    machine.may_use_tiles = lambda: False
from npdiffusion.kernels.codegen import cache
from npdiffusion.kernels.products import amx_tile
print(amx_tile.HAS_BFLOAT16, amx_tile.HAS_INT8, cache.folder().name)
"""


@has_tiles
def test_a_process_that_is_refused_has_kernels_of_its_own():
    allowed, refused = (output_of(WITHOUT.format(refused=refused)).split() for refused in (False, True))
    assert allowed[:2] == ["True", str(amx_tile.HAS_INT8)] and refused[:2] == ["False", "False"]
    assert allowed[2] != refused[2] and allowed[2].rpartition("-")[0] == refused[2].rpartition("-")[0]


CHECKS = """
from tests import test_bfloat16 as t
from tests.test_amx import digest_of_int8_products
from npdiffusion.kernels.products import amx_tile
for case in t.PRODUCTS:
    t.test_products_of_bfloat16_match_their_definition(*case)
t.test_winograd_of_bfloat16(*t.WINOGRAD[0])
t.test_convolutions_of_bfloat16_match_their_definition(*t.DIRECT[2])
t.test_attention_of_bfloat16_matches_its_definition(*t.ATTENTIONS[0])
print(amx_tile.HAS_BFLOAT16, amx_tile.HAS_INT8, digest_of_int8_products())
"""


def digest_of_int8_products():
    """Of all bits of some results: whole tiles and ragged ones, one block of terms and several, a gate, convolutions."""
    digest = hashlib.sha256()
    for rows, inputs, outputs in ((70, 128, 96), (33, 2048, 50), (5, 64, 32), (40, 100, 40)):
        x, weight = values(rows, inputs), values(2 * outputs, inputs)
        digest.update(fast.linear(x, fast.pack_linear(weight, "int8"), values(2 * outputs)).tobytes())
        digest.update(fast.linear_geglu(x, fast.pack_linear(weight, "int8"), values(2 * outputs)).tobytes())
    for image, channels in (((2, 9, 8), (64, 40)), ((1, 4, 5), (20, 33)), ((2, 3, 4), (1088, 32))):
        x, weight, bias = convolution(image, channels, 3)
        digest.update(fast.conv2d(x, fast.pack_conv2d(weight, "int8"), bias, 1, (1, 1, 1, 1)).tobytes())
    return digest.hexdigest()


@has_tiles
def test_without_tile_registers_vectors_multiply_and_bytes_give_the_same_bits(tmp_path):
    features = [feature for feature in environment.target()[1].split(",") if "amx" not in feature]
    out = output_of(CHECKS, NUMBA_CPU_FEATURES=",".join(features), NUMBA_CACHE_DIR=str(tmp_path))
    assert out.split() == ["False", "False", digest_of_int8_products()]
