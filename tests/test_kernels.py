"""Every operation: the NumPy definition against torch, the compiled twin against the definition computed in float64."""
import os
import subprocess
import sys
import threading

import numba
import numpy as np
import pytest
import torch

from npdiffusion import kernels
from npdiffusion.kernels import activations, fast, reference, threads
from npdiffusion.kernels.codegen import cache, streaming
from npdiffusion.kernels.products import winograd, winograd_transforms
from npdiffusion.kernels.products.packing import Packed
from npdiffusion.kernels.products.patches import Geometry
from tests.differences import agree
from tests.operations import (
    ATTENTIONS,
    CONVOLUTIONS,
    LIMIT,
    NORMS,
    PRODUCTS,
    assert_twin,
    convolution,
    doubled,
    queries_keys_values,
    values,
)
from tests.processes import output_of

F = torch.nn.functional

# ---- products


@pytest.mark.parametrize("rows, inputs, outputs", PRODUCTS)
def test_linear_matches_torch(rows, inputs, outputs):
    x, weight, bias = values(rows, inputs), values(outputs, inputs), values(outputs)
    expected = F.linear(*map(torch.from_numpy, map(doubled, (x, weight, bias))))
    agree("operations", "linear matches torch", reference.linear(x, weight, bias), expected.numpy(), LIMIT, relative=True)


@pytest.mark.parametrize("rows, inputs, outputs", PRODUCTS)
def test_fast_linear_matches_its_definition(rows, inputs, outputs):
    x, weight, bias, residual = values(rows, inputs), values(outputs, inputs), values(outputs), values(rows, outputs)
    assert_twin("linear", x, weight)
    assert_twin("linear", x, weight, bias)
    assert_twin("linear", x, weight, None, residual)
    assert_twin("linear", x, weight, bias, residual)


@pytest.mark.parametrize("rows", range(1, 30))
def test_fast_linear_takes_any_number_of_rows(rows):
    assert_twin("linear", values(rows, 20), values(40, 20))


def test_fast_linear_keeps_leading_axes():
    assert_twin("linear", values(3, 5, 7, 40), values(50, 40), values(50), values(3, 5, 7, 50))
    assert_twin("linear", values(40), values(50, 40))


@pytest.mark.parametrize("rows, inputs, outputs", PRODUCTS)
def test_fast_linear_geglu_matches_its_definition(rows, inputs, outputs):
    assert_twin("linear_geglu", values(rows, inputs), values(2 * outputs, inputs), values(2 * outputs))


def test_linear_geglu_matches_torch():
    x, weight, bias = values(9, 20), values(34, 20), values(34)
    value, gate = F.linear(*map(torch.from_numpy, map(doubled, (x, weight, bias)))).chunk(2, dim=-1)
    agree("operations", "linear geglu matches torch",
          reference.linear_geglu(x, weight, bias), (value * F.gelu(gate)).numpy(), LIMIT, relative=True)


@pytest.mark.parametrize("image, channels, kernel, stride, padding", CONVOLUTIONS)
def test_conv2d_matches_torch(image, channels, kernel, stride, padding):
    x, weight, bias = convolution(image, channels, kernel)
    top, bottom, left, right = padding
    padded = F.pad(torch.from_numpy(doubled(x)).permute(0, 3, 1, 2), (left, right, top, bottom))
    expected = F.conv2d(padded, torch.from_numpy(doubled(weight)), torch.from_numpy(doubled(bias[0])), stride)
    y = reference.conv2d(x, weight, bias[0], stride, padding)
    agree("operations", "conv2d matches torch", y, expected.permute(0, 2, 3, 1).numpy(), LIMIT, relative=True)


@pytest.mark.parametrize("image, channels, kernel, stride, padding", CONVOLUTIONS)
def test_fast_conv2d_matches_its_definition(image, channels, kernel, stride, padding):
    x, weight, bias = convolution(image, channels, kernel)
    residual = values(*reference.conv2d(x, weight, None, stride, padding).shape, seed=1)
    assert_twin("conv2d", x, weight, None, stride, padding)
    assert_twin("conv2d", x, weight, bias[0], stride, padding)
    assert_twin("conv2d", x, weight, bias, stride, padding, residual)


@pytest.mark.parametrize("transform, inputs", [("input_transform", 6), ("weight_transform", 3), ("output_transform", 6)])
def test_winograd_transforms_multiply_by_a_matrix(transform, inputs):
    """What they do to unit vectors is that matrix."""
    apply, x = getattr(winograd_transforms, transform), np.random.default_rng(0).standard_normal(inputs)
    matrix = np.array([apply(unit) for unit in np.eye(inputs)]).T
    np.testing.assert_allclose(apply(x), matrix @ x)


def test_winograd_transforms_convolve_one_row():
    """Aᵀ [(G g) ⊙ (Bᵀ d)]: four outputs of a kernel of three, exactly"""
    d, g = np.random.default_rng(0).standard_normal((2, 6))
    products = np.multiply(winograd_transforms.input_transform(d), winograd_transforms.weight_transform(g[:3]))
    expected = np.correlate(d, g[:3], "valid")
    np.testing.assert_allclose(winograd_transforms.output_transform(products), expected, rtol=1e-12)


def test_winograd_takes_many_groups_of_tiles(monkeypatch):
    monkeypatch.setattr(winograd, "V_FLOATS", 20_000)
    x, weight, bias = convolution((2, 21, 30), (32, 40), 3)
    assert winograd.suits(Geometry(21, 30, 32, 3, 3, 1, 1, 1, 21, 30, 21, 30), fast.pack_conv2d(weight))
    assert_twin("conv2d", x, weight, bias, 1, (1, 1, 1, 1))


@pytest.mark.parametrize("channels", [(32, 48), (6, 10), (20, 1), (3, 30)])
@pytest.mark.parametrize("size", [(10, 14), (9, 13), (4, 5)])
def test_upsample_conv2d_is_a_convolution_of_the_enlarged_image(channels, size):
    x, weight, bias = convolution((2, 5, 7), channels, 3)
    enlarged = F.interpolate(torch.from_numpy(doubled(x)).permute(0, 3, 1, 2), size=size, mode="nearest")
    expected = F.conv2d(enlarged, *map(torch.from_numpy, map(doubled, (weight, bias[0]))), padding=1)
    agree("operations", "upsample conv2d is a convolution of the enlarged image",
          reference.upsample_conv2d(x, weight, bias[0], *size), expected.permute(0, 2, 3, 1).numpy(), LIMIT, relative=True)
    assert_twin("upsample_conv2d", x, weight, bias[0], *size)


def test_fast_conv2d_by_definition_of_bias_shifts_each_image():
    x, weight, bias = convolution((2, 4, 4), (3, 5), 1)
    shifted = fast.conv2d(x, weight, bias) - fast.conv2d(x, weight)
    np.testing.assert_allclose(shifted, np.broadcast_to(bias[:, None, None], shifted.shape), atol=1e-5)


# ---- packed weights

@pytest.mark.parametrize("shape", [(1, 1), (33, 7), (64, 320), (4, 320, 3, 3), (50, 3, 2, 3), (96, 20, 1, 1)])
def test_packing_loses_nothing(shape):
    weight = values(*shape)
    packed = fast.pack_linear(weight) if len(shape) == 2 else fast.pack_conv2d(weight)
    assert packed.shape == shape
    np.testing.assert_array_equal(packed.unpack(), weight)


def test_packed_float16_is_widened_exactly():
    weight = values(50, 20).astype(np.float16)
    assert fast.pack_linear(weight).unpack().dtype == np.float32
    np.testing.assert_array_equal(fast.pack_linear(weight).unpack(), weight)


def test_packed_weight_is_held_once():
    weight = values(320, 320)
    assert fast.pack_linear(weight).nbytes == weight.nbytes


def test_both_backends_take_packed_weights():
    x, weight = values(9, 40), values(50, 40)
    packed = fast.pack_linear(weight)
    assert isinstance(packed, Packed)
    np.testing.assert_array_equal(fast.linear(x, packed), fast.linear(x, weight))
    np.testing.assert_array_equal(reference.linear(x, packed), reference.linear(x, weight))


# ---- normalisation

@pytest.mark.parametrize("n, h, w, c, groups", NORMS)
def test_group_norm_matches_torch(n, h, w, c, groups):
    x, weight, bias = values(n, h, w, c, scale=3), values(c), values(c)
    x64, weight64, bias64 = (torch.from_numpy(doubled(a)) for a in (x, weight, bias))
    expected = F.group_norm(x64.permute(0, 3, 1, 2), groups, weight64, bias64, 1e-3).permute(0, 2, 3, 1)
    agree("operations", "group norm matches torch",
          reference.group_norm(x, weight, bias, groups, 1e-3), expected.numpy(), LIMIT, relative=True)
    agree("operations", "group norm matches torch",
          reference.group_norm_silu(x, weight, bias, groups, 1e-3), F.silu(expected).numpy(), LIMIT, relative=True)


@pytest.mark.parametrize("n, h, w, c, groups", NORMS)
@pytest.mark.parametrize("mean", [0, 30])
def test_fast_group_norm_matches_its_definition(n, h, w, c, groups, mean):
    x = values(n, h, w, c, mean=mean) * np.linspace(0.1, 4, c, dtype=np.float32)
    assert_twin("group_norm", x, values(c), values(c, seed=1), groups, 1e-5)
    assert_twin("group_norm_silu", x, values(c), values(c, seed=1), groups, 1e-5)


def test_fast_group_norm_survives_a_large_mean():
    """E[x²] − E[x]² would lose all digits of the variance."""
    x = values(1, 40, 41, 64, mean=1000)
    y, exact = (f(a, np.ones(64, a.dtype), np.zeros(64, a.dtype), 8, 1e-6)
                for f, a in ((fast.group_norm, x), (reference.group_norm, doubled(x))))
    assert abs(y.std() - 1) < 1e-5
    agree("operations", "fast group norm survives a large mean",
          y, exact, 1e-4, relative=True)                        # what rounding the mean to float32 costs


@pytest.mark.parametrize("shape", [(2, 77, 192), (3, 5), (1, 40, 320), (3, 1), (2, 2, 769)])
@pytest.mark.parametrize("mean", [0, 30])
def test_layer_norm_matches_torch(shape, mean):
    x, weight, bias = values(*shape, mean=mean), values(shape[-1]), values(shape[-1], seed=1)
    x64, weight64, bias64 = (torch.from_numpy(doubled(a)) for a in (x, weight, bias))
    expected = F.layer_norm(x64, shape[-1:], weight64, bias64, 1e-5)
    agree("operations", "layer norm matches torch",
          reference.layer_norm(x, weight, bias, 1e-5), expected.numpy(), LIMIT, relative=True)
    assert_twin("layer_norm", x, weight, bias, 1e-5)


# ---- activations, softmax

@pytest.mark.parametrize("name, definition", [
    ("silu", F.silu), ("gelu", F.gelu), ("quick_gelu", lambda x: x * torch.sigmoid(1.702 * x)), ("relu", F.relu)])
def test_activations_match_torch(name, definition):
    x = values(3, 100, 401, scale=6)
    expected = definition(torch.from_numpy(doubled(x))).numpy()
    agree("operations", "activations match torch", getattr(reference, name)(x), expected, 1e-6, relative=True)
    agree("operations", "activations match torch", getattr(fast, name)(x), expected, 1e-6, relative=True)
    assert_twin(name, x, limit=1e-6)


@pytest.mark.parametrize("channels, groups", [(48, 4), (160, 8), (320, 32), (40, 8)])
def test_what_is_written_past_the_caches_is_the_same(monkeypatch, channels, groups):
    """Of large results, those of whole lines"""
    monkeypatch.setattr(streaming, "LARGE", 0)
    x, weight, bias = values(1, 43, 41, channels), values(channels), values(channels, seed=1)
    kernel, residual = values(96, channels, 3, 3), values(1, 43, 41, 96, seed=1)
    assert streaming.suits(fast.silu(x), channels) == (channels != 40)
    calls = (lambda: fast.group_norm(x, weight, bias, groups, 1e-5),
             lambda: fast.group_norm_silu(x, weight, bias, groups, 1e-5),
             lambda: fast.conv2d(x, kernel, values(96), padding=(1, 1, 1, 1)),
             lambda: fast.conv2d(x, kernel, values(96), padding=(1, 1, 1, 1), residual=residual))
    streamed = [call() for call in calls]
    monkeypatch.setattr(streaming, "suits", lambda y, run: False)
    for found, call in zip(streamed, calls):
        np.testing.assert_array_equal(found, call())


def test_group_norm_of_an_image_whose_parts_lie_far_apart():
    """Deviations are taken from what was seen before, which is no estimate of what follows here."""
    x = values(2, 64, 40, 96)
    x[:, :1, :1] += 3000
    x[:, 30:] -= 200
    x[1, 50:] = 7
    assert_twin("group_norm", x, values(96), values(96, seed=1), 8, 1e-5)


@pytest.mark.parametrize("name", ["silu", "gelu", "quick_gelu", "relu"])
def test_fast_activations_are_accurate_near_zero_and_far_away(name):
    x = np.array([0, 1e-30, -1e-30, 1e-3, -1e-3, 50, -50, 1e4, -1e4, 3e38, -3e38], np.float32)
    with np.errstate(over="ignore", under="ignore"):
        expected = getattr(reference, name)(doubled(x))
    np.testing.assert_allclose(getattr(fast, name)(x), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["silu", "gelu", "quick_gelu", "relu"])
def test_fast_activations_keep_nan(name):
    assert np.isnan(getattr(fast, name)(np.full(20, np.nan, np.float32))).all()


def test_softmax_matches_torch():
    x = values(3, 5, 77, scale=30)
    expected = torch.softmax(torch.from_numpy(doubled(x)), dim=-1).numpy()
    agree("operations", "softmax matches torch", reference.softmax(x), expected, LIMIT, relative=True)
    assert_twin("softmax", x)


# ---- attention

@pytest.mark.parametrize("n, t, s, heads, width, causal", ATTENTIONS)
def test_attention_matches_torch(n, t, s, heads, width, causal):
    q, k, v = queries_keys_values(n, t, s, heads, width)

    def split(x):
        return torch.from_numpy(doubled(x)).reshape(n, -1, heads, width).transpose(1, 2)

    expected = F.scaled_dot_product_attention(split(q), split(k), split(v), is_causal=causal)
    expected = expected.transpose(1, 2).reshape(n, t, -1).numpy()
    agree("operations", "attention matches torch", reference.attention(q, k, v, heads, causal), expected, LIMIT, relative=True)
    assert_twin("attention", q, k, v, heads, causal)


def test_fast_attention_survives_scores_that_would_overflow():
    q, k, v = queries_keys_values(1, 40, 150, 2, 16)
    assert_twin("attention", q * 30, k, v, 2, limit=1e-4)        # scores of ±500 are rounded by 3e-5 before eˣ


def test_fast_attention_passes_nan_on():
    q, k, v = queries_keys_values(1, 40, 150, 2, 16)
    k[0, 140] = np.nan
    assert np.isnan(fast.attention(q, k, v, 2)).all()


# ---- resampling, embeddings

@pytest.mark.parametrize("size", [(8, 12), (7, 11), (5, 13)])
def test_upsample_nearest_matches_torch(size):
    x = values(2, 4, 6, 3)
    expected = F.interpolate(torch.from_numpy(x).permute(0, 3, 1, 2), size=size, mode="nearest").permute(0, 2, 3, 1)
    np.testing.assert_array_equal(reference.upsample_nearest(x, *size), expected.numpy())
    np.testing.assert_array_equal(fast.upsample_nearest(x, *size), expected.numpy())


def test_embedding_takes_rows():
    ids, weight = np.array([[3, 0], [1, 3]]), values(4, 5)
    expected = F.embedding(torch.from_numpy(ids), torch.from_numpy(weight)).numpy()
    np.testing.assert_array_equal(reference.embedding(ids, weight), expected)
    np.testing.assert_array_equal(fast.embedding(ids, weight), expected)


@pytest.mark.parametrize("flip, shift", [(True, 0), (False, 1)])
def test_timestep_embedding_is_cosines_and_sines(flip, shift):
    timesteps = [0, 1, 41.625, 999]
    angles = np.array(timesteps)[:, None] * [10000 ** (-i / (5 - shift)) for i in range(5)]
    parts = [np.cos(angles), np.sin(angles)] if flip else [np.sin(angles), np.cos(angles)]
    for backend in (reference, fast):
        y = backend.timestep_embedding(timesteps, 10, flip, shift)
        assert y.dtype == np.float32
        np.testing.assert_allclose(y, np.concatenate(parts, axis=-1), atol=1e-4)         # 999 rad in float32


# ---- what the fast twins accept

def test_fast_twins_take_any_memory_layout():
    x = values(3, 5, 20, 2)[..., 0]
    x.flags.writeable = False
    weight = values(40, 20, 2)[..., 1]
    np.testing.assert_array_equal(fast.linear(x, weight), fast.linear(x.copy(), weight.copy()))
    np.testing.assert_array_equal(fast.attention(x, x, x, 2), fast.attention(*[x.copy()] * 3, 2))


@pytest.mark.parametrize("dtype", [np.float64, np.int64])
def test_fast_twins_refuse_other_types(dtype):
    with pytest.raises(TypeError, match=np.dtype(dtype).name):
        fast.silu(np.ones(4, dtype))
    with pytest.raises(TypeError, match=np.dtype(dtype).name):
        fast.linear(values(3, 4), np.ones((2, 4), dtype))


@pytest.mark.parametrize("call", [
    lambda: fast.linear(values(3, 4), values(2, 5)),
    lambda: fast.linear(values(3, 4), values(2, 4), bias=values(3)),
    lambda: fast.linear(values(3, 4), values(2, 4), residual=values(3, 3)),
    lambda: fast.conv2d(values(1, 4, 4, 3), values(2, 4, 3, 3)),
    lambda: fast.conv2d(values(1, 2, 2, 3), values(2, 3, 3, 3)),
    lambda: fast.conv2d(values(2, 4, 4, 3), values(2, 3, 1, 1), bias=values(3, 2)),
    lambda: fast.group_norm(values(1, 2, 2, 6), values(6), values(6), 4, 1e-5),
    lambda: fast.layer_norm(values(2, 6), values(5), values(6), 1e-5),
    lambda: fast.attention(values(1, 4, 6), values(1, 3, 6), values(1, 4, 6), 2),
    lambda: fast.attention(values(1, 4, 6), values(1, 3, 6), values(1, 3, 6), 2, causal=True),
])
def test_fast_twins_refuse_shapes_that_do_not_fit(call):
    """Kernels trust these checks: without them they would read beyond an array."""
    with pytest.raises(ValueError, match="shape|fit|divided|cannot take|as many keys as queries"):
        call()


def test_every_operation_has_both_twins():
    for name in kernels.OPERATIONS:
        assert callable(getattr(reference, name)) and callable(getattr(fast, name))


def test_no_file_hides_an_operation():
    """A file kernels/attention.py, once imported, would be what kernels.attention finds."""
    for name in kernels.OPERATIONS:
        assert callable(getattr(kernels, name))


# ---- threads

def test_number_of_threads_does_not_change_the_result():
    x, weight = values(300, 200), values(150, 200)
    before, results = threads.get_threads(), []
    try:
        for count in (1, 2, 7):
            threads.set_threads(count)
            results.append((fast.linear(x, weight), fast.silu(x), fast.attention(x[None], x[None], x[None], 5)))
    finally:
        threads.set_threads(before)
    for result in results[1:]:
        for y, expected in zip(result, results[0]):
            np.testing.assert_array_equal(y, expected)


def test_a_python_thread_may_run_kernels_alone(monkeypatch):
    """Only that one, and only within: others go on sharing their work."""
    counts, x = [], values(1000, 1000)
    monkeypatch.setattr(activations.activate, "compiled", lambda count, arguments: counts.append(count))
    with threads.alone():
        fast.silu(x)
        other = threading.Thread(target=fast.silu, args=(x,))
        other.start()
        other.join()
    fast.silu(x)
    assert counts == [1, *2 * [min(threads.get_threads(), numba.config.NUMBA_NUM_THREADS)]]


def test_no_threads_at_all_is_an_error():
    with pytest.raises(ValueError, match="at least 1"):
        threads.set_threads(0)


def run_concurrently():
    """Call kernels from two Python threads at once; → for each whether every result was right"""
    x, weight = values(256, 256), values(256, 256)
    expected = fast.linear(x, weight), fast.silu(x), fast.attention(x[None], x[None], x[None], 4)
    outcome = [False, False]
    both = threading.Barrier(2)

    def work(number):
        both.wait()
        for _ in range(50):
            results = fast.linear(x, weight), fast.silu(x), fast.attention(x[None], x[None], x[None], 4)
            if not all(map(np.array_equal, results, expected)):
                return
        outcome[number] = True

    workers = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return outcome


def test_two_python_threads_may_call_kernels_at_once():
    assert run_concurrently() == [True, True]


# ---- compiling

def test_warmed_up_kernels_are_cached():
    fast.warm_up()
    assert fast.is_cached()


def test_another_process_finds_compiled_kernels_on_disk():
    fast.silu(values(10))
    code = "from npdiffusion.kernels import fast; import numpy; fast.silu(numpy.ones(3, 'float32')); print('done')"
    out = output_of(code, NUMBA_DEBUG_CACHE="1")
    assert "data loaded" in out and "data saved" not in out and "done" in out


def test_workqueue_survives_two_python_threads():
    """numba's simplest threading layer aborts the process when it is entered twice; a lock prevents that."""
    code = "from tests import test_kernels as t; import numba; print(t.run_concurrently(), numba.threading_layer())"
    assert output_of(code, NUMBA_THREADING_LAYER="workqueue").split() == ["[True,", "True]", "workqueue"]


@pytest.mark.parametrize("chosen, spins", [({}, threads.SPINS["GOMP_SPINCOUNT"]), ({"GOMP_SPINCOUNT": "7"}, "7")])
def test_threads_that_wait_spin_briefly_unless_the_user_says_how_long(chosen, spins):
    code = ("import os, numba, numpy; from npdiffusion.kernels import fast; before = dict(os.environ); "
            "fast.silu(numpy.ones(3, 'float32')); print('restored', before == dict(os.environ), numba.threading_layer())")
    environment = {name: value for name, value in os.environ.items() if name not in {"OMP_WAIT_POLICY", *threads.SPINS}}
    environment |= {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_DISPLAY_ENV": "verbose"} | chosen
    said = subprocess.run([sys.executable, "-c", code], env=environment, text=True, timeout=300, check=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT).stdout
    assert "restored True" in said
    if "GOMP_" not in said:
        pytest.skip("numba's threads are not those of GNU's OpenMP")
    assert f"GOMP_SPINCOUNT = '{spins}'" in said


CHECKS_OF_ONE_CPU = """
from tests import test_kernels as t
from npdiffusion.kernels.products import microkernel
for case in t.CONVOLUTIONS[2], t.CONVOLUTIONS[-3]:
    t.test_fast_conv2d_matches_its_definition(*case)
t.test_fast_linear_matches_its_definition(77, 96, 80)
t.test_fast_attention_passes_nan_on()
for case in t.ATTENTIONS[:3] + t.ATTENTIONS[-3:]:
    t.test_attention_matches_torch(*case)
print(microkernel.LANES)
"""


@pytest.mark.parametrize("cpu, lanes", [("haswell", 8), ("generic", 4)])
def test_other_instruction_sets(cpu, lanes, tmp_path):
    """numba compiles for another CPU: AVX2, and the plain 128-bit vectors that every 64-bit machine has."""
    import platform
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("names x86 processors")
    out = output_of(CHECKS_OF_ONE_CPU, NUMBA_CPU_NAME=cpu, NUMBA_CPU_FEATURES="", NUMBA_CACHE_DIR=str(tmp_path))
    assert out.split() == [str(lanes)]


def test_kernels_of_one_cpu_are_not_taken_for_another(tmp_path):
    code = "from npdiffusion.kernels.codegen import cache; print(cache.folder())"
    folders = {output_of(code, NUMBA_CPU_NAME=cpu, NUMBA_CPU_FEATURES="", NUMBA_CACHE_DIR=str(tmp_path))
               for cpu in ("haswell", "generic")}
    assert len(folders) == 2


def test_without_a_writable_folder_kernels_go_to_a_temporary_one(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "_writable", lambda place: False)
    monkeypatch.setattr(cache.tempfile, "tempdir", str(tmp_path))
    cache.folder.cache_clear()
    try:
        with pytest.warns(UserWarning, match="no cache folder is writable, compiled kernels go to"):
            folder = cache.folder()
    finally:
        cache.folder.cache_clear()
    assert tmp_path in folder.parents
    assert folder.parent.stat().st_mode & 0o077 == 0
