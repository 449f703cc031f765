"""`npdiffusion subjects`: the list has all that the recipe teaches, and the sheet shows it."""
import re

import pytest
from PIL import Image

import npdiffusion
from npdiffusion.command import cli, subjects
from npdiffusion.weights.recipe import scenes, settings, words
from npdiffusion.weights.recipe.subjects import NAMES, NATURAL_COLOURS


@pytest.fixture
def listed(capsys):
    """What is printed, with each stretch of white space as one space."""
    assert cli.main(["subjects"]) == 0
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("kind", words.KINDS)
def test_every_subject_is_listed_in_its_kind(kind, monkeypatch):
    text = " ".join(" ".join(subjects.lines(200, emoji=False)).split())
    following = [*words.KINDS, "grounds"][list(words.KINDS).index(kind) + 1]
    assert f" {kind} {', '.join(words.KINDS[kind].values())} {following} " in text


@pytest.mark.parametrize("ground", scenes.GROUNDS)
def test_every_ground_is_listed_as_a_prompt_names_it(ground, listed):
    assert re.search(rf'"(on|at|in)( the| an?)? {ground}( background)?"', listed)


def test_subjects_in_other_colours_are_listed(listed):
    colours = listed.partition(" colours ")[2].partition(" numbers ")[0]
    assert colours.startswith(", ".join(settings.TINTS) + ", as in")
    assert sorted(colours.rpartition(": ")[2].split(", ")) == sorted(NATURAL_COLOURS)


@pytest.mark.parametrize("width", [80, 100, 250])
def test_no_line_is_longer_than_the_terminal_is_wide(width):
    assert max(map(len, subjects.lines(width))) <= width


def test_emoji_are_left_out_where_the_encoding_lacks_them(monkeypatch, capsys):
    monkeypatch.setattr(subjects, "can_print", lambda text: False)
    assert cli.main(["subjects"]) == 0
    assert "animals         cat, dog, " in capsys.readouterr().out


def test_the_sheet_has_a_picture_of_each_subject_ground_and_colour(monkeypatch, tmp_path, capsys, on_numpy):
    asked = []

    class Pipeline:
        def generate(self, prompt, **settings):
            asked.append(prompt)
            return [Image.new("RGB", (128, 128), "red")]
    monkeypatch.setattr(npdiffusion, "load", lambda **settings: Pipeline())
    assert cli.main(["subjects", "-o", str(tmp_path / "sheet.png"), "--backend", "numpy"]) == 0
    assert len(asked) == len(NAMES) + len(scenes.GROUNDS) + len(settings.TINTS)
    assert "an apple on a white background" in asked and "a snowman at night" in asked
    assert Image.open(tmp_path / "sheet.png").width > 16 * 64
    assert capsys.readouterr().out == f"{tmp_path / 'sheet.png'}\n"


def test_info_says_what_the_embedded_model_draws(capsys):
    assert cli.main(["--info"]) == 0
    assert "160 subjects on 17 grounds, and nothing else: npdiffusion subjects lists them" in capsys.readouterr().out
