"""Textual inversion: learnt words, against diffusers' load_textual_inversion."""
import re
import shlex

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from npdiffusion.adapters.textual_inversion import Fitting, LearntWords
from npdiffusion.command import cli
from npdiffusion.errors import UserError
from npdiffusion.models import parameters
from npdiffusion.pipeline import StableDiffusionPipeline as OurPipeline
from npdiffusion.text.reading import read_prompt
from npdiffusion.text.tokenizer import CLIPTokenizer
from tests import references
from tests.differences import agree
from tests.pairs import SCHEDULE, TEXT, VOCABULARY, make_theirs

WIDTH = references.TINY_TEXT["hidden_size"]


@pytest.fixture(scope="module")
def text_encoder():
    return references.torch_text_encoder(**TEXT)


@pytest.fixture
def theirs():
    """diffusers' pipeline of this test alone: to learn and to forget changes the size of its text encoder's table."""
    return make_theirs()


@pytest.fixture
def ours(text_encoder):
    return OurPipeline(CLIPTokenizer.from_folder(VOCABULARY), references.twin(text_encoder), None, None, SCHEDULE, "tiny")


def vectors(count, width=WIDTH, dtype=np.float32):
    return np.random.default_rng(count).standard_normal((count, width)).astype(dtype)


FILES = {                              # file name, tensors, the word that diffusers is told, prompt
    "A1111": ("zigzag.safetensors", {"emb_params": vectors(3)}, "zigzag", "a red zigzag, on blue"),
    "diffusers": ("learned_embeds.safetensors", {"<cat-toy>": vectors(1)[0]}, "<cat-toy>", "a <cat-toy>, on (blue)"),
    "diffusers, several": (
        "toy.safetensors", {"<cat-toy>": vectors(4, dtype=np.float16)}, "<cat-toy>", "<cat-toy> and <cat-toy>"),
}


@pytest.mark.parametrize("case", FILES)
def test_contexts_equal_those_of_diffusers(case, theirs, ours, tmp_path):
    name, tensors, word, prompt = FILES[case]
    save_file(tensors, tmp_path / name)
    theirs.load_textual_inversion(str(tmp_path), weight_name=name, token=word)
    with torch.no_grad():
        expected, _ = theirs.encode_prompt(prompt, "cpu", 1, False)
    without = ours.encode_prompt(prompt, prompt_syntax="plain")
    ours.load_textual_inversion(tmp_path / name)
    found = ours.encode_prompt(prompt, prompt_syntax="plain")
    agree("textual inversion", case, found, expected, 2e-5, relative=True)
    assert np.abs(found - without).max() > 0.1
    ours.unload_textual_inversion(word)
    for rest in list(ours.words):
        ours.unload_textual_inversion(rest)
    assert np.array_equal(ours.encode_prompt(prompt, prompt_syntax="plain"), without)


def test_a_word_of_several_vectors_is_as_many_tokens_with_its_weight(ours, tmp_path):
    save_file({"emb_params": vectors(5)}, tmp_path / "zigzag.safetensors")
    ours.load_textual_inversion(tmp_path / "zigzag.safetensors", token="style-z")
    chunk, = read_prompt("a (style-z:1.3) cat", 10, ours.tokenizer, words=ours.words).chunks.popitem()[1]
    assert [token.weight for token in chunk] == [1, *[1.3] * 5, 1]
    assert np.array_equal([token.learnt for token in chunk[1:6]], vectors(5))


def test_the_vectors_of_a_word_are_not_torn_apart_by_chunks(ours, tmp_path):
    save_file({"emb_params": vectors(5)}, tmp_path / "zigzag.safetensors")
    ours.load_textual_inversion(tmp_path / "zigzag.safetensors")
    first, second = read_prompt("cat " * 72 + "zigzag", 10, ours.tokenizer, words=ours.words).chunks.popitem()[1]
    assert (len(first), len(second)) == (72, 5)
    prompt = "cat " * 60 + ", zigzag " + "cat " * 12
    first, second = read_prompt(prompt, 10, ours.tokenizer, words=ours.words).chunks.popitem()[1]
    assert (len(first), len(second)) == (61, 17) and second[0].learnt is not None      # moved on with what follows the comma


@pytest.mark.parametrize(("text", "found"), [
    ("red, RED-hot", 2), ("tired redder", 0), ("red2 2red", 2), ("a red\n red", 2), ("blue", 0)])
def test_a_word_is_found_where_it_stands_by_itself(text, found, tmp_path):
    save_file({"emb_params": vectors(1)}, tmp_path / "red.safetensors")
    words = LearntWords()
    words.add(tmp_path)
    pieces = list(words.split(text))
    assert sum(not isinstance(piece, str) for piece in pieces) == found
    assert "".join(piece if isinstance(piece, str) else "red" for piece in pieces).lower() == text.lower()


def test_the_longer_of_two_words_is_taken(tmp_path):
    for name in "red", "red apple":
        save_file({"emb_params": vectors(len(name))}, tmp_path / f"{name}.safetensors")
    words = LearntWords()
    words.add(tmp_path)
    assert [piece if isinstance(piece, str) else piece.word for piece in words.split("red  apple red")] == [
        "red apple", " ", "red"]


@pytest.mark.parametrize(("known", "text", "found"), [
    ("style", "a \u017ftyle", ["a ", "style"]),              # ſ, a long s, is a capital S for re.IGNORECASE, not for lower()
    ("ink", "\u0131nk \u0130nk", ["ink", " ", "ink"]),       # ı and İ are i's
    ("\u017ftyle", "a Style", ["a ", "\u017ftyle"])])
def test_letters_that_are_the_same_only_to_regular_expressions_find_the_word(known, text, found, tmp_path):
    save_file({"emb_params": vectors(1)}, tmp_path / f"{known}.safetensors")
    save_file({"emb_params": vectors(2)}, tmp_path / "another.safetensors")
    words = LearntWords()
    words.add(tmp_path)
    assert [piece if isinstance(piece, str) else piece.word for piece in words.split(text)] == found


def test_the_longer_of_two_words_is_taken_in_whatever_letters_it_is_written(tmp_path):
    for name in "ink", "ink style", "style":
        save_file({"emb_params": vectors(len(name))}, tmp_path / f"{name}.safetensors")
    words = LearntWords()
    words.add(tmp_path)
    pieces = list(words.split("\u0131nk  \u017ftyle ink"))
    assert [piece if isinstance(piece, str) else piece.word for piece in pieces] == ["ink style", " ", "ink"]
    assert len(pieces[0].vectors) == 9 and len(pieces[2].vectors) == 3


def test_a_file_whose_name_is_white_space_is_passed_over(tmp_path):
    for name in " ", "fine":
        save_file({"emb_params": vectors(1)}, tmp_path / f"{name}.safetensors")
    words = LearntWords()
    words.add(tmp_path)
    assert list(words) == ["fine"]
    assert [piece if isinstance(piece, str) else piece.word for piece in words.split("a  fine day")] == ["a  ", "fine", " day"]


def test_files_of_a_folder_are_looked_into_only_when_a_prompt_names_them(tmp_path):
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "broken.safetensors").write_bytes(b"no tensors")
    (tmp_path / "old.pt").write_bytes(b"\x80pickle")
    save_file({"emb_params": vectors(2)}, tmp_path / "fine.safetensors")
    words = LearntWords()
    words.add(tmp_path, fitting=Fitting("v1", {"clip_l": WIDTH}))
    assert [len(piece.vectors) for piece in words.split("fine")] == [2]
    with pytest.raises(UserError, match="broken.safetensors: not a safetensors file"):
        list(words.split("a broken thing"))


def test_names_in_a_prompt_never_become_paths(tmp_path):
    inside = tmp_path / "inside"
    inside.mkdir()
    save_file({"emb_params": vectors(1)}, tmp_path / "secret.safetensors")
    words = LearntWords()
    words.add(inside)
    for text in "../secret", "secret", str(tmp_path / "secret"), "..\\secret":
        assert list(words.split(text)) == [text]


@pytest.mark.parametrize(("tensors", "message"), [
    ({"emb_params": vectors(1, 1024)},
     "vectors are 1024 wide, but this text encoder's are 24 (it may be for Stable Diffusion 2, but the model is of"),
    ({"clip_l": vectors(1, 768), "clip_g": vectors(1, 1280)}, "for Stable Diffusion XL"),
    ({"a": vectors(1), "b": vectors(1)}, "that is one tensor, or clip_l and clip_g, and here are 2"),
    ({"emb_params": vectors(80)}, "a learnt word is 1 to 75 vectors, and this tensor's shape is [80, 24]"),
    ({"emb_params": np.zeros((1, 2, 24), np.float32)}, "this tensor's shape is [1, 2, 24]"),
    ({"emb_params": np.full((1, 24), np.nan, np.float32)}, "not finite"),
    ({" ": vectors(1)}, "' ' can't be a word in a prompt"),
])
def test_a_file_that_is_something_else_is_refused_in_one_line(tensors, message, ours, tmp_path):
    save_file(tensors, tmp_path / "word.safetensors")
    with pytest.raises(UserError, match=re.escape(message)) as error:
        ours.load_textual_inversion(tmp_path / "word.safetensors")
    assert "word.safetensors" in str(error.value) and "\n" not in str(error.value)
    assert list(ours.words) == []


@pytest.mark.parametrize("content", [
    {"string_to_token": {"*": 265}, "string_to_param": {"*": torch.from_numpy(vectors(2))}, "name": "x", "step": 1},
    {"<x>": torch.from_numpy(vectors(2))}], ids=["A1111", "diffusers"])
def test_the_message_about_a_pickle_converts_it(content, ours, tmp_path):
    torch.save(content, tmp_path / "word.pt")
    with pytest.raises(UserError, match="a pickle, which can run any program, so it is not opened") as error:
        ours.load_textual_inversion(tmp_path / "word.pt")
    exec(shlex.split(str(error.value).partition("python -c ")[2])[0], {})
    ours.load_textual_inversion(tmp_path / "word.safetensors")
    word, = (piece for piece in ours.words.split("word"))
    assert np.array_equal(word.vectors, vectors(2))


def test_a_word_that_is_not_loaded_cannot_be_unloaded(ours):
    with pytest.raises(UserError, match="'cat' is not a learnt word that is loaded"):
        ours.unload_textual_inversion("cat")


def test_a_broken_word_is_one_line_before_the_model_is_loaded(pipeline, tmp_path, capsys):
    save_file({"emb_params": vectors(1), "more": vectors(1)}, tmp_path / "zigzag.safetensors")
    assert cli.main(["a red apple", "--embedding-dir", str(tmp_path), "-o", "fine.png"]) == 0
    assert cli.main(["a red apple", "-n", "Zigzag", "--embedding-dir", str(tmp_path)]) == 1
    assert len(pipeline.loaded) == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"npdiffusion: error: {tmp_path}/zigzag.safetensors: not a learnt word (textual inversion): that is one tensor, or "
        "clip_l and clip_g, and here are 2")


def test_a_word_of_another_width_is_one_line_before_the_weights_are_read(tmp_path, capsys, monkeypatch, on_numpy):
    def fill(*_):
        raise AssertionError("weights were read")
    monkeypatch.setattr(parameters, "fill", fill)
    save_file({"emb_params": vectors(1, 1024)}, tmp_path / "zigzag.safetensors")
    assert cli.main(["a red apple", "-n", "zigzag", "--embedding-dir", str(tmp_path), "--backend", "numpy"]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"npdiffusion: error: {tmp_path}/zigzag.safetensors: its vectors are 1024 wide, but this text encoder's are 160 "
        "(it may be for Stable Diffusion 2, but the model is of Stable Diffusion v1)")
