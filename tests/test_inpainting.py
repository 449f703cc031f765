"""Inpainting against diffusers' own pipeline with the same seed: ordinary models, inpainting models, only the masked part."""

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny, KDPM2AncestralDiscreteScheduler, StableDiffusionInpaintPipeline, UniPCMultistepScheduler
from diffusers.image_processor import VaeImageProcessor
from PIL import Image, ImageDraw, ImageFilter

from npdiffusion.errors import UserError
from npdiffusion.models import parameters
from npdiffusion.models.configs import TinyVAEConfig
from npdiffusion.models.taesd import AutoencoderTiny as OurAutoencoderTiny
from npdiffusion.painting.canvas import Canvas, circumscribed, region_around
from npdiffusion.painting.masks import in_latents, prepare, read_mask, repainted
from npdiffusion.painting.outpainting import extend
from npdiffusion.pipeline import StableDiffusionPipeline
from tests import references
from tests.differences import agree
from tests.pairs import NEGATIVE, PROMPT, SAMPLERS, SCHEDULE, levels, make_pair
from tests.references import SCHEDULER

WIDTH, HEIGHT = 48, 32
COMMON = dict(guidance_scale=5.0, width=WIDTH, height=HEIGHT)


@pytest.fixture(scope="module")
def ordinary():
    return make_pair(StableDiffusionInpaintPipeline, "ddim")


@pytest.fixture(scope="module")
def inpainting_model():
    return make_pair(StableDiffusionInpaintPipeline, "ddim", unet=dict(in_channels=9))


def picture(width=WIDTH, height=HEIGHT):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def ellipse(box=(10, 6, 30, 25), width=WIDTH, height=HEIGHT, blur=0):
    mask = Image.new("L", (width, height))
    ImageDraw.Draw(mask).ellipse(box, fill=255)
    return mask.filter(ImageFilter.GaussianBlur(blur)) if blur else mask


def agree_with_diffusers(what, pair, name, image, mask, steps=6, padding=None, **options):
    """The latents that are decoded, and the picture"""
    theirs, ours = pair
    theirs.scheduler = SCHEDULERS[name].from_config(SCHEDULER)
    with references.decoded(theirs, ours) as latents:
        expected = theirs(PROMPT, negative_prompt=NEGATIVE, image=image, mask_image=mask, num_inference_steps=steps,
                          generator=torch.Generator().manual_seed(7), padding_mask_crop=padding, **COMMON, **options).images[0]
        found, = ours.generate(PROMPT, NEGATIVE, init_image=image, mask_image=mask, steps=steps, sampler=name, seed=7,
                               padding_mask_crop=padding, apply_overlay=padding is not None, **COMMON, **options)
    agree("inpainting", f"{what}, latents", latents.ours, latents.theirs, 1e-4, relative=True)
    agree("inpainting", f"{what}, levels of 255", levels(found), levels(expected), 1)


STRENGTHS = dict(ddpm=1.0, ddim=0.6, pndm=1.0, euler=0.6, euler_a=1.0, heun=1.0, unipc=0.6, dpm2_a=0.6) | {"dpm++2m": 0.6}
SCHEDULERS = SAMPLERS | {"unipc": UniPCMultistepScheduler, "dpm2_a": KDPM2AncestralDiscreteScheduler}


@pytest.mark.parametrize("name, strength", [*STRENGTHS.items(), ("pndm", 0.6), ("euler_a", 0.6)])
def test_ordinary_models_inpaint_as_with_diffusers(ordinary, name, strength):
    what = f"ordinary model, {name}, strength {strength}"
    agree_with_diffusers(what, ordinary, name, picture(), ellipse(), strength=strength)


@pytest.mark.parametrize("name, strength", [("ddim", 1.0), ("pndm", 0.6), ("euler_a", 0.6), ("heun", 1.0)])
def test_inpainting_models_paint_as_with_diffusers(inpainting_model, name, strength):
    what = f"inpainting model, {name}, strength {strength}"
    agree_with_diffusers(what, inpainting_model, name, picture(), ellipse(), strength=strength)


@pytest.mark.parametrize("strength", [None, 0.6], ids=["text to image", "image to image"])
def test_an_inpainting_model_without_a_mask_repaints_everything(inpainting_model, strength):
    theirs, ours = inpainting_model
    theirs.scheduler = SAMPLERS["ddim"].from_config(SCHEDULER)
    with references.decoded(theirs, ours) as latents:
        expected = theirs(PROMPT, image=picture(), mask_image=Image.new("L", (WIDTH, HEIGHT), 255), num_inference_steps=6,
                          strength=strength or 1.0, generator=torch.Generator().manual_seed(7), **COMMON).images[0]
        found, = ours.generate(PROMPT, steps=6, sampler="ddim", seed=7, init_image=strength and picture(), strength=strength,
                               **COMMON)
    agree("inpainting", "inpainting model without a mask, latents", latents.ours, latents.theirs, 1e-4, relative=True)
    agree("inpainting", "inpainting model without a mask, levels of 255", levels(found), levels(expected), 1)


@pytest.mark.parametrize("blur", [0, 3])
def test_only_the_masked_part_is_painted_as_with_diffusers(ordinary, blur):
    mask = ellipse((120, 20, 150, 40), 200, 100, blur)
    what = f"only the masked part, blur {blur}"
    agree_with_diffusers(what, ordinary, "ddim", picture(200, 100), mask, padding=8, strength=0.8)


@pytest.mark.parametrize("size, box, padding", [
    ((200, 100), (120, 20, 150, 40), 8), ((200, 100), (5, 80, 20, 98), 32), ((40, 120), (5, 10, 35, 110), 4),
    ((150, 41), (3, 2, 140, 38), 0), ((31, 33), (0, 0, 31, 33), 0)],
    ids=["inside", "corner", "higher than wide", "wider than high", "odd"])
@pytest.mark.parametrize("blur", [0, 3])
def test_the_way_to_a_part_and_back_is_that_of_diffusers(size, box, padding, blur):
    image, mask, painted = picture(*size), ellipse(box, *size, blur), picture()
    images = VaeImageProcessor(vae_scale_factor=4)
    binary = VaeImageProcessor(vae_scale_factor=4, do_normalize=False, do_binarize=True, do_convert_grayscale=True)
    canvas = Canvas(image, mask, WIDTH, HEIGHT, padding)
    region = images.get_crop_region(mask, WIDTH, HEIGHT, pad=padding)
    assert canvas.region == region
    there = dict(height=HEIGHT, width=WIDTH, resize_mode="fill", crops_coords=region)
    agree("inpainting", "part of the picture, [-1, 1]", canvas.image,
          references.channels_last(images.preprocess(image, **there)), 0)
    agree("inpainting", "part of the mask, 0 or 1", repainted(canvas.mask), binary.preprocess(mask, **there)[0, 0].numpy(), 0)
    agree("inpainting", "pasted back, levels of 255", levels(canvas.finish(painted)),
          levels(images.apply_overlay(mask, image, painted, region)), 1)


@pytest.mark.parametrize("size, options", [
    ((WIDTH, HEIGHT), {}), ((WIDTH, HEIGHT), dict(mask_blur=2)), ((200, 100), dict(padding_mask_crop=8)),
    ((200, 100), dict(padding_mask_crop=0, mask_blur=3))], ids=["whole", "whole, blur", "part", "part, blur"])
def test_pixels_where_the_mask_is_black_stay_as_they_were(ordinary, size, options):
    image, mask = picture(*size), ellipse((10, 6, 30, 25), *size)
    found, = ordinary[1].generate(PROMPT, init_image=image, mask_image=mask, steps=2, sampler="ddim", seed=1, width=WIDTH,
                                  height=HEIGHT, **options)
    black = levels(prepare(mask, options.get("mask_blur", 0))) == 0
    assert found.size == size and black.mean() > 0.3
    assert np.array_equal(levels(found)[black], levels(image)[black])
    assert np.abs(levels(found) - levels(image))[levels(mask) == 255].mean() > 20


def test_what_is_repainted_shows_fully_though_its_edge_is_feathered(ordinary):
    """The original would shine through as a ghost if the feathering lay inside."""
    options = dict(init_image=picture(), mask_image=ellipse(), steps=2, sampler="ddim", seed=1, width=WIDTH, height=HEIGHT)
    feathered, = ordinary[1].generate(PROMPT, mask_blur=2, **options)
    bare, = ordinary[1].generate(PROMPT, mask_blur=2, apply_overlay=False, **options)
    inside = repainted(prepare(ellipse(), 2))
    assert np.array_equal(levels(feathered)[inside], levels(bare)[inside])


def test_each_picture_of_a_batch_depends_on_its_own_seed_alone(ordinary, inpainting_model):
    for _, ours in (ordinary, inpainting_model):
        options = dict(init_image=picture(), mask_image=ellipse(), strength=0.6, steps=4, sampler="euler_a", width=WIDTH,
                       height=HEIGHT)
        together = ours.generate(PROMPT, seed=3, count=2, **options)
        alone, = ours.generate(PROMPT, seed=4, **options)
        assert together[1].info["seed"] == 4 and np.abs(levels(together[1]) - levels(alone)).max() <= 1


@pytest.mark.parametrize("channels", [4, 9])
def test_a_tiny_autoencoder_which_draws_no_noise_serves_as_with_diffusers(ordinary, inpainting_model, channels):
    theirs, ours = ordinary if channels == 4 else inpainting_model
    torch.manual_seed(0)
    tiny = references.make_demanding(AutoencoderTiny(num_encoder_blocks=(1, 1, 1), num_decoder_blocks=(1, 1, 1), **{
        f"{side}_block_out_channels": (16,) * 3 for side in ("encoder", "decoder")}))
    vae = OurAutoencoderTiny(TinyVAEConfig.from_dict(dict(tiny.config)))
    parameters.load(vae, {name: references.Tensor(tensor) for name, tensor in tiny.state_dict().items()}, "tiny")
    pair = (StableDiffusionInpaintPipeline(**theirs.components | {"vae": tiny}, requires_safety_checker=False),
            StableDiffusionPipeline(ours.tokenizer, ours.text_encoder, ours.unet, vae, SCHEDULE, "tiny"))
    pair[0].set_progress_bar_config(disable=True)
    agree_with_diffusers(f"TAESD, {channels} channels", pair, "euler_a", picture(), ellipse(), strength=0.6)
    options = dict(init_image=picture(), mask_image=ellipse(), strength=0.6, steps=4, sampler="euler_a", width=WIDTH,
                   height=HEIGHT)
    together, alone = pair[1].generate(PROMPT, seed=3, count=2, **options), pair[1].generate(PROMPT, seed=4, **options)
    assert np.abs(levels(together[1]) - levels(alone[0])).max() <= 1


def test_states_on_the_way_hold_the_picture_that_is_kept(ordinary):
    """What is not repainted is z + σ ε at each level for a sampler without randomness: a preview shows the picture."""
    ours, seen = ordinary[1], []
    ours.generate(PROMPT, init_image=picture(), mask_image=ellipse(), steps=5, sampler="euler", seed=1, strength=0.6,
                  width=WIDTH, height=HEIGHT, callback=lambda step, steps, latents: seen.append(latents))
    kept = in_latents(ellipse(), 4)[0, :, :, 0] == 0
    steps = np.diff([latents[0][kept] for latents in seen], axis=0)
    first, second = (step / np.abs(step).max() for step in steps[:2])
    np.testing.assert_allclose(first, second, atol=1e-4)          # all along one line: the noise that was added


# ---- masks

def test_feathering_is_that_of_diffusers():
    theirs = VaeImageProcessor(vae_scale_factor=4).blur(ellipse(), 3)
    agree("inpainting", "feathered mask, levels of 255", levels(prepare(ellipse(), 3)), levels(theirs), 0)


def test_an_inverted_mask_is_repainted_where_it_was_black():
    assert np.array_equal(levels(prepare(ellipse(), invert=True)), 255 - levels(ellipse()))


def white(mode, inside, outside):
    """A picture of that mode, 8 × 8, one colour in its left half and another one in the right."""
    image = Image.new(mode, (8, 8), outside)
    image.paste(inside, (0, 0, 4, 8))
    return image


@pytest.mark.parametrize("mask", [
    white("1", 1, 0), white("L", 255, 0), white("RGB", (255, 255, 255), (0, 0, 0)), white("CMYK", (0, 0, 0, 0), (0, 0, 0, 255)),
    white("L", 255, 0).quantize(), white("I;16", 65535, 0), white("RGBA", (255, 255, 255, 255), (0, 0, 0, 255)),
    white("RGBA", (255, 255, 255, 255), (255, 255, 255, 0)), white("RGBA", (0, 0, 0, 255), (0, 0, 0, 0)),
    white("LA", (255, 255), (0, 0))],
    ids=["1", "L", "RGB", "CMYK", "P", "I;16", "RGBA", "white on nothing", "black on nothing", "LA"])
def test_masks_of_every_mode(mask, tmp_path):
    expected = np.repeat([[255] * 4 + [0] * 4], 8, axis=0)
    assert np.array_equal(levels(read_mask(mask, (8, 8))), expected)
    suffix = "tif" if mask.mode == "CMYK" else "png"
    mask.save(tmp_path / f"mask.{suffix}")
    assert np.array_equal(levels(read_mask(tmp_path / f"mask.{suffix}", (8, 8))), expected)


def test_grey_is_a_soft_mask(ordinary):
    mask = Image.linear_gradient("L").resize((WIDTH, HEIGHT))
    options = dict(init_image=picture(), mask_image=mask, steps=2, sampler="ddim", seed=1, width=WIDTH, height=HEIGHT)
    soft, bare = (ordinary[1].generate(PROMPT, apply_overlay=overlay, **options)[0] for overlay in (True, False))
    m = np.minimum(levels(mask) / 255 * 2, 1)[:, :, None]
    assert np.abs(levels(soft) - (m * levels(bare) + (1 - m) * levels(picture()))).max() <= 2


def test_a_mask_of_another_size_is_resized_with_a_note(tmp_path):
    large = Image.new("L", (96, 64))
    large.paste(255, (20, 12, 60, 50))
    large.save(tmp_path / "mask.png")
    with pytest.warns(UserWarning, match=r"mask\.png: its 96x64 pixels are resized to the picture's 48x32"):
        mask = read_mask(tmp_path / "mask.png", (48, 32))
    expected = np.zeros((32, 48))
    expected[6:25, 10:30] = 255                            # each of these pixels stands for four alike
    assert mask.size == (48, 32) and np.abs(levels(mask) - expected).max() < 40


@pytest.mark.parametrize("mask, why", [(Image.new("L", (WIDTH, HEIGHT)), "it has no white"),
                                       (ellipse((9, 9, 11, 11)), "smaller than 4 pixels")], ids=["black", "too small"])
def test_a_mask_that_repaints_nothing_is_noted(ordinary, mask, why):
    with pytest.warns(UserWarning, match=f"nothing to repaint: .*{why}"):
        ordinary[1].generate(PROMPT, init_image=picture(), mask_image=mask, steps=1, sampler="ddim", seed=1, width=WIDTH,
                             height=HEIGHT)


# ---- outpainting

def test_outpainting_extends_the_picture_and_keeps_it(ordinary):
    image = picture(40, 24)
    found, = ordinary[1].generate(PROMPT, init_image=image, outpaint="left=16, bottom=8", mask_blur=0, steps=2,
                                  sampler="ddim", seed=1)
    assert found.size == (56, 32)
    assert np.array_equal(levels(found)[:24, 16:], levels(image))


def test_what_is_new_in_a_larger_picture_is_masked_and_mirrored():
    image = picture(40, 24)
    extended, mask = extend(image, ellipse((5, 5, 9, 9), 40, 24), left=16, bottom=48)
    assert extended.size == mask.size == (56, 72)
    assert np.array_equal(levels(extended)[:24, 16:], levels(image))
    assert np.array_equal(levels(extended)[:24, :16], levels(image)[:, 15::-1])
    assert np.array_equal(levels(mask)[:24, 16:], levels(ellipse((5, 5, 9, 9), 40, 24)))
    assert (levels(mask)[24:] == 255).all() and (levels(mask)[:, :16] == 255).all()


# ---- what doesn't go together

FLOAT = Image.new("F", (WIDTH, HEIGHT))


@pytest.mark.parametrize("options, words", [
    (dict(mask_image=ellipse(), init_image=None), "mask_image says where a picture is repainted: init_image"),
    (dict(outpaint="left=8", init_image=None), "outpaint says by how much a picture is extended: init_image"),
    (dict(mask_image="missing.png"), "missing.png: can't be read"),
    (dict(mask_image=FLOAT), "mask_image: its pixels are floating"),
    (dict(init_image=FLOAT), "init_image: its pixels are floating"),
    (dict(mask_image=ellipse(), mask_blur=-1), "mask_blur is -1"),
    (dict(mask_image=ellipse(), mask_blur="x"), "mask_blur is 'x'"),
    (dict(padding_mask_crop=8), "padding_mask_crop says how much around the mask is looked at: mask_image is missing"),
    (dict(mask_image=ellipse(), padding_mask_crop=-8), "padding_mask_crop is -8"),
    (dict(mask_image=ellipse(), padding_mask_crop=8, apply_overlay=False),
     "apply_overlay: a part can't be painted without pasting it into the original"),
    (dict(outpaint="left=10"), "left is 10: it must be a multiple of 4, the nearest is 8"),
    (dict(outpaint="lift=8"), "'lift' is no side, did you mean left?"), (dict(outpaint="left"), "left is ''"),
    (dict(outpaint="left=-8"), "left is '-8': it must be a number of pixels"), (dict(outpaint={}), "outpaint is {}"),
    (dict(outpaint={"left": 99999}), "left is 99999"), (dict(outpaint="left=0"), "every side is 0"),
    (dict(outpaint={"left": 8000, "right": 8000}), "the picture would have 16048x32 pixels"),
    (dict(mask_image=ellipse(), strength=2), "strength is 2")])
def test_what_does_not_go_together_is_one_line(ordinary, options, words):
    with pytest.raises(UserError) as error:
        ordinary[1].generate(PROMPT, **dict(steps=2, seed=0, sampler="ddim", init_image=picture()) | options)
    assert words in str(error.value) and "\n" not in str(error.value)


# ---- thin parts

@pytest.mark.parametrize("size", [(512, 512), (8192, 8), (8, 8192)])
@pytest.mark.parametrize("box", [(0, 0, 1, 500), (599, 0, 600, 500), (30, 7, 530, 8), (599, 499, 600, 500)])
@pytest.mark.parametrize("padding", [0, 40])
def test_the_region_around_a_thin_mask_lies_inside_the_picture_and_holds_the_mask(size, box, padding):
    mask = Image.new("L", (600, 500))
    mask.paste(255, box)
    left, top, right, bottom = region_around(mask, *size, padding)
    assert 0 <= left <= box[0] and 0 <= top <= box[1] and box[2] <= right <= 600 and box[3] <= bottom <= 500


@pytest.mark.parametrize("size", [(1, 40_000), (40_000, 1), (7, 30_000)])
def test_a_thin_picture_is_painted_on_without_a_huge_one_in_between(size, monkeypatch):
    sizes, resize = [], Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda image, size, *more, **options: sizes.append(size) or resize(
        image, size, *more, **options))
    canvas = Canvas(Image.new("RGB", size, "red"), Image.new("L", size, 255), 64, 64, padding=0)
    result = canvas.finish(Image.new("RGB", (64, 64), "blue"))
    assert result.size == size and result.getcolors() == [(size[0] * size[1], (0, 0, 255))]
    assert max(width * height for width, height in sizes) <= 64_000_000


@pytest.mark.parametrize("size", [(9, 8100), (8100, 9), (600, 8100)])
def test_a_thin_part_is_the_same_as_if_all_were_scaled(size):
    levels = np.random.default_rng(0).integers(96, 160, (48, 48, 3), np.uint8)       # so that nothing is clipped on the way
    painted = Image.fromarray(levels)
    whole = painted.resize((8100, 8100), Image.Resampling.LANCZOS)
    left, top = (8100 // 2 - side // 2 for side in size)
    expected = whole.crop((left, top, left + size[0], top + size[1]))
    agree("inpainting", "a thin part, levels of 255", np.asarray(circumscribed(painted, *size)), np.asarray(expected), 2)
