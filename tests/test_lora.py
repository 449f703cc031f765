"""Adapters against diffusers and PEFT: every kind, every spelling, several at once; taken out again, bit for bit."""
import copy
import hashlib
import re
import shutil
import warnings

import numpy as np
import peft
import pytest
import torch
from diffusers import DDIMScheduler, LCMScheduler, StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

import npdiffusion
from npdiffusion import kernels
from npdiffusion.adapters import folder as adapter_folder
from npdiffusion.adapters import names, tags
from npdiffusion.adapters.tags import Strength
from npdiffusion.checkpoints import original_names
from npdiffusion.checkpoints.families import FAMILIES
from npdiffusion.command import cli
from npdiffusion.kernels import reference
from npdiffusion.models import parameters
from npdiffusion.models.configs import UNetConfig
from npdiffusion.models.unet import UNet2DConditionModel
from tests import folders, loras, references
from tests.differences import agree
from tests.errors import message_of
from tests.single_files import original

PARTS = ("unet", "text_encoder")
LINEAR = r".*(attn\d|self_attn)\.(to_q|to_k|to_v|to_out\.0|q_proj|v_proj)"
CONVOLUTIONS = r".*(conv1|conv2|conv_shortcut|proj_in|attn2\.to_q)"
CROSS = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"

pytestmark = pytest.mark.usefixtures("on_numpy")


@pytest.fixture
def ours(written):
    return npdiffusion.load(written)


@pytest.fixture
def file(tmp_path):
    """Writes tensors to a LoRA file of some name."""
    return lambda tensors, name="ink", **metadata: loras.write(tmp_path / f"{name}.safetensors", tensors, metadata)


@pytest.fixture
def theirs(models):
    """diffusers' pipeline of the same models, which may be changed."""
    models = copy.deepcopy(models)
    return StableDiffusionPipeline(**models, tokenizer=None, scheduler=DDIMScheduler(clip_sample=False, steps_offset=1),
                                   safety_checker=None, feature_extractor=None, requires_safety_checker=False)


@torch.no_grad()
def their_results(models):
    x, context, _, ids = folders.inputs()
    unet = models["unet"](references.channels_first(x), 500, torch.from_numpy(context)).sample
    return {"unet": references.channels_last(unet),
            "text_encoder": models["text_encoder"](torch.from_numpy(ids)).last_hidden_state.numpy()}


def our_results(pipeline):
    x, context, _, ids = folders.inputs()
    return {"unet": pipeline.unet(x, 500, context), "text_encoder": pipeline.text_encoder(ids)}


@pytest.fixture(scope="module")
def same_results(models):
    """Asserts that the models give what diffusers' do, and that this is not what they gave without adapters."""
    before = their_results(models)

    def check(what, ours, theirs, parts=PARTS):
        expected, found = their_results({"unet": theirs.unet, "text_encoder": theirs.text_encoder}), our_results(ours)
        for part in parts:
            assert np.abs(expected[part] - before[part]).max() > 0.02
            agree("LoRA", f"{what}: {part}", found[part], expected[part], 1e-5, relative=True)
    return check


def weights(ours):
    """{parameter: its memory, of int8 in plain NumPy its bytes} of the models that adapters change"""
    found = {}
    for part in PARTS:
        for name, owner, attribute in ours.adapters.parts[part].parameters.values():
            array = getattr(owner, attribute)
            found[f"{part}.{name}"] = getattr(array, "panels", getattr(array, "numbers", array)).copy()
    return found


def equal(found, others):
    return found.keys() == others.keys() and all(np.array_equal(found[name], others[name]) for name in found)


# --- names -----------------------------------------------------------------------------------------------------------

def original_name(part, name):
    """kohya's spelling with the original names of a UNet's blocks."""
    if part == "unet":
        spell = original_names.unet_name(UNetConfig.from_dict(folders.UNET), "model.diffusion_model.")
        name = spell(f"{name}.weight").removeprefix("model.diffusion_model.").removesuffix(".weight")
    return loras.kohya_name(part, name)


@pytest.mark.parametrize("write", [
    loras.kohya, loras.peft, loras.old_diffusers, lambda pairs: loras.kohya(pairs, alpha=None),
    lambda pairs: loras.kohya(pairs, spell=original_name)],
    ids=["kohya", "PEFT", "old diffusers", "kohya without alpha", "original names"])
def test_a_lora_does_what_it_does_in_diffusers(write, ours, theirs, models, file, same_results, request):
    tensors = write(loras.pairs(models))
    theirs.load_lora_weights(dict(tensors), unet_config=theirs.unet.config)
    assert ours.load_lora_weights(file(tensors)) == "ink"
    same_results(request.node.callspec.id, ours, theirs)


def test_all_layers_as_in_lcm_lora_with_merged_weights(ours, theirs, models, file, same_results):
    tensors = loras.kohya(loras.pairs(models, lambda name, layer: name != "conv_in", rank=64), alpha=8.0)
    theirs.load_lora_weights(dict(tensors))
    ours.load_lora_weights(file(tensors))
    same_results("linear and convolution", ours, theirs)
    theirs.fuse_lora(components=list(PARTS))
    theirs.unload_lora_weights()
    found = weights(ours)
    for part in PARTS:
        expected = getattr(theirs, part).state_dict()
        agree("LoRA", f"merged weights: {part}", np.concatenate([found[f"{part}.{name}"].ravel() for name in expected]),
              torch.cat([tensor.ravel() for tensor in expected.values()]), 1e-5)


@pytest.mark.parametrize("spelling, layer", [
    ("lora_unet_down_blocks_0_downsamplers_0_conv", "down_blocks.0.downsamplers.0.conv"),
    ("lora_unet_mid_block_resnets_1_time_emb_proj", "mid_block.resnets.1.time_emb_proj"),
    ("lora_unet_input_blocks_3_0_op", "down_blocks.0.downsamplers.0.conv"),
    ("lora_unet_middle_block_1_proj_in", "mid_block.attentions.0.proj_in"),
    ("lora_unet_output_blocks_5_2_conv", "up_blocks.1.upsamplers.0.conv"),
    ("lora_unet_output_blocks_3_1_transformer_blocks_0_ff_net_0_proj",
     "up_blocks.1.attentions.0.transformer_blocks.0.ff.net.0.proj"),
    ("lora_unet_input_blocks_4_0_skip_connection", "down_blocks.1.resnets.0.conv_shortcut"),
    ("lora_unet_time_embed_2", "time_embedding.linear_2"), ("lora_unet_out_2", "conv_out"),
    ("diffusion_model.middle_block.0.emb_layers.1", "mid_block.resnets.0.time_emb_proj"),
    ("up_blocks.3.attentions.2.transformer_blocks.0.attn2.to_out",
     "up_blocks.3.attentions.2.transformer_blocks.0.attn2.to_out.0")])
def test_names_of_v1(spelling, layer, names_of_v1):
    assert names_of_v1[spelling] == ("unet", layer)


@pytest.fixture(scope="module")
def names_of_v1():
    model = UNet2DConditionModel(UNetConfig())
    layers = [name.removesuffix(".weight") for name in parameters.shapes(model) if name.endswith(".weight")]
    return names.spellings({"unet": layers, "text_encoder": []}, model.config, FAMILIES[0])


# --- kinds -----------------------------------------------------------------------------------------------------------

def randomised(model, size=0.25):
    """Give what PEFT has added to a model random numbers: it starts with zeros, which change nothing."""
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(mark in name for mark in ("lora_A", "lora_B", "hada_", "lokr_")):
                parameter.copy_(size * torch.randn(parameter.shape, generator=random))
            elif "lora_magnitude" in name:
                parameter.mul_(1 + 0.3 * torch.rand(parameter.shape, generator=random))
    return model


PATTERNS = (r"down_blocks\.\d+\..*\.to_q", "(to_q|to_v)", "attn1.to_q", r".*attn1\.to_q", "q",
            r"^down_blocks\.0\.attentions\.0\.transformer_blocks\.0\.attn1\.to_q")


@pytest.mark.parametrize("config", [
    peft.LoHaConfig(r=3, alpha=5, target_modules=LINEAR, init_weights=False),
    peft.LoHaConfig(r=3, alpha=5, target_modules=CONVOLUTIONS, alpha_pattern={"mid_block.resnets.0.conv1": 9}),
    peft.LoHaConfig(r=3, alpha=5, target_modules=CONVOLUTIONS, use_effective_conv2d=True),
    peft.LoKrConfig(r=3, alpha=5, target_modules=LINEAR),
    peft.LoKrConfig(r=2, alpha=5, target_modules=CONVOLUTIONS, decompose_both=True, decompose_factor=4),
    peft.LoKrConfig(r=2, alpha=5, target_modules=CONVOLUTIONS, use_effective_conv2d=True),
    peft.LoKrConfig(r=64, alpha=96, target_modules=LINEAR),
    peft.LoraConfig(r=4, lora_alpha=6, target_modules=CONVOLUTIONS, rank_pattern={"conv1": 2}, use_rslora=True),
    peft.LoraConfig(r=4, lora_alpha=6, target_modules=CONVOLUTIONS, use_dora=True),
    peft.LoraConfig(r=4, lora_alpha=6, target_modules=r".*(conv1|conv2|proj_in)", lora_bias=True),
    *(peft.LoraConfig(r=4, lora_alpha=6, target_modules=LINEAR, alpha_pattern={pattern: 3, "to_.": 1})
      for pattern in PATTERNS)],
    ids=["LoHa", "LoHa of convolutions", "LoHa, Tucker", "LoKr", "LoKr of convolutions", "LoKr, Tucker",
         "LoKr of whole matrices", "rank-stabilised LoRA", "DoRA", "LoRA with biases", *PATTERNS])
def test_what_peft_writes(config, ours, theirs, tmp_path, same_results, request):
    model = randomised(peft.get_peft_model(theirs.unet, config))
    model.save_pretrained(tmp_path / "adapter")
    ours.load_lora_weights(tmp_path / "adapter")
    theirs.unet = model.eval()
    same_results(request.node.callspec.id, ours, theirs, ["unet"])


def from_peft(path, alpha):
    """What PEFT saved of a UNet, renamed as LyCORIS and kohya call it, each layer with its own alpha."""
    tensors = {}
    for key, tensor in load_file(path / "adapter_model.safetensors").items():
        layer, _, role = key.removeprefix("base_model.model.").rpartition(".")
        layer = loras.kohya_name("unet", layer)
        tensors[f"{layer}.{role}"], tensors[f"{layer}.alpha"] = tensor, torch.tensor(alpha)
    return tensors


@pytest.mark.parametrize("config", [
    peft.LoHaConfig(r=3, alpha=5, target_modules=CONVOLUTIONS, use_effective_conv2d=True),
    peft.LoKrConfig(r=2, alpha=5, target_modules=CONVOLUTIONS, decompose_both=True, decompose_factor=4)],
    ids=["LoHa", "LoKr"])
def test_the_same_in_the_names_of_lycoris(config, ours, theirs, tmp_path, file, same_results, request):
    model = randomised(peft.get_peft_model(theirs.unet, config))
    model.save_pretrained(tmp_path / "adapter")
    ours.load_lora_weights(file(from_peft(tmp_path / "adapter", alpha=5)))          # an integer, as some files have it
    theirs.unet = model.eval()
    same_results(f"{request.node.callspec.id} in the names of LyCORIS", ours, theirs, ["unet"])


def test_alpha_in_the_header_as_diffusers_writes_it(ours, theirs, tmp_path, same_results):
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=LINEAR,
                             alpha_pattern={"mid_block.attentions.0.transformer_blocks.0.attn1.to_q": 2.0})
    theirs.unet.add_adapter(config)
    randomised(theirs.unet, 0.15)
    StableDiffusionPipeline.save_lora_weights(
        tmp_path, unet_lora_layers=peft.get_peft_model_state_dict(theirs.unet),
        unet_lora_adapter_metadata=theirs.unet.peft_config["default"].to_dict())
    assert ours.load_lora_weights(tmp_path) == "pytorch_lora_weights"
    same_results("alpha in the header", ours, theirs, ["unet"])


def test_a_core_between_two_convolutions_is_three_convolutions(ours, models, file):
    """As kohya's trainer runs a LoRA with lora_mid: 1×1 down, k×k in the middle, 1×1 up."""
    random = torch.Generator().manual_seed(0)
    down, mid, up = (torch.randn(shape, generator=random) for shape in ((3, 32, 1, 1), (5, 3, 3, 3), (32, 5, 1, 1)))
    name = "down_blocks.0.resnets.0.conv1"
    key = loras.kohya_name("unet", name)
    ours.load_lora_weights(file({f"{key}.lora_down.weight": down, f"{key}.lora_mid.weight": mid,
                                 f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(1.5)}), adapter_weight=0.5)
    layer, x = models["unet"].get_submodule(name), torch.randn(1, 32, 8, 8, generator=random)
    f = torch.nn.functional
    added = f.conv2d(f.conv2d(f.conv2d(x, down), mid, padding=1), up) * 0.5 * (1.5 / 3)
    with torch.no_grad():
        expected = references.channels_last(layer(x) + added)
    agree("LoRA", "lora_mid", ours.unet.down_blocks[0].resnets[0].conv1(references.channels_last(x)), expected, 1e-5,
          relative=True)


@pytest.mark.parametrize("shape", [(1, 32, 1, 1), (64, 1, 1, 1)], ids=["of inputs", "of outputs"])
def test_dora_scale_as_in_a1111(shape, ours, models, file):
    """A1111's apply_weight_decompose, in torch; the length of each output (LyCORIS' wd_on_out) is PEFT's DoRA."""
    random = torch.Generator().manual_seed(0)
    layer = "down_blocks.1.resnets.0.conv1"
    down, up = torch.randn(4, 32, 3, 3, generator=random), torch.randn(64, 4, 1, 1, generator=random)
    scale = 1 + torch.rand(shape, generator=random)
    key = loras.kohya_name("unet", layer)
    ours.load_lora_weights(file({f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up,
                                 f"{key}.dora_scale": scale, f"{key}.alpha": torch.tensor(2.0)}), adapter_weight=0.7)
    weight = models["unet"].get_submodule(layer).weight.detach()
    merged = weight + 2 / 4 * (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
    axes = (0, 2, 3) if shape[0] == 1 else (1, 2, 3)
    norm = torch.linalg.vector_norm(merged, dim=axes, keepdim=True)
    expected = weight + 0.7 * (merged * (scale / norm) - weight)
    agree("LoRA", f"dora_scale {shape}", weights(ours)[f"unet.{layer}.weight"], expected, 1e-5)


def test_differences_of_whole_parameters_and_norms(ours, models, file):
    changed = {"unet.down_blocks.0.resnets.0.conv1": ("diff", "diff_b"),
               "unet.mid_block.attentions.0.norm": ("w_norm", "b_norm"),
               "text_encoder.encoder.layers.0.layer_norm1": ("w_norm", "b_norm")}
    tensors, expected, random = {}, {}, torch.Generator().manual_seed(0)
    for name, roles in changed.items():
        part, _, layer = name.partition(".")
        for role, attribute in zip(roles, ("weight", "bias")):
            parameter = getattr(models[part].get_submodule(layer), attribute).detach()
            difference = torch.randn(parameter.shape, generator=random)
            tensors[f"{loras.kohya_name(part, layer)}.{role}"] = difference
            expected[f"{name}.{attribute}"] = parameter + 0.5 * difference
    ours.load_lora_weights(file(tensors), adapter_weight=0.5)
    for name, tensor in expected.items():
        agree("LoRA", "whole parameters", weights(ours)[name], tensor, 1e-6)


# --- several, and none again -----------------------------------------------------------------------------------------

@pytest.fixture
def two(models, file):
    """Files of two LoRAs with layers in common."""
    others = loras.pairs(models, lambda name, layer: name.endswith(("to_q", "conv1", "q_proj", "fc1")), seed=2)
    return file(loras.kohya(loras.pairs(models, seed=1)), "ink"), file(loras.peft(others), "oil")


def test_several_with_strengths(two, ours, theirs, same_results):
    for path in two:
        ours.load_lora_weights(path)
        theirs.load_lora_weights(path, adapter_name=path.stem)
    for strengths in (0.7, -0.4), ({"unet": 0.3, "text_encoder": 1.5}, 0.6):
        ours.set_adapters(["ink", "oil"], list(strengths))
        theirs.set_adapters(["ink", "oil"], list(strengths))
        same_results("two at once", ours, theirs)


def test_tags_do_what_loading_by_name_does(two, ours, written):
    ours.load_lora_weights(two[0], adapter_weight=0.5)
    ours.load_lora_weights(two[1], adapter_weight={"unet": -1.5, "text_encoder": 2})
    tagged = npdiffusion.load(written, lora_dir=two[0].parent)
    assert tagged.adapters.follow("a <lora:ink:0.5>cat<lora:oil:2:-1.5>") == "a cat"
    assert equal(weights(tagged), weights(ours))


@pytest.mark.parametrize("dtype", kernels.DTYPES)
def test_weights_are_bit_for_bit_the_old_ones_afterwards(dtype, two, written, each_backend):
    ours = npdiffusion.load(written, dtype=dtype)
    before = weights(ours)
    ours.load_lora_weights(two[0])
    ours.load_lora_weights(two[1], "second", 0.3)
    both = weights(ours)
    assert not equal(both, before)
    ours.set_adapters("second", 0.3)
    assert not equal(weights(ours), both)
    ours.set_adapters(["second", "ink"], [0.3, 1])
    assert equal(weights(ours), both)
    ours.set_adapters([])
    assert equal(weights(ours), before) and not any(any(strength) for _, strength in ours.adapters.loaded.values())
    ours.set_adapters("ink")
    ours.unload_lora_weights()
    assert equal(weights(ours), before) and ours.adapters.loaded == {}


def test_merged_in_float32_before_weights_are_rounded(two, written):
    exact, rounded = npdiffusion.load(written), npdiffusion.load(written, dtype="bfloat16")
    for ours in exact, rounded:
        ours.load_lora_weights(two[0])
    exact, rounded = weights(exact), weights(rounded)
    halves = [name for name, array in rounded.items() if array.dtype == np.uint16]
    assert "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight" in halves
    for name, array in rounded.items():
        assert np.array_equal(array, reference.to_bfloat16(exact[name]) if name in halves else exact[name])


def test_each_picture_of_a_pipeline_has_the_adapters_of_its_own_prompt(two, written):
    """Keys and values of an earlier prompt's weights would show here."""
    settings = dict(steps=2, seed=1, sampler="euler")
    ours = npdiffusion.load(written, lora_dir=two[0].parent)
    prompts = "apple", "apple<lora:ink:1>", "apple <lora:oil:0.5><lora:ink:0.5>", "apple<lora:ink>", "apple"
    pictures = [np.asarray(ours.generate(prompt, **settings)[0]) for prompt in prompts]
    alone = [np.asarray(npdiffusion.load(written, lora_dir=two[0].parent).generate(prompt, **settings)[0])
             for prompt in prompts[:3]]
    for picture, expected in zip(pictures, [*alone, alone[1], alone[0]]):
        assert np.array_equal(picture, expected)
    assert not any(np.array_equal(a, b) for a, b in ((alone[0], alone[1]), (alone[1], alone[2]), (alone[0], alone[2])))


def test_four_steps_of_lcm_with_its_lora(models, ours, theirs, file):
    tensors = loras.kohya(loras.pairs(models, lambda name, layer: name != "conv_in", rank=64), alpha=8.0)
    path, latents = file({key: tensor for key, tensor in tensors.items() if "unet" in key}), []
    ours.load_lora_weights(path)
    ours.generate("apple", sampler="lcm", steps=4, guidance_scale=1, seed=5,
                  callback=lambda step, steps, x: latents.append(x))
    theirs.load_lora_weights(path)
    theirs.scheduler = LCMScheduler.from_config(folders.SCHEDULER)
    context = torch.from_numpy(ours.encode_prompt("apple"))
    expected = theirs(prompt_embeds=context, num_inference_steps=4, guidance_scale=1, height=16, width=16,
                      generator=torch.Generator().manual_seed(5), output_type="latent").images
    assert len(latents) == 4
    agree("LoRA", "lcm, 4 steps", latents[-1], references.channels_last(expected), 1e-4)


def test_unchanged_adapters_cost_nothing(two, ours, monkeypatch):
    ours.load_lora_weights(two[0])
    filled = []
    monkeypatch.setattr(parameters, "fill", lambda *arguments, **options: filled.append(arguments))
    ours.adapters.follow("apple")
    ours.set_adapters("ink")
    assert filled == []
    ours.set_adapters("ink", 0.5)
    assert filled


def test_a_model_in_one_file(models, theirs, tmp_path, two, same_results):
    """Whose UNet is named otherwise, and whose text encoder has a prefix."""
    tensors = original(models)
    path = loras.write(tmp_path / "model.safetensors", tensors)
    folders.write_tokenizer(tmp_path / "tokenizer")
    ours = npdiffusion.load(path)
    ours.load_lora_weights(two[1])
    theirs.load_lora_weights(two[1])
    same_results("a model in one file", ours, theirs)


# --- what is refused -------------------------------------------------------------------------------------------------

KEY = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"          # (64, 128) in the tiny model


def pair(down=(4, 128), up=(64, 4), key=KEY, **more):
    return {f"{key}.lora_down.weight": torch.ones(down), f"{key}.lora_up.weight": torch.ones(up),
            **{f"{key}.{role}": torch.as_tensor(tensor) for role, tensor in more.items()}}


@pytest.mark.parametrize("tensors, expected", [
    (pair((4, 2048)), "made for Stable Diffusion XL (its context is 2048 wide, not 128)"),
    (pair((4, 1024)), "made for Stable Diffusion 2 (its context is 1024 wide, not 128)"),
    (pair() | pair(key="lora_te2_text_model_encoder_layers_0_mlp_fc1"), "made for Stable Diffusion XL, but the model is of"),
    (pair(key="lora_unet_double_blocks_0_img_attn_proj"), "made for Flux"),
    (pair(key="transformer.single_transformer_blocks.0.attn.to_k"), "made for Flux"),
    (pair(key="transformer.transformer_blocks.0.attn.to_k"), "made for Stable Diffusion 3"),
    (pair(key="down_blocks.0.motion_modules.0.to_k"), "made for AnimateDiff"),
    (pair(up=(48, 4)), "to_k': up is (48, 4) where (64, 4) would fit: it is for a model of other sizes"),
    (pair(up=(64, 5)), "up is (64, 5) where (64, 4) would fit"),
    (pair((5000, 128), (64, 5000)), "down is (5000, 128); ranks from 1 to 4096 are possible"),
    (pair((0, 128), (64, 0)), "down is (0, 128); ranks from 1 to 4096 are possible"),
    (pair(alpha=np.nan), "alpha is not a finite number"), (pair(alpha=[1.0, 2.0]), "alpha is (2,) of type F32"),
    (pair(dora_scale=torch.ones(3)), "dora_scale is (3,), but the layer has 64 outputs and 128 inputs"),
    (pair(diff=torch.ones(64, 128)), "has two kinds of changes at once"),
    (pair(diff_b=torch.ones(64)), "has a change of the bias, but the layer has no bias"),
    ({f"{KEY}.lora_down.weight": torch.ones(4, 128)}, "up is missing"),
    ({f"{KEY}.alpha": torch.ones(1)}, "has only alpha"),
    (pair() | {f"unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k.lora_{letter}.weight": torch.ones(shape)
               for letter, shape in (("A", (4, 128)), ("B", (64, 4)))}, "it has down of unet.mid_block"),
    ({f"{KEY}.lokr_w1": torch.ones(3, 4), f"{KEY}.lokr_w2": torch.ones(2, 2)},
     "lokr_w1 is (3, 4), which does not divide"),
    *(({f"{KEY}.{name}": torch.ones(4), f"{KEY}.alpha": torch.ones(1)}, "an adapter of another kind than LoRA, LoHa, LoKr and")
      for name in ("oft_blocks", "oft_diag", "a1.weight", "on_input", "vera_lambda_b", "oft_R.weight")),
    ({"a.oft_blocks": torch.ones(4)}, "an adapter of another kind than LoRA, LoHa, LoKr and DoRA"),
    ({"emb_params": torch.ones(1, 128)}, "a textual inversion, which is used by its name in the prompt"),
    ({"first_stage_model.x": torch.ones(1)}, "a complete model and no LoRA"),
    ({"x": torch.ones(1), "y\n": torch.ones(1)}, "none of its 2 tensors belongs to a layer: x, 'y\\n'")])
def test_files_that_do_not_fit(tensors, expected, ours, file):
    before = weights(ours)
    path = file(tensors)
    found = message_of(ours.load_lora_weights, path)
    assert str(path) in found and expected in found
    assert equal(weights(ours), before) and ours.adapters.loaded == {}


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
def test_numbers_that_are_not_finite_leave_the_weights_as_they_were(value, two, ours, models, file):
    tensors = loras.kohya(loras.pairs(models))
    list(tensors.values())[-3][0, 0] = value
    ours.load_lora_weights(two[0])
    before = weights(ours)
    assert "not finite" in message_of(ours.load_lora_weights, file(tensors, "bad"), adapter_weight=1000)
    assert equal(weights(ours), before) and list(ours.adapters.loaded) == ["ink"]


def test_tensors_that_belong_nowhere_are_counted_and_named(ours, file):
    path = file(pair() | {f"lora_unet_nowhere_{i}.alpha": torch.ones(1) for i in range(9)})
    with pytest.warns(UserWarning, match="belong to no layer") as caught:
        ours.load_lora_weights(path)
    assert str(caught[0].message) == (f"{path}: 9 of 11 tensors belong to no layer of the model and are left out: " +
                                      ", ".join(f"lora_unet_nowhere_{i}.alpha" for i in range(4)) + " and 5 more")


def test_a_pickle_is_refused(ours, tmp_path):
    (tmp_path / "ink.pt").write_bytes(b"PK\3\4")
    assert "a pickle, which can run any program, so it is not" in message_of(ours.load_lora_weights, tmp_path / "ink.pt")
    ours.adapters.folder = tmp_path
    assert "a pickle" in message_of(ours.generate, "a <lora:ink:1>")


@pytest.mark.parametrize("spoilt", ["model", "adapter"])
def test_files_that_changed_since_they_were_loaded(spoilt, written, two, tmp_path):
    folder = shutil.copytree(written, tmp_path / "copy")
    ours = npdiffusion.load(folder)
    ours.load_lora_weights(two[0])
    before = weights(ours)
    path = folder / "unet" / "diffusion_pytorch_model.safetensors" if spoilt == "model" else two[0]
    path.write_bytes(path.read_bytes() + b"\0")
    assert message_of(ours.set_adapters, "ink", 0.5).startswith(f"{path}: it was changed or removed since it was loaded")
    path.unlink()
    assert message_of(ours.set_adapters, "ink", 0.5).startswith(f"{path}: it was changed or removed since it was loaded")
    assert equal(weights(ours), before)


@pytest.mark.parametrize("text, expected", [
    ('{"unet.lora_alpha": "much", "unet.r": 4}', "lora_adapter_metadata: lora_alpha = 'much', but a positive number"),
    ('{"unet.lora_alpha": 4, "unet.r": 4, "unet.alpha_pattern": 3}', "alpha_pattern = 3, but a dictionary is needed"),
    ('{"unet.lora_alpha": 4, "unet.r": 4, "unet.alpha_pattern": {"(a": 2}}',
     "lora_adapter_metadata: alpha_pattern: '(a' is no regular expression that can be followed"),
    ("[]", "lora_adapter_metadata is not a dictionary in JSON"), ("{", "is not a dictionary in JSON")])
def test_headers_that_make_no_sense(text, expected, ours, file):
    assert expected in message_of(ours.load_lora_weights, file(pair(), lora_adapter_metadata=text))


@pytest.mark.parametrize("call, expected", [
    (lambda ours, path: ours.load_lora_weights(path), "an adapter 'ink' is loaded already"),
    (lambda ours, path: ours.load_lora_weights(path, "b", "strong"), "'strong' is no strength of an adapter"),
    (lambda ours, path: ours.load_lora_weights(path, "b", {"vae": 1}), "{'vae': 1} is no strength of an adapter"),
    (lambda ours, path: ours.set_adapters(["ink", "b"]), "no adapter 'b' is loaded; loaded are ink"),
    (lambda ours, path: ours.set_adapters(["ink"], [1, 2]), "1 adapters are named, but 2 strengths"),
    (lambda ours, path: ours.load_lora_weights(path.with_name("no")), "no such file")])
def test_calls_that_make_no_sense(call, expected, ours, two):
    ours.load_lora_weights(two[0])
    assert expected in message_of(call, ours, two[0])


# --- words that a LoRA brings along ----------------------------------------------------------------------------------

WORD = torch.randn(2, 128, generator=torch.Generator().manual_seed(0))


def with_word(tensors, kind="string_to_param.*", word="zigzag", vectors=WORD):
    return tensors | {f"bundle_emb.{word}.{kind}": vectors}


@pytest.mark.parametrize("kind", ["string_to_param.*", "emb_params"])
def test_a_word_inside_a_lora_is_known_while_it_is_in_force(kind, ours, file):
    plain, word = file(pair(), "plain"), loras.write(file(pair()).with_name("zigzag.safetensors"), {"emb_params": WORD})
    ours.load_lora_weights(plain)
    without = ours.encode_prompt("a Zigzag, red")
    ours.load_textual_inversion(word)
    expected = ours.encode_prompt("a Zigzag, red")
    ours.unload_textual_inversion()
    ours.unload_lora_weights()
    ours.load_lora_weights(file(with_word(pair(), kind)), "ink")
    assert np.array_equal(ours.encode_prompt("a Zigzag, red"), expected) and not np.array_equal(expected, without)
    ours.set_adapters("ink", 0.0)
    assert np.array_equal(ours.encode_prompt("a Zigzag, red"), without)


def test_a_word_of_a_tag_is_known_in_that_picture_alone(ours, file):
    ours.adapters.folder = file(with_word(pair())).parent
    pictures = [np.asarray(ours.generate(f"a zigzag{tag}", steps=1, seed=1, width=16, height=16)[0])
                for tag in ("", "<lora:ink:0.001>", "")]
    assert np.array_equal(pictures[0], pictures[2]) and not np.array_equal(pictures[0], pictures[1])


def test_a_word_that_was_loaded_by_itself_precedes_a_loras(ours, file):
    ours.load_textual_inversion(loras.write(file(pair()).with_name("zigzag.safetensors"), {"emb_params": 2 * WORD}))
    expected = ours.encode_prompt("zigzag")
    ours.load_lora_weights(file(with_word({"lora_unet_conv_in.diff_b": torch.zeros(32)})))
    assert np.array_equal(ours.encode_prompt("zigzag"), expected)


@pytest.mark.parametrize("tensors, expected", [
    (with_word(pair(), vectors=torch.ones(1, 768)), "its vectors are 768 wide, but this text encoder's are 128"),
    (with_word(pair(), "clip_x"), "'bundle_emb.zigzag.clip_x': a word in a LoRA is called bundle_emb.WORD.string_to_param.*"),
    (with_word(pair(), "clip_g"), "a learnt word for Stable Diffusion XL, but the model is of another family"),
    (with_word(with_word(pair(), "emb_params"), "clip_l", vectors=1 * WORD),
     "that is one tensor, or clip_l and clip_g, and here are 2"),
    (with_word(pair(), word=" "), "a word in a LoRA is called bundle_emb.WORD.string_to_param.*"),
    (with_word(pair(), vectors=torch.ones(76, 128)), "a learnt word is 1 to 75 vectors")])
def test_words_in_a_lora_that_make_no_sense(tensors, expected, ours, file):
    assert expected in message_of(ours.load_lora_weights, file(tensors))


# --- names in prompts ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("prompt, text, expected", [
    ("a cat", "a cat", []), ("", "", []),
    ("a <lora:ink>cat", "a cat", [("ink", Strength(1, 1))]),
    ("<lora:ink:0.8> cat", " cat", [("ink", Strength(0.8, 0.8))]),
    ("<lora:ink:0.8:0.5>", "", [("ink", Strength(unet=0.5, text_encoder=0.8))]),
    ("<lora:ink:te=0.8:unet=-1>", "", [("ink", Strength(unet=-1, text_encoder=0.8))]),
    ("<lora:a b/c.d (1):1><lyco:x: .5 >", "", [("a b/c.d (1)", Strength(1, 1)), ("x", Strength(0.5, 0.5))]),
    ("a < b > c <cat-toy> <b> x<y:z", "a < b > c <cat-toy> <b> x<y:z", [])])
def test_tags_are_read_as_a1111_reads_them(prompt, text, expected):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tags.take_tags(prompt) == (text, expected)


@pytest.mark.parametrize("tag, strength, passed_over", [
    ("<lora:ink:0.8:lbw=OUTALL>", Strength(0.8, 0.8), "lbw=OUTALL"),
    ("<lora:ink:0.8:0.5:lbw=1,0,0,1:step=5-20>", Strength(0.5, 0.8), "lbw=1,0,0,1, step=5-20"),
    ("<lora:ink:1:0.5:8>", Strength(0.5, 1), "8"), ("<lora:ink:dyn=8:te=0.3>", Strength(0.3, 0.3), "dyn=8"),
    ("<lora:ink:x==1>", Strength(1, 1), "x==1")])
def test_arguments_that_are_not_offered_are_passed_over_with_a_note(tag, strength, passed_over):
    with pytest.warns(UserWarning, match=re.escape(f"{tag!r} in the prompt is followed without {passed_over!r}")):
        assert tags.take_tags(f"a {tag}cat") == ("a cat", [("ink", strength)])


@pytest.mark.parametrize("tag", ["<hypernet:anime:0.7>", "<loha:ink:1>", "<Lora:ink:1>", "<LYCO:ink>", "<wc:a b>", "<é:1>",
                                 "<lora:ink:strong>", "<lora:>", "<lora:ink:nan>", "<lora:ink:1e9>", "<lora:ink:1:>",
                                 "<lora:ink:te=much>", "<lora: :1>"])
def test_tags_that_are_not_offered_are_taken_out_with_a_note(tag):
    with pytest.warns(UserWarning, match=re.escape(f"{tag!a} in the prompt is left out: ")):
        assert tags.take_tags(f"a {tag}cat") == ("a cat", [])


@pytest.mark.parametrize("tag", ["<lora:ink:1", "<lora>", "<Lora ink>"])
def test_what_is_no_complete_tag_stays_text_with_a_note(tag):
    with pytest.warns(UserWarning, match="is taken as plain text: its form is <lora:name:strength>"):
        assert tags.take_tags(f"a {tag} cat") == (f"a {tag} cat", [])


def test_a_prompt_full_of_tags_gets_a_few_notes():
    with pytest.warns(UserWarning, match=".") as noted:
        text, found = tags.take_tags("".join(f"<lora:a{i}><x{i}:y>" for i in range(2000)))
    assert text == "" and len(found) == tags.MOST and len(noted) == 6
    assert str(noted[-1].message) == "3895 more tags in the prompt are not followed"


@pytest.mark.parametrize("tag", ["<lora:ink:1>", "<hypernet:x:1>"])
def test_tags_in_the_negative_prompt_are_noted(tag, ours):
    with pytest.warns(UserWarning, match="so the prompt is their place"):
        assert ours.adapters.follow("a", tag) == "a"


@pytest.fixture
def library(tmp_path):
    for name in ("ink", "styles/oil", "styles/Pastel", "a/twin", "b/twin", "tuned/adapter_model", ".hidden/x", "a/.y"):
        path = tmp_path / "loras" / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        loras.write(path, pair(), {"ss_output_name": "its maker's name"} if name == "ink" else None)
    loras.write(tmp_path / "outside.safetensors", pair())
    (tmp_path / "loras" / "notes.txt").write_text("ink is nice")
    return tmp_path / "loras"


@pytest.mark.parametrize("name, found", [
    ("ink", "ink"), ("INK", "ink"), ("oil", "styles/oil"), ("styles/oil", "styles/oil"), ("pastel", "styles/Pastel"),
    ("b/twin", "b/twin"), ("tuned", "tuned/adapter_model"), ("its maker's name", "ink")])
def test_names_that_are_found(name, found, library):
    assert adapter_folder.find_adapter(library, name) == library / f"{found}.safetensors"


@pytest.mark.parametrize("name, expected", [
    ("../outside", "there is no adapter '../outside'"), ("/etc/passwd", "there is no adapter"), ("..", "there is no"),
    ("styles/../../outside", "there is no"), ("ikn", "did you mean 'ink'?"),
    ("styles/oli", "did you mean 'styles/oil'?"), (".hidden/x", "there is no"),
    ("zzzzz", "; known are 'a/twin', 'b/twin', 'ink', 'styles/Pastel', 'styles/oil' and 1 more"),
    ("twin", "'twin' may be 'a/twin' or 'b/twin': name it with its folder"), ("x\n\x1b[2J", r"'x\n\x1b[2J'")])
def test_names_that_are_not(name, expected, library):
    assert expected in message_of(adapter_folder.find_adapter, library, name)


def test_a_folder_that_is_not_there(tmp_path, ours):
    assert "no such folder" in message_of(adapter_folder.find_adapter, tmp_path / "no", "ink")
    assert "--lora-dir" in message_of(ours.generate, "a <lora:ink:1> cat")
    assert "0 .safetensors files in it" in message_of(ours.load_lora_weights, tmp_path)


def test_the_settings_in_a_picture_name_the_file_by_its_hash(library, written, monkeypatch, tmp_path):
    """A1111's: of all that follows the header."""
    monkeypatch.chdir(tmp_path)
    prompt = "apple <lora:styles/oil:0.5>"
    assert cli.main([prompt, "-m", str(written), "--lora-dir", str(library), "--steps", "1", "-o", "x.png",
                     "--backend", "numpy"]) == 0
    text = Image.open("x.png").info["parameters"]
    content = (library / "styles" / "oil.safetensors").read_bytes()
    numbers = content[8 + int.from_bytes(content[:8], "little"):]
    assert text.startswith(f"{prompt}\nSteps: 1")
    assert f'Lora hashes: "styles/oil: {hashlib.sha256(numbers).hexdigest()[:12]}", Version: ' in text


def test_the_command_looks_for_names_before_it_loads_the_model(library, capsys, monkeypatch):
    monkeypatch.setattr(npdiffusion, "load", None)
    assert cli.main(["a <lora:ikn:1>", "--lora-dir", str(library)]) == 1
    assert capsys.readouterr().err == \
        f"npdiffusion: error: {library}: there is no adapter 'ikn', did you mean 'ink'?\n"


@pytest.mark.parametrize("width, expected", [
    (None, "not a safetensors file"),
    (768, "this LoRA is made for Stable Diffusion v1 (its context is 768 wide, not 128)")])
def test_a_file_that_does_not_fit_is_refused_before_the_weights_are_read(width, expected, written, file, tmp_path,
                                                                         capsys, monkeypatch):
    def fill(*_):
        raise AssertionError("weights were read")
    monkeypatch.setattr(parameters, "fill", fill)
    path = file(loras.kohya({("unet", CROSS): (torch.ones(4, width or 1), torch.ones(64, 4))}))
    if width is None:
        path.write_bytes(b"no tensors")
    assert cli.main(["a <lora:ink:1>", "-m", str(written), "--lora-dir", str(tmp_path), "--backend", "numpy"]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"npdiffusion: error: {path}: ") and expected in last


def test_files_opened_long_ago_are_forgotten_and_opened_again(two, ours, file, models, monkeypatch):
    monkeypatch.setattr(tags, "MOST", 2)
    paths = [*two, file(loras.kohya(loras.pairs(models)), "third")]
    opened = [ours.adapters.open(path) for path in (*paths, paths[1])]
    assert opened[3] is opened[1] and list(ours.adapters._opened) == [paths[2], paths[1]]
    again = ours.adapters.open(paths[0])
    assert again is not opened[0] and again.hash == opened[0].hash
    assert list(ours.adapters._opened) == [paths[1], paths[0]]
