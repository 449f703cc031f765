"""Hires fix against diffusers: text to image, the result enlarged by torch or Pillow, image to image with the same seed."""
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline, StableDiffusionPipeline
from PIL import Image

from npdiffusion.errors import UserError
from npdiffusion.painting.hires import bilinear
from tests import references
from tests.differences import agree
from tests.pairs import NEGATIVE, PROMPT, SAMPLERS, make_pair
from tests.references import SCHEDULER

SMALL, LARGE = (32, 24), (48, 36)


@pytest.fixture(scope="module")
def ordinary():
    return make_pair()


def generator():
    return torch.Generator().manual_seed(7)


def first_pass(pipeline, sampler):
    """Our picture before it is enlarged. Their second pass begins with it, too: where a number lies between two of 255
    levels, both are right, but a level more or less would be 1e-4 of the second pass's latents."""
    return pipeline.generate(PROMPT, NEGATIVE, steps=5, sampler=sampler, seed=7, width=SMALL[0], height=SMALL[1],
                             guidance_scale=5.0)[0]


@pytest.mark.parametrize("upscaler", ["latent", "lanczos"])
@pytest.mark.parametrize("name", ["ddim", "euler_a", "dpm++2m"])
def test_both_passes_equal_diffusers(ordinary, name, upscaler):
    parts = {name: getattr(ordinary[0], name) for name in ("vae", "text_encoder", "tokenizer", "unet")} | dict(
        scheduler=SAMPLERS[name].from_config(SCHEDULER), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False)
    words, pictures = StableDiffusionPipeline(**parts), StableDiffusionImg2ImgPipeline(**parts)
    ours = first_pass(ordinary[1], name)
    with references.decoded(pictures, ordinary[1]) as latents:
        expected = their_two_passes(words, pictures, upscaler, ours)
        found, = ordinary[1].generate(PROMPT, NEGATIVE, steps=5, sampler=name, seed=7, width=SMALL[0], height=SMALL[1],
                                      guidance_scale=5.0, hires=1.5, hires_strength=0.5, hires_steps=4, hires_upscaler=upscaler)
    assert found.size == LARGE
    agree("hires fix", f"{name}, {upscaler}, latents", latents.ours, latents.theirs, 1e-4, relative=True)
    agree("hires fix", f"{name}, {upscaler}, levels of 255", np.asarray(found), np.asarray(expected), 1)


def their_two_passes(words, pictures, upscaler, ours):
    """What diffusers' pipelines for words and for pictures make, one after the other, from our picture if it has levels."""
    common = dict(negative_prompt=NEGATIVE, guidance_scale=5.0)
    first = words(PROMPT, num_inference_steps=5, width=SMALL[0], height=SMALL[1], generator=generator(),
                  output_type="latent" if upscaler == "latent" else "pil", **common).images
    if upscaler == "latent":
        start = torch.nn.functional.interpolate(first, size=(LARGE[1] // 4, LARGE[0] // 4), mode="bilinear", antialias=False)
    else:
        agree("hires fix", "first pass, levels of 255", np.asarray(ours), np.asarray(first[0]), 1)
        start = ours.resize(LARGE, Image.Resampling.LANCZOS)
    return pictures(PROMPT, image=start, strength=0.5, num_inference_steps=8, generator=generator(), **common).images[0]


@pytest.mark.parametrize("size", [(6, 10), (7, 9), (12, 4), (3, 5)])
def test_latents_are_enlarged_as_by_torch(size):
    x = np.random.default_rng(0).standard_normal((2, 6, 5, 4), dtype=np.float32)
    expected = torch.nn.functional.interpolate(references.channels_first(x), size=size, mode="bilinear", antialias=False)
    agree("hires fix", "latents enlarged", bilinear(x, *size), references.channels_last(expected), 1e-6)


def test_both_passes_of_an_inpainting_model_equal_diffusers():
    theirs, ours = make_pair(StableDiffusionInpaintPipeline, "ddim", unet=dict(in_channels=9))

    def repainted(image, size, **options):                 # all of it, as is done from words alone
        return theirs(PROMPT, negative_prompt=NEGATIVE, image=image, mask_image=Image.new("L", size, 255), width=size[0],
                      height=size[1], guidance_scale=5.0, generator=generator(), **options).images[0]

    first = first_pass(ours, "ddim")
    agree("hires fix", "inpainting model, first pass, levels of 255", np.asarray(first),
          np.asarray(repainted(Image.new("RGB", SMALL), SMALL, strength=1.0, num_inference_steps=5)), 1)
    with references.decoded(theirs, ours) as latents:
        expected = repainted(first.resize(LARGE, Image.Resampling.LANCZOS), LARGE, strength=0.5, num_inference_steps=8)
        found, = ours.generate(PROMPT, NEGATIVE, steps=5, sampler="ddim", seed=7, width=SMALL[0], height=SMALL[1],
                               guidance_scale=5.0, hires=1.5, hires_strength=0.5, hires_steps=4, hires_upscaler="lanczos")
    agree("hires fix", "inpainting model, latents", latents.ours, latents.theirs, 1e-4, relative=True)
    agree("hires fix", "inpainting model, levels of 255", np.asarray(found), np.asarray(expected), 1)


@pytest.mark.parametrize("steps, strength", [(4, 0.7), (1, 0.7), (3, 0.99), (3, 1), (7, 0.31), (19, 0.98)])
def test_the_second_pass_does_as_many_steps_as_it_is_told(ordinary, steps, strength):
    seen = []
    ordinary[1].generate(PROMPT, steps=2, sampler="ddim", seed=1, width=16, height=16, guidance_scale=1, hires=2,
                         hires_steps=steps, hires_strength=strength,
                         callback=lambda step, all_steps, latents: seen.append((step, all_steps, latents.shape)))
    shapes = [(1, 4, 4, 4)] * 2 + [(1, 8, 8, 4)] * steps
    assert seen == [(i, 2 + steps, shape) for i, shape in enumerate(shapes, start=1)]


def test_the_size_is_the_nearest_that_latents_have(ordinary):
    image, = ordinary[1].generate(PROMPT, steps=1, sampler="ddim", seed=1, width=32, height=24, hires=1.3)
    assert image.size == (40, 32)          # of 41.6 and 31.2


def test_each_picture_of_a_batch_depends_on_its_own_seed_alone(ordinary):
    options = dict(steps=2, sampler="euler_a", width=16, height=16, hires=2, hires_upscaler="lanczos")
    together = ordinary[1].generate(PROMPT, seed=3, count=2, **options)
    alone, = ordinary[1].generate(PROMPT, seed=4, **options)
    assert np.abs(np.asarray(together[1]).astype(int) - np.asarray(alone)).max() <= 1


@pytest.mark.parametrize("options, words", [
    (dict(hires=1), "hires is 1: it must be a number above 1 and up to 8"), (dict(hires=9.5), "hires is 9.5"),
    (dict(hires="2"), "hires is '2'"), (dict(hires_strength=0), "hires_strength is 0"),
    (dict(hires_strength=1.5), "hires_strength is 1.5"),
    (dict(hires_steps=-1), "hires_steps is -1"), (dict(hires_upscaler="Latents"), "did you mean latent?"),
    (dict(hires_steps=900), "hires: 900 steps at strength 0.7 are the end of 1285: steps is 1285"),
    (dict(init_image=Image.new("RGB", (32, 32))), "hires: it is for pictures made from words alone")])
def test_a_second_pass_that_makes_no_sense_is_one_line(ordinary, options, words):
    with pytest.raises(UserError) as error:
        ordinary[1].generate(PROMPT, **dict(steps=2, seed=0, sampler="ddim", hires=2) | options)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_second_pass_that_would_be_too_large_is_refused_before_the_first(ordinary):
    seen = []
    with pytest.raises(UserError, match="^hires is 8: the picture would have 8224x128 pixels, allowed are 8192 a side$"):
        ordinary[1].generate(PROMPT, steps=1, seed=0, sampler="ddim", width=1028, height=16, hires=8,
                             callback=lambda *step: seen.append(step))
    assert not seen
