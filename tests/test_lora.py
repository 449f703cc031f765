"""Adapters against diffusers and PEFT: every kind, every spelling, several at once; taken out again, bit for bit."""
import copy
import json
import shutil
import warnings

import numpy as np
import peft
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from safetensors.torch import load_file

import npdiffusion
from npdiffusion import kernels, parameters, single_file
from npdiffusion.adapters import folder as adapter_folder
from npdiffusion.adapters import names, tags
from npdiffusion.adapters.tags import Strength
from npdiffusion.config import UNetConfig
from npdiffusion.errors import UserError
from npdiffusion.kernels import reference
from npdiffusion.kernels.arrays import as_float32
from npdiffusion.unet import UNet2DConditionModel
from tests import folders, loras, references
from tests.differences import agree

PARTS = ("unet", "text_encoder")
LINEAR = r".*(attn\d|self_attn)\.(to_q|to_k|to_v|to_out\.0|q_proj|v_proj)"
CONVOLUTIONS = r".*(conv1|conv2|conv_shortcut|proj_in|attn2\.to_q)"


@pytest.fixture(autouse=True)
def on_numpy(monkeypatch):
    monkeypatch.setattr(kernels, "_chosen", "numpy")


@pytest.fixture(scope="module")
def models():
    return folders.torch_models()


@pytest.fixture(scope="module")
def written(models, tmp_path_factory):
    return folders.write_model(tmp_path_factory.mktemp("written") / "model", models)


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
    """{parameter: its memory} of the models that adapters change"""
    found = {}
    for part in PARTS:
        for name, owner, attribute in ours.adapters.parts[part].parameters.values():
            array = getattr(owner, attribute)
            found[f"{part}.{name}"] = getattr(array, "panels", array).copy()
    return found


def equal(found, others):
    return found.keys() == others.keys() and all(np.array_equal(found[name], others[name]) for name in found)


def message(call, *arguments, **options):
    """What the UserError says: one line."""
    with pytest.raises(UserError) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- names -----------------------------------------------------------------------------------------------------------

def original_name(part, name):
    """kohya's spelling with the original names of a UNet's blocks."""
    if part == "unet":
        spell = single_file.spelling("unet", UNetConfig.from_dict(folders.UNET), ())
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
    return names.spellings({"unet": layers, "text_encoder": []}, model.config)


# --- kinds -----------------------------------------------------------------------------------------------------------

def randomised(model, seed=0):
    """Give what PEFT has added to a model random numbers: it starts with zeros, which change nothing."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(mark in name for mark in ("lora_A", "lora_B", "hada_", "lokr_")):
                parameter.copy_(0.25 * torch.randn(parameter.shape, generator=random))
            elif "lora_magnitude" in name:
                parameter.mul_(1 + 0.3 * torch.rand(parameter.shape, generator=random))
    return model


@pytest.mark.parametrize("config", [
    peft.LoHaConfig(r=3, alpha=5, target_modules=LINEAR, init_weights=False),
    peft.LoHaConfig(r=3, alpha=5, target_modules=CONVOLUTIONS, alpha_pattern={"mid_block.resnets.0.conv1": 9}),
    peft.LoHaConfig(r=3, alpha=5, target_modules=CONVOLUTIONS, use_effective_conv2d=True),
    peft.LoKrConfig(r=3, alpha=5, target_modules=LINEAR),
    peft.LoKrConfig(r=2, alpha=5, target_modules=CONVOLUTIONS, decompose_both=True, decompose_factor=4),
    peft.LoKrConfig(r=2, alpha=5, target_modules=CONVOLUTIONS, use_effective_conv2d=True),
    peft.LoKrConfig(r=64, alpha=96, target_modules=LINEAR),
    peft.LoraConfig(r=4, lora_alpha=6, target_modules=CONVOLUTIONS, rank_pattern={"conv1": 2}, use_rslora=True),
    peft.LoraConfig(r=4, lora_alpha=6, target_modules=CONVOLUTIONS, use_dora=True)],
    ids=["LoHa", "LoHa of convolutions", "LoHa, Tucker", "LoKr", "LoKr of convolutions", "LoKr, Tucker",
         "LoKr of whole matrices", "rank-stabilised LoRA", "DoRA"])
def test_what_peft_writes(config, ours, theirs, tmp_path, same_results, request):
    model = randomised(peft.get_peft_model(theirs.unet, config))
    model.save_pretrained(tmp_path / "adapter")
    ours.load_lora_weights(tmp_path / "adapter")
    theirs.unet = model.eval()
    same_results(request.node.callspec.id, ours, theirs, ["unet"])
