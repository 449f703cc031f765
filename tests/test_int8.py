"""Weights in int8: rounding, packing, products of bytes, and pictures made with them."""
import itertools
import json
import math
import platform

import numpy as np
import pytest
import torch

import npdiffusion
from npdiffusion import kernels
from npdiffusion.kernels import fast, reference
from npdiffusion.kernels.int8 import BLOCK, Int8, rounded_rows
from npdiffusion.kernels.products import int8_matmul, int8_packing, job_sizes
from npdiffusion.models import parameters
from npdiffusion.models.layers import Conv2d, Linear
from tests.differences import agree
from tests.operations import CONVOLUTIONS, PRODUCTS, convolution, values
from tests.processes import output_of

SUMS = 3e-6             # of the largest number: sums of whole numbers are exact, scaling and adding blocks is not


def both(rows, inputs, outputs, scale=1.0):
    """x, and a weight as both backends keep it"""
    weight = values(outputs, inputs)
    return values(rows, inputs, scale=scale), reference.pack_linear(weight, "int8"), fast.pack_linear(weight, "int8")


def assert_same(name, x, plain, packed, *others):
    agree("operations", f"int8 {name}, compiled", getattr(fast, name)(x, packed, *others),
          getattr(reference, name)(x, plain, *others), SUMS, relative=True)


# ---- numbers

@pytest.mark.parametrize("shape", [(1, 1), (33, 7), (64, 320), (50, 2100), (96, 20, 1, 1), (30, 20, 3, 3)])
def test_a_weight_is_rounded_as_torch_quantises_it_by_output_and_tap(shape):
    weight = values(*shape)
    found = Int8.nearest(weight)

    def rows(numbers):
        """One for each output and tap"""
        return np.moveaxis(numbers, 1, -1).reshape(-1, shape[1])

    scales = found.scale.reshape(-1)
    expected = torch.quantize_per_channel(torch.from_numpy(rows(weight)), torch.from_numpy(scales),
                                          torch.zeros(len(scales), dtype=torch.int64), 0, torch.qint8)
    np.testing.assert_array_equal(rows(found.numbers), expected.int_repr().numpy())
    assert (np.abs(found.numbers.astype(int)).max(axis=1) == 127).all()
    np.testing.assert_array_equal(rows(found.widened()), expected.dequantize().numpy())


def test_rows_of_x_have_a_scale_in_each_block():
    x = values(3, 2 * BLOCK + 5)
    x[1, BLOCK] = 1000.0                                 # coarse in its own block of its own row alone
    off = np.abs(rounded_rows(x) - x)
    largest = np.stack([np.abs(x[:, start:start + BLOCK]).max(axis=1) for start in range(0, x.shape[1], BLOCK)], axis=1)
    for number, start in enumerate(range(0, x.shape[1], BLOCK)):
        assert (off[:, start:start + BLOCK].max(axis=1) <= largest[:, number] / 253).all()
    assert off[1, BLOCK:2 * BLOCK].max() > 1 > off[0].max()


def test_zeros_stay_zeros():
    x, _, packed = both(4, 40, 40)
    x[2] = 0
    assert not fast.linear(x, packed)[2].any() and not rounded_rows(x)[2].any()
    assert not fast.linear(x, fast.pack_linear(np.zeros((40, 40), np.float32), "int8")).any()


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_what_is_not_finite_stays_so_and_is_seen_in_weights(wrong):
    x, _, packed = both(3, 40, 40)
    x[1, 7] = wrong
    assert np.isfinite(fast.linear(x, packed)).all(axis=1).tolist() == [True, False, True]
    weight = values(40, 40)
    weight[3, 3] = wrong
    assert packed.is_finite and not fast.pack_linear(weight, "int8").is_finite


# ---- packing

@pytest.mark.parametrize("shape", [(1, 1), (33, 7), (64, 320), (50, 1027), (40, 2 * BLOCK + 9), (96, 20, 1, 1), (33, 7, 3, 3),
                                   (40, BLOCK + 5, 2, 3)])
def test_packing_loses_nothing(shape):
    weight = values(*shape)
    found, wanted = (fast.pack_conv2d if len(shape) == 4 else fast.pack_linear)(weight, "int8").unpack(), Int8.nearest(weight)
    np.testing.assert_array_equal(found.numbers, wanted.numbers)
    np.testing.assert_array_equal(found.scale, wanted.scale)


def test_float16_and_bfloat16_are_packed_as_the_float32_that_they_are():
    half = values(40, 30).astype(np.float16)
    bits = reference.to_bfloat16(values(40, 30))
    for weight, wide in (half, half.astype(np.float32)), (bits, reference.as_float32(bits)):
        np.testing.assert_array_equal(fast.pack_linear(weight, "int8").panels, fast.pack_linear(wide, "int8").panels)


def test_a_byte_is_kept_for_each_number():
    for shape in (640, 2560), (640, 640, 3, 3):
        weight = fast.pack_conv2d(values(*shape), "int8")
        assert 1 <= weight.nbytes / math.prod(shape) < 1.02


@pytest.mark.parametrize("shape", [(1000, 40), (300, 40, 3, 3)])
def test_a_weight_is_packed_part_by_part(monkeypatch, shape):
    weight = values(*shape)
    whole = fast.pack_conv2d(weight, "int8").panels
    monkeypatch.setattr(int8_packing, "NUMBERS_AT_ONCE", 1 << 14)
    np.testing.assert_array_equal(fast.pack_conv2d(weight, "int8").panels, whole)


# ---- products

@pytest.mark.parametrize("rows, inputs, outputs", [*PRODUCTS, (14, BLOCK, 32), (33, BLOCK + 3, 70), (100, 2 * BLOCK + 52, 33)])
def test_linear_matches_its_definition(rows, inputs, outputs):
    x, plain, packed = both(rows, inputs, outputs)
    bias, residual = values(outputs), values(rows, outputs)
    for others in (), (bias,), (None, residual), (bias, residual):
        assert_same("linear", x, plain, packed, *others)


@pytest.mark.parametrize("rows", range(1, 30))
def test_any_number_of_rows(rows):
    assert_same("linear", *both(rows, 20, 40))


@pytest.mark.parametrize("rows, inputs, outputs", PRODUCTS)
def test_linear_geglu_matches_its_definition(rows, inputs, outputs):
    assert_same("linear_geglu", *both(rows, inputs, 2 * outputs), values(2 * outputs))


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_the_sums_are_those_of_whole_numbers(backend):
    """x and W that are multiples of their scales: nothing is rounded, so that the product is the exact one."""
    rng = np.random.default_rng(0)
    a, b = rng.integers(-127, 128, (20, 300)), rng.integers(-127, 128, (30, 300))
    a[:, 0] = b[:, 0] = 127
    kernels.use_backend(backend)
    y = kernels.linear((a / 8).astype(np.float32), kernels.pack_linear((b / 32).astype(np.float32), "int8"))
    np.testing.assert_allclose(y, a @ b.T / 256, rtol=2e-6)


def both_of_a_convolution(image, channels, kernel):
    """x, a weight as both backends keep it, and a bias for each image"""
    x, weight, bias = convolution(image, channels, kernel)
    return x, reference.pack_conv2d(weight, "int8"), fast.pack_conv2d(weight, "int8"), bias


@pytest.mark.parametrize("image, channels, kernel, stride, padding", [
    *CONVOLUTIONS,
    ((2, 8, 8), (64, 40), 3, 1, (1, 1, 1, 1)),           # whole words of tile registers; tiles that begin in the first image
    ((1, 5, 4), (BLOCK + 7, 33), 3, 1, (1, 1, 1, 1)),    # two blocks in each tap
    ((3, 20, 17), (128, 70), 3, 1, (1, 1, 1, 1)),        # several jobs
    ((2, 3, 3), (8, 9), 1, 1, (2, 1, 3, 2))])            # results that see nothing but zeros
def test_convolutions_match_their_definition(image, channels, kernel, stride, padding):
    x, plain, packed, bias = both_of_a_convolution(image, channels, kernel)
    residual = values(*reference.conv2d(x, plain, None, stride, padding).shape)
    for others in {}, {"residual": residual}:
        agree("operations", "int8 conv2d, compiled", fast.conv2d(x, packed, bias, stride, padding, **others),
              reference.conv2d(x, plain, bias, stride, padding, **others), SUMS, relative=True)


@pytest.mark.parametrize("height, width", [(10, 14), (9, 11), (5, 7)])
def test_an_enlarged_image_is_convolved_without_being_written(height, width):
    x, plain, packed, bias = both_of_a_convolution((2, 5, 7), (20, 40), 3)
    agree("operations", "int8 upsample_conv2d, compiled", fast.upsample_conv2d(x, packed, bias[0], height, width),
          reference.upsample_conv2d(x, plain, bias[0], height, width), SUMS, relative=True)


def test_a_large_pixel_makes_only_itself_coarse():
    x, plain, packed, _ = both_of_a_convolution((1, 6, 6), (32, 40), 3)
    x[0, 0, 0] *= 1e4
    exact = reference.conv2d(x, reference.as_float32(plain), padding=(1, 1, 1, 1))
    off = np.abs(fast.conv2d(x, packed, padding=(1, 1, 1, 1)) - exact)[0].max(axis=-1)
    assert off[:2, :2].min() > 20 and off[2:].max() < 1 and off[:, 2:].max() < 1


def test_what_memory_held_before_does_not_matter():
    from npdiffusion.kernels import threads
    x, _, packed, bias = both_of_a_convolution((2, 7, 5), (20, 40), 3)
    before = fast.conv2d(x, packed, bias, 1, (1, 1, 1, 1))
    threads.working_memory("int8", 1).fill(np.nan)
    np.testing.assert_array_equal(fast.conv2d(x, packed, bias, 1, (1, 1, 1, 1)), before)


def test_the_size_of_jobs_changes_nothing(monkeypatch):
    x, _, packed, bias = both_of_a_convolution((2, 16, 15), (64, 100), 3)
    whole = fast.conv2d(x, packed, bias, 1, (1, 1, 1, 1))
    monkeypatch.setattr(int8_matmul, "job_size", lambda *_: (2 * int8_matmul.HEIGHT, 3))
    np.testing.assert_array_equal(fast.conv2d(x, packed, bias, 1, (1, 1, 1, 1)), whole)


def test_jobs_fit_into_the_cache_and_are_enough_for_all_threads():
    cache = job_sizes.of("int8").kilowords << 10
    for rows, columns, channels in (8192, 320, 320), (8192, 1280, 320), (512, 1280, 5120), (40, 1280, 1280):
        for gated, count in itertools.product((False, True), (1, 2, 16)):
            high, wide = int8_matmul.job_size(rows, columns, channels // 4, channels // 4, gated, count, cache)
            jobs = -(-rows // high) * -(-columns // (wide * int8_matmul.COLUMNS))
            assert high * (channels // 4 + wide * (1 + gated) * int8_matmul.COLUMNS) <= cache
            assert jobs >= min(count, 40)


def test_both_backends_take_either_form():
    x, plain, packed = both(9, 40, 30)
    agree("operations", "int8 across backends", fast.linear(x, plain), reference.linear(x, packed), SUMS, relative=True)


def test_threads_change_nothing():
    from npdiffusion.kernels import threads
    x, _, packed = both(500, 1500, 700)
    before, results = threads.get_threads(), []
    for count in 1, 2, 3:
        threads.set_threads(count)
        results.append(fast.linear(x, packed))
    threads.set_threads(before)
    assert np.array_equal(results[0], results[1]) and np.array_equal(results[0], results[2])


ONE_CPU = """
import json
import numpy as np
from npdiffusion.kernels import fast
from npdiffusion.kernels.products import int8_tile
rng = np.random.default_rng(0)
x, w = (rng.standard_normal(shape, dtype=np.float32) for shape in ((33, 1027), (70, 1027)))
image, kernel = (rng.standard_normal(shape, dtype=np.float32) for shape in ((2, 5, 6, 37), (40, 37, 3, 3)))
print(json.dumps([int8_tile.HAS_DOT, fast.linear(x, fast.pack_linear(w, "int8")).tolist(),
                  fast.conv2d(image, fast.pack_conv2d(kernel, "int8"), padding=(1, 1, 1, 1)).tolist()]))
"""


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="NUMBA_CPU_NAME names an x86 processor")
def test_processors_without_products_of_bytes_give_the_same(tmp_path):
    printed = output_of(ONE_CPU, NUMBA_CPU_NAME="haswell", NUMBA_CPU_FEATURES="", NUMBA_CACHE_DIR=str(tmp_path))
    has_dot, said, convolved = json.loads(printed)
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(s, dtype=np.float32) for s in ((33, 1027), (70, 1027)))
    image, kernel = (rng.standard_normal(s, dtype=np.float32) for s in ((2, 5, 6, 37), (40, 37, 3, 3)))
    assert not has_dot
    expected = reference.linear(x, reference.pack_linear(w, "int8"))
    agree("operations", "int8 without VNNI", np.array(said, np.float32), expected, SUMS, relative=True)
    expected = reference.conv2d(image, reference.pack_conv2d(kernel, "int8"), padding=(1, 1, 1, 1))
    agree("operations", "int8 conv2d without VNNI", np.array(convolved, np.float32), expected, SUMS, relative=True)


# ---- models

@pytest.fixture(scope="module")
def embedded():
    return {dtype: npdiffusion.load(dtype=dtype) for dtype in ("float32", "int8")}


def test_what_is_int8_in_a_model(embedded):
    kinds = {name: getattr(layer.weight, "dtype", None) for part in ("unet", "vae", "text_encoder")
             for name, layer in parameters.modules(getattr(embedded["int8"], part)) if hasattr(layer, "weight")}
    kept = {"conv_in": "float32", "time_embedding.linear_1": "float32", "decoder.mid_block.resnets.0.conv1": "bfloat16",
            "down_blocks.0.resnets.0.time_emb_proj": "bfloat16", "encoder.layers.0.mlp.fc1": "bfloat16"}
    assert {name: kinds[name] for name in kept} == kept
    linear = [name for name, layer in parameters.modules(embedded["int8"].unet) if isinstance(layer, Linear)
              and "time_emb" not in name]
    assert len(linear) > 20 and {kinds[name] for name in linear} == {"int8"}


@pytest.mark.parametrize("vnni", [False, True])
def test_3x3_kernels_are_int8_where_the_processor_multiplies_bytes(monkeypatch, vnni):
    monkeypatch.setattr(parameters.machine, "multiplies_bytes", lambda: vnni)
    kinds = [parameters.kept_as("conv1.weight", conv, "weight", "int8") for conv in (Conv2d(64, 32), Conv2d(64, 32, kernel=1))]
    assert kinds == ["int8" if vnni else "bfloat16", "int8"]


def test_memory_is_as_announced(embedded):
    unet = embedded["int8"].unet
    empty = type(unet)(unet.config)
    weights = [getattr(layer, "weight", None) for _, layer in parameters.modules(unet)]
    packed = sum(weight.nbytes for weight in weights if hasattr(weight, "panels"))
    assert packed == pytest.approx(sum(parameters.memory_of(each, "int8") for each in parameters.walk(empty)
                                       if parameters.is_packed(*each[1:])), rel=0.1)


def test_pictures_are_44_db_from_those_of_float32(embedded):
    settings = dict(seed=1, steps=8, sampler="dpm++2m", output_type="np")
    plain, small = (pipeline.generate("a red apple on a blue background", **settings) for pipeline in embedded.values())
    noise = -10 * math.log10(np.square(plain.astype(np.float64) - small).mean())
    assert noise > 44
    assert noise < 80                                    # they are not the same weights
