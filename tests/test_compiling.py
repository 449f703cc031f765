"""What numba is asked for when kernels compile: each goes through LLVM once, with all that it calls."""
import numpy as np
import pytest

numba = pytest.importorskip("numba")

from npdiffusion.kernels import threads  # noqa: E402
from npdiffusion.kernels.codegen import compiling  # noqa: E402
from npdiffusion.kernels.codegen.compiling import floats_in, floats_out, inlined, size  # noqa: E402
from npdiffusion.kernels.codegen.memory import next_job  # noqa: E402


@inlined
def polynomial(x, constant, factor):
    """factor · x³ + constant"""
    return factor * cubed(x) + constant


@inlined
def cubed(x):
    return x * x * x


def cubes(thread, counter, count, x, y):
    job = next_job(counter)
    while job < count:
        y[job] = polynomial(x[job], factor=np.float32(2), constant=np.float32(1))
        job = next_job(counter)


def visits(thread, counter, seen):
    seen[thread] += 1


@pytest.fixture
def declared(monkeypatch, tmp_path):
    """declare(function, *signature) → a kernel that nobody else sees"""
    monkeypatch.setattr(compiling, "_kernels", [])
    monkeypatch.setattr(compiling.cache, "folder", lambda: tmp_path)
    return lambda function, *signature: compiling.kernel(*signature)(function)


def test_functions_that_kernels_call_may_be_nested_and_take_keywords(declared):
    x, y = np.arange(5, dtype=np.float32), np.empty(5, np.float32)
    threads.launch(declared(cubes, size, floats_in, floats_out), 5, x, y)
    np.testing.assert_array_equal(y, 2 * x**3 + 1)


def test_functions_that_kernels_call_get_no_machine_code_of_their_own(declared, monkeypatch):
    from numba.core.codegen import JITCodeLibrary
    generated, finalize = [], JITCodeLibrary._finalize_specific
    monkeypatch.setattr(JITCodeLibrary, "_finalize_specific", lambda self: (generated.append(self.name), finalize(self)))
    declared(cubes, size, floats_in, floats_out).compile()
    assert "cubes" in generated and not {"cubed", "polynomial"} & {*generated} and generated.count("cubes") == 1


@pytest.mark.parametrize("count", [1, 2])
def test_a_kernel_runs_once_in_each_thread(count, declared, monkeypatch):
    if count > numba.config.NUMBA_NUM_THREADS:
        pytest.skip("numba has one thread here")
    monkeypatch.setattr(threads, "_count", count)
    seen = np.zeros(4, np.float32)
    threads.launch(declared(visits, floats_out), seen)
    assert seen.tolist() == [1.0] * count + [0.0] * (4 - count)


def test_what_kernels_call_is_of_no_use_to_python():
    with pytest.raises(NotImplementedError):
        cubed(1.0)
