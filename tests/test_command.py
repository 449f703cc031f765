"""Subcommands: `npdiffusion WORD ...`"""
import dataclasses
import importlib
import io
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

import npdiffusion
from npdiffusion import command, weights
from npdiffusion.command import cli, train
from npdiffusion.command.options import build_parser
from npdiffusion.command.parser import Parser
from npdiffusion.settings import SETTINGS
from npdiffusion.settings.kinds import Path
from npdiffusion.settings.run import OPTIONS
from tests.processes import modules_after


@pytest.mark.parametrize("word", command.SUBCOMMANDS)
def test_help_of_the_command_and_of_each_subcommand_names_it_and_imports_nothing_heavy(word):
    assert f"\n  {word} " in modules_after("--help")[1]
    modules, output = modules_after(word, "--help")
    assert output.startswith(f"usage: npdiffusion {word} ")
    assert not modules & {"numpy", "numba", "scipy", "PIL", "tqdm", "safetensors"}


def test_only_the_exact_word_in_the_first_place_is_a_subcommand(capsys):
    assert command.subcommand(["tokens", "a cat"]).__name__ == "npdiffusion.command.tokens"
    for argv in ["tokens and more"], ["--", "tokens"], ["--steps", "tokens"], ["token"], []:
        assert command.subcommand(argv) is None


@pytest.mark.parametrize("word", command.INSTEAD)
def test_a_word_that_other_programs_have_as_a_subcommand_is_answered_and_not_drawn(word, capsys, pipeline):
    assert word not in command.SUBCOMMANDS, "it is one now: take its row out of INSTEAD"
    for argv in [word], [word.upper(), "--port", "8000"], [word, "a cat", "-s", "5"]:
        assert cli.main(argv) == 2
        line = capsys.readouterr().err
        assert line.startswith(f"npdiffusion: error: {word}: ") and line.count("\n") == 1
    assert not pipeline.asked


@pytest.mark.parametrize("argv", [["-p", "serve"], ["--", "serve"], ["serve the soup"], ["a", "-o", "serve"]])
def test_that_word_is_drawn_as_a_prompt_and_taken_elsewhere(argv, pipeline):
    assert cli.main(argv) == 0 and pipeline.asked


def test_help_as_a_word_shows_what_the_option_does(capsys):
    for words, options in [["help"], ["--help"]], [["help", "tokens"], ["tokens", "--help"]]:
        assert cli.main(words) == 0
        shown = capsys.readouterr().out
        assert cli.main(options) == 0
        assert shown == capsys.readouterr().out
    assert cli.main(["help", "modles"]) == 2
    assert capsys.readouterr().err == ("npdiffusion: error: 'modles' is no subcommand, did you mean models? There are "
                                       f"{', '.join(command.SUBCOMMANDS)}\n")


PLACES = {"FILE", "DIR", "PATH", "MODEL", "VAE", "RUN", "DATA", "IN", "OUT"}


def test_a_tilde_is_the_home_folder_in_every_option_that_names_a_place(monkeypatch):
    monkeypatch.setenv("HOME", "/home/of/mine")
    monkeypatch.setenv("USERPROFILE", "/home/of/mine")
    parsers = []

    def keep(self, *arguments, **options):
        parsers.append(self)
        raise SystemExit
    monkeypatch.setattr(Parser, "read", keep)
    commands = [[word] for word in command.SUBCOMMANDS if word != "train"] + [["train", what] for what in train.TRAININGS]
    for word, *rest in commands:
        with pytest.raises(SystemExit):
            command.subcommand([word]).parse(rest)
    actions = [action for parser in [*parsers, build_parser()] for action in parser._actions if action.metavar in PLACES]
    assert len(parsers) == len(commands) and len(actions) > 80
    for action in actions:
        found = action.type("~/a b.png")                     # several are a tuple
        assert found in ("/home/of/mine/a b.png", ("/home/of/mine/a b.png",)), action.option_strings
    assert {row.metavar for row in (SETTINGS | OPTIONS).values() if isinstance(row.kind, Path)} <= {*PLACES, "ADDRESS"}


def test_an_option_that_a_subcommand_lacks_is_named_with_the_nearest(capsys):
    assert cli.main(["tokens", "a cat", "--tokeniser", "x"]) == 2
    assert capsys.readouterr().err == "npdiffusion: error: unknown option --tokeniser, did you mean --tokenizer?\n"


def test_tokens_needs_neither_weights_nor_numba(model_folder):
    modules, output = modules_after("tokens", "a red apple", "-m", str(model_folder))
    assert "  apple\n" in output + "\n" and "numba" not in modules


@pytest.fixture
def model_folder(tmp_path):
    """A model that has nothing but its tokenizer."""
    shutil.copytree(pathlib.Path(weights.__file__).parent / "tokenizer", tmp_path / "tokenizer")
    return tmp_path


def printed(capsys, *arguments):
    assert cli.main(["tokens", *arguments]) == 0
    return capsys.readouterr().out.splitlines()


def test_tokens_shows_weights_chunks_and_schedule(capsys, model_folder):
    lines = printed(capsys, "a (red:1.3) [cat:dog:0.5] BREAK blue", "--steps", "10", "-m", str(model_folder))
    assert lines[0] == "calls 1 to 6 of 10 of the model: 'a (red:1.3) cat BREAK blue'"
    assert lines[1] == "  chunk 1 of 2, 3 of 75 tokens"
    assert [line.split()[1:] for line in lines[2:5]] == [["a"], ["red", "1.3"], ["cat"]]
    assert lines[5] == "  chunk 2 of 2, 1 of 75 tokens"
    assert lines[7].startswith("calls 7 to 10 of 10 of the model: ")


def test_tokens_shows_the_padded_negative_prompt_and_adapters(capsys, model_folder):
    lines = printed(capsys, "a cat <lora:ink:0.8>", "-n", "b BREAK c", "-m", str(model_folder))
    assert lines[0].startswith("adapter 'ink', strength 0.8")
    assert lines[1] == "'a cat '" and "  chunk 2 of 2, 0 of 75 tokens" in lines
    assert "negative prompt, 'b BREAK c'" in lines


def test_tokens_counts_two_calls_a_step_and_turns(capsys, model_folder):
    lines = printed(capsys, "[a|b]", "--steps", "3", "--sampler", "heun", "-m", str(model_folder))
    assert [line for line in lines if line.startswith("calls")] == [
        "calls 1 to 2, 4, 6 of 6 of the model: 'a'", "calls 3, 5 of 6 of the model: 'b'"]


def test_tokens_shows_learnt_words(capsys, model_folder):
    save_file({"emb_params": np.zeros((2, 768), np.float32)}, model_folder / "zigzag.safetensors")
    lines = printed(capsys, "a (zigzag)", "--embedding-dir", str(model_folder), "-m", str(model_folder))
    assert [line.split() for line in lines[-2:]] == [["learnt", "zigzag", "1.1"]] * 2


def test_tokens_takes_a_plain_prompt_as_it_stands(capsys, model_folder):
    lines = printed(capsys, "[a|b]", "--prompt-syntax", "plain", "-m", str(model_folder))
    assert lines[0] == "'[a|b]'" and len(lines) == 7


@pytest.mark.parametrize("arguments", [
    ["--sampler", "help"], ["--help"], ["--version"], ["models"], ["tokens", "a red apple"], ["metadata", "--help"]])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_who_leaves_is_no_error(arguments, unbuffered):
    """As in `npdiffusion models | head -1`; here nobody reads at all."""
    read, write = os.pipe()
    os.close(read)
    ended = subprocess.run([sys.executable, "-m", "npdiffusion", *arguments], stdout=write, stderr=subprocess.PIPE, text=True,
                           env=os.environ | {"PYTHONUNBUFFERED": unbuffered}, check=False)
    os.close(write)
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize("option", ["--lora-dir", "--embedding-dir"])
def test_a_folder_that_is_not_there_is_named_before_the_model_is_loaded(option, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(npdiffusion, "load", None)
    assert cli.main(["a cat", option, "nowhere"]) == 1
    assert capsys.readouterr().err == f"npdiffusion: error: {option}: there is no folder nowhere\n"


@pytest.mark.parametrize(("content", "prompt", "said"), [
    ("a réd apple\n".encode(), "a réd apple", ""), (b"\xef\xbb\xbfa cat\r\n", "a cat", ""),
    (b"", None, "a prompt is missing"),
    (b"\xff", None, "-: the prompt from standard input: 'utf-8' codec"),
    (b"x" * 100_001, None, "-: the prompt from standard input: the text has 100001 characters, at most 100000 are taken")])
@pytest.mark.parametrize("argv", [["-"], ["-p", "-"]])
def test_a_prompt_comes_from_standard_input(argv, content, prompt, said, pipeline, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert cli.main([*argv, "-s", "1"]) == (0 if prompt else 2)
    assert [asked["prompt"] for asked in pipeline.asked] == [prompt] * (prompt is not None)
    assert said in capsys.readouterr().err


def test_an_amount_of_memory_without_its_unit_is_explained(pipeline, capsys):
    assert cli.main(["a cat", "--max-memory", "4"]) == 2
    assert capsys.readouterr().err == ("npdiffusion: error: --max-memory: '4' is 4 bytes, and nothing fits into so few: "
                                       "amounts are like 4GB or 900MB\n")


@pytest.mark.parametrize(("what", "module"), [
    ("vae", "vae_lesson"), ("ddpm", "ddpm_lesson"), ("sd", "sd_lesson"), ("lora", "fine_tuning")])
def test_a_training_does_the_same_from_python_and_by_command_unless_it_is_told_otherwise(what, module):
    settings = importlib.import_module(f"npdiffusion.training.{module}").Settings
    options = train.TRAININGS[what][1]
    found = {each.name: each.default for each in dataclasses.fields(settings) if each.name in options}
    found = {name: default for name, default in found.items() if default is not dataclasses.MISSING}
    assert len(found) >= 4 and found == {name: options[name] for name in found}
