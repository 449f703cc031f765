"""The refiner beside diffusers': where the run is divided, pictures, aesthetic scores, what doesn't go together."""
import warnings

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionXLImg2ImgPipeline,
    UniPCMultistepScheduler,
)
from PIL import Image

import npdiffusion
from npdiffusion import loading
from npdiffusion.diffusion.schedules import NoiseSchedule
from npdiffusion.errors import UserError
from npdiffusion.memory import budget
from npdiffusion.models import parameters
from npdiffusion.pictures.settings_text import parse_parameters
from npdiffusion.settings import IN_PYTHON, Request
from tests import pairs, references, relatives
from tests.differences import agree
from tests.pairs import NEGATIVE, PROMPT, levels
from tests.relatives import REFINER, V2, XL

SAMPLERS = {"pndm": PNDMScheduler, "ddim": DDIMScheduler, "ddpm": DDPMScheduler, "euler": EulerDiscreteScheduler,
            "euler_a": EulerAncestralDiscreteScheduler, "dpm++2m": DPMSolverMultistepScheduler,
            "unipc": UniPCMultistepScheduler, "deis": DEISMultistepScheduler}
STEPS, SIZE = 6, dict(width=48, height=32)
ASKED = dict(steps=STEPS, seed=7, guidance_scale=5.0)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """diffusers' pipelines of XL and its refiner, and the folders that they wrote"""
    found = {}
    for name in XL, REFINER, V2:
        path = tmp_path_factory.mktemp("refined") / "model"
        found[name] = relatives.theirs(name), path
        found[name][0].save_pretrained(path)
    return found


@pytest.fixture(scope="module")
def ours(folders):
    return npdiffusion.load(folders[XL][1], refiner=folders[REFINER][1])


def refined(folders, sampler, at, first=None, told=None, **options):
    """Levels of the picture that diffusers' pipelines make one after the other; first: the pipeline before the refiner

    told: further options of the refiner
    """
    (base, _), (refiner, _) = folders[XL], folders[REFINER]
    first = first or base
    kept = first.scheduler, refiner.scheduler
    first.scheduler, refiner.scheduler = (SAMPLERS[sampler].from_config(references.SCHEDULER) for _ in range(2))
    same = dict(negative_prompt=NEGATIVE, generator=torch.Generator().manual_seed(7), num_inference_steps=STEPS,
                guidance_scale=5.0)
    latents = first(PROMPT, **same, denoising_end=at, output_type="latent", **options).images
    made = refiner(PROMPT, **same, denoising_start=at, image=latents, **told or {}).images[0]
    first.scheduler, refiner.scheduler = kept
    assert levels(made).std() > 10
    return levels(made)


def spacing(sampler):
    return SAMPLERS[sampler].from_config(references.SCHEDULER).config.get("timestep_spacing")


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("at", [0.4, 0.8])
def test_pictures_equal_those_of_diffusers_two_pipelines_within_one_level(folders, ours, sampler, at):
    expected = refined(folders, sampler, at, **SIZE)
    found, = ours.generate(PROMPT, NEGATIVE, **ASKED, **SIZE, sampler=sampler, refiner_at=at, timestep_spacing=spacing(sampler))
    agree("refiner", f"picture, {sampler}, levels of 255", levels(found), expected, 1)


@pytest.mark.parametrize("sampler", ["euler", "ddim"])
def test_image_to_image_with_a_refiner_equals_diffusers(folders, ours, sampler):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8))
    first = StableDiffusionXLImg2ImgPipeline(**folders[XL][0].components, add_watermarker=False)
    first.set_progress_bar_config(disable=True)
    expected = refined(folders, sampler, 0.7, first, image=picture, strength=0.9)
    found, = ours.generate(PROMPT, NEGATIVE, **ASKED, **SIZE, init_image=picture, strength=0.9, sampler=sampler, refiner_at=0.7,
                           timestep_spacing=spacing(sampler))
    agree("refiner", "from a picture, levels of 255", levels(found), expected, 1)


def test_aesthetic_scores_are_told_to_the_refiner_as_in_diffusers(folders, ours):
    told = dict(aesthetic_score=9.5, negative_aesthetic_score=0.5)
    expected = refined(folders, "euler", 0.4, told=told, **SIZE)
    asked = dict(**ASKED, **SIZE, sampler="euler", refiner_at=0.4, timestep_spacing=spacing("euler"))
    found, plain = (levels(ours.generate(PROMPT, NEGATIVE, **asked, **more)[0]) for more in (told, {}))
    agree("refiner", "aesthetic scores, levels of 255", found, expected, 1)
    assert not np.array_equal(found, plain)
    resolved = ours.resolve(Request(PROMPT, **SIZE, **told))
    assert [list(each) for each in resolved.sizes((48, 32), ours.refiner.family)] == [[32, 48, 0, 0, 9.5], [32, 48, 0, 0, 0.5]]


# ---- where the run is divided

def test_ten_steps_are_divided_at_the_time_steps_of_denoising_end():
    schedule = NoiseSchedule(own_sampler="euler", timestep_spacing="leading")
    early, late = (schedule.plan("euler", 10, **{name: 300}) for name in ("above", "below"))
    assert [round(t) for t in early.times[:len(early)]] == [901, 801, 701, 601, 501, 401, 301]
    assert [round(t) for t in late.times] == [201, 101, 1] and (len(early), len(late)) == (7, 3)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "euler", "euler_a", "heun", "dpm2", "dpm2_a", "dpm++sde", "lcm", "tcd"])
def test_a_run_divided_between_two_equal_models_is_the_undivided_one(sampler):
    """Samplers that remember nothing from one step to the next"""
    theirs, whole = pairs.make_pair()
    divided = pairs.our_twin(theirs)
    divided.refiner = whole
    asked = dict(steps=6, seed=3, sampler=sampler, width=16, height=16)
    one, = whole.generate(PROMPT, **asked)
    for at in 0.8, 0.4:
        other, = divided.generate(PROMPT, **asked, refiner_at=at)
        agree("refiner", "divided between equal models, levels of 255", levels(other), levels(one), 0)


def test_words_that_change_with_the_steps_are_counted_on_by_the_refiner():
    theirs, whole = pairs.make_pair()
    divided = pairs.our_twin(theirs)
    divided.refiner = whole
    asked = dict(steps=6, seed=3, sampler="euler", width=16, height=16)
    images = [model.generate("a [cat:dog:0.8] on red", **asked)[0] for model in (whole, divided)]
    assert np.array_equal(*map(levels, images))


def test_the_refiner_takes_over_in_the_second_pass_of_hires_fix(ours):
    resolved = ours.resolve(Request(PROMPT, width=32, height=32, hires=1.5, steps=6, refiner_at=0.5))
    first, second = resolved.passes
    assert first.refining is None and len(second.plan) + len(second.refining) == 6 and resolved.planned == 12
    image, = ours.generate(PROMPT, width=32, height=32, hires=1.5, steps=6, seed=1, refiner_at=0.5)
    assert image.size == (48, 48)


def test_what_a_mask_keeps_is_kept_by_the_refiner_too(ours):
    picture = Image.new("RGB", (32, 32), "red")
    mask = Image.fromarray(np.where(np.arange(32) < 16, 0, 255).astype(np.uint8)[None].repeat(32, axis=0))
    asked = dict(init_image=picture, mask_image=mask, steps=6, seed=1, output_type="latent")
    kept, alone = (ours.generate(PROMPT, **asked, refiner_at=at) for at in (0.5, 1))
    assert np.array_equal(kept[:, :, :4], alone[:, :, :4]) and not np.array_equal(kept, alone)


# ---- what is said

def test_settings_in_a_picture_name_the_refiner_and_when_it_took_over(ours):
    told, plain = (parse_parameters(ours.generate(PROMPT, steps=6, seed=1, **SIZE, **more)[0].info["parameters"])[2]
                   for more in (dict(refiner_at=0.5, aesthetic_score=7.0), dict(refiner_at=1)))
    assert (told["Refiner"], told["Refiner switch at"], told["Aesthetic score"]) == ("model", "0.5", "7")
    assert "Refiner" not in plain and "Refiner switch at" not in plain


def test_a_refiner_that_has_nothing_to_do_is_told(ours):
    resolved = ours.resolve(Request(PROMPT, steps=1, refiner_at=0.8, timestep_spacing="trailing", **SIZE))
    assert list(resolved.notes(IN_PYTHON)) == ["refiner_at has no effect with 1 steps: none is left for the refiner"]


def test_a_refiner_of_other_latents_is_named_with_both_families(folders):
    with pytest.raises(UserError, match="the refiner of Stable Diffusion XL, whose latents .* which is Stable Diffusion 2"):
        npdiffusion.load(folders[V2][1], refiner=folders[REFINER][1])


def test_refiner_settings_without_a_refiner_are_told(folders):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        alone = npdiffusion.load(folders[XL][1])
    with pytest.raises(UserError, match="refiner_at says when a refiner takes over"):
        alone.resolve(Request(PROMPT, refiner_at=0.5))
    assert list(alone.resolve(Request(PROMPT, aesthetic_score=3.0)).notes(IN_PYTHON)) == [
        "aesthetic_score has no effect without XL's refiner"]


# ---- memory

def test_a_refiner_is_counted_in_and_its_weights_stay_on_disk_where_memory_is_short(folders, ours, monkeypatch):
    monkeypatch.setattr(parameters, "SMALLEST_ON_DISK", 1000)
    asked = dict(steps=3, seed=1, **SIZE, refiner_at=0.5)
    opened = loading.open_checkpoint(folders[XL][1], refiner=folders[REFINER][1])
    alone = loading.open_checkpoint(folders[XL][1])
    parts = opened.refiner.model.parts
    assert opened.fit().kept - alone.fit().kept == sum(
        parameters.nbytes(parts[name].model, "float32") for name in ("unet", "text_encoder_2"))
    short = npdiffusion.load(folders[XL][1], refiner=folders[REFINER][1], dtype="float32", max_memory=budget.RUNTIME + 9e6,
                             requests=[Request(PROMPT, **SIZE)])
    assert short.budget.on_disk["refiner unet"] and short.budget.on_disk["refiner text_encoder_2"]
    assert np.array_equal(*(levels(model.generate(PROMPT, **asked)[0]) for model in (short, ours)))
