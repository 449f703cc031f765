"""Small files that may come from anywhere: JSON, texts, vocabularies."""
import os

import pytest

from npdiffusion.checkpoints.text_files import read_json, read_text
from npdiffusion.errors import UserError
from tests import folders
from tests.errors import message, message_of

PIPES = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")


def test_line_ends_of_every_system_are_one_and_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "x").write_bytes("\ufeffé\r\nb\rc\n".encode())
    assert read_text(tmp_path / "x", 100) == "é\nb\nc\n"


def test_a_file_of_the_largest_size_is_read(tmp_path):
    (tmp_path / "x").write_bytes(b"a" * 100)
    assert read_text(tmp_path / "x", 100) == "a" * 100


@pytest.mark.parametrize(("content", "says"), [
    (b"a" * (1 << 20) + b"a", "it has more than 1 MB"),
    (b"caf\xe9", "not valid UTF-8 (unexpected end of data at byte 3)"),
    (None, "no such file")])
def test_a_text_that_cannot_be_read_is_one_line(content, says, tmp_path):
    path = tmp_path / "x"
    if content is not None:
        path.write_bytes(content)
    assert message_of(read_text, path, 1 << 20) == f"{path}: {says}"


@pytest.mark.parametrize(("content", "says"), [
    ("{", "not valid JSON (Expecting property name"), ("[" * 100_000, "not valid JSON ("), ("1" * 10_000, "not valid JSON ("),
    ("[1]", "a dictionary was expected, found a list"), ("", "not valid JSON (Expecting value")])
def test_json_that_is_no_dictionary_is_one_line(content, says, tmp_path):
    (tmp_path / "x").write_text(content)
    assert message_of(read_json, tmp_path / "x").startswith(f"{tmp_path / 'x'}: {says}")


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/null", "/", "/proc/self/fd"])
def test_devices_and_folders_are_no_files(path):
    if not os.path.exists(path):
        pytest.skip(f"this system has no {path}")
    assert message_of(read_text, path, 100) == f"{path}: not a file"


def test_a_file_that_tells_no_size_is_read_up_to_the_limit():
    if not os.path.exists("/proc/self/status"):
        pytest.skip("this system has no /proc")
    assert os.path.getsize("/proc/self/status") == 0 and "Name:" in read_text("/proc/self/status", 1 << 16)
    with pytest.raises(UserError, match="more than 0 MB"):
        read_text("/proc/self/status", 10)


@pytest.fixture(scope="module")
def models():
    return folders.torch_models()


@PIPES
@pytest.mark.parametrize("name", [
    "model_index.json", "unet/config.json", "vae/config.json", "text_encoder/config.json", "scheduler/scheduler_config.json",
    "tokenizer/vocab.json", "tokenizer/merges.txt", "tokenizer/tokenizer_config.json", "tokenizer/special_tokens_map.json"])
def test_a_named_pipe_in_a_models_folder_is_refused(models, name, tmp_path):
    folder = folders.write_model(tmp_path / "model", models)
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)                                                   # reading it would wait for ever
    assert message(folder) == f"{folder / name}: not a file"
