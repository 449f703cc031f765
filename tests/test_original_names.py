"""Original names against diffusers' own conversion; single files with random weights; what isn't a v1 file is named."""
import re

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders import single_file_utils as theirs
from safetensors.torch import save_file

from npdiffusion import loading
from npdiffusion.checkpoints import original_names, whole_model
from npdiffusion.checkpoints.families import FAMILIES
from npdiffusion.models.configs import CLIPTextConfig, UNetConfig, VAEConfig
from tests import folders, references
from tests.errors import message
from tests.loaded import load_parts
from tests.single_files import full_models, on_meta, original

BUFFERS = ["betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod",
           "log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod",
           "posterior_variance", "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2",
           "logvar", "model_ema.decay", "model_ema.num_updates", "model_ema.diffusion_modelinput_blocks00weight",
           "cond_stage_model.logit_scale", "first_stage_model.loss.discriminator.main.0.weight",
           "cond_stage_model.transformer.text_model.embeddings.position_ids", "global_step", "epoch", "scale_factor",
           "embedding_manager.string_to_param_dict.*", "denoiser.sigmas", "first_stage_model.model_ema.decay",
           "embedding_manager.embedder.transformer.text_model.final_layer_norm.bias",
           "cond_stage_model.transformer.vision_model.embeddings.class_embedding",
           "cond_stage_model.transformer.visual_projection.weight", "cond_stage_model.transformer.text_projection.weight"]

pytestmark = pytest.mark.usefixtures("on_numpy")

PREFIXES = [row.prefix for row in FAMILIES[0].parts.values()]


@pytest.fixture
def file(models, tmp_path):
    """Writes a single file, its tensors changed by a function, and a tokenizer beside it; returns its path."""
    def write(change=lambda tensors: tensors, text_model="text_model."):
        path = tmp_path / "model.safetensors"
        save_file(change(original(models, text_model)), path)
        folders.write_tokenizer(tmp_path / "tokenizer")
        return path
    return write


# --- names -----------------------------------------------------------------------------------------------------------

def test_all_1130_names_of_v1_are_used_once_each():
    tensors = original(full_models())
    assert len(tensors) == 1130
    counts = [sum(name.startswith(prefix) for name in tensors) for prefix in PREFIXES]
    assert counts == [196, 686, 248]


@pytest.mark.parametrize("settings", [
    references.FULL_UNET, folders.UNET, {**folders.UNET, "layers_per_block": 3},
    {**folders.UNET, "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
     "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D")}])
def test_unet_names_are_those_that_diffusers_converts(settings):
    model = on_meta(lambda s: UNet2DConditionModel(**s), settings)
    tensors = original({"unet": model})
    converted = theirs.convert_ldm_unet_checkpoint(dict(tensors), dict(model.config))
    spell = original_names.unet_name(UNetConfig.from_dict(dict(model.config)), "model.diffusion_model.")
    assert converted.keys() == model.state_dict().keys()
    assert all(converted[name] is tensors[spell(name)] for name in converted)


@pytest.mark.parametrize("settings", [references.FULL_VAE, folders.VAE, {**folders.VAE, "layers_per_block": 3}])
def test_vae_names_are_those_that_diffusers_converts(settings):
    model = on_meta(lambda s: AutoencoderKL(**s), settings)
    tensors = original({"vae": model})
    converted = theirs.convert_ldm_vae_checkpoint(dict(tensors), dict(model.config))
    spell = original_names.vae_name(VAEConfig.from_dict(dict(model.config)), "first_stage_model.")
    assert converted.keys() == model.state_dict().keys()
    for name, tensor in converted.items():
        if ".attentions." not in name:                  # whose weights diffusers turns into matrices, new tensors
            assert tensor is tensors[spell(name)]
    attention = {name: float(i) for i, name in enumerate(model.state_dict()) if ".attentions." in name}
    numbered = {spell(name): torch.full((1, 1, 1, 1), number) for name, number in attention.items()}
    converted = theirs.convert_ldm_vae_checkpoint(numbered, dict(model.config))
    assert {name: float(tensor.flatten()[0]) for name, tensor in converted.items()} == attention


def test_text_encoder_names_are_those_that_diffusers_converts():
    model = full_models()["text_encoder"]
    tensors = original({"text_encoder": model})
    converted = theirs.convert_ldm_clip_checkpoint(dict(tensors))
    assert {name.removeprefix("text_model.") for name in converted} == model.state_dict().keys()
    assert all(tensors[f"cond_stage_model.transformer.{name}"] is tensor for name, tensor in converted.items())


def test_configuration_of_v1_follows_from_the_shapes():
    tensors = original(full_models())
    found = whole_model.sizes(*whole_model.by_part(tensors, "v1"), "v1")
    assert CLIPTextConfig.from_dict(found["text_encoder"]) == CLIPTextConfig()
    assert UNetConfig.from_dict({**found["unet"], "use_linear_projection": False}) == UNetConfig()
    assert VAEConfig.from_dict(found["vae"]) == VAEConfig()


# --- loading ---------------------------------------------------------------------------------------------------------

def test_original_names_gives_the_models_it_was_made_of(file, models):
    expected = folders.torch_results(models)
    for name, found in folders.our_results(load_parts(file())).items():
        assert references.relative_error(found, expected[name]) < 1e-5


def test_text_encoder_without_text_model_in_its_names(file, models):
    found = load_parts(file(text_model=""))["text_encoder"].final_layer_norm.weight
    assert (found == models["text_encoder"].state_dict()["final_layer_norm.weight"].numpy()).all()


@pytest.mark.filterwarnings("error")
def test_what_training_and_merging_leave_in_a_file_is_ignored_silently(file):
    with_them = file(lambda tensors: tensors | {name: torch.zeros(3, dtype=torch.int64) for name in BUFFERS})
    found = folders.our_results(load_parts(with_them))
    for name, expected in folders.our_results(load_parts(file())).items():
        assert np.array_equal(found[name], expected)


def test_attention_of_the_vae_may_have_newer_names(file):
    """As a script of 2023 converted it: diffusers' issue 4790."""
    newer = {".q.": ".to_q.", ".k.": ".to_k.", ".v.": ".to_v.", ".proj_out.": ".to_out.0."}

    def rename(name):
        for old, new in newer.items():
            name = name.replace(old, new) if "mid.attn_1" in name else name
        return name
    found = folders.our_results(load_parts(file(lambda tensors: {rename(name): each for name, each in tensors.items()})))
    for name, expected in folders.our_results(load_parts(file())).items():
        assert np.array_equal(found[name], expected)


@pytest.mark.parametrize("which", [r".*", r"model\.diffusion_model\.out\.2\.bias"])
def test_float64_weights_are_rounded_to_float32(file, which):
    found = folders.our_results(load_parts(file(lambda tensors: {
        name: tensor.double() if re.fullmatch(which, name) else tensor for name, tensor in tensors.items()})))
    for name, expected in folders.our_results(load_parts(file())).items():
        assert np.array_equal(found[name], expected)


def test_a_vae_that_is_given_takes_the_place_of_one_that_is_missing_or_only_half_there(file, models, tmp_path):
    models["vae"].save_pretrained(tmp_path / "vae")
    expected = folders.our_results(load_parts(file()))
    for pattern in "^first_stage_model", r"^first_stage_model\.(encoder|quant_conv)":
        path = file(without(pattern))
        for name, found in folders.our_results(load_parts(path, vae=tmp_path / "vae")).items():
            assert references.relative_error(found, expected[name]) < 1e-6
    assert "--vae" in message(file(without("^first_stage_model")))


def test_scheduler_is_that_of_v1(file):
    schedule = load_parts(file())["schedule"]
    assert (schedule.default_sampler, schedule.timestep_spacing, schedule.steps_offset) == ("pndm", None, 1)


# --- bad input -------------------------------------------------------------------------------------------------------

def without(pattern):
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if not re.search(pattern, name)}


def test_missing_tensors_are_named_as_in_the_file_and_counted(file):
    text = message(file(without(r"output_blocks\.3\.1\.transformer")))
    assert "20 missing: model.diffusion_model.output_blocks.3.1.transformer_blocks.0.attn1.to_k.weight" in text
    assert "and 16 more" in text


def test_what_belongs_to_no_part_is_left_out_with_one_note(file):
    odd = {name: torch.zeros(1) for name in ("surprise", "a\n\x1b[31mb", "first_stage_model.surprise")}
    path = file(lambda tensors: tensors | odd)
    with pytest.warns(UserWarning, match="left out") as notes:
        found = folders.our_results(load_parts(path))
    note, = notes
    assert str(note.message) == (f"{path}: 3 of its 355 tensors belong to no part of the model and are left out: "
                                 r"'a\n\x1b[31mb', first_stage_model.surprise, surprise")
    for name, expected in folders.our_results(load_parts(file())).items():
        assert np.array_equal(found[name], expected)


def test_what_is_missing_is_an_error_that_names_what_is_unexpected_too(file):
    name = "model.diffusion_model.out.0.weight"
    text = message(file(lambda tensors: without(re.escape(name))(tensors) | {f"{UNET}odd": torch.zeros(1)}))
    assert f"1 missing: {name}; 1 unexpected: {UNET}odd" in text


def test_other_shape_is_named(file):
    name = "model.diffusion_model.out.0.weight"
    assert f"{name} is (31,) instead of (32,)" in message(file(lambda tensors: tensors | {name: torch.zeros(31)}))


def test_nan_in_a_weight_is_named(file):
    name = "model.diffusion_model.out.0.weight"
    assert name in message(file(lambda tensors: tensors | {name: torch.full((32,), torch.nan)}))


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_part_that_is_missing_is_named(file, prefix):
    assert prefix in message(file(without("^" + re.escape(prefix))))


UNET = "model.diffusion_model."


@pytest.mark.parametrize("description, names", [
    ("Stable Diffusion 3", [UNET + "joint_blocks.0.context_block.attn.proj.weight"]),
    ("Flux", ["double_blocks.0.img_attn.norm.key_norm.scale"]),
    ("a LoRA", ["lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight"]),
    ("a LoRA", ["unet.up_blocks.0.attentions.0.proj_in.lora_A.weight"]),
    ("a textual inversion", ["emb_params"]),
    ("a ControlNet", ["control_model.input_blocks.0.0.weight"]),
    ("a VAE alone", ["encoder.conv_in.weight", "decoder.conv_in.weight"]),
    ("a VAE alone", ["first_stage_model.encoder.conv_in.weight"]),
    ("a UNet alone, which takes the place of a model's own (--unet)", ["down_blocks.0.resnets.0.conv1.weight"]),
    ("a UNet alone", ["down_blocks.0.resnets.0.conv1.weight", "add_embedding.linear_1.weight"]),       # XL's
    ("a UNet alone", ["input_blocks.0.0.weight", "label_emb.0.0.weight"]),
    ("a text encoder alone", ["text_model.encoder.layers.0.mlp.fc1.weight"])])
def test_relatives_and_parts_are_named(tmp_path, description, names):
    save_file({name: torch.zeros(1) for name in names}, tmp_path / "x.safetensors")
    assert f"this is {description}" in message(tmp_path / "x.safetensors")


def test_something_else_altogether_is_told_so(tmp_path):
    save_file({"fc.weight": torch.zeros(1)}, tmp_path / "x.safetensors")
    assert "not a Stable Diffusion checkpoint" in message(tmp_path / "x.safetensors")


def test_the_shape_tells_inpainting_models_from_those_that_edit(file):
    name = "model.diffusion_model.input_blocks.0.0.weight"
    path = file(lambda tensors: tensors | {name: torch.arange(32 * 9 * 9, dtype=torch.float32).reshape(32, 9, 3, 3)})
    unet = loading.load(path).unet
    assert unet.config.in_channels == 9 and unet.conv_in.weight.max() == 32 * 81 - 1
    assert "edits pictures" in message(file(lambda tensors: tensors | {name: torch.zeros(32, 8, 3, 3)}))


def test_a_unet_of_another_family_than_the_text_encoder_is_told_by_both_names(file):
    def linear(tensors):
        return {name: tensor[:, :, 0, 0].contiguous() if name.endswith((".proj_in.weight", ".proj_out.weight")) and UNET in name
                else tensor for name, tensor in tensors.items()}
    assert "its UNet is of Stable Diffusion 2, but its other parts are of Stable Diffusion v1" in message(file(linear))


@pytest.mark.parametrize("name", ["decoder.conv_in.weight", "encoder.down.0.block.0.conv1.weight"])
def test_shapes_that_make_no_sense_give_one_line(file, name):
    message(file(lambda tensors: tensors | {"first_stage_model." + name: torch.zeros(())}))
    message(file(without(re.escape(name))))


@pytest.mark.parametrize("change", [lambda tensors: {}, lambda tensors: {UNET + "x": torch.zeros(1)}])
def test_nearly_empty_files_give_one_line(file, change):
    message(file(change))
