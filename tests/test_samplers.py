"""Samplers against diffusers' schedulers, run as its pipelines run them, and against paths that are known exactly."""
import math

import numpy as np
import pytest
import torch

from npdiffusion.diffusion import samplers
from npdiffusion.diffusion.denoiser import Denoiser
from npdiffusion.diffusion.guidance import Prediction, guide
from npdiffusion.diffusion.samplers import SAMPLERS
from npdiffusion.diffusion.schedules import NoiseSchedule, karras_sigmas
from npdiffusion.errors import UserError
from tests import schedulers
from tests.differences import agree
from tests.references import SCHEDULER
from tests.schedulers import SHAPE, Noise, toy_model

pytestmark = pytest.mark.filterwarnings("ignore:Should have t")      # torchsde, of a path's ends in float32
INIT = np.random.default_rng(5).standard_normal(SHAPE, np.float32)
SPACINGS = ("linspace", "leading", "trailing")
# What diffusers' class for a sampler can't do, we can.
WITHOUT_SIGMAS = ("euler_a",)                                        # its class has no choice of schedule but the spacing
WITH_TIMES = ("euler", "heun", "dpm++2m", "dpm++2m_sde")             # those whose set_timesteps takes a list
WITHOUT_SAMPLE = ("pndm", "euler_a", "dpm2", "dpm2_a", "dpm++sde")   # those that refuse a model that predicts x₀
ZERO_SNR = ("ddpm", "ddim", "euler", "euler_a", "dpm++2m", "dpm++2m_sde", "unipc", "lcm", "tcd")


def kinds(name):
    """The schedules in which diffusers' class can be compared."""
    return [kind for kind in SAMPLERS[name].schedules
            if kind in ("discrete", "sgm_uniform") or (kind != "align_your_steps" and name not in WITHOUT_SIGMAS)
            or (kind == "align_your_steps" and name in WITH_TIMES)]


def compare(name, steps, config, kind="discrete", init=None, strength=None, eta=0.0, seed=0, limit=1e-4, part="samplers"):
    """Our final sample and diffusers', for the same noise."""
    scheduler = schedulers.make(name, config, kind)
    plan = NoiseSchedule.from_config(config).plan(name, steps, kind, strength, eta)
    every = NoiseSchedule.from_config(config).plan(name, steps, kind).levels.values()
    schedulers.set_steps(scheduler, steps, kind, None if steps == 10 else [level.t for level in every])
    theirs = Noise(seed)
    expected = schedulers.run(scheduler, theirs(), init, steps - len(plan), theirs.generator, eta)
    noise = Noise(seed, scheduler if name == "dpm++sde" else None)
    states = list(plan.sample(Denoiser(toy_model, plan), plan.start(noise(), init), noise))
    assert len(states) == len(plan)
    what = f"{name}, {kind}, {config.get('timestep_spacing')}, {steps} steps{'' if init is None else ', image to image'}"
    agree(part, what, states[-1][0], expected, limit, relative=True)


@pytest.fixture(autouse=True)
def one_tree_for_both(monkeypatch):
    schedulers.seed_trees(monkeypatch)


@pytest.mark.parametrize("name", SAMPLERS)
def test_text_to_image_equals_diffusers(name):
    for i, kind in enumerate(kinds(name)):
        for j, spacing in enumerate(SPACINGS if kind == "discrete" else (SPACINGS[i % 3],)):
            config = SCHEDULER | {"timestep_spacing": spacing, "prediction_type": ("epsilon", "v_prediction")[(i + j) % 2]}
            for steps in (10, 25):
                compare(name, steps, config, kind)


@pytest.mark.parametrize("name", SAMPLERS)
def test_image_to_image_equals_diffusers(name):
    for i, kind in enumerate(kinds(name)):
        config = SCHEDULER | {"timestep_spacing": SPACINGS[i % 3], "prediction_type": ("epsilon", "v_prediction")[i % 2]}
        compare(name, (10, 25)[i % 2], config, kind, INIT, 0.75)


@pytest.mark.parametrize("name", SAMPLERS)
def test_one_two_and_many_steps_equal_diffusers(name):
    for steps in (1, 2, 3, 7) if name in ("lcm", "tcd") else (1, 2, 3, 99):
        compare(name, steps, SCHEDULER | {"timestep_spacing": "linspace"})        # where rounding and the last step differ most


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_calls_the_model_as_often_as_is_said_of_it(name):
    row, plan, called = SAMPLERS[name], NoiseSchedule.from_config(SCHEDULER).plan(name, 10), []

    def model(x, t, call):
        called.append(call)
        return toy_model(x, t)
    states = list(plan.sample(Denoiser(model, plan), plan.start(Noise(0)()), Noise(0)))
    last = 1 if row.calls == 2 else 0                                # the last step of two calls ends at σ = 0 and needs one
    assert len(states) == 10 and len(called) == 10 * row.calls + row.first - last


@pytest.mark.parametrize("name, eta", [("ddim", 0.4), ("ddim", 1.0), ("tcd", 0.3), ("tcd", 1.0)])
def test_eta_equals_diffusers(name, eta):
    compare(name, 10, SCHEDULER, eta=eta)
    compare(name, 25, SCHEDULER, eta=eta, init=INIT, strength=0.6)


@pytest.mark.parametrize("name", ZERO_SNR)
def test_zero_terminal_snr_equals_diffusers(name):
    config = SCHEDULER | {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
    for steps in (10, 25):
        compare(name, steps, config)


@pytest.mark.parametrize("name", SAMPLERS)
def test_spacing_without_an_entry_in_the_file_is_diffusers_default(name):
    compare(name, 10, SCHEDULER)


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name not in WITHOUT_SAMPLE])
def test_a_model_that_predicts_the_sample_equals_diffusers(name):
    compare(name, 10, SCHEDULER | {"prediction_type": "sample"})


# ---- what is known without a reference. For data of one Gaussian, N(0, S²), D(x; σ) = S² x / (S² + σ²), and the
# probability flow leads along x ∝ √(S² + σ²), which is x_t ∝ √(ᾱ S² + 1 − ᾱ) on the scale of the training.

S = 0.5


def gaussian(x, sigma):
    return S**2 * x / (S**2 + sigma**2)


def time_walk(sigmas):
    """The same levels for ddpm, ddim and pndm: (t, ᾱ_t, ᾱ_{t−1}) and a denoiser; t is the position in the list."""
    abars = [1 / (1 + sigma**2) for sigma in sigmas]
    steps = list(zip(range(len(sigmas)), abars, abars[1:]))
    return steps, lambda x_t, t: gaussian(x_t / math.sqrt(abars[t]), sigmas[t])


def error_at_the_end(name, sigmas):
    """Of the state at the last σ, not 0, relative to the exact path; float64."""
    x = np.ones(1)
    if name in ("ddim", "pndm"):
        steps, denoise = time_walk(sigmas)
        if name == "pndm":
            steps.insert(1, (1, *steps[0][1:]))                      # the second look at the first interval
        *_, (end, _) = getattr(samplers, name)(denoise, x / math.hypot(1, sigmas[0]), steps, *[None] * (name == "ddim"))
        end = end * math.hypot(1, sigmas[-1])
    else:
        *_, (end, _) = SAMPLERS[name].function(gaussian, x, sigmas)
    return abs(end[0] / math.sqrt((S**2 + sigmas[-1]**2) / (S**2 + sigmas[0]**2)) - 1)


@pytest.mark.parametrize("name, order", [("euler", 1), ("ddim", 1), ("heun", 2), ("dpm2", 2), ("dpm++2m", 2), ("pndm", 2)])
def test_order_of_convergence(name, order):
    coarse, fine = (error_at_the_end(name, karras_sigmas(10.0, 0.1, n + 1).tolist()) for n in (160, 320))
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("name", ["unipc", "lms"])
def test_order_is_higher_than_two(name):
    coarse, fine = (error_at_the_end(name, karras_sigmas(10.0, 0.1, n + 1).tolist()) for n in (160, 320))
    assert math.log2(coarse / fine) > 2.4


def test_pndm_converges_with_order_three_or_more_on_equal_steps():
    coarse, fine = (error_at_the_end("pndm", np.linspace(10.0, 0.5, n + 1).tolist()) for n in (160, 320))
    assert math.log2(coarse / fine) > 2.8                            # order 4 but for the three steps of its start


DETERMINISTIC = [name for name, sampler in SAMPLERS.items() if sampler.noise is None] + ["ddim"]


@pytest.mark.parametrize("name", [name for name in DETERMINISTIC if name != "deis"])        # which stops at the lowest σ
def test_deterministic_samplers_are_exact_for_a_constant_denoiser(name):
    plan = NoiseSchedule(set_alpha_to_one=True).plan(name, 12)
    x = np.random.default_rng(0).standard_normal((1, 2, 2, 4))
    *_, (end, _) = plan.sample(lambda x, level: np.full_like(x, 0.7), plan.start(x), None)
    assert np.abs(end - 0.7).max() < 1e-12


@pytest.mark.parametrize("name", ["ddpm", "euler_a", "dpm2_a", "dpm++2m_sde", "dpm++sde"])
def test_random_samplers_keep_the_variance_of_the_data(name):
    rng = np.random.default_rng(1)
    x = rng.standard_normal(40_000)
    sigmas = [*karras_sigmas(20.0, 0.01, 300).tolist(), 0.0]

    def noise(*interval):
        return rng.standard_normal(x.shape)

    if name == "ddpm":
        steps, denoise = time_walk(sigmas)
        *_, (end, _) = samplers.ddpm(denoise, x, steps, noise)
    else:
        *_, (end, _) = SAMPLERS[name].function(gaussian, x * sigmas[0], sigmas, noise)
    assert end.std() == pytest.approx(S, rel=0.02)


def test_euler_ancestral_equals_ddpm_on_the_same_levels():
    config = SCHEDULER | {"timestep_spacing": "trailing"}
    schedule = NoiseSchedule.from_config(config)
    x = np.random.default_rng(2).standard_normal(SHAPE)
    ends = []
    for name in ("ddpm", "euler_a"):
        plan = schedule.plan(name, 20, strength=0.5)                 # starts from the same picture on either scale
        noise = Noise(3)
        *_, (end, _) = plan.sample(Denoiser(toy_model, plan), plan.start(x, INIT), noise)
        ends.append(end)
    assert np.abs(ends[0] - ends[1]).max() < 1e-5 * np.abs(ends[0]).max()


# ---- manners

@pytest.mark.parametrize("strength, states", [(None, 8), (0.5, 4)])
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_yields_one_state_per_step(name, strength, states):
    plan = NoiseSchedule().plan(name, 8, strength=strength)
    x = plan.start(INIT, None if strength is None else INIT)
    assert len(plan) == states == len(list(plan.sample(lambda x, level: 0.5 * x, x, lambda: INIT)))


CALLS = {"pndm": 9, "heun": 15, "dpm2": 15, "dpm2_a": 15, "dpm++sde": 15}


@pytest.mark.parametrize("name", SAMPLERS)
def test_calls_of_the_model(name):
    seen = []
    plan = NoiseSchedule().plan(name, 8)
    list(plan.sample(lambda x, level: seen.append(level) or 0.5 * x, INIT, lambda: INIT))
    assert len(seen) == CALLS.get(name, 8)


@pytest.mark.parametrize("name", SAMPLERS)
def test_float32_input_gives_float32_states(name):
    plan = NoiseSchedule(prediction_type="v_prediction").plan(name, 5)
    states = list(plan.sample(Denoiser(toy_model, plan), plan.start(INIT), lambda: INIT))
    assert {array.dtype for pair in states for array in pair} == {np.dtype("float32")}


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_input_and_the_states_handed_out_are_not_modified(name):
    plan = NoiseSchedule().plan(name, 6)
    x = plan.start(INIT)
    seen = [(x, x.copy())]
    for pair in plan.sample(Denoiser(toy_model, plan), x, lambda: INIT):
        seen += [(array, array.copy()) for array in pair]
    assert all(np.array_equal(state, copy) for state, copy in seen)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_deterministic_samplers_draw_no_noise(name):
    plan = NoiseSchedule().plan(name, 4)
    for _ in plan.sample(Denoiser(toy_model, plan), plan.start(INIT), lambda: pytest.fail("noise was drawn")):
        pass


def test_an_unknown_sampler_is_met_with_the_nearest_known_one():
    with pytest.raises(UserError, match=r"unknown sampler 'dpm\+\+_2m': did you mean dpm\+\+2m\?"):
        samplers.find_sampler("dpm++_2m")


# ---- the denoiser and guidance

@pytest.mark.parametrize("name", ["ddim", "euler"])                  # one for each scale of the state
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_a_perfect_model_gives_back_the_picture(name, prediction_type):
    plan = NoiseSchedule(prediction_type=prediction_type).plan(name, 5)
    x0, eps = np.random.default_rng(4).standard_normal((2, *SHAPE))
    abars = NoiseSchedule().alphas_cumprod
    for level, (t, alpha, sigma) in plan.levels.items():
        a = np.interp(t, np.arange(1000), abars)
        a = 1 / (1 + (sigma / alpha)**2) if name == "euler" else a   # between whole time steps σ is interpolated, not ᾱ
        v = math.sqrt(a) * eps - math.sqrt(1 - a) * x0
        model = {"epsilon": eps, "v_prediction": v, "sample": x0}[prediction_type]
        denoise = Denoiser(lambda x, t, call, model=model: model, plan)
        assert np.abs(denoise(alpha * x0 + sigma * eps, level) - x0).max() < 1e-12


def test_the_model_sees_states_of_the_scale_it_was_trained_on():
    plan = NoiseSchedule().plan("euler", 5)
    level = plan.steps[0]
    seen = []
    Denoiser(lambda x, t, call: seen.append((x, t)) or x, plan)(np.full((1, 1), 3.0), level)
    assert seen == [(pytest.approx(3 / math.sqrt(1 + level**2)), 999.0)]


def test_guidance_moves_from_the_unconditional_to_the_conditional_prediction():
    assert np.allclose(guide(2 * INIT, 5 * INIT, 7.5), INIT * (2 + 7.5 * (5 - 2)))


def test_guidance_keeps_float32():
    assert guide(INIT, 2 * INIT, np.float64(7.5)).dtype == np.float32


def both_halves(x, t, conditioning):
    """A model that predicts 2 x for the first half, the unconditional one, and 5 x for the other."""
    return np.concatenate([2 * x, 5 * x])


class OneContext:
    """In place of text.contexts.Contexts: the number of the call."""
    @staticmethod
    def conditioning(call):
        return call


def test_a_guided_prediction_takes_the_unconditional_half_first():
    assert np.allclose(Prediction(both_halves, OneContext, 7.5)(INIT, 1.0, 0), INIT * (2 + 7.5 * (5 - 2)))


def test_the_model_gets_the_conditioning_of_each_call():
    seen = []
    predict = Prediction(lambda x, t, conditioning: seen.append(conditioning) or x, OneContext)
    plan = NoiseSchedule().plan("heun", 3)
    list(plan.sample(Denoiser(predict, plan), plan.start(INIT), lambda: INIT))
    assert seen == [0, 1, 2, 3, 4]                                   # the last step looks once


def test_rescaled_guidance_equals_diffusers():
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
    unconditional, conditional = np.random.default_rng(6).standard_normal((2, *SHAPE), np.float32)
    plain = unconditional + 7.5 * (conditional - unconditional)
    for share in (0.3, 0.7, 1.0):
        expected = rescale_noise_cfg(torch.from_numpy(plain), torch.from_numpy(conditional), share).numpy()
        agree("samplers", f"guidance rescale {share}", guide(unconditional, conditional, 7.5, share), expected, 1e-5,
              relative=True)


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_a_guidance_scale_up_to_one_is_no_guidance_as_in_diffusers(scale):
    assert Prediction(lambda x, t, conditioning: x, OneContext, scale)(INIT, 1.0, 0) is INIT


def test_zero_terminal_snr_is_refused_where_the_noise_is_predicted():
    schedule = NoiseSchedule(rescale_betas_zero_snr=True, timestep_spacing="trailing")
    with pytest.raises(UserError, match="zero terminal SNR ddim starts where"):
        schedule.plan("ddim", 10)
    assert len(schedule.plan("euler", 10)) == 10                     # starts at a large, but finite σ


def test_the_list_of_samplers_tells_the_calls_that_there_are():
    for name, sampler in SAMPLERS.items():
        assert f"{2 if CALLS.get(name) == 15 else 1} call" in sampler.description
        assert ("random," in sampler.description) == (sampler.noise is not None and name not in ("ddim", "tcd"))


@pytest.mark.parametrize("share", [np.float64(0.7), np.array(0.7), 1])
def test_rescaled_guidance_keeps_float32(share):
    assert guide(INIT, 2 * INIT, 7.5, share).dtype == np.float32


# ---- what goes together

TIMES, SIGMAS = {"discrete", "sgm_uniform"}, {"discrete", "sgm_uniform", "karras", "exponential", "beta", "align_your_steps"}
WALKS_OVER = {
    "ddpm": TIMES, "ddim": TIMES, "pndm": TIMES, "lcm": {"discrete"}, "tcd": {"discrete"},
    "lms": SIGMAS, "euler": SIGMAS, "euler_a": SIGMAS, "heun": SIGMAS, "dpm2": SIGMAS, "dpm2_a": SIGMAS, "dpm++2m": SIGMAS,
    "dpm++2m_sde": SIGMAS, "dpm++sde": SIGMAS, "unipc": SIGMAS, "deis": SIGMAS}


def test_samplers_walk_over_the_schedules_of_their_kind_and_refuse_all_others():
    allowed, refusals = {name: set() for name in SAMPLERS}, []
    for name in SAMPLERS:
        for schedule in samplers.SCHEDULES:
            try:
                samplers.check_pair(name, schedule)
                allowed[name].add(schedule)
            except UserError as error:
                refusals.append((f"{name} walks over the time steps of the training", str(error)))
    assert allowed == WALKS_OVER
    assert all(reason in message for reason, message in refusals)
