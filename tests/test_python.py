"""Using the library from Python, as a user of diffusers would."""
import inspect
import io

import numpy as np
import pytest
from PIL import Image

import npdiffusion
from npdiffusion.errors import UserError
from npdiffusion.pictures import text_inside
from npdiffusion.settings import SETTINGS

PROMPT = "a red apple"
FAST = dict(steps=1, seed=3, width=64, height=64)


@pytest.fixture(scope="module")
def pipeline():
    return npdiffusion.load()


def test_a_picture_that_is_saved_has_its_settings_inside(pipeline, tmp_path):
    image, = pipeline.generate(PROMPT, "blue", **FAST)
    image.save(tmp_path / "apple.png")
    assert text_inside.read_text(tmp_path / "apple.png") == image.info["parameters"]
    for part in "Negative prompt: blue\nSteps: 1, Sampler: DDIM", "Seed: 3":
        assert part in image.info["parameters"]


def test_settings_that_are_given_to_save_go_before_and_other_formats_are_saved_too(pipeline, tmp_path):
    from PIL.PngImagePlugin import PngInfo
    image, = pipeline.generate(PROMPT, **FAST)
    image.save(tmp_path / "plain.png", pnginfo=PngInfo())
    assert "parameters" not in Image.open(tmp_path / "plain.png").info
    image.save(tmp_path / "apple.jpg")
    memory = io.BytesIO()
    image.save(memory, format="PNG")
    assert Image.open(memory).text["parameters"] == image.info["parameters"]
    assert Image.open(tmp_path / "apple.jpg").size == (64, 64)


def test_a_list_of_prompts_gives_a_list_of_pictures_whose_seeds_count_on(pipeline):
    both = pipeline.generate(["a cat", "a dog"], **FAST)
    alone, = pipeline.generate("a dog", **FAST | {"seed": 4})
    assert [image.info["seed"] for image in both] == [3, 4] and np.array_equal(np.asarray(both[1]), np.asarray(alone))
    assert "a dog" in both[1].info["parameters"] and "Seed: 4" in both[1].info["parameters"]


def test_each_picture_of_a_batch_says_its_own_seed(pipeline):
    texts = [image.info["parameters"] for image in pipeline.generate(PROMPT, count=2, **FAST)]
    assert ["Seed: 3," in texts[0], "Seed: 4," in texts[1]] == [True, True]


def test_help_and_completion_see_every_setting_with_its_type():
    parameters = inspect.signature(npdiffusion.load().generate).parameters
    assert {*SETTINGS} <= {*parameters} and parameters["steps"].annotation in ("int | None", int | None)
    assert parameters["rng"].default == "torch"


def test_a_pipeline_says_what_it_is(pipeline):
    assert "Stable Diffusion v1, pictures of 128×128 pixels" in repr(pipeline)


def test_the_error_that_users_see_is_exported():
    assert npdiffusion.UserError is UserError


def test_nothing_is_written_to_a_stream_that_is_no_terminal(pipeline, capsys):
    pipeline.generate(PROMPT, **FAST)
    assert capsys.readouterr().err == ""
