"""What `print` shows of models: every layer's shape, and numbers that add up to those of the checkpoint."""
import re

import numpy as np
import pytest

import npdiffusion
from npdiffusion.models import clip, configs, parameters, taesd, unet, vae
from npdiffusion.models.layers import Conv2d, Embedding, GroupNorm, LayerNorm, Linear
from npdiffusion.models.resnet import Downsample2D, ResnetBlock2D
from npdiffusion.models.transformer import Transformer2DModel
from npdiffusion.models.tree import LINES, Module
from tests import sizes

MODELS = {"unet": (unet.UNet2DConditionModel, configs.UNetConfig), "vae": (vae.AutoencoderKL, configs.VAEConfig),
          "text encoder": (clip.CLIPTextModel, configs.CLIPTextConfig), "taesd": (taesd.AutoencoderTiny, configs.TinyVAEConfig)}


@pytest.fixture
def no_memory(monkeypatch):
    """Weights that are one number seen many times: models of full size need no memory."""
    monkeypatch.setattr(np, "zeros", lambda shape, dtype=float: np.broadcast_to(dtype(0), shape))


def numbers(text, depth):
    """The numbers at the end of the lines that are indented `depth` times"""
    return [int(line.split()[-1].replace(",", "")) for line in text.splitlines()
            if re.match(rf"(    ){{{depth}}}\w", line)]


@pytest.mark.parametrize("name", MODELS)
def test_the_numbers_of_a_tree_add_up(name, no_memory):
    model, config = MODELS[name]
    model = model(config())
    total, = numbers(str(model), 0)
    assert total == parameters.count(model) == sum(numbers(str(model), 1)) > 1e6
    assert len(str(model).splitlines()) <= LINES
    assert "\n" not in repr(model)


def test_the_tree_of_every_published_unet_is_short(no_memory):
    for settings, total, _ in sizes.FULL.values():
        text = str(unet.UNet2DConditionModel(configs.UNetConfig.from_dict(settings)))
        assert numbers(text, 0) == [total]
        assert 20 < len(text.splitlines()) <= LINES


def test_equal_neighbours_share_a_line_and_others_have_their_own(no_memory):
    text = re.sub(" +", " ", str(unet.UNet2DConditionModel(configs.UNetConfig())))
    assert " resnets.0–1 2 × ResnetBlock2D 320 → 320 4,510,080\n" in text
    assert " resnets.0 ResnetBlock2D 320 → 640 6,558,080\n resnets.1 ResnetBlock2D 640 → 640 8,196,480\n" in text
    assert " conv_out Conv2d 320 → 4, 3×3 11,524\n" in text


def test_a_part_shows_what_is_further_down():
    text = re.sub(" +", " ", str(Transformer2DModel(64, heads=4, context_channels=24, groups=8, depth=2)))
    assert " transformer_blocks.0–1 2 × BasicTransformerBlock 64 → 64 " in text
    assert " to_k Linear 24 → 64, no bias 1,536\n" in text
    assert "print a part" not in text
    assert "print a part to see what is in it" in str(npdiffusion.load().unet)


def test_layers_say_their_shapes():
    layers = (Linear(3, 5), Linear(3, 5, bias=False), Conv2d(4, 320), Conv2d(8, 6, 1, stride=2, bias=False),
              GroupNorm(32, 8, eps=1e-5), LayerNorm(24), Embedding(600, 24))
    assert [*map(str, layers)] == [
        "Linear 3 → 5", "Linear 3 → 5, no bias", "Conv2d 4 → 320, 3×3", "Conv2d 8 → 6, 1×1, stride 2, no bias",
        "GroupNorm 32, 8 groups", "LayerNorm 24", "Embedding 600 → 24"]
    assert repr(Downsample2D(320, (1, 1, 1, 1))) == "<Downsample2D: 0.9 million parameters>"


def test_a_tree_is_the_same_before_and_after_weights_are_packed():
    block = ResnetBlock2D(8, 16, 4, eps=1e-5, time_channels=20)
    before = str(block)
    for layer in (block.conv1, block.conv2, block.conv_shortcut, block.time_emb_proj):
        layer.prepare("float32")
    assert str(block) == before and "Conv2d 8 → 16, 1×1" in before


def test_every_part_of_a_model_can_be_printed():
    pipeline = npdiffusion.load()
    for model in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        for path, part in parameters.modules(model):
            if isinstance(part, Module):
                assert numbers(str(part), 0) == [parameters.count(part)], path
