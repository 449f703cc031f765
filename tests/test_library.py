"""The list of models: names, and what files are by their tables of contents."""
import contextlib
import json
import os
import shutil

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch_file

from npdiffusion import loading
from npdiffusion.checkpoints import folder_walk, library
from npdiffusion.checkpoints.families import FAMILIES
from npdiffusion.checkpoints.tensors import Tensor
from npdiffusion.command import cli
from npdiffusion.errors import UserError
from tests import folders, references
from tests.hub_cache import put
from tests.loaded import load_parts
from tests.single_files import original


@pytest.fixture(autouse=True)
def no_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(library.VARIABLE, raising=False)


@pytest.fixture
def shelf(tmp_path, models):
    """A folder with two models that can be loaded, and much else."""
    folder = tmp_path / "shelf"
    folders.write_model(folder / "folder", models)
    (folder / "anime" / "deep").mkdir(parents=True)
    save_torch_file(original(models), folder / "anime" / "dream.safetensors")
    for place in folder, folder / "anime":
        folders.write_tokenizer(place / "tokenizer")
    painter = references.torch_unet(**folders.UNET | dict(in_channels=9))
    save_torch_file(original(models | {"unet": painter}), folder / "inpaint.safetensors")
    foreign = {
        "a/lora": {"lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight": (4, 768)},
        "a/lora-xl": {"lora_unet_x_attn2_to_k.lora_down.weight": (4, 2048)},
        "xl": {"conditioner.embedders.0.x": (2, 2), "model.diffusion_model.x.attn2.to_k.weight": (4, 2048)},
        "sd2": {"cond_stage_model.model.x": (2,), "model.diffusion_model.x.attn2.to_k.weight": (4, 1024)},
        "vae": {"encoder.conv_in.weight": (4, 3), "decoder.conv_in.weight": (4, 3)},
        "taesd": {"decoder.layers.0.weight": (4, 4, 3, 3), "encoder.layers.1.conv.0.weight": (4, 4, 3, 3)},
        "taesd_decoder": {"1.weight": (4, 4, 3, 3), "3.conv.0.weight": (4, 4, 3, 3)},
        "text": {"text_model.encoder.layers.0.mlp.fc1.weight": (4, 768)},
        "control": {"control_model.x": (2, 2)},
        "a/control": {"input_hint_block.0.weight": (2, 2), "input_blocks.x.attn2.to_k.weight": (4, 1024)},
        "a/control-xl": {"controlnet_mid_block.weight": (2, 2), "down_blocks.x.attn2.to_k.weight": (4, 2048)},
        "words": {"emb_params": (2, 768)}, "words-xl": {"clip_l": (2, 768), "clip_g": (2, 1280)},
        "ip": {"image_proj.proj.weight": (4, 4), "ip_adapter.1.to_k_ip.weight": (4, 2048)},
        "t2i": {"adapter.body.0.resnets.0.block1.weight": (4, 4, 3, 3)}, "t2i-original": {"body.0.block1.weight": (4, 4, 3, 3)},
        "vision": {"vision_model.post_layernorm.weight": (4,), "visual_projection.weight": (4, 4)},
        "strange": {"abc": (2, 3)},
    }
    (folder / "a").mkdir()
    for name, tensors in foreign.items():
        save_file({key: np.zeros(shape, np.float16) for key, shape in tensors.items()}, folder / f"{name}.safetensors")
    (folder / "old.ckpt").write_bytes(b"PK")
    (folder / "cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    (folder / "empty.safetensors").touch()
    (folder / "x.gguf").write_bytes(b"GGUF")
    (folder / "notes.txt").write_text("not weights")
    shutil.copytree(folder / "folder", folder / "broken")
    (folder / "broken" / "unet" / "config.json").write_text("[1]")
    shutil.copytree(folder / "folder", folder / "other")
    (folder / "other" / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionXLPipeline"}))
    return folder


def families(folder):
    return {entry.name: entry.family for entry in library.entries(folder)}


def test_each_file_is_listed_as_what_it_is(shelf):
    found = families(shelf)
    found.pop("embedded")
    small = "like Stable Diffusion v1, with a context 128 wide"
    assert found.pop("cut").startswith("not a safetensors file, damaged or cut short")
    assert found.pop("broken").startswith("unet/config.json")
    for name, family in ("xl", "Stable Diffusion XL"), ("sd2", "Stable Diffusion 2"):
        assert found.pop(name).startswith(f"{family}: not a Stable Diffusion checkpoint, it has no ")
    assert found == {
        "folder": small, "anime/dream": small, "inpaint": f"{small}, for inpainting",
        "a/lora": "a LoRA for Stable Diffusion v1", "a/lora-xl": "a LoRA for Stable Diffusion XL",
        "a/control": "a ControlNet for Stable Diffusion 2", "a/control-xl": "a ControlNet for Stable Diffusion XL",
        "vae": "a VAE alone", "taesd": "TAESD",
        "taesd_decoder": "TAESD", "text": "a text encoder alone", "control": "a ControlNet",
        "words": "a textual inversion", "words-xl": "a textual inversion", "ip": "an IP-Adapter for Stable Diffusion XL",
        "t2i": "a T2I-Adapter", "t2i-original": "a T2I-Adapter", "vision": "CLIP's image encoder",
        "strange": "no Stable Diffusion", "old.ckpt": "a pickle, which can run any "
        "program, so it is not opened", "empty": "the file is empty",
        "x.gguf": "not a GGUF file, damaged or cut short (its table of contents goes beyond its end)",
        "other": "Stable Diffusion XL, not complete"}


def test_a_model_for_inpainting_is_told_by_nine_channels():
    assert library.by_sizes(FAMILIES[0], 768, 9) == ("Stable Diffusion v1, for inpainting", True)


def test_what_is_said_to_load_loads_and_what_is_not_said_to_gives_its_reason(shelf, models):
    whole = original(models)
    for name, lacks in ("no-text", "cond_stage_model."), ("no-vae", "first_stage_model."):
        save_torch_file({key: each for key, each in whole.items() if not key.startswith(lacks)}, shelf / f"{name}.safetensors")
    save_torch_file(whole | {"first_stage_model.quant_conv.bias": torch.zeros(8, dtype=torch.int64)},
                    shelf / "integers.safetensors")
    save_torch_file({key: each.to(torch.float8_e4m3fn) for key, each in whole.items()}, shelf / "eight.safetensors")
    shutil.rmtree(shelf / "anime" / "tokenizer")
    entries = {entry.name: entry for entry in library.entries(shelf) if entry.name != "embedded"}
    for entry in entries.values():
        try:
            loads = set(load_parts(entry.path)) > {"unet"}
        except UserError:
            loads = False
        assert entry.usable == loads, entry
    assert {name for name, entry in entries.items() if entry.usable} == {"folder", "inpaint", "eight"}
    assert entries["anime/dream"].family == "like Stable Diffusion v1, with a context 128 wide: it has no tokenizer"
    assert entries["no-vae"].family.endswith(": not a Stable Diffusion checkpoint, it has no first_stage_model.… (the vae)")
    assert "'first_stage_model.quant_conv.bias' is of type I64" in entries["integers"].family


def test_precision_and_size_are_those_of_the_weights(shelf, models):
    count = sum(parameter.numel() for model in models.values() for parameter in model.parameters())
    entry, = (entry for entry in library.entries(shelf) if entry.name == "folder")
    assert entry.precision == "float32" and abs(entry.size - 4 * count) < 2000       # and a buffer of positions
    entry, = (entry for entry in library.entries(shelf) if entry.name == "vae")
    assert (entry.precision, entry.size) == ("float16", 48)


def test_the_cache_is_listed_by_ids(shelf, tmp_path):
    put(tmp_path / "cache", "org/sd", shelf / "folder")
    put(tmp_path / "cache", "org/text", shelf / "folder" / "text_encoder")
    found = families(None)
    assert found["org/sd"] == "like Stable Diffusion v1, with a context 128 wide"
    assert found["org/text"] == "no model in diffusers layout"
    assert library.resolve("sd") == library.resolve("org/sd") == "org/sd"


def test_no_weights_are_read(shelf, monkeypatch):
    def read(*_):
        raise AssertionError("weights were read")
    monkeypatch.setattr(Tensor, "__call__", read)
    assert len(families(shelf)) == 28
    with pytest.raises(AssertionError, match="weights were read"):
        load_parts(str(shelf / "folder"))


def test_a_name_of_the_list_is_loaded(shelf, monkeypatch):
    monkeypatch.setenv(library.VARIABLE, str(shelf))
    for name in "anime/dream", "dream", "dream.safetensors":
        assert loading.locate_model(name) == shelf / "anime" / "dream.safetensors"
    assert load_parts("dream")["source"] == "dream"


def test_a_name_in_a_folder_of_models_that_is_given_is_loaded(shelf, on_numpy, capsys):
    assert loading.load("dream", model_dir=shelf).source == "dream"
    assert cli.main(["tokens", "a red apple", "-m", "dream", "--model-dir", str(shelf)]) == 0
    assert "chunk 1 of 1, 4 of 75 tokens" in capsys.readouterr().out


def test_a_path_goes_before_a_name(shelf, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    assert library.resolve("folder", shelf) == "folder"
    assert library.resolve("embedded", shelf) is None


def test_a_name_that_two_models_share_needs_its_folder(shelf):
    (shelf / "b").mkdir()
    shutil.copy(shelf / "anime" / "dream.safetensors", shelf / "b")
    assert library.path_of("dream", shelf) is None
    assert library.path_of("b/dream", shelf) == str(shelf / "b" / "dream.safetensors")


def test_an_unknown_name_gets_the_nearest(shelf):
    with pytest.raises(UserError, match="anime/draem.safetensors: no such file .* did you mean anime/dream[?]"):
        library.resolve("anime/draem.safetensors", shelf)
    with pytest.raises(UserError, match=r"no model of that name \(npdiffusion models lists them\)"):
        library.resolve("zzz", shelf)


def test_names_never_leave_the_folder(shelf):
    (shelf.parent / "outside.safetensors").write_bytes(b"")
    for name in "../outside", "../outside.safetensors", "anime/../../outside":
        assert library.path_of(name, shelf) is None
        with pytest.raises(UserError, match="no such file|no model"):
            library.resolve(name, shelf)


def test_a_folder_of_models_that_is_none_is_named(tmp_path, monkeypatch, capsys):
    assert cli.main(["models", "--model-dir", str(tmp_path / "x")]) == 1
    assert "--model-dir: there is no folder" in capsys.readouterr().err
    monkeypatch.setenv(library.VARIABLE, "x")
    assert cli.main(["models"]) == 1
    assert capsys.readouterr().err == "npdiffusion: error: NPDIFFUSION_MODELS: there is no folder x\n"


def test_the_command_lists_what_loads_first(shelf, capsys):
    assert cli.main(["models", "--model-dir", str(shelf)]) == 0
    good, rest = capsys.readouterr().out.split("\n\nnot models that can be loaded:\n")
    assert [line.split()[0] for line in good.splitlines()] == ["embedded", "anime/dream", "folder", "inpaint"]
    assert "a/lora " in rest and "a LoRA for Stable Diffusion v1" in rest


def test_a_folder_of_very_many_files_is_looked_into_up_to_a_limit_with_a_warning(shelf, monkeypatch):
    everything = len(library.in_folder(shelf))
    (shelf / "photos").mkdir()
    for number in range(200):
        (shelf / "photos" / f"{number}.jpg").touch()
    assert len(library.in_folder(shelf)) == everything
    seen, scandir = [], os.scandir

    @contextlib.contextmanager
    def counted(folder):
        with scandir(folder) as inside:
            yield (seen.append(entry) or entry for entry in inside)
    monkeypatch.setattr(folder_walk.os, "scandir", counted)
    monkeypatch.setattr(folder_walk, "MOST", 50)
    with pytest.warns(UserWarning, match="photos: at most 50 files and folders are looked at: the list of models"):
        assert 1 < len(library.in_folder(shelf)) <= everything
    assert len(seen) < 60
