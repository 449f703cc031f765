"""Models distilled to few steps: recognised, told their guidance, and equal to diffusers' pipelines."""
import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
    TCDScheduler,
)
from PIL import Image

from npdiffusion.checkpoints import whole_model
from npdiffusion.checkpoints.families import FAMILIES
from npdiffusion.diffusion import defaults
from npdiffusion.diffusion.schedules import NoiseSchedule
from npdiffusion.errors import UserError
from npdiffusion.models.conditioning import Conditioning, guidance_embedding
from npdiffusion.models.configs import UNetConfig
from npdiffusion.pipeline import StableDiffusionPipeline as OurPipeline
from tests import references
from tests.differences import agree
from tests.pairs import NEGATIVE, PROMPT, levels, their_picture
from tests.references import SCHEDULER

WIDTH = 32                            # of the embedded guidance scale; 256 in published models


@pytest.fixture(scope="module")
def distilled(pair):
    """(diffusers' pipeline, ours) with a UNet that takes the guidance scale."""
    theirs = StableDiffusionPipeline(**pair[0].components | {
        "unet": references.torch_unet(**references.TINY_UNET, time_cond_proj_dim=WIDTH),
        "scheduler": LCMScheduler.from_config(SCHEDULER)}, requires_safety_checker=False)
    theirs.set_progress_bar_config(disable=True)
    schedule = NoiseSchedule.from_config(dict(theirs.scheduler.config) | {"_class_name": "LCMScheduler"})
    return theirs, OurPipeline(pair[1].tokenizer, pair[1].text_encoder, references.twin(theirs.unet), pair[1].vae,
                               schedule, "distilled")


def test_embedded_guidance_equals_diffusers(distilled):
    theirs, _ = distilled
    for scale in (1.0, 2.0, 8.5):
        expected = theirs.get_guidance_scale_embedding(torch.tensor([scale - 1]), embedding_dim=WIDTH).numpy()
        agree("few-step models", f"embedding of guidance {scale}", guidance_embedding(scale, WIDTH), expected, 2e-4)
    assert guidance_embedding(3.0, 7).shape == (1, 7)


def test_a_unet_that_takes_the_guidance_scale_equals_diffusers(distilled):
    theirs, ours = distilled
    random = np.random.default_rng(0)
    x, context = random.standard_normal((2, 8, 8, 4), np.float32), random.standard_normal((2, 7, 24), np.float32)
    condition = guidance_embedding(8.5, WIDTH)
    with torch.no_grad():
        expected = theirs.unet(references.channels_first(x), 259, torch.from_numpy(context),
                               timestep_cond=torch.from_numpy(condition)).sample
    found = ours.unet(x, 259, Conditioning(context, condition))
    agree("few-step models", "UNet told the guidance scale", found, references.channels_last(expected), 1e-5, relative=True)
    assert np.abs(found - ours.unet(x, 259, context)).max() > 1e-3


def test_a_latent_consistency_model_draws_the_picture_of_diffusers(distilled):
    theirs, ours = distilled
    with references.decoded(theirs, ours) as latents:
        expected = their_picture(theirs, num_inference_steps=4, guidance_scale=8.5, height=32, width=48)
        image, = ours.generate(PROMPT, NEGATIVE, seed=7, width=48, height=32)                       # 4 and 8.5 by itself
    assert expected.std() > 10
    agree("few-step models", "LCM, latents", latents.ours, latents.theirs, 1e-4, relative=True)
    agree("few-step models", "LCM picture, of 255", levels(image), expected, 1)


@pytest.mark.parametrize("scheduler, sampler, eta", [(LCMScheduler, "lcm", 0.0), (TCDScheduler, "tcd", 0.3)])
def test_consistency_samplers_with_any_model_draw_the_picture_of_diffusers(pair, scheduler, sampler, eta):
    theirs, ours = pair
    theirs.scheduler = scheduler.from_config(SCHEDULER)
    for steps, guidance in ((4, 1.0), (8, 1.5)):
        with references.decoded(theirs, ours) as latents:
            expected = their_picture(theirs, num_inference_steps=steps, guidance_scale=guidance, eta=eta, height=32, width=32)
            image, = ours.generate(PROMPT, NEGATIVE, steps=steps, guidance_scale=guidance, sampler=sampler, eta=eta, seed=7)
        agree("few-step models", f"{sampler}, latents", latents.ours, latents.theirs, 1e-4, relative=True)
        agree("few-step models", f"{sampler} picture, of 255", levels(image), expected, 1)


def test_consistency_samplers_draw_the_picture_of_diffusers_from_a_picture(pair):
    theirs, ours = pair
    start = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    pipeline = StableDiffusionImg2ImgPipeline(**theirs.components, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = LCMScheduler.from_config(SCHEDULER)
    with references.decoded(pipeline, ours) as latents:
        expected = their_picture(pipeline, image=start, strength=0.6, num_inference_steps=8, guidance_scale=1.5)
        image, = ours.generate(PROMPT, NEGATIVE, steps=8, guidance_scale=1.5, sampler="lcm", seed=7, init_image=start,
                               strength=0.6)
    agree("few-step models", "lcm picture from a, latents", latents.ours, latents.theirs, 1e-4, relative=True)
    agree("few-step models", "lcm picture from a picture, of 255", levels(image), expected, 1)


@pytest.mark.parametrize("steps", [1, 4])
def test_turbo_models_draw_the_picture_of_diffusers(pair, steps):
    theirs, ours = pair
    config = SCHEDULER | {"timestep_spacing": "trailing"}
    theirs.scheduler = EulerDiscreteScheduler.from_config(config)
    turbo = OurPipeline(ours.tokenizer, ours.text_encoder, ours.unet, ours.vae,
                        NoiseSchedule.from_config(config | {"_class_name": "EulerDiscreteScheduler"}), "turbo")
    with references.decoded(theirs, turbo) as latents:
        expected = their_picture(theirs, num_inference_steps=steps, guidance_scale=0.0, height=32, width=32)
        image, = turbo.generate(PROMPT, NEGATIVE, steps=None if steps == 4 else steps, seed=7)      # guidance 1 by itself
    agree("few-step models", "turbo, latents", latents.ours, latents.theirs, 1e-4, relative=True)
    agree("few-step models", "turbo picture, of 255", levels(image), expected, 1)


def test_zero_terminal_snr_with_rescaled_guidance_draws_the_picture_of_diffusers(pair):
    theirs, ours = pair
    changed = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
    theirs.scheduler = DDIMScheduler.from_config(SCHEDULER | changed)
    with references.decoded(theirs, ours) as latents:
        expected = their_picture(theirs, num_inference_steps=6, guidance_scale=7.5, guidance_rescale=0.7, height=32, width=32)
        image, = ours.generate(PROMPT, NEGATIVE, steps=6, guidance_scale=7.5, guidance_rescale=0.7, sampler="ddim", seed=7,
                               **changed)
    agree("few-step models", "v-prediction, zero terminal SNR, latents", latents.ours, latents.theirs, 1e-4, relative=True)
    agree("few-step models", "v-prediction, zero terminal SNR, picture of 255", levels(image), expected, 1)


@pytest.mark.parametrize("config, sampler, steps, guidance", [
    ({"_class_name": "PNDMScheduler"}, None, 50, 7.5),
    ({"_class_name": "LCMScheduler"}, None, 4, 1),
    ({"_class_name": "TCDScheduler"}, "euler", 4, 1),
    ({"_class_name": "PNDMScheduler"}, "lcm", 4, 1),                 # with LCM-LoRA
    ({"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "trailing"}, None, 4, 1),
    ({"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading"}, None, 50, 7.5),
    ({"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "trailing", "prediction_type": "v_prediction",
      "rescale_betas_zero_snr": True}, None, 50, 7.5),
])
def test_defaults_follow_from_the_scheduler(config, sampler, steps, guidance):
    found = defaults.defaults(NoiseSchedule.from_config(config), sampler=sampler)
    assert found[:2] == (steps, guidance) and (found.reason is None) == (steps == 50)


def test_the_guidance_that_the_makers_advise_is_believed_but_for_a_sampler_of_another_kind():
    assert defaults.defaults(NoiseSchedule(class_name="LCMScheduler"), advised=2.0)[:2] == (4, 2.0)
    assert defaults.defaults(NoiseSchedule(), advised=4.0)[:2] == (50, 4.0)
    assert defaults.defaults(NoiseSchedule(), advised=4.0, sampler="lcm")[:2] == (4, 1.0)


@pytest.mark.parametrize("marks, prediction, rescaled", [
    ([], "epsilon", False), (["v_pred"], "v_prediction", False), (["v_pred", "ztsnr"], "v_prediction", True)])
def test_marks_in_a_single_file_say_how_it_was_trained(marks, prediction, rescaled):
    schedule = NoiseSchedule.from_config(whole_model.scheduler(FAMILIES[0], {"betas": None} | dict.fromkeys(marks)))
    assert (schedule.prediction_type, schedule.rescale_betas_zero_snr) == (prediction, rescaled)


def test_a_width_of_the_embedded_guidance_without_sense_is_refused():
    assert UNetConfig.from_dict({"time_cond_proj_dim": 256}).time_cond_proj_dim == 256
    for value in (0, "wide", 1 << 20):
        with pytest.raises(UserError, match="time_cond_proj_dim"):
            UNetConfig.from_dict({"time_cond_proj_dim": value})
