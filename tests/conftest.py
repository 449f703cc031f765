import pytest

from npdiffusion import kernels
from tests import differences


@pytest.fixture(params=list(kernels.BACKENDS))
def each_backend(request):
    """Run the test on the NumPy definitions and on the numba twins."""
    before = kernels.backend()
    kernels.use_backend(request.param)
    yield request.param
    kernels.use_backend(before)


def pytest_terminal_summary(terminalreporter):
    """End the output with the largest difference to the reference, part by part."""
    if differences.ROWS:
        terminalreporter.section("differences to the references")
        for line in differences.table():
            terminalreporter.line(line)
