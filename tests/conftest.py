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


@pytest.fixture
def on_numpy(monkeypatch):
    """The NumPy definitions, which need no compiling; for what doesn't depend on the twin."""
    monkeypatch.setattr(kernels, "_chosen", "numpy")


@pytest.fixture(scope="module")
def models():
    """Tiny torch models with random weights: {part: model}"""
    pytest.importorskip("diffusers")
    from tests import folders
    return folders.torch_models()


@pytest.fixture(scope="module")
def written(models, tmp_path_factory):
    """The folder of a complete model in diffusers layout with their weights; not to be changed."""
    from tests import folders
    return folders.write_model(tmp_path_factory.mktemp("written") / "model", models)


def pytest_terminal_summary(terminalreporter):
    """End the output with the largest difference to the reference, part by part."""
    if differences.ROWS:
        terminalreporter.section("differences to the references")
        for line in differences.table():
            terminalreporter.line(line)
