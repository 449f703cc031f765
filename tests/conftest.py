import pytest

from npdiffusion import kernels


@pytest.fixture(params=list(kernels.BACKENDS))
def each_backend(request):
    """Run the test on the NumPy definitions and on the numba twins."""
    before = kernels.backend()
    kernels.use_backend(request.param)
    yield request.param
    kernels.use_backend(before)
