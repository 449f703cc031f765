"""The public interface has types; that they agree with the code is checked by mypy, see .ci/run."""
import inspect

import pytest

import npdiffusion
from npdiffusion import errors, kernels, request
from npdiffusion.diffusion import samplers
from npdiffusion.pictures import sheets
from npdiffusion.pictures.preview import Previews
from npdiffusion.pipeline import StableDiffusionPipeline

METHODS = [each for name, each in vars(StableDiffusionPipeline).items()
           if not name.startswith("_") and inspect.isfunction(each) and name != "contexts"]
PUBLIC = [npdiffusion.load, npdiffusion.use_backend, errors.nearest, request.resolve, kernels.use_backend, kernels.backend,
          samplers.find_sampler, samplers.find_schedule, samplers.check_pair, sheets.sheet, Previews.__init__,
          Previews.__call__, *METHODS]


@pytest.mark.parametrize("function", PUBLIC, ids=lambda function: function.__qualname__)
def test_public_functions_have_types(function):
    names = {*inspect.getfullargspec(inspect.unwrap(function)).args} - {"self"}
    assert names | {"return"} <= function.__annotations__.keys()
