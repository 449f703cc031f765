"""SD 2, XL and its refiner: pictures beside diffusers' own, single files beside folders, what the UNet of XL is told."""
import json
import shutil
import warnings

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    UniPCMultistepScheduler,
)
from diffusers.loaders import single_file_utils
from PIL import Image
from safetensors.torch import save_file

import npdiffusion
from npdiffusion.checkpoints import original_names
from npdiffusion.errors import UserError
from npdiffusion.models import parameters
from npdiffusion.models.clip import CLIPTextModel, CLIPTextModelWithProjection
from npdiffusion.models.configs import CLIPTextConfig
from tests import references, relatives
from tests.differences import agree
from tests.pairs import NEGATIVE, PROMPT, VOCABULARY, levels
from tests.relatives import REFINER, V2, XL

SAMPLERS = {"pndm": PNDMScheduler, "ddim": DDIMScheduler, "euler": EulerDiscreteScheduler, "heun": HeunDiscreteScheduler,
            "euler_a": EulerAncestralDiscreteScheduler, "dpm++2m": DPMSolverMultistepScheduler,
            "unipc": UniPCMultistepScheduler}
ASKED = dict(steps=4, seed=7, width=48, height=32, guidance_scale=5.0)


class Both:
    """diffusers' pipeline of a family and ours, loaded from the folder that it wrote"""
    def __init__(self, name, folder):
        self.name, self.folder, self.theirs = name, folder, relatives.theirs(name)
        self.theirs.save_pretrained(folder)
        self.ours = npdiffusion.load(folder)

    def expected(self, pipeline=None, **options):
        options = {"num_inference_steps": 4, "guidance_scale": 5.0} | options
        made = (pipeline or self.theirs)(PROMPT, generator=torch.Generator().manual_seed(7), **options).images[0]
        assert levels(made).std() > 10          # a picture, not a flat field that anything would equal
        return levels(made)

    def found(self, negative=NEGATIVE, **settings):
        return levels(self.ours.generate(PROMPT, negative, **ASKED | settings)[0])


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """From a family's name to `Both`"""
    made = {}

    def get(name):
        if name not in made:
            made[name] = Both(name, tmp_path_factory.mktemp("relative") / "model")
        return made[name]
    return get


# ---- pictures

@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("name", [V2, XL])
def test_text_to_image_equals_diffusers_within_one_level(both, name, sampler):
    pair = both(name)
    scheduler = SAMPLERS[sampler].from_config(references.SCHEDULER)
    pair.theirs.scheduler, own = scheduler, pair.theirs.scheduler
    expected = pair.expected(negative_prompt=NEGATIVE, height=32, width=48)
    pair.theirs.scheduler = own
    spacing = scheduler.config.get("timestep_spacing")
    agree(name, f"from words, {sampler}, levels of 255", pair.found(sampler=sampler, timestep_spacing=spacing), expected, 1)


@pytest.mark.parametrize("name, sampler", [(V2, "pndm"), (XL, "euler")])
def test_a_folder_is_drawn_from_as_its_files_say(both, name, sampler):
    ours = both(name).ours
    assert (ours.family.name, ours.default_sampler, ours.size) == (name, sampler, (32, 32))
    assert ours.schedule.timestep_spacing == "leading" and ours.default_guidance == (5 if name == XL else 7.5)
    agree(name, "own sampler, levels of 255", both(name).found(), both(name).expected(
        negative_prompt=NEGATIVE, height=32, width=48), 1)


def test_an_empty_negative_prompt_is_zeros_in_xl_and_a_space_is_encoded(both):
    pair = both(XL)
    zeros, encoded = (pair.expected(height=32, width=48, negative_prompt=negative) for negative in (None, ""))
    assert np.abs(zeros - encoded).max() > 3
    agree(XL, "negative prompt of zeros, levels of 255", pair.found(negative=""), zeros, 1)
    agree(XL, "negative prompt of nothing, levels of 255", pair.found(negative=" "), encoded, 1)


def test_sizes_crop_and_second_prompts_are_what_diffusers_makes_of_them(both):
    told = dict(original_size=(96, 40), crops_coords_top_left=(24, 0), target_size=(16, 64), prompt_2="a dog on grass",
                negative_prompt_2="red")
    pair = both(XL)
    plain, expected = pair.found(), pair.expected(height=32, width=48, negative_prompt=NEGATIVE, **told)
    found = pair.found(**told)
    agree(XL, "sizes, crop, second prompts, levels of 255", found, expected, 1)
    assert np.abs(found - plain).max() > 3


def test_without_guidance_the_prompt_alone_is_asked_for(both):
    agree(XL, "without guidance, levels of 255", both(XL).found(guidance_scale=1.0),
          both(XL).expected(height=32, width=48, guidance_scale=1.0), 1)


def picture(width=48, height=32):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_image_to_image_of_xl_equals_diffusers(both):
    pair = both(XL)
    pipeline = StableDiffusionXLImg2ImgPipeline(**pair.theirs.components, add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    expected = pair.expected(pipeline, image=picture(), strength=0.6, negative_prompt=NEGATIVE)
    agree(XL, "from a picture, levels of 255", pair.found(init_image=picture(), strength=0.6), expected, 1)


def test_inpainting_of_xl_equals_diffusers(both):
    pair = both(XL)
    mask = Image.fromarray(np.where(np.arange(48) < 24, 0, 255).astype(np.uint8)[None].repeat(32, axis=0))
    pipeline = StableDiffusionXLInpaintPipeline(**pair.theirs.components, add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    expected = pair.expected(pipeline, image=picture(), mask_image=mask, strength=0.6, negative_prompt=NEGATIVE, height=32,
                             width=48)
    agree(XL, "inpainting, levels of 255", pair.found(init_image=picture(), mask_image=mask, strength=0.6, apply_overlay=False),
          expected, 1)


def test_the_refiner_equals_diffusers(both):
    pair = both(REFINER)
    expected = pair.expected(image=picture(), strength=0.6, negative_prompt=NEGATIVE)
    agree(REFINER, "from a picture, levels of 255", pair.found(init_image=picture(), strength=0.6), expected, 1)


def test_hires_fix_tells_xl_the_size_of_each_pass(both):
    ours = both(XL).ours
    resolved = ours.resolve(npdiffusion.settings.Request(PROMPT, width=32, height=32, hires=1.5, steps=2))
    assert [list(resolved.sizes(way.canvas.size, ours.family)[0]) for way in resolved.passes] == [
        [side, side, 0, 0, side, side] for side in (32, 48)]
    image, = ours.generate(PROMPT, width=32, height=32, hires=1.5, steps=2, seed=1)
    assert image.size == (48, 48)


# ---- prompts

def test_every_chunk_of_a_long_prompt_is_read_by_both_encoders_and_the_first_is_pooled(both):
    pair = both(XL)
    long = "a red apple " * 30
    first = "a red apple " * 25
    contexts = pair.ours.contexts([(long, None)], 4)
    (states, pooled), = contexts.at(0)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected, _, expected_pooled, _ = pair.theirs.encode_prompt(first, device="cpu", do_classifier_free_guidance=False)
    assert states.shape == (1, 154, 192)
    agree(XL, "context of a chunk", states[:, :77], expected, 1e-5, relative=True)
    agree(XL, "pooled vector", pooled, expected_pooled, 1e-5, relative=True)


def test_clip_skip_counts_from_the_end_in_xl(both):
    pair = both(XL)
    with torch.no_grad():
        expected, *_ = pair.theirs.encode_prompt(PROMPT, device="cpu", do_classifier_free_guidance=False, clip_skip=1)
    states = pair.ours.encode_prompt(PROMPT, clip_skip=2)
    agree(XL, "context with clip skip", states, expected, 1e-5, relative=True)
    assert np.array_equal(pair.ours.encode_prompt(PROMPT, clip_skip=1), pair.ours.encode_prompt(PROMPT))


def test_states_and_pooled_vectors_from_outside_are_those_of_diffusers(both):
    pair = both(XL)
    with torch.no_grad():
        found = pair.theirs.encode_prompt(PROMPT, negative_prompt=NEGATIVE, device="cpu")
    names = "prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds"
    theirs = dict(zip(names, found))
    made = pair.theirs(**theirs, generator=torch.Generator().manual_seed(7), num_inference_steps=4, height=32, width=48)
    ours = {name: tensor.numpy() for name, tensor in theirs.items()}
    asked = {key: value for key, value in ASKED.items() if key != "guidance_scale"}
    image, = pair.ours.generate(**ours, **asked)
    agree(XL, "states and pooled vectors from outside, levels of 255", levels(image), levels(made.images[0]), 1)
    for name in "negative_prompt_embeds", "negative_pooled_prompt_embeds":
        del theirs[name], ours[name]
    made = pair.theirs(**theirs, generator=torch.Generator().manual_seed(7), num_inference_steps=4, height=32, width=48)
    image, = pair.ours.generate(**ours, **asked)
    agree(XL, "the same beside zeros, levels of 255", levels(image), levels(made.images[0]), 1)


@pytest.mark.parametrize("name, given, told", [
    (XL, dict(prompt_embeds=(1, 77, 192)), "reads a pooled vector beside them: give pooled_prompt_embeds, too"),
    (XL, dict(pooled_prompt_embeds=(1, 48)), "pooled_prompt_embeds: they go with prompt_embeds"),
    (XL, dict(prompt_embeds=(2, 77, 192), pooled_prompt_embeds=(1, 48)), r"must be \(2, 48\) of float32"),
    (V2, dict(prompt_embeds=(1, 77, 128), pooled_prompt_embeds=(1, 48)), "with XL alone")])
def test_pooled_vectors_that_do_not_fit_are_one_line(both, name, given, told):
    with pytest.raises(UserError, match=told):
        both(name).ours.generate(steps=1, **{key: np.zeros(shape, np.float32) for key, shape in given.items()})


def test_settings_without_effect_elsewhere_are_told(both):
    resolved = both(V2).ours.resolve(npdiffusion.settings.Request(PROMPT, target_size=(8, 8), steps=1))
    assert [*resolved.notes(npdiffusion.settings.IN_PYTHON)] == ["target_size has no effect with Stable Diffusion 2"]


# ---- single files

@pytest.mark.parametrize("name", [V2, XL, REFINER])
def test_a_single_file_gives_the_picture_of_its_folder(both, name, tmp_path):
    pair = both(name)
    save_file(relatives.single_file(pair.theirs, name), tmp_path / "model.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("error")                     # nothing is left over
        single = npdiffusion.load(tmp_path / "model.safetensors", tokenizer=VOCABULARY)
    assert single.family.name == name
    found, = single.generate(PROMPT, NEGATIVE, **ASKED)
    assert np.array_equal(levels(found), pair.found())


def test_open_clips_names_are_those_that_diffusers_converts(both):
    model = both(XL).theirs.text_encoder_2
    tensors = relatives.open_clip({key.removeprefix("text_model."): value for key, value in model.state_dict().items()}, False)
    converted = single_file_utils.convert_open_clip_checkpoint(model, dict(tensors), prefix="")
    converted = {f"text_model.{key}" if not key.startswith("text_") else key: value for key, value in converted.items()}
    state = {key: value for key, value in model.state_dict().items() if not key.endswith("position_ids")}
    assert all(torch.equal(converted[key], value) for key, value in state.items())


class Shape:
    """A tensor of which only the shape is known."""
    def __init__(self, *shape):
        self.shape = shape

    def rows(self, start, stop):
        return Shape(stop - start, *self.shape[1:])


@pytest.mark.parametrize("width, layers, leave, model, count", [
    (1024, 24, 1, CLIPTextModel, 372), (1280, 32, 0, CLIPTextModelWithProjection, 517)], ids=["SD 2", "XL"])
def test_every_tensor_of_a_published_text_encoder_is_used_once(width, layers, leave, model, count, monkeypatch):
    monkeypatch.setattr(original_names, "Transposed", lambda tensor: Shape(*tensor.shape[::-1]))
    block = {"attn.in_proj_weight": (3 * width, width), "attn.in_proj_bias": (3 * width,),
             "attn.out_proj.weight": (width, width), "attn.out_proj.bias": (width,),
             "mlp.c_fc.weight": (4 * width, width), "mlp.c_fc.bias": (4 * width,),
             "mlp.c_proj.weight": (width, 4 * width), "mlp.c_proj.bias": (width,),
             **{f"ln_{n}.{kind}": (width,) for n in (1, 2) for kind in ("weight", "bias")}}
    file = {"token_embedding.weight": (49408, width), "positional_embedding": (77, width), "ln_final.weight": (width,),
            "ln_final.bias": (width,), "text_projection": (width, width), "logit_scale": (),
            **{f"transformer.resblocks.{i}.{name}": shape for i in range(layers) for name, shape in block.items()}}
    assert len(file) == 12 * layers + 6
    arranged = original_names.open_clip({f"x.{name}": Shape(*shape) for name, shape in file.items()}, leave)
    arranged.pop("x.logit_scale")
    sizes = original_names.open_clip_settings({name.removeprefix("x."): tensor.shape for name, tensor in arranged.items()})
    made = model(CLIPTextConfig.from_dict(sizes))
    used = parameters.match(made, arranged, "file", original_names.open_clip_name(None, arranged, "x."))
    assert len(used) == len(arranged) == count and {*map(id, used.values())} == {*map(id, arranged.values())}


def test_a_single_file_of_sd_2_is_taken_for_v_where_one_bias_is_spread_widely(both, tmp_path):
    from npdiffusion.checkpoints import families
    name = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"
    first = {"model.diffusion_model.input_blocks.0.0.weight": references.Tensor(torch.zeros(320, 4, 3, 3))}
    for spread, kind in (0.1, "v_prediction"), (0.08, None):
        bias = spread * torch.tensor([-1.0, 1.0]).repeat(160)
        decided = families.predicts_v(first | {name: references.Tensor(bias)})
        assert decided.get("scheduler", {}).get("prediction_type") == kind
        assert decided.get("unet", {}) == ({"sample_size": 96} if kind else {})


def test_prediction_type_that_is_asked_for_goes_first(both):
    pair = both(V2)
    pair.theirs.scheduler = DDIMScheduler.from_config(references.SCHEDULER, prediction_type="v_prediction")
    expected = pair.expected(negative_prompt=NEGATIVE, height=32, width=48)
    pair.theirs.scheduler = PNDMScheduler(**relatives.SCHEDULER)
    agree(V2, "v, levels of 255", pair.found(sampler="ddim", prediction_type="v_prediction"), expected, 1)


# ---- turbo

def test_turbo_draws_in_one_step_without_guidance(both, tmp_path):
    """SD-Turbo: SD 2 with Euler steps of trailing spacing"""
    pair = both(V2)
    folder = tmp_path / "turbo"
    own, pair.theirs.scheduler = pair.theirs.scheduler, EulerDiscreteScheduler(**relatives.BETAS, timestep_spacing="trailing")
    pair.theirs.save_pretrained(folder)
    expected = pair.expected(num_inference_steps=1, guidance_scale=0.0)
    pair.theirs.scheduler = own
    turbo = npdiffusion.load(folder)
    assert turbo.defaults()[:2] == (4, 1.0)
    agree(V2, "turbo, one step, levels of 255", levels(turbo.generate(PROMPT, steps=1, seed=7)[0]), expected, 1)


# ---- LoRA

# kohya's names, of the original blocks and both text encoders, and the layers of diffusers' pipeline
KOHYA = {"unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q": "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
         "unet_input_blocks_5_1_transformer_blocks_1_attn2_to_k": "down_blocks.1.attentions.1.transformer_blocks.1.attn2.to_k",
         "unet_middle_block_1_transformer_blocks_1_ff_net_2": "mid_block.attentions.0.transformer_blocks.1.ff.net.2",
         "unet_output_blocks_1_1_proj_in": "up_blocks.0.attentions.1.proj_in",
         "te1_text_model_encoder_layers_0_self_attn_q_proj": "encoder.layers.0.self_attn.q_proj",
         "te2_text_model_encoder_layers_1_mlp_fc1": "encoder.layers.1.mlp.fc1"}
PARTS = {"unet": "unet", "te1": "text_encoder", "te2": "text_encoder_2"}


def layer_of(pipeline, name):
    """The layer of diffusers' pipeline that kohya calls so"""
    model = getattr(pipeline, PARTS[name.partition("_")[0]])
    return (getattr(model, "text_model", model)).get_submodule(KOHYA[name])


def test_a_lora_of_xl_in_kohyas_names_changes_the_picture_as_weights_changed_by_hand(both, tmp_path):
    pair, generator, file = both(XL), torch.Generator().manual_seed(0), {}
    plain, weights = pair.found(), {name: layer_of(pair.theirs, name).weight for name in KOHYA}
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    with torch.no_grad():
        for name, weight in weights.items():
            up, down = (torch.randn(*shape, generator=generator) / 4 for shape in ((weight.shape[0], 4), (4, weight.shape[1])))
            file |= {f"lora_{name}.lora_up.weight": up, f"lora_{name}.lora_down.weight": down}
            weight += up @ down
        save_file(file, tmp_path / "ink.safetensors")
        expected = pair.expected(height=32, width=48, negative_prompt=NEGATIVE)
        for name, weight in weights.items():
            weight.copy_(before[name])
    with warnings.catch_warnings():
        warnings.simplefilter("error")                     # no key is left over
        pair.ours.load_lora_weights(tmp_path / "ink.safetensors")
    found = pair.found()
    pair.ours.unload_lora_weights()
    agree(XL, "with a LoRA, levels of 255", found, expected, 1)
    assert np.abs(found - plain).max() > 5 and np.array_equal(pair.found(), plain)


# ---- a UNet by itself

def test_a_unet_in_a_file_takes_the_place_of_the_models_own(both, tmp_path):
    pair = both(XL)
    other = references.torch_unet(seed=3, **relatives.UNETS[XL])
    save_file(other.state_dict(), tmp_path / "lightning_unet.safetensors")
    whole = relatives.single_file(pair.theirs, XL) | {
        name: tensor.clone() for name, tensor in zip(
            (key for key in relatives.single_file(pair.theirs, XL) if key.startswith("model.diffusion_model.")),
            other.state_dict().values(), strict=True)}
    save_file({key.removeprefix("model.diffusion_model."): tensor for key, tensor in whole.items()
               if key.startswith("model.diffusion_model.")}, tmp_path / "original.safetensors")
    found = [npdiffusion.load(pair.folder, unet=tmp_path / f"{name}.safetensors").generate(PROMPT, steps=1, seed=1)[0]
             for name in ("lightning_unet", "original")]
    own, = pair.ours.generate(PROMPT, steps=1, seed=1)
    assert np.array_equal(levels(found[0]), levels(found[1])) and not np.array_equal(levels(found[0]), levels(own))


def test_a_unet_of_another_family_is_named_with_both(both, tmp_path):
    save_file(references.torch_unet(**relatives.UNETS[V2]).state_dict(), tmp_path / "unet.safetensors")
    with pytest.raises(UserError, match="this UNet is of another model .its context is 128 wide., but the model is of another "
                       "family, Stable Diffusion XL"):
        npdiffusion.load(both(XL).folder, unet=tmp_path / "unet.safetensors")


# ---- what doesn't go together

@pytest.mark.parametrize("name, other, told", [
    (XL, V2, "of Stable Diffusion v1 or 2 .its config.json has the factor 0.18215., .* another family, Stable Diffusion XL"),
    (V2, XL, "of Stable Diffusion XL .its config.json has the factor 0.13025., .* another family, Stable Diffusion 2")])
def test_a_vae_of_another_family_is_named_with_both_where_its_folder_tells(both, name, other, told):
    with pytest.raises(UserError, match=told):
        npdiffusion.load(both(name).folder, vae=both(other).folder)


def test_a_file_of_a_vae_takes_the_models_own_factor(both, tmp_path):
    shutil.copy(both(V2).folder / "vae/diffusion_pytorch_model.safetensors", tmp_path / "vae.safetensors")
    mixed = npdiffusion.load(both(XL).folder, vae=tmp_path / "vae.safetensors")
    assert (mixed.vae.config.scaling_factor, both(V2).ours.vae.config.scaling_factor) == (0.13025, 0.18215)


def test_a_lora_of_another_family_is_named_with_both(both, tmp_path):
    key = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    save_file({f"{key}.lora_down.weight": torch.zeros(4, 768), f"{key}.lora_up.weight": torch.zeros(64, 4)},
              tmp_path / "ink.safetensors")
    with pytest.raises(UserError, match="made for Stable Diffusion v1 .*, but the model is of .*, Stable Diffusion 2"):
        both(V2).ours.load_lora_weights(tmp_path / "ink.safetensors")


@pytest.mark.parametrize("channels, told", [(5, "reads a depth map"), (8, "edits pictures")])
def test_variants_that_are_not_here_are_named(both, channels, told, tmp_path):
    folder = shutil.copytree(both(V2).folder, tmp_path / "model")
    config = json.loads((folder / "unet/config.json").read_text())
    (folder / "unet/config.json").write_text(json.dumps(config | {"in_channels": channels}))
    with pytest.raises(UserError, match=told):
        npdiffusion.load(folder)
