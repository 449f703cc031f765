"""What a checkpoint's scheduler_config.json does to pictures, for every setting of every class that diffusers has."""
import functools
import inspect
from unittest import mock

import diffusers
import numpy as np
import pytest

from npdiffusion.diffusion.denoiser import Denoiser
from npdiffusion.diffusion.schedules import NoiseSchedule
from npdiffusion.diffusion.schedules.scheduler_file import CLASSES, LACKING
from npdiffusion.errors import UserError
from tests import schedulers
from tests.differences import agree
from tests.references import SCHEDULER
from tests.schedulers import toy_model

STEPS = 6
# For each setting that a class may have, values other than its default.
VALUES = {
    "num_train_timesteps": (500,), "beta_start": (0.002,), "beta_end": (0.02,), "beta_schedule": ("linear",),
    "trained_betas": (np.linspace(0.001, 0.02, 1000).tolist(),), "prediction_type": ("v_prediction",),
    "timestep_spacing": ("linspace", "leading", "trailing"), "steps_offset": (0, 3), "clip_sample": (True,),
    "clip_sample_range": (0.5,), "set_alpha_to_one": (True, False), "skip_prk_steps": (False,),
    "rescale_betas_zero_snr": (True,), "original_inference_steps": (40,), "timestep_scaling": (5.0,),
    "use_karras_sigmas": (True,), "use_exponential_sigmas": (True,), "use_beta_sigmas": (True,),
    "thresholding": (True,), "dynamic_thresholding_ratio": (0.5,), "sample_max_value": (0.5,),
    "variance_type": ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned", "learned_range"),
    "algorithm_type": ("dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++", "deis"), "solver_order": (1, 3),
    "solver_type": ("midpoint", "heun", "bh1", "bh2", "logrho"), "lower_order_final": (False,),
    "euler_at_final": (True,), "predict_x0": (False,), "disable_corrector": ([0, 1],), "lambda_min_clipped": (-2.0,),
    "use_lu_lambdas": (True,), "use_flow_sigmas": (True,), "flow_shift": (3.0,), "use_dynamic_shifting": (True,),
    "time_shift_type": ("linear",), "shift_terminal": (0.1,), "final_sigmas_type": ("sigma_min",),
    "interpolation_type": ("log_linear",), "timestep_type": ("continuous",), "sigma_min": (0.1,), "sigma_max": (7.0,),
    "noise_sampler_seed": (3,), "solver_p": ("DDIMScheduler",),
}

# Where diffusers' tables of float32 decide more: one bit more or less in each of their levels moves its own samples by 1.1e-4.
LIMITS = {"KDPM2AncestralDiscreteScheduler": 3e-4}


def pictures(config, cls="StableDiffusionPipeline"):
    """(ours, diffusers'): the final samples of a file's own sampler, as NoiseSchedule and diffusers' pipeline take it"""
    made = getattr(diffusers, config["_class_name"])
    few = functools.partialmethod(lambda self, *_, lay_out=made.set_timesteps: lay_out(self, STEPS))
    with mock.patch.object(made, "set_timesteps", few):              # some classes lay out the whole training at first
        scheduler = made.from_config(config)
    parts = dict.fromkeys(("vae", "text_encoder", "tokenizer", "unet", "safety_checker", "feature_extractor"))
    scheduler = getattr(diffusers, cls)(**parts, scheduler=scheduler, requires_safety_checker=False).scheduler
    scheduler.set_timesteps(STEPS)
    theirs = schedulers.Noise(0)
    expected = schedulers.run(scheduler, theirs(), generator=theirs.generator)
    plan = NoiseSchedule.from_config(config, pipeline=cls).plan(steps=STEPS)
    noise = schedulers.Noise(0, scheduler if "SDEScheduler" in config["_class_name"] else None)
    return list(plan.sample(Denoiser(toy_model, plan), plan.start(noise()), noise))[-1][0], expected


def variants(class_name):
    """(setting, value, config) for each setting that its class has, and for those that our samplers know in its place"""
    base, own = SCHEDULER | {"_class_name": class_name}, inspect.signature(getattr(diffusers, class_name).__init__).parameters
    return [(setting, value, base | {setting: value}) for setting, values in VALUES.items() for value in values
            if setting in own or setting in LACKING]


def refusal(config):
    """What is said when the file's own sampler is used, or None"""
    try:
        NoiseSchedule.from_config(config).plan(steps=STEPS)
    except UserError as error:
        return str(error)
    return None


@pytest.fixture(autouse=True)
def one_tree_for_both(monkeypatch):
    schedulers.seed_trees(monkeypatch)


def test_every_setting_that_diffusers_classes_have_is_tried():
    known = {name for each in CLASSES for name in inspect.signature(getattr(diffusers, each).__init__).parameters}
    assert known - {"self"} == set(VALUES)


@pytest.mark.filterwarnings("ignore")                                # what diffusers calls outdated, and torchsde's
@pytest.mark.parametrize("class_name", CLASSES)
def test_a_setting_is_followed_as_by_diffusers_pipeline_or_refused_by_name(class_name):
    for setting, value, config in variants(class_name):
        refused = refusal(config)
        if refused is None:
            what, limit = f"{class_name}, {setting} {str(value)[:20]}", LIMITS.get(class_name, 1e-4)
            agree("scheduler files", what, *pictures(config), limit, relative=True)
        else:
            assert f"{setting} {value}, isn't offered here" in refused or setting == "rescale_betas_zero_snr"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("class_name", CLASSES)
def test_a_file_that_says_nothing_but_its_betas_is_taken_as_by_diffusers_pipeline(class_name):
    config = {"_class_name": class_name, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    if class_name == "PNDMScheduler":
        assert "PNDMScheduler with skip_prk_steps False, isn't offered" in refusal(config)      # Runge-Kutta steps
    else:
        agree("scheduler files", f"{class_name}, silent", *pictures(config), 1e-4, relative=True)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("pipeline", ["StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline",
                                      "StableDiffusionInpaintPipeline"])
def test_steps_offset_of_an_old_file_is_mended_as_by_diffusers_pipelines(pipeline):
    for offset in ({}, {"steps_offset": 0}, {"steps_offset": 7}):
        config = {**{k: v for k, v in SCHEDULER.items() if k != "steps_offset"}, "_class_name": "DDIMScheduler", **offset}
        agree("scheduler files", f"{pipeline}, steps_offset", *pictures(config, pipeline), 1e-4, relative=True)


@pytest.mark.filterwarnings("ignore")
def test_runge_kutta_steps_are_left_out_of_a_model_for_inpainting_as_by_diffusers_pipeline():
    config = SCHEDULER | {"_class_name": "PNDMScheduler", "skip_prk_steps": False}
    agree("scheduler files", "inpainting, skip_prk_steps", *pictures(config, "StableDiffusionInpaintPipeline"), 1e-4,
          relative=True)


@pytest.mark.parametrize("class_name", CLASSES)
def test_no_variant_of_the_files_sampler_matters_once_another_is_named(class_name):
    refused = [config for _, _, config in variants(class_name) if refusal(config)]
    for config in refused:
        other = "heun" if class_name == "EulerDiscreteScheduler" else "euler"
        plans = [NoiseSchedule.from_config(each).plan(other, STEPS) for each in (config, SCHEDULER | {
            "_class_name": class_name, "prediction_type": "epsilon"}) if "rescale_betas_zero_snr" not in config]
        assert len({tuple(plan.steps) for plan in plans}) <= 1


def test_a_setting_that_the_files_class_lacks_still_counts_for_other_samplers():
    schedule = NoiseSchedule.from_config(SCHEDULER | {"_class_name": "PNDMScheduler", "use_karras_sigmas": True})
    assert schedule.default_kind("euler") == "karras"


def test_what_the_caller_asks_for_counts_although_the_files_class_lacks_it():
    schedule = NoiseSchedule.from_config(SCHEDULER | {"_class_name": "HeunDiscreteScheduler", "rescale_betas_zero_snr": True,
                                                   "prediction_type": "v_prediction", "timestep_spacing": "trailing"})
    own, asked = (each.plan(steps=5).steps[0] for each in (schedule, schedule.changed(rescale_betas_zero_snr=True)))
    assert own < 20 and asked > 1000
