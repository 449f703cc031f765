"""ControlNet beside diffusers': residuals, pictures, several at once, both spellings, when it acts, guess mode."""
import numpy as np
import pytest
import torch
from diffusers import ControlNetModel as TorchControlNet
from diffusers import (
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionControlNetInpaintPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionXLControlNetImg2ImgPipeline,
    StableDiffusionXLControlNetInpaintPipeline,
    StableDiffusionXLControlNetPipeline,
)
from diffusers.loaders import single_file_utils
from PIL import Image
from safetensors.torch import save_file

import npdiffusion
from npdiffusion import loading
from npdiffusion.checkpoints import original_names
from npdiffusion.checkpoints.controlnets import open_controlnet
from npdiffusion.checkpoints.families import FAMILIES
from npdiffusion.errors import UserError
from npdiffusion.memory import budget
from npdiffusion.models import parameters
from npdiffusion.models.configs import UNetConfig
from npdiffusion.models.controlnet import ControlNetModel
from npdiffusion.pictures import maps
from npdiffusion.settings import Request
from tests import pairs, references, relatives, sizes
from tests.controlnets import HINT, mask, picture, torch_controlnet, wake
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


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """(two ControlNets of diffusers', their folders)"""
    nets, paths = [torch_controlnet(seed) for seed in (5, 6)], [tmp_path_factory.mktemp("control") / "net" for _ in range(2)]
    for net, path in zip(nets, paths):
        net.save_pretrained(path)
    return nets, paths


@pytest.fixture(scope="module")
def led_by_two(two):
    """(diffusers' pipeline with two ControlNets, ours)"""
    nets, paths = two
    theirs, ours = pairs.make_pair(sampler="ddim")
    led = StableDiffusionControlNetPipeline(**theirs.components, controlnet=nets, requires_safety_checker=False)
    led.set_progress_bar_config(disable=True)
    ours.load_controlnet(paths)
    return led, ours


@pytest.fixture(scope="module")
def xl(tmp_path_factory):
    """(diffusers' XL, a ControlNet, ours with it, the folder of both)"""
    folder = tmp_path_factory.mktemp("xl")
    theirs = relatives.theirs(relatives.XL)
    settings = {key: value for key, value in relatives.UNETS[relatives.XL].items()
                if key not in ("sample_size", "up_block_types", "cross_attention_norm")}
    torch.manual_seed(4)
    net = references.make_demanding(TorchControlNet(**settings, conditioning_embedding_out_channels=HINT), 4)
    wake(net)
    with torch.no_grad():
        net.add_embedding.linear_2.weight *= 8              # so that what it is told shows in a picture
    theirs.save_pretrained(folder / "model")
    net.save_pretrained(folder / "net")
    return theirs, net, npdiffusion.load(folder / "model", control=folder / "net"), folder


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


# ---- several at once

LED = dict(steps=5, sampler="ddim", seed=7, width=48, height=32, guidance_scale=5.0)


def both(led, theirs_asked, asked):
    """Levels of diffusers' picture and of ours, led by two pictures"""
    theirs, ours = led
    expected = pairs.their_picture(theirs, image=[picture(3), picture(4)], num_inference_steps=5,
                                   **dict(guidance_scale=5.0) | theirs_asked)
    found, = ours.generate(PROMPT, NEGATIVE, control_image=[picture(3), picture(4)], **LED | asked)
    return levels(found), expected


@pytest.mark.parametrize("theirs_asked, asked", [
    ({}, {}),
    (dict(controlnet_conditioning_scale=[0.4, 1.2]), dict(control_scale=(0.4, 1.2))),
    (dict(controlnet_conditioning_scale=[0.5, 0.5], control_guidance_start=[0.0, 0.4], control_guidance_end=[0.5, 1.0]),
     dict(control_scale=0.5, control_start=[0.0, 0.4], control_end=[0.5, 1.0])),
    (dict(guess_mode=True, controlnet_conditioning_scale=[0.9, 0.7]), dict(guess_mode=True, control_scale=[0.9, 0.7])),
    (dict(guess_mode=True, guidance_scale=1.0), dict(guess_mode=True, guidance_scale=1.0))],
    ids=["alike", "scales", "starts and ends", "guess mode", "guess mode without guidance"])
def test_two_controlnets_equal_diffusers_multicontrolnet_within_one_level(led_by_two, theirs_asked, asked):
    agree("ControlNet", "two at once, levels of 255", *both(led_by_two, theirs_asked, asked), 1)


def test_each_of_two_follows_its_own_picture_and_scale(led_by_two):
    ours = led_by_two[1]
    one, other, turned = (ours.generate(PROMPT, control_image=images, control_scale=scales, **LED)[0] for images, scales in (
        ([picture(3), picture(4)], (1, 0)), ([picture(3), picture(9)], (1, 0)), ([picture(4), picture(3)], (1, 0))))
    assert np.array_equal(levels(one), levels(other)) and not np.array_equal(levels(one), levels(turned))


@pytest.mark.parametrize("asked, message", [
    (dict(control_image=picture()), "there are 1 for 2 ControlNets"),
    (dict(control_image=[picture()] * 2, control_scale=[1, 1, 1]), "control_scale: there are 3 for 2"),
    (dict(control_image=[picture()] * 2, control_start=[0, 0.5], control_end=0.5), "control_end is 0.5: it must be above"),
    (dict(control_image=[picture()] * 17), "control_image: 17 given, there can be 1 to 16")])
def test_pictures_and_numbers_that_dont_match_their_controlnets_are_told(led_by_two, asked, message):
    with pytest.raises(UserError, match=message):
        led_by_two[1].generate(PROMPT, steps=1, **asked)


# ---- with a picture to start from, and in XL

def test_image_to_image_with_a_controlnet_equals_diffusers(led):
    theirs, ours = led
    pipeline = StableDiffusionControlNetImg2ImgPipeline(**theirs.components, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = pairs.SAMPLERS["euler"].from_config(references.SCHEDULER)
    expected = pairs.their_picture(pipeline, image=picture(5), control_image=picture(), strength=0.6, num_inference_steps=5,
                                   guidance_scale=5.0, controlnet_conditioning_scale=0.7)
    found, = ours.generate(PROMPT, NEGATIVE, **LED | dict(sampler="euler"), init_image=picture(5), strength=0.6,
                           control_image=picture(), control_scale=0.7)
    agree("ControlNet", "from a picture, levels of 255", levels(found), expected, 1)


@pytest.mark.parametrize("padding", [None, 4])
def test_inpainting_with_a_controlnet_equals_diffusers(led, padding):
    theirs, ours = led
    pipeline = StableDiffusionControlNetInpaintPipeline(**theirs.components, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = pairs.SAMPLERS["ddim"].from_config(references.SCHEDULER)
    expected = pairs.their_picture(pipeline, image=picture(5), mask_image=mask(), control_image=picture(), strength=0.8,
                                   num_inference_steps=5, guidance_scale=5.0, controlnet_conditioning_scale=0.7, width=48,
                                   height=32, padding_mask_crop=padding)
    found, = ours.generate(PROMPT, NEGATIVE, **LED, init_image=picture(5), mask_image=mask(), strength=0.8,
                           control_image=picture(), control_scale=0.7, padding_mask_crop=padding,
                           **dict(apply_overlay=False) if padding is None else {})
    agree("ControlNet", "inpainting, levels of 255", levels(found), expected, 1)


@pytest.mark.parametrize("sampler", ["ddim", "euler", "euler_a", "dpm++2m", "pndm", "heun"])
def test_xl_with_a_controlnet_equals_diffusers_within_one_level(xl, sampler):
    theirs, net, ours, _ = xl
    pipeline = StableDiffusionXLControlNetPipeline(**theirs.components, controlnet=net, add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = pairs.SAMPLERS[sampler].from_config(references.SCHEDULER)
    told = dict(original_size=(96, 40), crops_coords_top_left=(24, 0), target_size=(16, 64))
    expected = pairs.their_picture(pipeline, image=picture(), num_inference_steps=5, guidance_scale=5.0, **told,
                                   controlnet_conditioning_scale=0.7, guess_mode=sampler == "ddim")
    found, = ours.generate(PROMPT, NEGATIVE, **LED | dict(sampler=sampler), **told, control_image=picture(), control_scale=0.7,
                           guess_mode=sampler == "ddim",
                           timestep_spacing=pipeline.scheduler.config.get("timestep_spacing"))
    agree("ControlNet", f"XL, {sampler}, levels of 255", levels(found), expected, 1)


@pytest.fixture(scope="module", params=["epsilon", "v_prediction"])
def v2(request, tmp_path_factory):
    """(diffusers' SD 2 with a ControlNet, ours with it, settings of schedulers)"""
    folder = tmp_path_factory.mktemp("v2")
    theirs = relatives.theirs(relatives.V2)
    settings = references.SCHEDULER | {"prediction_type": request.param}
    theirs.scheduler = pairs.SAMPLERS["ddim"].from_config(settings)
    unet = {key: value for key, value in relatives.UNETS[relatives.V2].items()
            if key not in ("sample_size", "up_block_types", "cross_attention_norm")}
    torch.manual_seed(4)
    net = references.make_demanding(TorchControlNet(**unet, conditioning_embedding_out_channels=HINT), 4)
    wake(net)
    theirs.save_pretrained(folder / "model")
    net.save_pretrained(folder / "net")
    pipeline = StableDiffusionControlNetPipeline(**theirs.components, controlnet=net, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline, npdiffusion.load(folder / "model", control=folder / "net"), settings


@pytest.mark.parametrize("sampler", ["ddim", "euler", "euler_a", "dpm++2m", "pndm", "heun"])
def test_sd2_with_a_controlnet_equals_diffusers_within_one_level(v2, sampler):
    theirs, ours, settings = v2
    theirs.scheduler = pairs.SAMPLERS[sampler].from_config(settings)
    asked = dict(num_inference_steps=5, guidance_scale=5.0)
    expected = pairs.their_picture(theirs, image=picture(), **asked, controlnet_conditioning_scale=0.7)
    unled = pairs.their_picture(theirs, image=picture(), **asked, controlnet_conditioning_scale=0.0)
    found, = ours.generate(PROMPT, NEGATIVE, **LED | dict(sampler=sampler), control_image=picture(), control_scale=0.7,
                           timestep_spacing=theirs.scheduler.config.get("timestep_spacing"))
    agree("ControlNet", f"SD 2, {settings['prediction_type']}, {sampler}, levels of 255", levels(found), expected, 1)
    assert np.abs(expected - unled).max() > 3


@pytest.mark.parametrize("kind, asked", [
    (StableDiffusionXLControlNetImg2ImgPipeline, {}),
    (StableDiffusionXLControlNetInpaintPipeline, dict(mask_image=mask()))], ids=["from a picture", "inpainting"])
def test_xl_from_a_picture_with_a_controlnet_equals_diffusers(xl, kind, asked):
    theirs, net, ours, _ = xl
    pipeline = kind(**theirs.components, controlnet=net, add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = pairs.SAMPLERS["euler"].from_config(references.SCHEDULER)
    expected = pairs.their_picture(pipeline, image=picture(5), control_image=picture(), strength=0.6, num_inference_steps=5,
                                   guidance_scale=5.0, controlnet_conditioning_scale=0.7, **asked)
    found, = ours.generate(PROMPT, NEGATIVE, **LED | dict(sampler="euler"), init_image=picture(5), strength=0.6,
                           control_image=picture(), control_scale=0.7, apply_overlay=False, **asked,
                           timestep_spacing=pipeline.scheduler.config.get("timestep_spacing"))
    agree("ControlNet", "XL from a picture, levels of 255", levels(found), expected, 1)


def test_both_passes_of_hires_fix_are_led(led):
    ours = led[1]
    asked = dict(steps=2, seed=1, width=32, height=32, hires=1.5, output_type="latent")
    plain, other = (ours.generate(PROMPT, control_image=picture(seed, 96, 96), **asked) for seed in (3, 4))
    assert plain.shape[1:3] == (12, 12) and not np.array_equal(plain, other)


# ---- maps, and settings

def test_a_map_is_made_of_the_picture_at_the_size_of_the_canvas(led):
    ours = led[1]
    large = picture(3, 96, 64)
    edges = maps.make("canny:50-90", large.resize((48, 32), Image.Resampling.LANCZOS))
    one, other, plain = (ours.generate(PROMPT, **LED, control_image=image, **more)[0] for image, more in (
        (large, dict(control_from="canny:50-90")), (edges, {}), (large, {})))
    assert np.array_equal(levels(one), levels(other)) and not np.array_equal(levels(one), levels(plain))


def test_a_request_with_pictures_goes_to_json_and_back():
    asked = Request(PROMPT, control_image=[picture(3), "edges.png"], control_scale=[0.5, 1], control_from=("canny", "none"))
    again = Request.from_json(asked.to_json())
    assert np.array_equal(levels(again.control_image[0]), levels(picture(3))) and again.control_image[1] == "edges.png"
    assert (again.control_scale, again.control_from) == ((0.5, 1), ("canny", "none"))


# ---- memory

def test_controlnets_are_counted_in_and_their_weights_stay_on_disk_where_memory_is_short(xl, monkeypatch):
    monkeypatch.setattr(parameters, "SMALLEST_ON_DISK", 1000)
    folder, ours = xl[3], xl[2]
    opened, alone = (loading.open_checkpoint(folder / "model", control=control) for control in (folder / "net", None))
    assert opened.fit().kept - alone.fit().kept == parameters.nbytes(opened.controlnets[0].model, "float32")
    asked = Request(PROMPT, width=48, height=32, control_image=picture())
    short = npdiffusion.load(folder / "model", control=folder / "net", dtype="float32", max_memory=budget.RUNTIME + 9e6,
                             requests=[asked])
    assert short.budget.on_disk["controlnet 0"]
    one, other = (model.generate(PROMPT, steps=2, seed=1, width=48, height=32, control_image=picture())[0]
                  for model in (short, ours))
    assert np.array_equal(levels(one), levels(other))
