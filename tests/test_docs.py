"""Python examples of pages in docs/ run as they stand, in a folder with what they name."""
import pathlib
import re

import numpy as np
import pytest
from PIL import Image

from npdiffusion.checkpoints import library
from npdiffusion.command import cli, like
from npdiffusion.errors import UserError
from npdiffusion.pictures.images import save_png
from npdiffusion.pictures.text_inside import png_info

DOCS = pathlib.Path(__file__).resolve().parent.parent / "docs"
EXAMPLE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.fixture
def at_work(tmp_path, monkeypatch):
    """A folder with a file of each kind that examples read."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(library.VARIABLE, raising=False)
    (tmp_path / "table.csv").write_text("prompt,steps,sampler\na red apple,1,dpm++2m\na cat,2,euler\n")
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "thing.txt").write_text("cat\n")
    (tmp_path / "words" / "colour.txt").write_text("red\nblue\n")
    return tmp_path


def examples(page):
    """Those of a page that are marked as Python."""
    return EXAMPLE.findall((DOCS / f"{page}.md").read_text(encoding="utf-8"))


def run(code):
    names = {}
    exec(compile(code, "docs", "exec"), names)
    return names


def test_settings_read_from_a_picture_make_it_again(at_work):
    example, = examples("settings-in-pictures")
    assert cli.main(["a red apple", "-n", "blue", "--steps", "2", "--sampler", "ddim", "--eta", "0.4", "--clip-skip", "2",
                     "-s", "3", "--subseed", "4", "--subseed-strength", "0.2", "-W", "64", "-H", "72",
                     "-o", "apple.png"]) == 0
    assert np.array_equal(np.asarray(run(example)["image"]), np.asarray(Image.open("apple.png")))


def test_a_table_and_a_comparison_are_loops(at_work):
    table, comparison = examples("many-pictures")
    run(table)
    assert [Image.open(f"{number}.png").size for number in (1, 2)] == [(128, 128)] * 2
    run(comparison)
    assert Image.open("sheet.png").width > 3 * 128


def test_settings_of_a_random_seed_have_none(at_work, on_numpy):
    text = "a cat\nSteps: 5, Seed: -1, Noise Schedule: Zero Terminal SNR, RNG: CPU"
    save_png(Image.new("RGB", (8, 8)), "in.png", png_info(text))
    settings, model = like.settings("in.png")
    assert settings["seed"] is None and settings["timestep_spacing"] == "trailing"
    assert model == {"path_or_id": None, "vae": None}
    save_png(Image.new("RGB", (8, 8)), "text.png", png_info("a cat"))
    with pytest.raises(UserError, match="no settings inside"):
        like.settings("text.png")
