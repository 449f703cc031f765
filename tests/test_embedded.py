"""The model that comes with the library: the same picture from both backends, and from diffusers."""
import pathlib

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

import npdiffusion
from npdiffusion import kernels, weights
from npdiffusion.weights.recipe import captions, exam, judge, recognition, scenes, settings

PROMPT, SEED, STEPS = "a cat and a rocket on a white background", 3, 12


@pytest.fixture(scope="module")
def pictures():
    """{backend: picture (128, 128, 3) as integers}"""
    before, made = kernels.backend(), {}
    for backend in kernels.BACKENDS:
        kernels.use_backend(backend)
        image, = npdiffusion.load().generate(PROMPT, seed=SEED, steps=STEPS)
        made[backend] = np.asarray(image).astype(int)
    kernels.use_backend(before)
    return made


def test_both_backends_draw_the_same_picture_within_one_level(pictures):
    assert pictures["numpy"].std() > 20          # a picture, not a flat field that anything would equal
    assert np.abs(pictures["numba"] - pictures["numpy"]).max() <= 1


@pytest.mark.filterwarnings("ignore")
def test_diffusers_draws_the_same_picture_within_one_level(pictures):
    pipeline = StableDiffusionPipeline.from_pretrained(pathlib.Path(weights.__file__).parent, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    guidance = npdiffusion.load().default_guidance
    image, = pipeline(PROMPT, generator=torch.Generator().manual_seed(SEED), num_inference_steps=STEPS, height=128,
                      width=128, guidance_scale=guidance).images
    assert np.abs(pictures["numba"] - np.asarray(image).astype(int)).max() <= 1


def test_bfloat16_draws_nearly_the_same_picture(pictures, monkeypatch):
    monkeypatch.setattr(kernels, "_chosen", "numba")
    image, = npdiffusion.load(dtype="bfloat16").generate(PROMPT, seed=SEED, steps=STEPS)
    difference = np.square(pictures["numba"] - np.asarray(image).astype(int)).mean()
    assert 10 * np.log10(255**2 / difference) > 40          # decibel


@pytest.mark.parametrize("seed", range(3))
def test_negative_prompt_keeps_a_background_away(seed, monkeypatch):
    """The ground that "a cat" gets by itself is not there any more when the negative prompt names it."""
    monkeypatch.setattr(kernels, "_chosen", "numba")

    def ground(negative):
        image, = npdiffusion.load().generate("a cat", negative, seed=seed, steps=STEPS)
        return recognition.name_of_ground(recognition.ground_of(np.asarray(image).astype(np.float32)))

    alone = ground("")
    words = f"{alone} background" if alone in scenes.COLOURS else captions.SCENES[alone]
    assert ground(words) != alone


@pytest.mark.skipif(not pathlib.Path(settings.FONT).is_file(), reason="the colour emoji font is not here")
def test_it_draws_what_never_seen_captions_ask_for(monkeypatch):
    """The first of the judge's questions of each kind; weights/README.md has the figures for all of them."""
    monkeypatch.setattr(kernels, "_chosen", "numba")
    questions, seen = exam.exam(share=0.04), recognition.Judge(scenes.load_sprites(settings.FONT))
    artist = judge.Artist(settings.MODEL, steps=10, guidance=settings.GUIDANCE, sampler="dpm++2m")
    right = [all(seen.marks(question.scene, picture).values())
             for question, picture in zip(questions, artist.generate(questions))]
    assert len(right) == 20 and sum(right) >= 17
