"""Subcommands: `npdiffusion WORD ...`"""
import pathlib
import shutil

import pytest

from npdiffusion import cli, command, weights
from tests.test_cli import modules_after


@pytest.mark.parametrize("word", command.SUBCOMMANDS)
def test_help_of_the_command_and_of_each_subcommand_names_it_and_imports_nothing_heavy(word):
    assert f"\n  {word} " in modules_after("--help")[1]
    modules, output = modules_after(word, "--help")
    assert output.startswith(f"usage: npdiffusion {word} ")
    assert not modules & {"numpy", "numba", "scipy", "PIL", "tqdm", "safetensors"}


def test_only_the_exact_word_in_the_first_place_is_a_subcommand(capsys):
    assert command.find(["tokens", "a cat"]).__name__ == "npdiffusion.command.tokens"
    for argv in ["tokens and more"], ["--", "tokens"], ["--steps", "tokens"], ["token"], []:
        assert command.find(argv) is None


def test_an_option_that_a_subcommand_lacks_is_named_with_the_nearest(capsys):
    assert cli.main(["tokens", "a cat", "--tokeniser", "x"]) == 2
    assert capsys.readouterr().err == "npdiffusion: error: unknown option --tokeniser, did you mean --tokenizer?\n"


def test_tokens_needs_neither_weights_nor_numba(model_folder):
    modules, output = modules_after("tokens", "a red apple", "-m", str(model_folder))
    assert "apple</w>" in output and "numba" not in modules


@pytest.fixture
def model_folder(tmp_path):
    """A model that has nothing but its tokenizer."""
    shutil.copytree(pathlib.Path(weights.__file__).parent / "tokenizer", tmp_path / "tokenizer")
    return tmp_path
