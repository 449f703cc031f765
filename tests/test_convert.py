"""npdiffusion convert: models written anew are equal here, and open in diffusers."""
import json
import os
import shutil

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer as TorchCLIPTokenizer

import npdiffusion
from npdiffusion import loading
from npdiffusion.checkpoints import conversion
from npdiffusion.checkpoints.files import read_tensors
from npdiffusion.command import cli
from npdiffusion.kernels.arrays import as_float32
from npdiffusion.kernels.reference import to_bfloat16
from tests import folders, references, relatives
from tests.differences import agree
from tests.errors import message_of
from tests.gguf_files import gguf, plain, q8_0
from tests.loaded import load_parts
from tests.pairs import VOCABULARY
from tests.single_files import original

pytestmark = pytest.mark.usefixtures("on_numpy")


def numbers(path, **options):
    """{part and parameter: array} of a model, as it is in its file"""
    return {(name, parameter): tensor().reshape(part.shapes[parameter])
            for name, part in loading.open_checkpoint(path, **options).model.parts.items()
            for parameter, tensor in part.tensors.items()}


def equal(found, expected):
    return found.keys() == expected.keys() and all(np.array_equal(found[name], expected[name]) for name in expected)


def convert(*words):
    assert cli.main(["convert", *map(str, words)]) == 0


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_there_and_back_again_tensors_are_equal(written, tmp_path, dtype):
    expected = {name: array if dtype == "float32" else array.astype(np.float16) if dtype == "float16" else to_bfloat16(array)
                for name, array in numbers(written).items()}
    convert(written, tmp_path / "one.safetensors", "--dtype", dtype)
    folders.write_tokenizer(tmp_path / "tokenizer")
    convert(tmp_path / "one.safetensors", tmp_path / "folder")
    convert(tmp_path / "folder", tmp_path / "two.safetensors")
    for name in "one.safetensors", "folder", "two.safetensors":
        assert equal(numbers(tmp_path / name), expected)
    one, two = (tmp_path / f"{name}.safetensors" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    kinds = {tensor.dtype for tensor in read_tensors(one).values()}
    assert kinds == {{"float32": "F32", "float16": "F16", "bfloat16": "BF16"}[dtype]}


def test_a_single_file_has_the_original_names_and_shapes(models, written, tmp_path):
    convert(written, tmp_path / "x.safetensors")
    expected = original(models)
    found = load_file(tmp_path / "x.safetensors")
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize("source", ["folder", "single file"])
def test_a_folder_opens_in_diffusers_and_gives_the_same_results(models, written, tmp_path, source):
    if source == "single file":
        save_file(original(models), tmp_path / "x.safetensors")
        folders.write_tokenizer(tmp_path / "tokenizer")
    convert(written if source == "folder" else tmp_path / "x.safetensors", tmp_path / "new")
    theirs = StableDiffusionPipeline.from_pretrained(tmp_path / "new", local_files_only=True)
    expected = folders.torch_results(models)
    for name, found in folders.torch_results({part: getattr(theirs, part) for part in models}).items():
        agree("convert", f"from {source}, {name} in diffusers", found, expected[name], 1e-6, relative=True)
    assert theirs.scheduler.config.beta_schedule == "scaled_linear" and theirs.scheduler.config.steps_offset == 1
    ours, text = npdiffusion.load(tmp_path / "new").tokenizer, "a red apple <|endoftext|> B"
    assert ours.encode(text).tolist() == theirs.tokenizer(text, padding="max_length", truncation=True)["input_ids"]


def test_the_tokenizer_that_is_written_is_the_one_that_was_read(tmp_path):
    tokenizer = npdiffusion.text.tokenizer.CLIPTokenizer.clip()
    conversion.write_tokenizer(tmp_path, tokenizer)
    again, theirs = type(tokenizer).from_folder(tmp_path), TorchCLIPTokenizer.from_pretrained(tmp_path)
    assert (again.vocabulary, again.ranks, again.folded, again.padding, again.length) == (
        tokenizer.vocabulary, tokenizer.ranks, tokenizer.folded, tokenizer.padding, tokenizer.length)
    text = "A photo of a cat <|STARTOFTEXT|>!"
    assert tokenizer.encode(text).tolist() == theirs(text, padding="max_length", truncation=True)["input_ids"]


@pytest.fixture(scope="module", params=[relatives.V2, relatives.XL, relatives.REFINER])
def relative(request, tmp_path_factory):
    """(family's name, diffusers' pipeline, the folder that it wrote)"""
    theirs, folder = relatives.theirs(request.param), tmp_path_factory.mktemp("relative") / "model"
    theirs.save_pretrained(folder)
    return request.param, theirs, folder


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_relatives_there_and_back_again_are_equal(relative, tmp_path, dtype):
    name, _, folder = relative
    expected = {key: array if dtype == "float32" else to_bfloat16(array) for key, array in numbers(folder).items()}
    convert(folder, tmp_path / "one.safetensors", "--dtype", dtype)
    convert(tmp_path / "one.safetensors", tmp_path / "folder", "--tokenizer", VOCABULARY)
    convert(tmp_path / "folder", tmp_path / "two.safetensors")
    for path in "one.safetensors", "folder", "two.safetensors":
        assert loading.open_checkpoint(tmp_path / path, VOCABULARY).model.family.name == name
        assert equal(numbers(tmp_path / path, tokenizer=VOCABULARY), expected)
    one, two = (tmp_path / f"{path}.safetensors" for path in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


def test_a_relatives_single_file_has_the_original_names(relative, tmp_path):
    name, theirs, folder = relative
    convert(folder, tmp_path / "x.safetensors")
    found, expected = load_file(tmp_path / "x.safetensors"), relatives.single_file(theirs, name)
    unused = {key for key in expected if key.endswith("logit_scale") or (name == relatives.V2 and (
        ".resblocks.4." in key or key.endswith(".text_projection")))}          # SD 2's last layer has no place in a folder
    assert found.keys() == expected.keys() - unused
    assert all(torch.equal(found[key].reshape(expected[key].shape), expected[key]) for key in found)


def test_a_folder_of_xl_opens_in_diffusers(relative, tmp_path):
    name, theirs, folder = relative
    convert(folder, tmp_path / "new")
    assert equal(numbers(tmp_path / "new"), numbers(folder))
    again = type(theirs).from_pretrained(tmp_path / "new", local_files_only=True)
    if name != relatives.V2:
        assert again.text_encoder_2.config.projection_dim == theirs.text_encoder_2.config.projection_dim
        assert again.config.force_zeros_for_empty_prompt is (name == relatives.XL)


def test_diffusers_opens_a_single_file_of_xl_and_draws_the_same(tmp_path):
    """With a VAE of four levels and two layers, as diffusers' converter takes for granted."""
    theirs = relatives.theirs(relatives.XL)
    theirs.register_modules(vae=references.torch_vae(**relatives.VAE | dict(
        block_out_channels=(32, 32, 64, 64), layers_per_block=2, scaling_factor=0.13025,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4)))
    theirs.save_pretrained(tmp_path / "xl")
    convert(tmp_path / "xl", tmp_path / "x.safetensors", "--dtype", "float16")
    again = type(theirs).from_single_file(tmp_path / "x.safetensors", config=str(tmp_path / "xl"), local_files_only=True)
    for part in "unet", "vae", "text_encoder", "text_encoder_2":
        expected, found = (getattr(pipeline, part).state_dict() for pipeline in (theirs, again))
        assert expected.keys() == found.keys()
        assert all(torch.equal(found[key].half(), expected[key].half()) for key in found), part


@pytest.mark.parametrize("layout", ["cond_stage_model.model.", "conditioner.embedders.0.model."])
@pytest.mark.parametrize("whole", [True, False], ids=["24 layers, projection", "without the last layer"])
def test_sd_2_is_read_in_both_layouts_with_its_last_layer_and_without(tmp_path, layout, whole):
    theirs = relatives.theirs(relatives.V2)
    theirs.save_pretrained(tmp_path / "model")
    tensors = {name.replace("cond_stage_model.model.", layout): tensor for name, tensor
               in relatives.single_file(theirs, relatives.V2).items()
               if whole or not (".resblocks.4." in name or name.endswith(".text_projection"))}
    save_file(tensors, tmp_path / "x.safetensors")
    assert loading.open_checkpoint(tmp_path / "x.safetensors", VOCABULARY).model.family.name == relatives.V2
    assert equal(numbers(tmp_path / "x.safetensors", tokenizer=VOCABULARY), numbers(tmp_path / "model"))


@pytest.mark.parametrize("settings, marks", [
    ({}, set()), ({"prediction_type": "v_prediction"}, {"v_pred"}),
    ({"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}, {"v_pred", "ztsnr"})])
def test_what_a_model_predicts_is_marked_in_a_single_file(written, tmp_path, settings, marks):
    folder = shutil.copytree(written, tmp_path / "model")
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    convert(folder, tmp_path / "x.safetensors")
    assert {name for name in read_tensors(tmp_path / "x.safetensors") if "." not in name} == marks
    folders.write_tokenizer(tmp_path / "tokenizer")
    found, expected = (loading.open_checkpoint(path).model.schedule for path in (tmp_path / "x.safetensors", folder))
    assert found.prediction_type == expected.prediction_type
    assert np.array_equal(found.alphas_cumprod, expected.alphas_cumprod)


def test_a_lora_merged_into_one_third_of_what_open_clip_keeps_as_one(tmp_path):
    theirs = relatives.theirs(relatives.XL)
    theirs.save_pretrained(tmp_path / "xl")
    key = "lora_te2_text_model_encoder_layers_0_self_attn_k_proj"
    save_file({f"{key}.diff": torch.ones(128, 128)}, tmp_path / "ink.safetensors")
    convert(tmp_path / "xl", tmp_path / "x.safetensors", "--dtype", "bfloat16", "--lora", tmp_path / "ink.safetensors")
    name = "conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_weight"
    parts = theirs.text_encoder_2.state_dict()
    q, k, v = (next(tensor for key, tensor in parts.items() if key.endswith(f"layers.0.self_attn.{which}_proj.weight"))
               for which in "qkv")
    assert torch.equal(load_file(tmp_path / "x.safetensors")[name], torch.cat([q, k + 1, v]).bfloat16())


def test_an_inpainting_model_stays_one(tmp_path):
    models = folders.torch_models() | {"unet": references.torch_unet(**folders.UNET | dict(in_channels=9))}
    save_file(original(models), tmp_path / "x.safetensors")
    folders.write_tokenizer(tmp_path / "tokenizer")
    convert(tmp_path / "x.safetensors", tmp_path / "new")
    assert json.loads((tmp_path / "new" / "model_index.json").read_text())["_class_name"] == "StableDiffusionInpaintPipeline"
    assert equal(numbers(tmp_path / "new"), numbers(tmp_path / "x.safetensors"))


def test_what_is_quantised_becomes_float32_exactly_and_marks_become_settings(models, tmp_path):
    arrays = {name: tensor.numpy() for name, tensor in original(models).items()}
    (tmp_path / "x.gguf").write_bytes(gguf({name: q8_0(array) if array.ndim == 2 and array.shape[1] % 32 == 0 else plain(array)
                                            for name, array in arrays.items()} | {"v_pred": plain(np.zeros(0, np.float32))}))
    folders.write_tokenizer(tmp_path / "tokenizer")
    convert(tmp_path / "x.gguf", tmp_path / "new")
    assert equal(numbers(tmp_path / "new"), numbers(tmp_path / "x.gguf"))
    assert load_parts(tmp_path / "new")["schedule"].prediction_type == "v_prediction"


def test_a_lora_that_is_merged_in_is_the_lora_in_use(written, tmp_path):
    lora = tmp_path / "ink.safetensors"
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    save_file({f"{name}.lora_down.weight": torch.randn(4, 128), f"{name}.lora_up.weight": torch.randn(32, 4),
               f"{name}.alpha": torch.tensor(2.0)}, lora)
    convert(written, tmp_path / "new", "--lora", lora, "--lora-strength", "0.5")
    pipeline = npdiffusion.load(written)
    pipeline.load_lora_weights(lora, adapter_weight=0.5)
    layer = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    merged, plain_ = numbers(tmp_path / "new"), numbers(written)
    assert not np.array_equal(merged["unet", layer], plain_["unet", layer])
    attention = pipeline.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2
    assert np.array_equal(merged["unet", layer], attention.to_k.weight)
    assert [name for name in merged if not np.array_equal(merged[name], plain_[name])] == [("unet", layer)]


def test_an_autoencoder_can_be_replaced_but_not_by_taesd_in_a_single_file(written, models, tmp_path):
    models["vae"].save_pretrained(tmp_path / "vae")
    tensors = {name: 2 * each for name, each in load_file(tmp_path / "vae/diffusion_pytorch_model.safetensors").items()}
    save_file(tensors, tmp_path / "vae/diffusion_pytorch_model.safetensors")
    convert(written, tmp_path / "new", "--vae", tmp_path / "vae")
    name = "vae", "decoder.conv_in.weight"
    assert np.array_equal(numbers(tmp_path / "new")[name], 2 * numbers(written)[name])


def test_nothing_is_overwritten_and_nothing_is_left_behind(written, tmp_path, monkeypatch):
    opened = loading.open_checkpoint(written)
    (tmp_path / "there").mkdir()
    (tmp_path / "there.safetensors").write_text("mine")
    os.symlink(tmp_path / "nowhere", tmp_path / "link")
    for name in "there", "there.safetensors", "link":
        assert "nothing is overwritten" in message_of(conversion.convert, opened, tmp_path / name)
    before = sorted(tmp_path.iterdir())
    for name in "x", "x.safetensors":
        with monkeypatch.context() as patch:
            patch.setattr(conversion, "rounded", lambda tensor, kind: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                conversion.convert(opened, tmp_path / name)
    assert sorted(tmp_path.iterdir()) == before and (tmp_path / "there.safetensors").read_text() == "mine"


def test_numbers_too_large_for_float16_are_named(models, written, tmp_path):
    tensors = original(models)
    tensors["model.diffusion_model.out.2.bias"][1] = 1e5
    save_file(tensors, tmp_path / "x.safetensors")
    folders.write_tokenizer(tmp_path / "tokenizer")
    opened = loading.open_checkpoint(tmp_path / "x.safetensors")
    said = message_of(conversion.convert, opened, tmp_path / "new", "float16")
    assert "'model.diffusion_model.out.2.bias' holds numbers that are not finite, or too large for float16" in said
    assert not (tmp_path / "new").exists()
    conversion.convert(opened, tmp_path / "new", "bfloat16")
    assert as_float32(numbers(tmp_path / "new")["unet", "conv_out.bias"])[1] > 99_000
