"""The judge of digits: it reads real ones, and what it says of a model is what the model drew."""
import json

import numpy as np
import pytest
from PIL import Image

from npdiffusion.command import cli
from npdiffusion.training import compositions, digit_judge, loop
from npdiffusion.training.digits import DIGITS, Digits
from tests import sample_digits
from tests.differences import agree


class Draws:
    """A pipeline that draws real digits for captions, those that `instead` says"""
    def __init__(self, digits, instead=None):
        self.digits, self.instead, self.asked = digits, instead or {}, []

    def generate(self, prompt, seed, count, progress):
        self.asked += [prompt] * count
        classes = [DIGITS.index(word) for word in self.instead.get(prompt, prompt).split() if word in DIGITS]
        picture = np.zeros((32, 32), np.uint8)
        for number, each in enumerate(classes):
            digit = compositions.fitted(compositions.cut_out(self.digits.images[each]), 20 if len(classes) == 1 else 14)
            left = 32 * (2 * number + 1) // (2 * len(classes)) - digit.shape[1] // 2
            picture[4:4 + digit.shape[0], left:left + digit.shape[1]] = digit
        return [Image.fromarray(picture).convert("RGB")] * count


@pytest.fixture(scope="module")
def forty():
    images, labels = sample_digits.digits()
    return Digits(images, labels, images, labels, "forty digits")


@pytest.fixture(scope="module")
def judge(forty, tmp_path_factory):
    """One that knows the forty digits"""
    judge = digit_judge.Judge(digit_judge.Settings("forty digits", steps=150, batch=20), forty)
    assert judge.run(tmp_path_factory.mktemp("judge"))
    return judge


def test_cross_entropy_equals_torchs_and_falls_on_its_tape():
    torch = pytest.importorskip("torch")
    logits = 5 * np.random.default_rng(0).standard_normal((6, 10)).astype(np.float32)
    labels = np.arange(6)
    expected = torch.nn.functional.cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels)).item()
    agree("training", "cross-entropy", digit_judge.cross_entropy(logits, labels), expected, 1e-6)
    assert digit_judge.cross_entropy(logits + 1000, labels) == pytest.approx(expected, rel=1e-4)


def test_it_reads_the_digits_that_it_has_learnt_alone_and_in_twos(judge, forty):
    alone, composed = judge.own_error(100)
    assert alone <= 0.05 and composed <= 0.1


def test_pieces_are_cut_at_empty_columns_and_specks_are_none():
    picture = np.zeros((32, 32), np.uint8)
    picture[4:18, 2:10], picture[6:20, 18:30], picture[0, 31] = 255, 200, 255
    first, second = digit_judge.pieces(picture)
    assert first.shape == (14, 8) and second.shape == (14, 12)
    assert digit_judge.pieces(np.zeros((32, 32), np.uint8)) == []


def test_the_normal_form_is_that_of_mnist_a_side_of_twenty_and_the_mass_in_the_middle(forty):
    for image in forty.images[:10]:
        again = digit_judge.normal(compositions.cut_out(image)).astype(float)
        rows, columns = (np.flatnonzero((again > 0).any(axis=axis)) for axis in (1, 0))
        assert max(np.ptp(rows), np.ptp(columns)) in (18, 19, 20)
        for axis in (0, 1):
            middle = (again.sum(axis=1 - axis) @ np.arange(28)) / again.sum()
            assert middle == pytest.approx(13.5, abs=1)


def test_a_model_that_draws_what_is_asked_gets_all_and_each_mistake_is_counted(judge, forty):
    perfect = digit_judge.exam(judge, Draws(forty), DIGITS, 2)
    assert len(perfect) == 20 + 20 and all(each.right for each in perfect if len(each.asked) == 1)
    instead = {"a seven": "a one", "a four": "a four and a four", "a zero": ""}
    answers = digit_judge.exam(judge, Draws(forty, instead), DIGITS, 2)
    wrong = [each.asked for each in answers if not each.right and len(each.asked) == 1]
    assert wrong == [(0,), (0,), (4,), (4,), (7,), (7,)]
    lines = [*digit_judge.table(answers, DIGITS)]
    assert "a seven         0 of 2       0.0 %  read as 1 (2)" in lines
    assert any(line.startswith("a zero") and line.endswith("read as nothing (2)") for line in lines)
    assert any(line.startswith("one digit") and "14 of 20" in line and "70.0 %" in line for line in lines)
    assert digit_judge.sheet(answers).size == (10 * 36, 20 * 36)


def test_the_command_prints_the_table_and_writes_the_sheet(forty, tmp_path, capfd, monkeypatch):
    (tmp_path / "digits").mkdir()
    sample_digits.write(tmp_path / "digits", held_out=True)
    train = loop.train
    monkeypatch.setattr(loop, "train", lambda training, run, steps, *more: train(training, run, min(steps, 3), *more) or True)
    monkeypatch.setattr("npdiffusion.load", lambda *_, **__: Draws(forty))
    arguments = ["train", "judge", str(tmp_path), "--data", str(tmp_path / "digits"), "--count", "1"]
    assert cli.main(arguments) == 1 and "no run of `npdiffusion train sd` is here" in capfd.readouterr()[1]
    (tmp_path / "run.json").write_text('{"data": "clothes"}')
    assert cli.main(arguments) == 1 and "it learnt from 'clothes'" in capfd.readouterr()[1]
    (tmp_path / "run.json").write_text(json.dumps({"data": str(tmp_path / "digits")}))
    assert cli.main(arguments) == 0
    out, err = capfd.readouterr()
    assert "two digits" in out and out.strip().endswith("judged.png") and "the judge itself misreads" in err
    assert Image.open(tmp_path / "judged.png").size[0] == 360
