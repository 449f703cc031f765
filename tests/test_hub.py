"""Hugging Face ids: the cache is found without network or package; downloads go through a stand-in for the package."""
import builtins
import fnmatch
import pathlib
import shutil
import socket
import sys
import types

import pytest
from safetensors.torch import save_file

from npdiffusion import kernels, loading
from npdiffusion.checkpoints import hub
from tests import folders, references
from tests.errors import message
from tests.hub_cache import put
from tests.loaded import load_parts
from tests.single_files import original

CLIP = "openai/clip-vit-large-patch14"

VARIABLES = ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE", "XDG_CACHE_HOME")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache, and no network."""
    monkeypatch.setattr(kernels, "_chosen", "numpy")
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    for name in "socket", "create_connection", "getaddrinfo":
        monkeypatch.setattr(socket, name, lambda *_, **__: pytest.fail("the network was used"))
    return tmp_path / "cache"


@pytest.fixture
def no_package(monkeypatch):
    """huggingface_hub is not installed."""
    plain = builtins.__import__

    def without(name, *arguments, **named):
        if name.startswith("huggingface_hub"):
            raise ImportError(name)
        return plain(name, *arguments, **named)
    monkeypatch.setattr(builtins, "__import__", without)


class StandIn(types.ModuleType):
    """huggingface_hub with a server that has the repositories in a dictionary from id to folder."""
    def __init__(self, repositories, error=None):
        super().__init__("huggingface_hub")
        self.repositories, self.error, self.fetched = repositories, error, []

    def HfApi(self):
        return self

    def model_info(self, repository):
        if self.error:
            raise self.error
        folder = self.repositories[repository]
        names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        return types.SimpleNamespace(siblings=[types.SimpleNamespace(rfilename=name) for name in names])

    def snapshot_download(self, repository, *, allow_patterns, cache_dir):
        names = [file.rfilename for file in self.model_info(repository).siblings
                 if any(fnmatch.fnmatch(file.rfilename, pattern) for pattern in allow_patterns)]
        self.fetched += names
        only = pathlib.Path(cache_dir, "download")
        for name in names:
            (only / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.repositories[repository] / name, only / name)
        return str(put(pathlib.Path(cache_dir), repository, only))


@pytest.fixture
def server(written, tmp_path, monkeypatch):
    """A stand-in whose org/model also holds what is not needed: pickles, variants, whole checkpoints and more."""
    folder = shutil.copytree(written, tmp_path / "server")
    for name in ("v1-5-pruned.ckpt", "v1-5-pruned.safetensors", "unet/diffusion_pytorch_model.bin", "README.md",
                 "unet/diffusion_pytorch_model.fp16.safetensors", "unet/diffusion_pytorch_model.non_ema.safetensors",
                 "safety_checker/model.safetensors"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"not to be read")
    module = StandIn({"org/model": folder})
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return module


# --- where the cache is ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("settings, expected", [
    ({}, "/home/me/.cache/huggingface/hub"),
    ({"XDG_CACHE_HOME": "/xdg"}, "/xdg/huggingface/hub"),
    ({"HF_HOME": "/hf"}, "/hf/hub"),
    ({"HF_HOME": "~/hf"}, "/home/me/hf/hub"),
    ({"HF_HOME": "/hf", "HUGGINGFACE_HUB_CACHE": "/old"}, "/old"),
    ({"HF_HOME": "/hf", "HUGGINGFACE_HUB_CACHE": "/old", "HF_HUB_CACHE": "$HOME/c"}, "/home/me/c")])
def test_cache_folder_follows_the_environment(settings, expected, monkeypatch):
    monkeypatch.delenv("HF_HUB_CACHE")
    monkeypatch.setenv("HOME", "/home/me")
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    assert hub.cache() == pathlib.Path(expected)


# --- from the cache --------------------------------------------------------------------------------------------------

def test_cached_model_needs_neither_package_nor_network(cache, written, no_package):
    snapshot = put(cache, "org/model", written)
    assert hub.fetch_model("org/model") == snapshot
    parts = load_parts("org/model")
    assert parts["source"] == "org/model"
    assert len(parts["tokenizer"].encode("a red apple")) == 77


def test_a_folder_of_the_same_name_goes_before_the_cache(cache, written, tmp_path, monkeypatch):
    put(cache, "org/model", written)
    shutil.copytree(written, tmp_path / "org/model")
    monkeypatch.chdir(tmp_path)
    assert loading.locate_model("org/model") == pathlib.Path("org/model")


def test_offline_and_not_cached(cache, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert message("org/model") == (f"org/model: no such file or folder, not in the cache ({cache}), "
                                    "and HF_HUB_OFFLINE is set")


def test_not_cached_and_no_package(no_package):
    assert "pip install huggingface_hub" in message("org/model")


@pytest.mark.parametrize("name", ["unet/diffusion_pytorch_model.safetensors", "vae/config.json", "model_index.json",
                                  "scheduler/scheduler_config.json", "tokenizer/vocab.json"])
def test_model_that_is_cached_in_part_is_not_taken(cache, written, no_package, name):
    (put(cache, "org/model", written) / name).unlink()
    assert "only in part in the cache" in message("org/model")


def test_index_whose_shards_are_not_all_cached(cache, written, models, tmp_path, no_package):
    folder = shutil.copytree(written, tmp_path / "sharded")
    (folder / "unet/diffusion_pytorch_model.safetensors").unlink()
    models["unet"].save_pretrained(folder / "unet", max_shard_size="1MB")
    snapshot = put(cache, "org/model", folder)
    assert hub.fetch_model("org/model") == snapshot
    next((snapshot / "unet").glob("*-of-*")).unlink()
    assert "only in part in the cache" in message("org/model")


def test_commit_that_leaves_the_cache_is_not_followed(cache, written, no_package):
    put(cache, "org/model", written)
    (cache / "models--org--model/refs/main").write_text("../../..")
    assert hub.cached("org/model") is None


# --- from the hub ----------------------------------------------------------------------------------------------------

def test_download_takes_what_is_needed_and_nothing_else(server):
    load_parts("org/model")
    assert sorted(server.fetched) == sorted([
        "model_index.json", "scheduler/scheduler_config.json", "text_encoder/config.json",
        "text_encoder/model.safetensors", "tokenizer/merges.txt", "tokenizer/tokenizer_config.json", "tokenizer/vocab.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors", "vae/config.json", "vae/diffusion_pytorch_model.safetensors"])


def test_what_was_downloaded_is_in_the_cache(server, monkeypatch):
    load_parts("org/model")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    fetched = list(server.fetched)
    assert load_parts("org/model")["source"] == "org/model" and server.fetched == fetched


def test_download_completes_what_is_cached_in_part(server, cache, written):
    (put(cache, "org/model", written) / "unet/diffusion_pytorch_model.safetensors").unlink()
    load_parts("org/model")
    assert "unet/diffusion_pytorch_model.safetensors" in server.fetched


def test_download_takes_all_shards_of_one_variant(server, models):
    unet = server.repositories["org/model"] / "unet"
    (unet / "diffusion_pytorch_model.safetensors").unlink()
    models["unet"].save_pretrained(unet, max_shard_size="1MB")
    (unet / "diffusion_pytorch_model.fp16-00001-of-00002.safetensors").write_bytes(b"not to be read")
    load_parts("org/model")
    shards = [name for name in server.fetched if "-of-" in name]
    assert len(shards) > 2 and not any("fp16" in name for name in shards)


def test_offline_forbids_the_download(server, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "TRUE")
    assert "HF_HUB_OFFLINE is set" in message("org/model")
    assert server.fetched == []


def test_repository_with_pickles_alone(server):
    (server.repositories["org/model"] / "unet/diffusion_pytorch_model.safetensors").unlink()
    (server.repositories["org/model"] / "unet/diffusion_pytorch_model.fp16.safetensors").unlink()
    assert "only the pickle unet/diffusion_pytorch_model.bin" in message("org/model")
    assert server.fetched == []


def test_repository_of_something_else(server):
    (server.repositories["org/model"] / "model_index.json").unlink()
    assert "org/model: not a model in diffusers layout, it has no model_index.json" in message("org/model")


def test_failed_download_gives_one_line(monkeypatch):
    error = ConnectionError("401 Client Error.\n\nRepository Not Found for url: x.\nPlease log in.")
    monkeypatch.setitem(sys.modules, "huggingface_hub", StandIn({}, error))
    text = message("org/model")
    assert "the download failed: ConnectionError: 401 Client Error. Repository Not Found for url: x." in text


# --- tokenizers of single files --------------------------------------------------------------------------------------

@pytest.fixture
def file(models, tmp_path):
    """A single file without a tokenizer."""
    path = tmp_path / "alone" / "model.safetensors"
    path.parent.mkdir()
    save_file(original(models), path)
    return path


def test_a_single_file_needs_no_tokenizer_if_its_vocabulary_is_clips(tmp_path):
    models = folders.torch_models() | {"text_encoder": references.torch_text_encoder(**folders.TEXT | dict(vocab_size=49408))}
    save_file(original(models), tmp_path / "model.safetensors")
    assert list(load_parts(tmp_path / "model.safetensors")["tokenizer"].encode("a cat")[:5]) == [49406, 320, 2368, 49407, 49407]


def test_a_single_file_with_a_vocabulary_of_its_own_says_what_to_do(file):
    text = message(file)
    assert "CLIP's, of 49408" in text and "knows 520 pieces" in text and "--tokenizer FOLDER" in text


@pytest.mark.parametrize("place", ["tokenizer", "."])
def test_tokenizer_beside_the_file(file, place):
    folders.write_tokenizer(file.parent / place)
    assert load_parts(file)["tokenizer"].length == 77


def test_tokenizer_that_is_given_goes_first(file, tmp_path):
    folders.write_tokenizer(file.parent)
    folders.write_tokenizer(tmp_path / "given", ["x y", "x z", "x w", "y z", "y w", "z w"])
    assert "xy" in load_parts(file, tokenizer=str(tmp_path / "given"))["tokenizer"].vocabulary


def test_hub_is_not_asked_for_a_tokenizer_unless_told_so(file, server):
    server.repositories[CLIP] = server.repositories["org/model"]
    assert "it has no tokenizer" in message(file)
    assert server.fetched == []


@pytest.mark.parametrize("within", ["tokenizer", "."])
def test_tokenizer_by_id_comes_from_the_hub(file, server, tmp_path, within):
    folders.write_tokenizer(tmp_path / "clip" / within)
    (tmp_path / "clip" / "model.safetensors").write_bytes(b"not to be read")
    server.repositories[CLIP] = tmp_path / "clip"
    assert load_parts(file, tokenizer=CLIP)["tokenizer"].length == 77
    assert {pathlib.Path(name).name for name in server.fetched} == {"vocab.json", "merges.txt", "tokenizer_config.json"}


def test_tokenizer_by_id_from_the_cache(file, cache, written, no_package):
    put(cache, "org/model", written)
    assert load_parts(file, tokenizer="org/model")["tokenizer"].length == 77


def test_repository_without_a_tokenizer(file, server, tmp_path):
    (tmp_path / "empty").mkdir()
    server.repositories["org/empty"] = tmp_path / "empty"
    assert "org/empty: no tokenizer in it" in message(file, tokenizer="org/empty")


def test_original_names_opens_no_socket(file):
    folders.write_tokenizer(file.parent)
    assert load_parts(file)["tokenizer"].length == 77          # `cache` above makes whatever uses the network fail
