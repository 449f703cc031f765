"""Noise schedules: betas and levels against diffusers' schedulers, the settings of a checkpoint's file, errors."""
import math

import diffusers
import numpy as np
import pytest

from npdiffusion.diffusion.samplers import SAMPLERS
from npdiffusion.diffusion.samplers.between import Between
from npdiffusion.diffusion.schedules import NoiseSchedule, karras_sigmas
from npdiffusion.diffusion.schedules.scheduler_file import CLASSES
from npdiffusion.errors import UserError
from tests import schedulers
from tests.differences import agree

STABLE_DIFFUSION = {                                                 # the scheduler_config.json of Stable Diffusion v1
    "_class_name": "PNDMScheduler", "_diffusers_version": "0.7.0.dev0", "beta_end": 0.012, "beta_start": 0.00085,
    "beta_schedule": "scaled_linear", "num_train_timesteps": 1000, "set_alpha_to_one": False, "skip_prk_steps": True,
    "steps_offset": 1, "trained_betas": None, "clip_sample": False,
}
SCHEDULERS = {                                                       # one for each rule by which levels are laid out
    "ddpm": diffusers.DDPMScheduler, "ddim": diffusers.DDIMScheduler, "pndm": diffusers.PNDMScheduler,
    "euler": diffusers.EulerDiscreteScheduler, "heun": diffusers.HeunDiscreteScheduler,
    "dpm++2m": diffusers.DPMSolverMultistepScheduler, "unipc": diffusers.UniPCMultistepScheduler,
    "deis": diffusers.DEISMultistepScheduler,
}


def levels(plan):
    """(t, σ on an unscaled x₀) of each level, in the order of the visit.    (levels, 2)"""
    return np.array([(level.t, level.sigma / level.alpha) for level in plan.levels.values()])


# ---- betas

@pytest.mark.parametrize("config", [
    STABLE_DIFFUSION,
    {},
    {"beta_schedule": "linear", "beta_start": 0.002, "beta_end": 0.01, "num_train_timesteps": 500},
    {"trained_betas": [0.01, 0.02, 0.03, 0.3], "num_train_timesteps": 4},
])
def test_alphas_cumprod_equals_diffusers(config):
    want = diffusers.DDIMScheduler.from_config(config).alphas_cumprod.numpy()
    assert np.allclose(NoiseSchedule.from_config(config).alphas_cumprod, want, rtol=1e-5, atol=0)


def test_the_defaults_are_those_of_stable_diffusion():
    assert np.array_equal(NoiseSchedule().alphas_cumprod, NoiseSchedule.from_config(STABLE_DIFFUSION).alphas_cumprod)


def test_sigma_is_the_noise_on_an_unscaled_picture():
    schedule = NoiseSchedule()
    assert np.allclose(1 / (1 + schedule.sigmas**2), schedule.alphas_cumprod, rtol=1e-12)


# ---- the levels that are visited

@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_time_steps_equal_diffusers(name, spacing):
    config = STABLE_DIFFUSION | {"timestep_spacing": spacing}
    for steps in (1, 2, 7, 10, 13, 16, 25, 50, 64, 99, 150, 333):
        scheduler = SCHEDULERS[name].from_config(config)
        scheduler.set_timesteps(steps)
        want = list(dict.fromkeys(scheduler.timesteps.tolist()))     # Heun and PNDM visit time steps twice
        assert np.allclose(levels(NoiseSchedule.from_config(config).plan(name, steps))[:, 0], want, rtol=1e-6)


@pytest.mark.parametrize("config", [STABLE_DIFFUSION, {"beta_schedule": "linear"}])
def test_zero_terminal_snr_equals_diffusers(config):
    config = config | {"rescale_betas_zero_snr": True}
    want = diffusers.DDIMScheduler.from_config(config).alphas_cumprod.numpy()
    schedule = NoiseSchedule.from_config(config)
    agree("samplers", "alphas_cumprod with zero terminal SNR", schedule.alphas_cumprod, want, 1e-6)
    assert schedule.alphas_cumprod[-1] == 0


def test_sigmas_stay_finite_with_zero_terminal_snr_as_in_diffusers():
    config = STABLE_DIFFUSION | {"rescale_betas_zero_snr": True}
    sigmas = NoiseSchedule.from_config(config).sigmas
    expected = diffusers.EulerDiscreteScheduler.from_config(config).sigmas[:-1].flip(0)
    agree("samplers", "logarithm of sigma with zero terminal SNR", np.log(sigmas), expected.log(), 1e-3)


@pytest.mark.parametrize("kind", ["exponential", "beta"])
@pytest.mark.parametrize("name", ["euler", "dpm++2m"])
def test_levels_of_other_schedules_equal_diffusers(name, kind):
    for steps in (1, 2, 10, 25):
        scheduler = schedulers.make(name, STABLE_DIFFUSION, kind)
        scheduler.set_timesteps(steps)
        got = levels(NoiseSchedule.from_config(STABLE_DIFFUSION).plan(name, steps, kind))
        assert np.allclose(got[:, 1], scheduler.sigmas[:-1], rtol=5e-5)
        assert np.allclose(got[:, 0], scheduler.timesteps, atol=0.01)


def test_align_your_steps_is_its_table_in_ten_steps():
    from diffusers.schedulers import AysSchedules
    for name in ("euler", "dpm++2m"):
        got = levels(NoiseSchedule().plan(name, 10, "align_your_steps"))
        assert got[:, 0].tolist() == AysSchedules["StableDiffusionTimesteps"]
        agree("samplers", "align_your_steps, log sigma", np.log(got[:, 1]),
              np.log(AysSchedules["StableDiffusionSigmas"][:-1]), 0.01)


def test_align_your_steps_is_interpolated_in_the_logarithm_of_sigma():
    ten, twenty = (levels(NoiseSchedule().plan("euler", steps, "align_your_steps"))[:, 1] for steps in (10, 20))
    assert np.allclose(twenty[::2], ten, rtol=1e-3) and np.allclose(twenty[1:-1:2] ** 2, ten[:-1] * ten[1:], rtol=1e-3)


def test_align_your_steps_in_other_numbers_follows_its_authors():
    """Their example interpolates this table, whose last entry is the training's least noise, over steps + 1 points."""
    table = [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029]
    expected = np.interp(np.linspace(0, 1, 26), np.linspace(0, 1, 11), np.log(table))[:-1]
    found = levels(NoiseSchedule().plan("euler", 25, "align_your_steps"))[:, 1]
    agree("samplers", "align_your_steps, 25 steps, log sigma", np.log(found), expected, 0.02)


@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
@pytest.mark.parametrize("name", ["euler", "heun", "dpm++2m"])
def test_karras_levels_equal_diffusers(name, spacing):
    config = STABLE_DIFFUSION | {"timestep_spacing": spacing}
    for steps in (1, 2, 7, 10, 13, 25, 50, 99):
        scheduler = SCHEDULERS[name].from_config(config, use_karras_sigmas=True)
        scheduler.set_timesteps(steps)
        sigmas = list(dict.fromkeys(scheduler.sigmas.tolist()))[:-1]
        stride = 2 if name == "heun" else 1
        got = levels(NoiseSchedule.from_config(config).plan(name, steps, "karras"))
        assert np.allclose(got[:, 1], sigmas, rtol=5e-5)             # diffusers takes 1 − ᾱ of float32
        assert np.allclose(got[:, 0], scheduler.timesteps[::stride].tolist(), atol=0.01)


@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
@pytest.mark.parametrize("name", ["euler", "heun", "ddim", "ddpm", "pndm"])
def test_the_scale_of_the_first_noise_equals_diffusers(name, spacing):
    config = STABLE_DIFFUSION | {"timestep_spacing": spacing}
    scheduler = SCHEDULERS[name].from_config(config)
    scheduler.set_timesteps(20)
    want = float(scheduler.init_noise_sigma)
    assert NoiseSchedule.from_config(config).plan(name, 20).scale == pytest.approx(want, rel=1e-5)


def test_dpm_solver_starts_at_unit_variance_on_the_scale_of_the_training():
    plan = NoiseSchedule().plan("dpm++2m", 20)
    assert plan.scale / math.hypot(1, plan.steps[0]) == pytest.approx(1, rel=1e-12)


def test_karras_sigmas_keep_their_ends():
    sigmas = karras_sigmas(14.6, 0.03, 9)
    assert sigmas[[0, -1]] == pytest.approx([14.6, 0.03], rel=1e-12)


def test_karras_sigmas_are_even_in_their_seventh_root():
    assert np.allclose(np.diff(karras_sigmas(14.6, 0.03, 9) ** (1 / 7), n=2), 0, atol=1e-12)


def test_steps_offset_shifts_leading_spacing_alone():
    for spacing, shift in (("leading", 5), ("linspace", 0), ("trailing", 0)):
        without, shifted = (levels(NoiseSchedule(timestep_spacing=spacing, steps_offset=offset).plan("ddim", 10))
                            for offset in (0, 5))
        assert np.array_equal(shifted[:, 0] - without[:, 0], np.full(10, shift))


def test_pndm_visits_its_second_time_step_twice():
    assert [t for t, *_ in NoiseSchedule().plan("pndm", 5).steps] == [801, 601, 601, 401, 201, 1]


def test_the_last_step_of_ddim_ends_where_set_alpha_to_one_says():
    abar_0 = float(NoiseSchedule().alphas_cumprod[0])
    ends = [NoiseSchedule(set_alpha_to_one=choice).plan("ddim", 10).steps[-1][2] for choice in (True, False, None)]
    assert ends == [1.0, abar_0, 1.0]


def test_image_to_image_starts_strength_of_the_way_back():
    whole, part = NoiseSchedule().plan("euler", 10), NoiseSchedule().plan("euler", 10, strength=0.75)
    assert part.steps == whole.steps[3:] and len(part) == 7


@pytest.mark.parametrize("name, alpha, sigma", [("euler", 1.0, NoiseSchedule().sigmas[701]),
                                                ("ddim", math.sqrt(NoiseSchedule().alphas_cumprod[701]),
                                                 math.sqrt(1 - NoiseSchedule().alphas_cumprod[701]))])
def test_image_to_image_starts_from_the_picture_under_noise(name, alpha, sigma):
    plan = NoiseSchedule(timestep_spacing="leading").plan(name, 10, strength=0.8)
    picture, noise = np.full((1, 2, 2, 4), 3.0), np.full((1, 2, 2, 4), -0.5)
    assert np.allclose(plan.start(noise, picture), alpha * picture + sigma * noise, rtol=1e-12)


# ---- the file

@pytest.mark.parametrize("class_name, name", CLASSES.items())
def test_the_sampler_of_the_file_is_the_default(class_name, name):
    schedule = NoiseSchedule.from_config({"_class_name": class_name, "skip_prk_steps": True})
    assert schedule.default_sampler == name
    assert schedule.plan(steps=5).sampler is schedule.plan(name, 5).sampler


def test_every_scheduler_of_diffusers_for_such_models_is_known_by_its_class():
    from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers
    others = {"DPMSolverSinglestepScheduler", "EDMEulerScheduler"}    # DPM++ 2S is not offered, EDM is another kind of model
    assert {each.name for each in KarrasDiffusionSchedulers} - others <= set(CLASSES)
    assert set(CLASSES.values()) | {"dpm++2m_sde"} == set(SAMPLERS)


def test_the_stochastic_variant_of_dpm_solver_is_known_by_its_algorithm_type():
    config = dict(diffusers.DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++", use_karras_sigmas=True).config)
    schedule = NoiseSchedule.from_config(config | {"_class_name": "DPMSolverMultistepScheduler"})
    assert (schedule.default_sampler, schedule.default_kind("dpm++2m_sde")) == ("dpm++2m_sde", "karras")


@pytest.mark.parametrize("field, value", [("algorithm_type", "dpmsolver"), ("solver_order", 3), ("solver_type", "heun")])
def test_a_variant_that_is_not_offered_is_named_when_no_sampler_is(field, value):
    schedule = NoiseSchedule.from_config({"_class_name": "DPMSolverMultistepScheduler", field: value})
    assert len(schedule.plan("euler", 3)) == 3
    with pytest.raises(UserError, match=f"DPMSolverMultistepScheduler with {field} {value}, isn't offered"):
        schedule.plan(steps=3)


@pytest.mark.parametrize("kind", ["karras", "exponential", "beta"])
def test_sigmas_in_the_file_are_the_default_of_samplers_that_can(kind):
    schedule = NoiseSchedule(**{f"use_{kind}_sigmas": True})
    assert schedule.plan("euler", 10).steps == schedule.plan("euler", 10, kind).steps
    assert schedule.plan("ddim", 10).steps == NoiseSchedule().plan("ddim", 10).steps


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_file_saved_by_diffusers_is_read(name):
    config = dict(SCHEDULERS[name].from_config(STABLE_DIFFUSION | {"prediction_type": "v_prediction"}).config)
    assert NoiseSchedule.from_config(config).prediction_type == "v_prediction"


@pytest.mark.parametrize("field, value", [
    ("num_train_timesteps", 0), ("num_train_timesteps", 10**9), ("num_train_timesteps", 12.5),
    ("num_train_timesteps", "many"), ("beta_start", 1e-30), ("beta_start", -0.1), ("beta_start", "small"),
    ("beta_end", float("nan")), ("beta_end", 10**400),
    ("beta_end", 1.5), ("beta_schedule", "sigmoid"), ("prediction_type", "flow_prediction"),
    ("timestep_spacing", "uniform"), ("set_alpha_to_one", "perhaps"),
    ("trained_betas", [0.1, 0.2]), ("trained_betas", "0.1"), ("trained_betas", [2.0] * 1000),
    ("rescale_betas_zero_snr", "yes"), ("original_inference_steps", 0), ("timestep_scaling", 0),
])
def test_a_value_without_sense_is_named_with_its_file(field, value):
    with pytest.raises(UserError, match=f"^model/scheduler_config.json: {field} is "):
        NoiseSchedule.from_config(STABLE_DIFFUSION | {field: value}, "model/scheduler_config.json")


def test_betas_that_leave_nothing_of_the_picture_are_refused():
    with pytest.raises(UserError, match="smaller betas"):
        NoiseSchedule(beta_start=0.5, beta_end=0.9)


def test_a_file_that_holds_a_list_is_refused():
    with pytest.raises(UserError, match="not a list"):
        NoiseSchedule.from_config([STABLE_DIFFUSION])


def test_a_foreign_sampler_in_the_file_matters_only_when_none_is_named():
    schedule = NoiseSchedule.from_config(STABLE_DIFFUSION | {"_class_name": "SASolverScheduler"})
    assert len(schedule.plan("euler", 3)) == 3
    with pytest.raises(UserError, match="SASolverScheduler, isn't offered"):
        schedule.plan(steps=3)


# ---- what the caller asks for

@pytest.mark.parametrize("steps", [0, -1, 1001, 2.5, True, "ten", None])
def test_steps_out_of_range_are_refused(steps):
    with pytest.raises(UserError, match="steps is .*from 1 to 1000"):
        NoiseSchedule().plan("euler", steps)


@pytest.mark.parametrize("name", ["pndm", "dpm++2m"])
def test_more_steps_than_the_spacing_has_room_for_are_refused(name):
    with pytest.raises(UserError, match="steps is 1000: with leading spacing"):
        NoiseSchedule(timestep_spacing="leading").plan(name, 1000)


@pytest.mark.parametrize("strength", [0, -0.5, 1.01, float("nan"), "half"])
def test_strength_out_of_range_is_refused(strength):
    with pytest.raises(UserError, match="strength is"):
        NoiseSchedule().plan("euler", 10, strength=strength)


def test_a_strength_that_leaves_no_step_is_refused():
    with pytest.raises(UserError, match="leaves no step"):
        NoiseSchedule().plan("euler", 10, strength=0.09)


def test_an_unknown_kind_of_schedule_is_refused():
    with pytest.raises(UserError, match="unknown schedule 'cosine': .*known are discrete, karras"):
        NoiseSchedule().plan("euler", 10, "cosine")


@pytest.mark.parametrize("name", ["ddpm", "ddim", "pndm", "lcm", "tcd"])
def test_karras_is_refused_where_time_steps_are_walked(name):
    with pytest.raises(UserError, match="the karras schedule is for lms, euler, euler_a, heun, dpm"):
        NoiseSchedule().plan(name, 10, "karras")


@pytest.mark.parametrize("offset", [-1, 1001])
def test_an_offset_beyond_the_training_is_refused(offset):
    with pytest.raises(UserError, match=f"steps_offset is {offset}: it must be a whole number from 0 to 1000"):
        NoiseSchedule(steps_offset=offset)


def test_more_steps_than_a_consistency_model_was_distilled_on_are_refused():
    with pytest.raises(UserError, match="steps is 51: lcm and tcd take at most the 50"):
        NoiseSchedule().plan("lcm", 51)


def test_a_changed_schedule_is_checked():
    assert NoiseSchedule().changed(prediction_type="v_prediction", timestep_spacing=None).prediction_type == "v_prediction"
    with pytest.raises(UserError, match="timestep_spacing is 'even'"):
        NoiseSchedule().changed(timestep_spacing="even")


def test_a_schedules_name_is_understood_with_hyphens():
    found, expected = (NoiseSchedule().plan("euler", 10, kind) for kind in ("align-your-steps", "align_your_steps"))
    assert found.steps == expected.steps and found.levels == expected.levels


def test_a_second_look_has_a_level_of_its_own_where_it_falls_on_a_rounded_one():
    plan = NoiseSchedule().plan("dpm2_a", 10, "karras")
    sigma = plan.steps[3]
    assert plan.levels[sigma].t % 1 == 0 and plan.levels[Between(sigma)].t % 1 != 0
    assert plan.levels[Between(sigma)].sigma == sigma
