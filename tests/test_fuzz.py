"""Files and texts that are nearly right, a few of each kind; `python -m tests.fuzz` tries as many as one likes."""
import itertools
import random

import pytest

from npdiffusion.command.talk import LONGEST, LONGEST_PATH, one_line
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


MOST = 60
BEYOND = (10**400, -10**400, float("inf"), float("-inf"), float("nan"), 2**63, 1e308)


@pytest.mark.parametrize("name", ["tensors", "shards", "model", "single file", "autoencoder", "configs", "scheduler",
                                  "tokenizer", "loras", "learnt words", "requests", "manifest"])
def test_numbers_beyond_floats_and_axes_beyond_numpys_are_read_or_one_line_wherever_they_stand(name):
    """A number of a JSON file becomes each of BEYOND, and a tensor gets 64 more axes, one after the other."""
    tried, said = 0, [""]
    with fuzz.opened([name]) as readers:
        reader = readers[name]
        for path in sorted({reader.folder / each for each in reader.inputs if not each.endswith(".txt")}):
            right = path.read_bytes()
            given = [*(mutations.with_axes(right) if path.suffix == ".safetensors" else mutations.with_numbers(right, BEYOND))]
            for changed in given[::len(given) // MOST + 1]:          # of a vocabulary not all
                path.write_bytes(changed)
                try:
                    reader.read(path)
                except UserError as error:
                    said.append(one_line(error))
                tried += 1
            path.write_bytes(right)
    assert tried and max(map(len, said)) <= LONGEST + LONGEST_PATH


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
