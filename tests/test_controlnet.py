"""ControlNet beside diffusers': residuals, pictures, both spellings, when it acts, guess mode."""
import numpy as np
import pytest
import torch
from diffusers import ControlNetModel as TorchControlNet
from diffusers import StableDiffusionControlNetPipeline
from diffusers.loaders import single_file_utils
from safetensors.torch import save_file

from npdiffusion.checkpoints import original_names
from npdiffusion.checkpoints.controlnets import open_controlnet
from npdiffusion.checkpoints.families import FAMILIES
from npdiffusion.errors import UserError
from npdiffusion.models import parameters
from npdiffusion.models.configs import UNetConfig
from npdiffusion.models.controlnet import ControlNetModel
from tests import pairs, references, sizes
from tests.controlnets import picture, torch_controlnet
from tests.differences import agree
from tests.pairs import NEGATIVE, PROMPT, levels
from tests.references import channels_first, channels_last, random


@pytest.fixture(scope="module")
def control():
    return torch_controlnet()


@pytest.fixture(scope="module")
def folder(control, tmp_path_factory):
    path = tmp_path_factory.mktemp("control") / "net"
    control.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def led(folder, control):
    """(diffusers' pipeline with the ControlNet, ours)"""
    theirs, ours = pairs.make_pair()
    led = StableDiffusionControlNetPipeline(**theirs.components, controlnet=control, requires_safety_checker=False)
    led.set_progress_bar_config(disable=True)
    ours.load_controlnet(folder)
    return led, ours


def original(control):
    """{name: tensor} in the original spelling, as diffusers converts it back"""
    config = UNetConfig.from_dict(dict(control.config))
    spell = original_names.control_name(config, "control_model.", len(control.config.conditioning_embedding_out_channels))
    return {spell(name): tensor.clone() for name, tensor in control.state_dict().items()}


def test_residuals_are_those_of_diffusers(each_backend, control, folder):
    part = open_controlnet(folder, UNetConfig.from_dict(references.TINY_UNET), FAMILIES[0])
    part.fill()
    x, states, image = random(2, 8, 12, 4), random(2, 77, 24, seed=1), np.abs(random(1, 32, 48, 3, seed=2))
    with torch.no_grad():
        skips, middle = control(channels_first(x), 300, torch.from_numpy(states), channels_first(image), return_dict=False)
    found = part.model(x, 300, states, part.model.controlnet_cond_embedding(image))
    for ours, theirs in zip([*found[0], found[1]], [*skips, middle], strict=True):
        agree("ControlNet", "residuals", ours, channels_last(theirs), 1e-5, relative=True)


@pytest.mark.parametrize("sampler", ["ddim", "euler", "euler_a", "dpm++2m", "pndm", "heun"])
def test_pictures_equal_diffusers_within_one_level(led, sampler):
    theirs, ours = led
    theirs.scheduler = pairs.SAMPLERS[sampler].from_config(references.SCHEDULER)
    expected = pairs.their_picture(theirs, image=picture(), num_inference_steps=5, guidance_scale=5.0,
                                   controlnet_conditioning_scale=0.7)
    found, = ours.generate(PROMPT, NEGATIVE, steps=5, guidance_scale=5.0, sampler=sampler, seed=7, width=48, height=32,
                           control_image=picture(), control_scale=0.7)
    agree("ControlNet", f"picture, {sampler}, levels of 255", levels(found), expected, 1)


@pytest.mark.parametrize("theirs_asked, asked", [
    (dict(control_guidance_start=0.2, control_guidance_end=0.7), dict(control_start=0.2, control_end=0.7)),
    (dict(guess_mode=True), dict(guess_mode=True)),
    (dict(guess_mode=True, guidance_scale=1.0), dict(guess_mode=True, guidance_scale=1.0))],
    ids=["start and end", "guess mode", "guess mode without guidance"])
def test_start_end_and_guess_mode_are_those_of_diffusers(led, theirs_asked, asked):
    theirs, ours = led
    theirs.scheduler = pairs.SAMPLERS["ddim"].from_config(references.SCHEDULER)
    usual = dict(guidance_scale=5.0)
    expected = pairs.their_picture(theirs, image=picture(), num_inference_steps=5, **usual | theirs_asked)
    settings = dict(steps=5, sampler="ddim", seed=7, width=48, height=32, control_image=picture())
    found, plain = (levels(ours.generate(PROMPT, NEGATIVE, **settings | usual | more)[0])
                    for more in (asked, {key: value for key, value in asked.items() if key == "guidance_scale"}))
    agree("ControlNet", "start, end, guess mode, levels of 255", found, expected, 1)
    assert np.abs(found - plain).max() > 3


@pytest.mark.parametrize("prefix", ["control_model.", ""])
def test_a_file_in_original_names_holds_the_same(control, folder, prefix, tmp_path):
    file = {f"{prefix}{name.removeprefix('control_model.')}": tensor for name, tensor in original(control).items()}
    save_file(file, tmp_path / "net.safetensors")
    unet = UNetConfig.from_dict(references.TINY_UNET)
    one, other = (open_controlnet(path, unet, FAMILIES[0]) for path in (folder, tmp_path / "net.safetensors"))
    assert one.shapes == other.shapes and not other.left_out
    assert all(np.array_equal(one.tensors[name](), other.tensors[name]()) for name in one.tensors)


def test_original_names_are_those_that_diffusers_converts():
    settings = {key: value for key, value in references.FULL_UNET.items() if key not in ("sample_size", "up_block_types")}
    with torch.device("meta"):
        theirs = TorchControlNet(**settings)
    tensors = original(theirs)
    assert len(tensors) == 340
    converted = single_file_utils.convert_controlnet_checkpoint(dict(tensors), dict(theirs.config))
    spell = original_names.control_name(UNetConfig.from_dict(dict(theirs.config)), "control_model.", 4)
    assert converted.keys() == theirs.state_dict().keys()
    assert all(converted[name] is tensors[spell(name)] for name in converted)


@pytest.mark.parametrize("name, count, tensors", [("SD v1", 361_279_120, 340), ("SD 2", 364_228_240, 340),
                                                  ("SDXL", 1_251_014_160, 844)])
def test_names_and_shapes_at_full_size_are_those_of_diffusers(name, count, tensors):
    settings = {key: value for key, value in sizes.FULL[name][0].items() if key not in ("sample_size", "up_block_types")}
    with torch.device("meta"):
        theirs = TorchControlNet(**settings)
    ours = parameters.shapes(ControlNetModel(UNetConfig.from_dict(settings)))
    assert ours == {key: tuple(tensor.shape) for key, tensor in theirs.state_dict().items()}
    assert len(ours) == tensors and sum(int(np.prod(shape)) for shape in ours.values()) == count


def test_one_for_another_family_is_named_with_both(tmp_path):
    torch_controlnet(cross_attention_dim=1024).save_pretrained(tmp_path / "net")
    with pytest.raises(UserError, match="is for Stable Diffusion 2 .*, but the model is of .*, Stable Diffusion v1"):
        open_controlnet(tmp_path / "net", UNetConfig.from_dict(references.TINY_UNET), FAMILIES[0])


def test_one_for_other_levels_is_named(folder):
    unet = UNetConfig.from_dict(references.TINY_UNET | {"layers_per_block": 1})
    with pytest.raises(UserError, match="its layers_per_block is 2, the model's 1"):
        open_controlnet(folder, unet, FAMILIES[0])
    with pytest.raises(UserError, match="no middle block"):
        open_controlnet(folder, UNetConfig.from_dict(references.TINY_UNET | {"mid_block_type": None}), FAMILIES[0])


def test_a_controlnet_and_its_picture_go_together(led):
    ours = led[1]
    with pytest.raises(UserError, match="go together"):
        ours.generate(PROMPT, steps=1)
    with pytest.raises(UserError, match="go together"):
        pairs.our_twin(led[0]).generate(PROMPT, steps=1, control_image=picture())
