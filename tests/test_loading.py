"""Folders in diffusers layout with random weights, and everything that can be wrong with files."""
import json
import logging
import os
import pathlib
import pydoc
import shutil
import socket
import struct
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import npdiffusion
from npdiffusion import kernels, loading
from npdiffusion.checkpoints import hub, safetensors_file
from npdiffusion.checkpoints.families import FAMILIES
from npdiffusion.checkpoints.tensors import PIECE, Tensor
from npdiffusion.diffusion.schedules import NoiseSchedule
from npdiffusion.errors import UserError
from npdiffusion.kernels import machine, reference
from npdiffusion.kernels.arrays import as_float32
from npdiffusion.models import parameters
from npdiffusion.models.clip import CLIPTextModel
from npdiffusion.models.configs import CLIPTextConfig
from npdiffusion.models.on_disk import scratch
from tests import folders, references
from tests.differences import agree
from tests.errors import message
from tests.loaded import load_parts

TEXT_WEIGHTS = "text_encoder/model.safetensors"
UNET_WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
VAE_WEIGHTS = "vae/diffusion_pytorch_model.safetensors"

pytestmark = pytest.mark.usefixtures("on_numpy")


@pytest.fixture
def folder(written, tmp_path):
    """A copy that a test may spoil."""
    return pathlib.Path(shutil.copytree(written, tmp_path / "model"))


def rewrite(path, change):
    """Change the tensors of a file by a function from dictionary to dictionary."""
    tensors = change(load_file(path))
    path.unlink()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


def edit(path, **settings):
    """Change settings in a JSON file; None takes one away."""
    content = json.loads(path.read_text()) | settings
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))


def weights(parts):
    """{name: array} of all parameters; with the numpy backend they stay as they were stored."""
    return {f"{part}.{name}": getattr(owner, attribute) for part in FAMILIES[0].parts
            for name, owner, attribute in parameters.walk(parts[part])}


def found(model, name):
    """The parameter of that name."""
    for step in name.split("."):
        model = model[int(step)] if step.isdigit() else getattr(model, step)
    return model


def same(parts, others):
    a, b = weights(parts), weights(others)
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


# --- what is loaded --------------------------------------------------------------------------------------------------

def test_folder_gives_the_models_it_was_made_of(written, models):
    expected = folders.torch_results(models)
    for name, found in folders.our_results(load_parts(written)).items():
        assert references.relative_error(found, expected[name]) < 1e-5, name


def test_load_makes_a_pipeline_of_a_folder(written):
    pipeline = npdiffusion.load(written)
    assert pipeline.source == str(written)
    assert pipeline.size == (16, 16)
    assert len(pipeline.tokenizer.encode("a red apple")) == 77


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_becomes_float32_exactly(folder, models, dtype):
    for path in (TEXT_WEIGHTS, UNET_WEIGHTS, VAE_WEIGHTS):
        rewrite(folder / path, lambda tensors: {name: tensor.to(dtype) for name, tensor in tensors.items()})
    parts = load_parts(folder)
    found = weights(parts)
    for part, model in models.items():
        for name, tensor in model.state_dict().items():
            array = found[f"{part}.{name}"]
            assert array.dtype == np.float32
            assert np.array_equal(array, tensor.to(dtype).float().numpy())


def test_special_values_of_bfloat16_survive(tmp_path):
    values = torch.tensor([0.0, -0.0, 1.0, -1.5, 3.3895e38, 1e-40, float("inf")], dtype=torch.bfloat16)
    save_file({"x": values}, tmp_path / "x.safetensors")
    assert np.array_equal(as_float32(safetensors_file.read_file(tmp_path / "x.safetensors")["x"]()), values.float().numpy())


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16])
def test_loading_as_bfloat16_rounds_weights_of_products_alone(folder, models, stored, each_backend):
    for path in (TEXT_WEIGHTS, UNET_WEIGHTS, VAE_WEIGHTS):
        rewrite(folder / path, lambda tensors: {name: tensor.to(stored) for name, tensor in tensors.items()})
    parts = load_parts(folder, dtype="bfloat16")
    rounded = set()
    for part, model in models.items():
        for name, tensor in model.state_dict().items():
            array = reference.stored(found(parts[part], name))
            expected = tensor.to(stored)
            if array.dtype == np.uint16:
                expected = expected.bfloat16()
                rounded.add(name.rpartition(".")[0])
            assert np.array_equal(as_float32(array), expected.float().numpy()), name
    assert {"down_blocks.0.resnets.0.conv1", "down_blocks.0.resnets.0.time_emb_proj",
            "decoder.up_blocks.0.resnets.0.conv2", "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"} <= rounded
    assert not {"conv_in", "conv_out", "decoder.conv_out", "time_embedding.linear_1", "conv_norm_out"} & rounded


def test_a_model_of_bfloat16_gives_nearly_the_same(written, models, each_backend):
    expected = folders.torch_results(models)
    for name, result in folders.our_results(load_parts(written, dtype="bfloat16")).items():
        assert 1e-5 < references.relative_error(result, expected[name]) < 0.05, name


def test_a_model_of_bfloat16_is_known_to_need_half_the_memory(written):
    unet = load_parts(written)["unet"]
    assert 0.5 < parameters.nbytes(unet, "bfloat16") / parameters.nbytes(unet, "float32") < 0.6


def test_loaded_arrays_are_owned_and_writable(written):
    tensor = next(iter(safetensors_file.read_file(written / UNET_WEIGHTS).values()))()
    assert tensor.flags.writeable and not isinstance(tensor, np.memmap)


def test_variant_is_taken_when_it_is_alone(folder, written, caplog):
    for path in (TEXT_WEIGHTS, UNET_WEIGHTS, VAE_WEIGHTS):
        (folder / path).rename(folder / path.replace(".safetensors", ".fp16.safetensors"))
    with caplog.at_level(logging.INFO, logger="npdiffusion"):
        assert same(load_parts(folder), load_parts(written))
    assert "model.fp16.safetensors" in caplog.text


def test_plain_file_is_preferred_to_the_variant(folder, written):
    variant = folder / UNET_WEIGHTS.replace(".safetensors", ".fp16.safetensors")
    save_file({name: tensor + 1 for name, tensor in load_file(folder / UNET_WEIGHTS).items()}, variant)
    assert same(load_parts(folder), load_parts(written))


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_sharded_files_give_the_same(folder, written, models, variant):
    (folder / UNET_WEIGHTS).unlink()
    models["unet"].save_pretrained(folder / "unet", max_shard_size="1MB", variant=variant)
    assert len(list((folder / "unet").glob("*-of-*.safetensors"))) > 2
    assert same(load_parts(folder), load_parts(written))


def test_old_names_of_text_encoder_and_vae(folder, written):
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def rename(name):
        for new, previous in old.items():
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{previous}.")
        return name
    rewrite(folder / VAE_WEIGHTS, lambda tensors: {rename(name): tensor for name, tensor in tensors.items()})
    rewrite(folder / TEXT_WEIGHTS, lambda tensors: {
        "text_model.embeddings.position_ids": torch.arange(77)[None],
        **{"text_model." + name: tensor for name, tensor in tensors.items()}})
    assert any(name.endswith("mid_block.attentions.0.proj_attn.bias") for name in load_file(folder / VAE_WEIGHTS))
    assert same(load_parts(folder), load_parts(written))


def test_attention_of_the_vae_may_be_a_convolution(folder, written):
    rewrite(folder / VAE_WEIGHTS, lambda tensors: {
        name: tensor[:, :, None, None] if ".attentions." in name and tensor.ndim == 2 else tensor
        for name, tensor in tensors.items()})
    assert same(load_parts(folder), load_parts(written))


def test_default_is_the_folder_of_the_embedded_model():
    import npdiffusion.weights
    assert loading.locate_model(None) == pathlib.Path(npdiffusion.weights.__file__).parent


def test_safetensors_content_counts_more_than_the_suffix(folder):
    path = folder / "weights.ckpt"
    shutil.copy(folder / TEXT_WEIGHTS, path)
    assert safetensors_file.read_file(path).keys() == safetensors_file.read_file(folder / TEXT_WEIGHTS).keys()


def test_header_whose_length_looks_like_a_pickle_is_read(tmp_path):
    header = json.dumps({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode().ljust(0x180)
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + np.float32(2).tobytes())
    assert (tmp_path / "x.safetensors").read_bytes()[0] == 0x80
    assert safetensors_file.read_file(tmp_path / "x.safetensors")["x"]() == 2


def test_scheduler_settings_are_handed_on(written):
    assert load_parts(written)["schedule"] == NoiseSchedule.from_config(folders.SCHEDULER)


def test_scheduler_settings_are_checked_before_any_tensor_is_read(folder):
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(folders.SCHEDULER | {"beta_start": -1}))
    (folder / UNET_WEIGHTS).unlink()
    assert "scheduler_config.json: beta_start" in message(folder)


def test_guidance_that_the_makers_advise(folder):
    assert npdiffusion.load(folder).default_guidance == 7.5
    index = folder / "model_index.json"
    index.write_text(json.dumps({"guidance_scale": 4}))
    assert npdiffusion.load(folder).default_guidance == 4
    index.write_text(json.dumps({"guidance_scale": "strong"}))
    assert message(folder) == f"{index}: guidance_scale = 'strong', but a positive number is needed"


def test_home_is_expanded(written, monkeypatch):
    monkeypatch.setenv("HOME", str(written.parent))
    assert loading.locate_model("~/model") == written


def test_local_folder_never_opens_a_socket(written, monkeypatch):
    tried = []

    def forbidden(*arguments, **_):
        tried.append(arguments)
        raise OSError("no network")
    monkeypatch.setattr(socket, "socket", forbidden)
    monkeypatch.setattr(socket, "create_connection", forbidden)
    monkeypatch.setattr(socket, "getaddrinfo", forbidden)
    monkeypatch.setattr(hub, "fetch", forbidden)
    assert weights(load_parts(written)) and tried == []


# --- paths and arguments ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize("path", ["nowhere", "./no/where", "/no/where", "no/where/else", "../x", "models/x.safetensors",
                                  "a/b.ckpt", "", "a\0b", "x" * 5000, "~no-such-user/x"])
def test_path_that_does_not_exist(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message(path).startswith(f"{path}: no such file or folder")


def test_a_path_object_is_never_taken_for_an_id():
    assert "no such file or folder" in message(pathlib.Path("org/name"))


def test_unsupported_dtype(written):
    with pytest.raises(UserError, match="float16.*float32"):
        loading.load(written, dtype="float16")


@pytest.mark.parametrize("threads", [0, -1, 2.0, True, "2"])
def test_number_of_threads_out_of_range(written, threads):
    with pytest.raises(UserError, match="threads = "):
        loading.load(written, threads=threads)


def test_threads_are_set(written, monkeypatch):
    from npdiffusion.kernels import threads
    monkeypatch.setattr(threads, "_count", None)
    loading.load(written, threads=3)
    assert threads.get_threads() == 3


# --- folders ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_missing_part_of_a_folder(folder, part):
    shutil.rmtree(folder / part)
    assert f"it has no {part}/" in message(folder)


def test_a_part_given_in_place_of_the_model(folder):
    assert "try the folder above it" in message(folder / "unet")


def test_a_folder_with_a_single_file_in_it(tmp_path):
    (tmp_path / "v1-5.safetensors").write_bytes(b"")
    assert f"name it: {tmp_path / 'v1-5.safetensors'}" in message(tmp_path)


@pytest.mark.parametrize("name, description", [
    ("StableDiffusion3Pipeline", "Stable Diffusion 3"),
    ("FluxPipeline", "Flux"), ("LDMPipeline", "made for 'LDMPipeline'"), (["x"], "made for")])
def test_other_pipelines_are_named(folder, name, description):
    edit(folder / "model_index.json", _class_name=name)
    assert f"{folder}: this is {description}" in message(folder)


def test_a_unet_with_another_context_than_the_text_encoder_is_named(folder):
    edit(folder / "unet/config.json", cross_attention_dim=1024, use_linear_projection=True, attention_head_dim=[2, 4])
    assert "the UNet's context is 1024 wide, but the text encoder has 128" in message(folder)


def test_a_model_that_edits_pictures_is_named_from_its_settings(folder):
    edit(folder / "unet/config.json", in_channels=8)
    assert "this is a model that edits pictures" in message(folder)


def test_an_inpainting_model_loads(tmp_path):
    models = folders.torch_models() | {"unet": references.torch_unet(**folders.UNET | dict(in_channels=9))}
    path = folders.write_model(tmp_path, models)
    edit(path / "model_index.json", _class_name="StableDiffusionInpaintPipeline")
    unet = loading.load(path).unet
    x, context, *_ = folders.inputs()
    x = np.concatenate([x, x, x[..., :1]], axis=-1)
    with torch.no_grad():
        expected = models["unet"](references.channels_first(x), 500, torch.from_numpy(context)).sample
    agree("inpainting", "UNet of 9 channels from a folder", unet(x, 500, context), references.channels_last(expected), 1e-5,
          relative=True)


@pytest.mark.parametrize("file, settings, text", [
    ("text_encoder/config.json", {"hidden_size": 64}, "the UNet's context is 128 wide, but the text encoder has 64"),
    ("vae/config.json", {"latent_channels": 8}, "the UNet takes 4 channels, VAE latents have 8"),
    ("unet/config.json", {"in_channels": "\n"}, r"the UNet takes '\n' channels"),
    ("unet/config.json", {"out_channels": 8}, "the UNet's output is 8 wide, but the VAE has 4")])
def test_parts_that_do_not_fit_together(folder, file, settings, text):
    edit(folder / file, **settings)
    assert text in message(folder)


@pytest.mark.parametrize("file", ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json"])
@pytest.mark.parametrize("content", ["", "{", "[1]", "null", "\0"])
def test_spoilt_settings_name_their_file(folder, file, content):
    (folder / file).write_text(content)
    assert message(folder).startswith(f"{folder / file}: ")


@pytest.mark.parametrize("file", [UNET_WEIGHTS, "unet/config.json", "scheduler/scheduler_config.json"])
def test_missing_file_is_named(folder, file):
    (folder / file).unlink()
    assert str((folder / file).parent) in message(folder)


def test_absurd_sizes_are_refused_by_the_shapes_of_the_tensors(folder):
    edit(folder / "unet/config.json", block_out_channels=[8192] * 2, layers_per_block=64)
    assert "tensors don't fit the model" in message(folder)


# --- tensors ---------------------------------------------------------------------------------------------------------

def test_missing_tensors_are_listed_and_counted(folder):
    rewrite(folder / UNET_WEIGHTS, lambda tensors: {
        name: tensor for name, tensor in tensors.items() if not name.startswith("up_blocks.0.resnets.0")})
    text = message(folder)
    assert text.startswith(f"{folder / UNET_WEIGHTS}: ")
    assert "12 missing: up_blocks.0.resnets.0.conv1.bias" in text and "and 8 more" in text


def test_unexpected_tensor_is_left_out_with_a_note(folder, written):
    rewrite(folder / VAE_WEIGHTS, lambda tensors: tensors | {"decoder.extra.weight": torch.zeros(1)})
    with pytest.warns(UserWarning, match=r"vae/diff.*: 1 of its \d+ tensors belong .* left out: decoder.extra.weight"):
        assert same(load_parts(folder), load_parts(written))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("file, older, names", [
    (TEXT_WEIGHTS, True, ["text_projection.weight"]), (TEXT_WEIGHTS, False, ["text_projection.weight"]),
    (TEXT_WEIGHTS, True, ["text_projection.weight", "logit_scale", "vision_model.embeddings.class_embedding",
                          "visual_projection.weight"]),
    (VAE_WEIGHTS, False, ["loss.logvar", "model_ema.decay"])])
def test_the_rest_of_clip_and_what_trained_a_vae_are_ignored_silently(folder, written, file, older, names):
    rewrite(folder / file, lambda tensors: {("text_model." if older else "") + name: each for name, each in tensors.items()}
            | {name: torch.zeros(2, 2) for name in names})
    assert same(load_parts(folder), load_parts(written))


def test_tensor_of_another_shape_is_named(folder):
    rewrite(folder / TEXT_WEIGHTS, lambda tensors: tensors | {"final_layer_norm.bias": torch.zeros(2, 64)})
    assert "1 of another shape: final_layer_norm.bias is (2, 64) instead of (128,)" in message(folder)


def test_only_matrices_may_be_convolutions(folder):
    rewrite(folder / TEXT_WEIGHTS, lambda tensors: tensors | {"final_layer_norm.bias": torch.zeros(128, 1, 1)})
    assert "1 of another shape" in message(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_that_are_not_finite_are_named(folder, value, dtype):
    def spoil(tensors):
        tensors["conv_out.bias"] = torch.tensor([0, 0, value, 0], dtype=dtype)
        return tensors
    rewrite(folder / UNET_WEIGHTS, spoil)
    assert "conv_out.bias holds values that are not finite" in message(folder)


def test_other_kinds_of_numbers_are_named_before_anything_is_read(folder, monkeypatch):
    rewrite(folder / UNET_WEIGHTS, lambda tensors: tensors | {"conv_out.bias": torch.zeros(4, dtype=torch.int64)})
    monkeypatch.setattr(Tensor, "__call__", lambda self, into=None: pytest.fail("a tensor was read"))
    text = message(folder)
    assert "'conv_out.bias' is of type I64" in text and str(folder / UNET_WEIGHTS) in text


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_float8_is_decoded_exactly(tmp_path, dtype):
    every = torch.arange(256, dtype=torch.uint8).view(dtype)
    save_file({"x": every.repeat(3, 1)}, tmp_path / "x.safetensors")
    found = safetensors_file.read_file(tmp_path / "x.safetensors")["x"]()
    assert found.dtype == np.float16 and np.array_equal(found, every.repeat(3, 1).half().numpy(), equal_nan=True)


def test_a_model_of_float8_is_the_one_of_its_rounded_weights(folder, tmp_path):
    twin = shutil.copytree(folder, tmp_path / "twin")

    def rounded(tensors, to):
        return {name: each.to(torch.float8_e4m3fn).to(to) for name, each in tensors.items()}
    for file in UNET_WEIGHTS, TEXT_WEIGHTS:
        rewrite(folder / file, lambda tensors: rounded(tensors, torch.float8_e4m3fn))
        rewrite(twin / file, lambda tensors: rounded(tensors, torch.float32))
    expected = folders.our_results(load_parts(twin))
    for name, found in folders.our_results(load_parts(folder)).items():
        assert np.array_equal(found, expected[name])


def test_decoding_takes_a_piece_of_a_tensor_at_a_time(tmp_path):
    numbers = torch.randn(3, PIECE // 4)
    save_file({"x": numbers.double(), "small": numbers[0, :5].double()}, tmp_path / "x.safetensors")
    tensors = safetensors_file.read_file(tmp_path / "x.safetensors")
    tracemalloc.start()
    found = tensors["x"]()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.array_equal(found, numbers.numpy()) and np.array_equal(tensors["small"](), numbers[0, :5].numpy())
    assert peak < found.nbytes + 3 * PIECE < numbers.numel() * 12
    assert np.array_equal(tensors["x"].rows(1, 3)(), numbers[1:].numpy())


@pytest.mark.parametrize("part, option", [("vae", "vae"), ("tokenizer", "tokenizer")])
def test_a_part_that_is_given_may_be_missing_in_a_folder(folder, written, part, option):
    shutil.rmtree(folder / part)
    assert same(load_parts(folder, **{option: written / part}), load_parts(written))


# --- files -----------------------------------------------------------------------------------------------------------

def safetensors_bytes(table, data=b""):
    table = table if isinstance(table, bytes) else json.dumps(table).encode()
    return struct.pack("<Q", len(table)) + table + data


ENTRY = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize("content, text", [
    (b"", "the file is empty"),
    (b"abc", "damaged or cut short"),
    (b"\x00" * 100, "damaged or cut short"),
    (b"{\"a\": 1}", "a JSON file"),
    (b"<!DOCTYPE html><html>Access denied</html>", "a web page"),
    (b"\n <html>", "a web page"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
    (b"GGUF\x03\0\0\0", "a GGUF file"),
    (b"PK\x03\x04" + bytes(60), "a pickle"),
    (b"\x80\x02}q\x00." + bytes(60), "a pickle"),
    (b"\x80\x04\x95\x1e\0\0\0\0\0\0\0}", "a pickle"),
    (os.urandom(4096), "damaged or cut short"),
    (struct.pack("<Q", 1 << 62) + b"{}", "damaged or cut short"),
    (safetensors_bytes({}), "no tensors"),
    (safetensors_bytes({"a": ENTRY}, b"12"), "damaged or cut short"),
    (safetensors_bytes({"a": ENTRY}, b"12345"), "damaged or cut short"),
    (safetensors_bytes({"a": ENTRY, "b": ENTRY}, b"1234"), "damaged or cut short"),
    (safetensors_bytes({"a": ENTRY | {"dtype": "F9"}}, b"1234"), "damaged or cut short"),
    (safetensors_bytes({"a": ENTRY | {"shape": [1 << 62, 1 << 62]}}, b"1234"), "damaged or cut short"),
    (safetensors_bytes(b"[" * 100_000), "damaged or cut short"),
    (safetensors_bytes(b"{" + b" " * (17 << 20) + b"}"), "far more than any such model needs")])
def test_what_is_no_safetensors_file_is_named(tmp_path, content, text):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    found = message(path)
    assert found.startswith(f"{path}: ") and text in found


@pytest.mark.parametrize("left", [0.0, 0.001, 0.5, 0.999])
def test_file_cut_short_at_any_place(folder, left):
    path = folder / UNET_WEIGHTS
    with path.open("r+b") as file:
        file.truncate(int(left * path.stat().st_size))
    assert message(folder).startswith(f"{path}: ")


def test_file_cut_short_after_it_was_opened(folder):
    tensors = safetensors_file.read_file(folder / UNET_WEIGHTS)
    with (folder / UNET_WEIGHTS).open("r+b") as file:
        file.truncate(100_000)
    with pytest.raises(UserError, match="cut short while it was read"):
        [tensor() for tensor in tensors.values()]


def test_a_folder_in_place_of_a_file(folder):
    (folder / UNET_WEIGHTS).unlink()
    (folder / UNET_WEIGHTS).mkdir()
    assert message(folder) == f"{folder / UNET_WEIGHTS}: a file was expected, not a folder"


def test_other_kinds_of_files_are_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.safetensors")                             # reading it would wait for ever
    assert "no such file" in message(tmp_path / "pipe.safetensors")


def test_two_tables_for_one_name_are_no_way_around_the_check(tmp_path):
    table = f'{{"a": {json.dumps(ENTRY)}, "a": {json.dumps(ENTRY | {"data_offsets": [4, 8]})}}}'
    (tmp_path / "x.safetensors").write_bytes(safetensors_bytes(table.encode(), b"1234"))
    with pytest.raises(UserError, match="cut short"):
        safetensors_file.read_file(tmp_path / "x.safetensors")["a"]()


def test_folder_of_pickles_tells_a_command_that_converts_them(folder, tmp_path):
    tensors = load_file(folder / UNET_WEIGHTS)
    (folder / UNET_WEIGHTS).unlink()
    tensors["shared"] = tensors["conv_out.bias"]
    torch.save({"state_dict": tensors, "epoch": 3}, folder / "unet" / "diffusion_pytorch_model.bin")
    text = message(folder)
    command = text.split("convert it to safetensors: ")[1].replace("python -c", f"{sys.executable} -c", 1)
    subprocess.run(command, shell=True, check=True, timeout=120)
    assert load_file(folder / UNET_WEIGHTS).keys() == tensors.keys()


@pytest.mark.parametrize("name", ["model.ckpt", "model.bin", "model.pt"])
def test_pickle_by_its_suffix(tmp_path, name):
    (tmp_path / name).write_bytes(b"anything")
    assert "a pickle" in message(tmp_path / name)


# --- shards ----------------------------------------------------------------------------------------------------------

@pytest.fixture
def index(folder, models):
    (folder / UNET_WEIGHTS).unlink()
    models["unet"].save_pretrained(folder / "unet", max_shard_size="2MB")
    return folder / "unet" / "diffusion_pytorch_model.safetensors.index.json"


@pytest.mark.parametrize("name", ["../vae/diffusion_pytorch_model.safetensors", "/etc/passwd", "a\\b.safetensors",
                                  "x.bin", "..safetensors", "C:x.safetensors", "a\0b.safetensors"])
def test_shards_stay_in_their_folder(folder, index, name):
    content = json.loads(index.read_text())
    content["weight_map"]["conv_out.bias"] = name
    index.write_text(json.dumps(content))
    text = message(folder)
    assert text.startswith(f"{index}: ") and "not the name of a safetensors file in the same folder" in text


@pytest.mark.parametrize("weight_map", [None, [], {}, {"a": 1}, {str(i): f"{i}.safetensors" for i in range(1000)}])
def test_absurd_index(folder, index, weight_map):
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert message(folder).startswith(f"{index}: ")


def test_missing_shard_is_named(folder, index):
    shard = sorted(index.parent.glob("*-of-*"))[1]
    shard.unlink()
    assert message(folder) == f"{shard}: no such file"


def test_tensor_that_the_index_promises_in_vain(folder, index):
    content = json.loads(index.read_text())
    content["weight_map"]["extra"] = content["weight_map"]["conv_out.bias"]
    index.write_text(json.dumps(content))
    assert "the first is 'extra'" in message(folder)


# --- tokenizers ------------------------------------------------------------------------------------------------------

def test_tokenizer_that_is_given_goes_before_the_models_own(folder, tmp_path):
    folders.write_tokenizer(tmp_path / "other", merges=["x y", "x z", "x w", "y z", "y w", "z w"])
    assert "xy" in load_parts(folder, tokenizer=tmp_path / "other")["tokenizer"].vocabulary


def test_tokenizer_of_another_model_is_refused(folder):
    merges = [f"{a} {b}" for a in "abcdefghij" for b in "abcdefghij"]
    folders.write_tokenizer(folder / "tokenizer", merges)
    assert "614 pieces, but the text encoder knows 520" in message(folder)


def test_tokenizer_that_makes_too_many_tokens_is_refused(folder):
    edit(folder / "tokenizer/tokenizer_config.json", model_max_length=100)
    assert "makes 100 tokens, but the text encoder takes at most 77" in message(folder)


def test_tokenizer_folder_that_does_not_exist(folder):
    assert "./nowhere: a folder with vocab.json" in message(folder, tokenizer="./nowhere")


# --- memory ----------------------------------------------------------------------------------------------------------

def test_too_little_memory_is_told_before_anything_is_read(written, monkeypatch):
    monkeypatch.setattr(machine, "memory_available", lambda: 5_000_000)
    monkeypatch.setattr(Tensor, "__call__", lambda self: pytest.fail("a tensor was read"))
    assert message(written) == (f"{written}: needs about 0.0 GB of memory, 0.0 GB are available; --dtype bfloat16 takes half "
                                "the memory of float32, --max-memory less than that")


def test_unknown_memory_is_no_obstacle(written, monkeypatch):
    known = weights(load_parts(written))
    monkeypatch.setattr(machine, "memory_available", lambda: None)
    assert weights(load_parts(written)).keys() == known.keys()


def test_memory_that_runs_out_gives_one_line(written, monkeypatch):
    def exhausted(self, into=None):
        raise MemoryError
    monkeypatch.setattr(Tensor, "__call__", exhausted)
    assert message(written) == f"{written}: not enough memory for this model"


def test_numbers_in_scratch_memory_are_those_of_the_tensor_until_the_next_are_read_there(tmp_path):
    arrays = {"a": np.arange(6, dtype=np.float16).reshape(2, 3), "b": np.ones((4, 4), np.float32)}
    save_file({name: torch.from_numpy(array) for name, array in arrays.items()}, tmp_path / "x.safetensors")
    tensors = safetensors_file.read_file(tmp_path / "x.safetensors")
    owned = tensors["a"]()
    for name in ("b", "a", "b"):
        lent = tensors[name](scratch)
        assert lent.dtype == arrays[name].dtype and np.array_equal(lent, arrays[name])
    assert np.array_equal(owned, arrays["a"])


def test_weights_of_products_are_copies(each_backend):
    weight = np.ones((32, 32, 1, 1), np.float32)
    packed = [kernels.pack_conv2d(weight), kernels.pack_linear(weight[:, :, 0, 0])]
    weight[:] = 0
    assert all(np.all(reference.stored(each) == 1) for each in packed)


def test_filling_reads_each_tensor_once():
    model = CLIPTextModel(CLIPTextConfig.from_dict(folders.TEXT))
    read = []

    class Counted:
        def __init__(self, name, shape):
            self.name, self.shape = name, shape

        def __call__(self, into=None):
            read.append(self.name)
            return np.ones(self.shape, np.float32)
    names = parameters.shapes(model)
    parameters.load(model, {name: Counted(name, shape) for name, shape in names.items()}, "test")
    assert sorted(read) == sorted(names)


def test_load_has_one_signature_which_help_shows_for_the_package():
    assert npdiffusion.load is loading.load and "load" in dir(npdiffusion)
    assert "load(path_or_id: str | os.PathLike[str] | None = None, " in pydoc.plain(pydoc.render_doc(npdiffusion))
    with pytest.raises(AttributeError, match="'npdiffusion' has no attribute 'laod'"):
        npdiffusion.laod  # noqa: B018
