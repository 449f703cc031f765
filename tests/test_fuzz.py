"""Files and texts that are nearly right, a few of each kind; `python -m tests.fuzz` tries as many as one likes."""
import itertools
import random

import pytest

from npdiffusion.errors import UserError
from tests import fuzz, mutations
from tests.fuzz_readers import Reader

INPUTS = 400                          # of each reader, or as many as its share of that is


@pytest.mark.parametrize("name", fuzz.READERS)
def test_what_is_nearly_right_is_read_or_refused_in_one_line_quickly_and_in_little_memory(name, tmp_path):
    with fuzz.opened([name]) as readers:
        share = readers[name].share / 20
        wrong = [(number, found) for number in range(int(INPUTS * share))
                 if (found := fuzz.attempt(name, readers[name], 0, number))]
    assert not wrong, f"{len(wrong)} of them; the first: {wrong[0]}"


def test_an_input_is_made_again_from_its_number():
    def made(seed):
        chance = random.Random(seed)
        return [mutations.changed(name, b'{"a": [1, 2.5]}' * 9, chance) for name in ("a.json", "b.txt", "c.png")]
    assert made("1 a 7") == made("1 a 7") != made("1 a 8")


def wrong(read):
    """What is found of a reader"""
    found = fuzz.attempt("a", Reader(read, ["a text"]), 0, 1)
    return found and found[0]


def refuse(text):
    raise UserError("a line")


def test_what_must_not_happen_is_found(monkeypatch):
    assert wrong(lambda text: None) is None and wrong(refuse) is None
    assert wrong(lambda text: 1 / 0) == "ZeroDivisionError in None"
    amounts = iter((1 << 30, 3 << 30, 3 << 30))
    with monkeypatch.context() as patch:
        patch.setattr(fuzz, "peak", lambda: next(amounts))
        assert wrong(lambda text: None) == "large"
    monkeypatch.setattr(fuzz, "SECONDS", 0.05)
    assert wrong(lambda text: [None for _ in itertools.repeat(None)]).startswith("TakesTooLong")
