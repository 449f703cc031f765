"""Several pictures on one sheet, with captions."""
import itertools

import numpy as np
import pytest
from PIL import Image, ImageFont

from npdiffusion.pictures import sheets
from npdiffusion.pictures.sheets import GAP, broken, sheet

COLOURS = ["red", "lime", "blue", "yellow", "cyan"]


def pictures(size=(40, 24), count=5):
    return [Image.new("RGB", size, colour) for colour in COLOURS[:count]]


def colour_at(image, column, row, size=(40, 24), below=0):
    """The colour in the middle of a cell."""
    x = GAP + column * (size[0] + GAP) + size[0] // 2
    return image.getpixel((x, GAP + row * (size[1] + below + GAP) + size[1] // 2))


def test_pictures_are_laid_out_in_rows():
    made = sheet(pictures(), columns=2)
    assert made.size == (2 * 48 + GAP, 3 * 32 + GAP)
    assert [colour_at(made, i % 2, i // 2) for i in range(6)] == [
        (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255), (255, 255, 255)]


def test_a_sheet_is_about_square_if_not_told_otherwise():
    assert sheet(pictures((16, 16))).size == (3 * 24 + GAP, 2 * 24 + GAP)


def test_a_picture_is_on_the_sheet_as_it_is():
    levels = np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)
    made = sheet([Image.fromarray(levels), *pictures()], ["caption"] * 6)
    assert np.array_equal(np.asarray(made)[GAP:GAP + 24, GAP:GAP + 40], levels)


def test_a_smaller_picture_stands_in_the_middle():
    made = sheet([Image.new("RGB", (40, 40), "red"), Image.new("RGB", (20, 10), "blue")], columns=1)
    blue = np.argwhere((np.asarray(made) == (0, 0, 255)).all(axis=-1))
    assert blue.min(axis=0).tolist() == [GAP + 48 + 15, GAP + 10] and len(blue) == 200


def test_captions_are_below_their_pictures():
    plain, captioned = sheet(pictures(), columns=5), sheet(pictures(), ["a", "", "", "", ""], columns=5)
    below = np.asarray(captioned)[plain.height - GAP:]
    assert (below[:, :GAP + 40] < 128).any() and (below[:, GAP + 40:] == 255).all()
    assert np.array_equal(np.asarray(captioned)[:plain.height - GAP], np.asarray(plain)[:-GAP])


def test_characters_that_the_font_lacks_are_replaced():
    assert sheets.drawable("Größe … × りん", ImageFont.load_default(size=10)) == "Grosse ... ? ??"


@pytest.mark.parametrize("text", ["a big red apple on a small blue table in the green snow of a yellow night", "x" * 99,
                                  "x" * 99 + " y", "", "りんご " * 50])
def test_a_caption_takes_the_room_it_has(text):
    font = ImageFont.load_default(size=10)
    lines = broken(text, font, 100)
    assert len(lines) <= sheets.LINES and all(font.getlength(line) <= 100 for line in lines)
    assert "".join(lines).replace("…", "").replace(" ", "") in text.replace(" ", "")


class CountingFont:
    """A font that counts the characters that it is given."""
    def __init__(self):
        self.font, self.characters = ImageFont.load_default(size=10), 0

    def getmask(self, text):
        self.characters += len(text)
        return self.font.getmask(text)

    def getlength(self, text):
        self.characters += len(text)
        return self.font.getlength(text)


@pytest.mark.parametrize("text", ["word ", "x", "\ufdfa", "e\u0301\u0327", "[a|b] ", " ", range(0x4e00, 0x9000)],
                         ids=["words", "one word", "a ligature of 18 letters", "marks", "edits", "blanks", "many characters"])
def test_what_a_caption_costs_does_not_grow_with_a_prompt(text):
    text, costs = "".join(map(chr, text)) if isinstance(text, range) else text, []
    for length in 10_000, 300_000:
        font = CountingFont()
        drawn = sheets.drawable("".join(itertools.islice(itertools.cycle(text), length)), font)
        lines = broken(drawn, font, 512)
        assert len(drawn) <= sheets.LONGEST and len(lines) <= sheets.LINES
        costs.append(font.characters)
    assert costs[0] == costs[1] < 40 * sheets.LONGEST


def test_files_are_read_for_it(tmp_path):
    for number, picture in enumerate(pictures()):
        picture.save(tmp_path / f"{number}.png")
    assert sheet(sorted(tmp_path.iterdir())) == sheet(pictures())


def test_a_sheet_has_a_largest_size(monkeypatch):
    monkeypatch.setattr(sheets, "LARGEST_PICTURE", 100_000)
    made = sheet(pictures((400, 240)))
    assert 80_000 < made.width * made.height < 120_000


@pytest.mark.parametrize("arguments", [dict(pictures=[]), dict(pictures=pictures(), captions=["one"]),
                                       dict(pictures=pictures(), columns=0)])
def test_numbers_that_do_not_fit_are_an_error(arguments):
    with pytest.raises(ValueError, match="pictures, . captions, "):
        sheet(**arguments)
