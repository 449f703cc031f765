"""Words that the embedded model doesn't know are found in what the text encoder reads, and nothing else is."""
import json
import shutil
import warnings

import numpy as np
import pytest
from safetensors.numpy import save_file

from npdiffusion import loading
from npdiffusion.adapters import tags
from npdiffusion.adapters.textual_inversion import LearntWords
from npdiffusion.command import cli
from npdiffusion.jobs.wildcards import Wildcards
from npdiffusion.text import known_words
from npdiffusion.text.reading import read_prompt
from npdiffusion.weights.recipe import captions, exam, scenes, settings, words


@pytest.fixture(scope="module")
def tokenizer():
    return loading.load_tokenizer()


@pytest.fixture
def unknown(tokenizer):
    """A function from a prompt to {unknown word: nearest known one}"""
    def find(prompt, **how):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return known_words.unknown(known_words.words(read_prompt(prompt, 20, tokenizer, **how), tokenizer))
    return find


@pytest.mark.parametrize("prompt, found", [
    ("a lighthouse at dawn", {"lighthouse": "castle", "dawn": "sunset"}),
    ("my grandmother", {"grandmother": ""}),
    ("Mona Lisa", {"mona": "", "lisa": ""}),
    ("two kittens", {"kittens": "cat"}),
    ("a strawbery and an elefant", {"strawbery": "strawberry", "elefant": "elephant"}),
    ("a firetruck", {"firetruck": "fire truck"}),
    ("a seahorse", {"seahorse": "horse"}),
    ("a turquoise apple", {"turquoise": "blue"}),
    ("four owls", {"four": "three"}),
    ("🐱", {"🐱": "cat"}),
    ("кошка", {"кошка": ""}),
])
def test_an_unknown_word_is_named_with_the_nearest_known_one(prompt, found, unknown):
    assert unknown(prompt) == found


@pytest.mark.parametrize("prompt", [
    "A Blue APPLE on a grey background", "two mice, 3 strawberries and a pair of foxes", "a cat's hat", "it isn't a clock",
    "a truck next to a ball", "", "?!", "an oil painting of a lion, masterpiece, 8 k",
])
def test_colours_numbers_plurals_and_parts_of_names_are_known(prompt, unknown):
    assert unknown(prompt) == {}


def test_notation_is_no_word(unknown):
    text, _ = tags.take_tags("a (cat:1.3) [dog:fox:0.5] BREAK [owl|bee] <lora:lighthouse:0.7>")
    assert unknown(text) == {}


def test_words_that_come_later_by_editing_are_looked_at(unknown):
    assert unknown("a [cat:lighthouse:0.5] [owl|dragon]") == {"lighthouse": "castle", "dragon": "dinosaur"}


def test_plain_prompts_are_looked_at_too(unknown):
    assert unknown("(lighthouse)", syntax="plain") == {"lighthouse": "castle"}


def test_a_learnt_word_is_known(tmp_path, unknown):
    save_file({"emb_params": np.zeros((1, 160), np.float32)}, tmp_path / "zigzag.safetensors")
    learnt = LearntWords()
    learnt.add(tmp_path / "zigzag.safetensors")
    assert unknown("a zigzag cat", words=learnt) == {}
    assert unknown("a zigzag cat") == {"zigzag": ""}


def test_what_a_wildcard_stands_for_is_looked_at(tmp_path, unknown):
    (tmp_path / "thing.txt").write_text("dragon\n")
    prompt, = Wildcards(tmp_path).expand(1, "a __thing__ on a beach")
    assert unknown(prompt) == {"dragon": "dinosaur"}


def test_of_the_exams_captions_only_the_words_of_random_letters_are_unknown(unknown, monkeypatch):
    strewn, scatter = set(), captions.Wording.strewn

    def remembered(wording, text):
        result = scatter(wording, text)
        strewn.update({*result.split()} - {*text.split()})
        return result
    monkeypatch.setattr(captions.Wording, "strewn", remembered)
    found = {word for question in exam.exam() for word in unknown(question.text)}
    assert found and found <= strewn


def test_no_caption_of_training_has_an_unknown_word(unknown, monkeypatch):
    monkeypatch.setattr(captions.Wording, "strewn", lambda wording, text: text)
    rng = np.random.default_rng(0)
    assert {word for _ in range(3000) for word in unknown(captions.caption(scenes.sample_scene(rng), rng))} == set()


def test_the_note_names_eight_words_at_most_each_shortened(tokenizer):
    reading = read_prompt("x" * 3000 + " " + " ".join(f"{letter}qqq" for letter in "abcdefghij"), 20, tokenizer)
    note = known_words.note(reading, tokenizer)
    assert len(note) < 300 and note.count('"') == 16 and ", …; " in note


def test_there_is_no_note_about_words_that_are_known(tokenizer):
    assert known_words.note(read_prompt("a red apple", 20, tokenizer), tokenizer) is None


@pytest.fixture(scope="module")
def pipeline():
    return loading.load()


def made(pipeline, *prompts, **settings):
    """The warnings about unknown words, of a picture of one step"""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pipeline.generate(*prompts, steps=1, seed=0, width=64, height=64, **settings)
    return [str(warning.message) for warning in caught if warning.category is known_words.UnknownWords]


def test_the_embedded_model_warns_of_unknown_words_in_the_prompt_alone(pipeline, on_numpy):
    warning, = made(pipeline, "a lighthouse", "a dragon")
    assert warning.startswith('the embedded model doesn\'t know "lighthouse" (nearest: castle); ')
    assert made(pipeline, "a castle", "a dragon") == []


def test_another_model_does_not_warn(tmp_path, on_numpy):
    shutil.copytree(settings.MODEL, tmp_path / "copy", ignore=shutil.ignore_patterns("recipe", "*.webp", "__pycache__"))
    assert made(loading.load(str(tmp_path / "copy")), "a lighthouse") == []


def test_with_a_lora_in_the_prompt_there_is_no_warning(tmp_path, on_numpy):
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    save_file({f"{name}.lora_down.weight": np.ones((1, 160), np.float32),
               f"{name}.lora_up.weight": np.ones((192, 1), np.float32)}, tmp_path / "coast.safetensors")
    assert made(loading.load(lora_dir=str(tmp_path)), "a lighthouse <lora:coast:0.1>") == []


def test_the_command_shows_the_warning_as_one_line(tmp_path, capsys, on_numpy):
    size = ["-W", "64", "-H", "64", "--steps", "1"]
    assert cli.main(["a lighthouse", *size, "--backend", "numpy", "-o", str(tmp_path / "a.png")]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "doesn't know" in line]
    assert len(lines) == 1 and lines[0].startswith("npdiffusion: warning: the embedded model doesn't know")


def test_the_shipped_list_is_the_recipes():
    assert json.loads((settings.MODEL / "words.json").read_text(encoding="utf-8")) == words.content()


def test_the_nearest_words_are_known_and_no_word_has_two():
    assert all(set(known.split()) <= words.words_known() for known in words.NEAR.values())
    assert len(words.NEAR) == sum(len(row.split()) for row in words.ROWS.values())
