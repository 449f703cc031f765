"""The settings inside a PNG, as AUTOMATIC1111's web interface writes and reads them."""
import json
import re

import pytest
from PIL import Image

from npdiffusion import __version__, cli, samplers
from npdiffusion.images import save_png
from npdiffusion.metadata import SAMPLER_NAMES, parameters, png_info, quote

SETTINGS = dict(steps=50, sampler="ddim", schedule="discrete", guidance_scale=7.5, seed=1, width=128, height=64,
                model="v1-5")

# How that program finds the pairs in the last line.
PAIR = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')


def pairs(text):
    found = PAIR.findall(text.splitlines()[-1])
    return {key: json.loads(value) if value.startswith('"') else value for key, value in found}


def test_text_has_prompt_then_settings():
    assert parameters("a red apple", **SETTINGS) == (
        "a red apple\n"
        "Steps: 50, Sampler: DDIM, CFG scale: 7.5, Seed: 1, Size: 128x64, Model: v1-5, RNG: CPU, "
        f"Version: npdiffusion {__version__}")


def test_negative_prompt_has_a_line_of_its_own_if_there_is_one():
    assert parameters("an apple", "blurry", **SETTINGS).splitlines()[1] == "Negative prompt: blurry"
    assert "Negative" not in parameters("an apple", "", **SETTINGS)


def test_karras_schedule_and_strength_are_named_as_there():
    text = parameters("", **{**SETTINGS, "sampler": "dpm++2m", "schedule": "karras"}, strength=0.6)
    found = pairs(text)
    assert found["Sampler"] == "DPM++ 2M"
    assert found["Schedule type"] == "Karras"
    assert found["Denoising strength"] == "0.6"


def test_every_sampler_has_a_name_there():
    assert set(SAMPLER_NAMES) == set(samplers.SAMPLERS)


def test_samplers_over_sigmas_always_name_their_schedule():
    for name, sampler in samplers.SAMPLERS.items():
        text = parameters("", **{**SETTINGS, "sampler": name})
        assert ("Schedule type: Uniform" in text) == sampler.karras


def test_whole_scale_has_no_decimals():
    assert pairs(parameters("", **{**SETTINGS, "guidance_scale": 7.0}))["CFG scale"] == "7"


@pytest.mark.parametrize("value", ["plain", "a, b", "a: b", "a\nb", 'say "x", then', "ünï, 🍎"])
def test_a_quoted_value_is_read_back(value):
    assert pairs(f"Steps: 1, Model: {quote(value)}, Seed: 2") == {"Steps": "1", "Model": value, "Seed": "2"}


@pytest.mark.parametrize("prompt", ["a red apple", "größe", "りんご 🍎", "two\nlines"])
def test_the_text_comes_back_from_the_file(prompt, tmp_path):
    text = parameters(prompt, **SETTINGS)
    path = save_png(Image.new("RGB", (8, 8)), tmp_path / "a.png", png_info(text))
    with Image.open(path) as image:
        assert image.text == {"parameters": text}


def test_names_of_files_in_another_encoding_are_no_obstacle(tmp_path):
    text = parameters("", **{**SETTINGS, "model": b"mod\xe8le".decode("utf-8", "surrogateescape")})
    path = save_png(Image.new("RGB", (8, 8)), tmp_path / "a.png", png_info(text))
    with Image.open(path) as image:
        assert "Model: mod?le" in image.text["parameters"]


# ---- reading it back

def written(folder, text):
    """A picture with this text inside."""
    return save_png(Image.new("RGB", (8, 8)), folder / "a.png", png_info(text))


def test_metadata_prints_what_is_inside(tmp_path, capsys):
    text = parameters("größe", "blurry", **SETTINGS)
    assert cli.main(["metadata", str(written(tmp_path, text))]) == 0
    assert capsys.readouterr().out == text + "\n"


def test_metadata_of_a_picture_without_any_is_an_error(tmp_path, capsys):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    assert cli.main(["metadata", str(tmp_path / "a.png")]) == 1
    assert "a.png: there are no settings inside" in capsys.readouterr().err
