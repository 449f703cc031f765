"""Fixtures of all tests, and the table that ends their output."""
import pytest

import npdiffusion
from npdiffusion import kernels
from npdiffusion.checkpoints import library
from npdiffusion.command import prepare
from tests import differences
from tests.fake_pipeline import FakePipeline

FRAMEWORKS = {
    "torch", "torchsde", "diffusers", "transformers", "peft", "tokenizers", "huggingface_hub", "openvino", "matplotlib",
    "starlette", "uvicorn", "python_multipart", "openai", "webuiapi", "sd_backend_client", "selenium",
    "distributed"}


# ---- references that are not installed

def skip_without_framework(error, node):
    """Skip what imports a framework that isn't installed, and say which; any other module that is missing is an error."""
    if isinstance(error, ImportError) and (error.name or "").partition(".")[0] in FRAMEWORKS:
        pytest.skip(f"{node.path.name}: {error.name} is not installed", allow_module_level=True)


class Module(pytest.Module):
    """A file of tests; it may import frameworks at its top."""
    def collect(self):
        try:
            return super().collect()
        except self.CollectError as error:
            skip_without_framework(error.__cause__, self)
            raise


def pytest_pycollect_makemodule(module_path, parent):
    return Module.from_parent(parent, path=module_path)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(request):
    try:
        return (yield)
    except ImportError as error:
        skip_without_framework(error, request.node)
        raise


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem):
    try:
        return (yield)
    except ImportError as error:
        skip_without_framework(error, pyfuncitem)
        raise


# ---- fixtures

@pytest.fixture(scope="session", autouse=True)
def models_of_the_user(tmp_path_factory):
    """Models that the user has in caches and folders are never looked at: there are none."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", library.VARIABLE):
            patch.delenv(name, raising=False)
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("huggingface")))
        yield


@pytest.fixture(autouse=True)
def backend_as_before():
    """A test that chooses a backend, by a command for example, chooses it for itself alone."""
    before = kernels._chosen
    yield
    kernels._chosen = before


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
    from tests import folders
    return folders.torch_models()


@pytest.fixture(scope="module")
def written(models, tmp_path_factory):
    """The folder of a complete model in diffusers layout with their weights; not to be changed."""
    from tests import folders
    return folders.write_model(tmp_path_factory.mktemp("written") / "model", models)


@pytest.fixture(scope="module")
def pair():
    """(diffusers' pipeline, ours), both tiny, random and equal."""
    from tests import pairs
    return pairs.make_pair()


@pytest.fixture
def pipeline(monkeypatch, tmp_path):
    """The command runs in an empty folder, on the NumPy backend, with a fake pipeline."""
    fake = FakePipeline()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(npdiffusion, "load", fake.load)
    monkeypatch.setattr(kernels, "_chosen", "numpy")
    monkeypatch.setattr(prepare, "BLAS_VARIABLES", ())
    return fake


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """A server with the embedded model."""
    from tests.served import served
    with served(tmp_path_factory.mktemp("server") / "pictures") as server:
        yield server


@pytest.fixture
def fake(tmp_path):
    """A server whose pictures take no time, unless `fake.pipeline.act` does."""
    from tests.served import served
    pipeline = FakePipeline()
    with served(tmp_path / "pictures", pipeline) as server:
        server.pipeline = pipeline
        yield server


def pytest_sessionfinish(session):
    """A process that runs a part of the tests (pytest -n) sends its comparisons to the one that prints the table."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["comparisons"] = differences.ROWS


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    differences.ROWS.extend(map(tuple, getattr(node, "workeroutput", {}).get("comparisons", ())))


def pytest_terminal_summary(terminalreporter):
    """End the output with the largest difference to the reference, part by part."""
    if differences.ROWS:
        terminalreporter.section("differences to the references")
        for line in differences.table():
            terminalreporter.line(line)
