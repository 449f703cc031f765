"""Samplers against diffusers' schedulers, run as its pipelines run them, and against paths that are known exactly."""
import inspect
import math

import numpy as np
import pytest

from npdiffusion import samplers
from npdiffusion.denoiser import Denoiser, guided
from npdiffusion.errors import UserError
from npdiffusion.schedules import NoiseSchedule, karras_sigmas

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

CONFIG = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1,
          "set_alpha_to_one": False, "skip_prk_steps": True, "clip_sample": False}
REFERENCE = {
    "ddpm": diffusers.DDPMScheduler, "ddim": diffusers.DDIMScheduler, "pndm": diffusers.PNDMScheduler,
    "euler": diffusers.EulerDiscreteScheduler, "euler_a": diffusers.EulerAncestralDiscreteScheduler,
    "heun": diffusers.HeunDiscreteScheduler, "dpm++2m": diffusers.DPMSolverMultistepScheduler,
}
WITH_KARRAS = [(name, "discrete") for name in REFERENCE] + [(name, "karras") for name in ("euler", "heun", "dpm++2m")]
SHAPE = (2, 6, 5, 4)


def toy_model(x, t):
    """Not linear, different in every element, and sensitive to the time step."""
    grid = np.linspace(-1, 1, x.size, dtype=np.float32).reshape(x.shape)
    phase = float(t) / 300
    return 0.8 * x + 0.5 * np.tanh(1.5 * x - grid + math.sin(phase)) - 0.3 * np.sin(2 * x + phase)


def torch_noise(seed):
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(SHAPE, generator=generator).numpy()


def ours(name, steps, config, kind="discrete", init=None, strength=None, eta=0.0, seed=0):
    schedule = NoiseSchedule.from_config(config)
    plan = schedule.plan(name, steps, kind, strength, eta)
    noise = torch_noise(seed)
    states = list(plan.sample(Denoiser(toy_model, plan), plan.start(noise(), init), noise))
    assert len(states) == len(plan)
    return states[-1]


def theirs(name, steps, config, kind="discrete", init=None, strength=None, eta=0.0, seed=0):
    """StableDiffusionPipeline and StableDiffusionImg2ImgPipeline, reduced to their scheduler calls."""
    scheduler = REFERENCE[name].from_config(config, use_karras_sigmas=kind == "karras")
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(SHAPE, generator=generator)
    scheduler.set_timesteps(steps)
    times = scheduler.timesteps
    if init is None:
        x = noise * scheduler.init_noise_sigma
    else:
        skipped = max(steps - min(int(steps * strength), steps), 0) * scheduler.order
        times = times[skipped:]
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(skipped)
        x = scheduler.add_noise(torch.from_numpy(init), noise, times[:1].repeat(len(init)))
    extra = {"generator": generator, "eta": eta}
    extra = {key: extra[key] for key in inspect.signature(scheduler.step).parameters if key in extra}
    for t in times:
        output = toy_model(scheduler.scale_model_input(x, t).numpy(), t)
        x = scheduler.step(torch.from_numpy(output), t, x, **extra, return_dict=False)[0]
    return x.numpy()


def difference(got, want):
    return np.abs(got - want).max() / np.abs(want).max()


INIT = np.random.default_rng(5).standard_normal(SHAPE, np.float32)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
@pytest.mark.parametrize("name, kind", WITH_KARRAS)
def test_text_to_image_equals_diffusers(name, kind, spacing, prediction_type):
    config = CONFIG | {"timestep_spacing": spacing, "prediction_type": prediction_type}
    for steps in (10, 25, 50):
        assert difference(ours(name, steps, config, kind), theirs(name, steps, config, kind)) < 1e-5


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
@pytest.mark.parametrize("name, kind", WITH_KARRAS)
def test_image_to_image_equals_diffusers(name, kind, spacing, prediction_type):
    config = CONFIG | {"timestep_spacing": spacing, "prediction_type": prediction_type}
    for steps in (10, 25, 50):
        settings = name, steps, config, kind, INIT, 0.75
        assert difference(ours(*settings), theirs(*settings)) < 1e-5


@pytest.mark.parametrize("name", REFERENCE)
def test_one_two_and_many_steps_equal_diffusers(name):
    for steps in (1, 2, 3, 7, 99):
        config = CONFIG | {"timestep_spacing": "linspace"}           # where rounding and the last step differ most
        assert difference(ours(name, steps, config), theirs(name, steps, config)) < 2e-5


@pytest.mark.parametrize("eta", [0.4, 1.0])
def test_ddim_with_eta_equals_diffusers(eta):
    assert difference(ours("ddim", 25, CONFIG, eta=eta), theirs("ddim", 25, CONFIG, eta=eta)) < 1e-5


@pytest.mark.parametrize("name", REFERENCE)
def test_spacing_without_an_entry_in_the_file_is_diffusers_default(name):
    assert difference(ours(name, 10, CONFIG), theirs(name, 10, CONFIG)) < 1e-5


@pytest.mark.parametrize("name", ["ddpm", "ddim", "euler", "heun", "dpm++2m"])
def test_a_model_that_predicts_the_sample_equals_diffusers(name):
    config = CONFIG | {"prediction_type": "sample"}
    assert difference(ours(name, 10, config), theirs(name, 10, config)) < 1e-5


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
        *_, end = getattr(samplers, name)(denoise, x / math.hypot(1, sigmas[0]), steps, *[None] * (name == "ddim"))
        end = end * math.hypot(1, sigmas[-1])
    else:
        *_, end = samplers.SAMPLERS[name].function(gaussian, x, sigmas)
    return abs(end[0] / math.sqrt((S**2 + sigmas[-1]**2) / (S**2 + sigmas[0]**2)) - 1)


@pytest.mark.parametrize("name, order", [("euler", 1), ("ddim", 1), ("heun", 2), ("dpm++2m", 2), ("pndm", 2)])
def test_order_of_convergence(name, order):
    coarse, fine = (error_at_the_end(name, karras_sigmas(10.0, 0.1, n + 1).tolist()) for n in (160, 320))
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.15)


def test_pndm_converges_with_order_three_or_more_on_equal_steps():
    coarse, fine = (error_at_the_end("pndm", np.linspace(10.0, 0.5, n + 1).tolist()) for n in (160, 320))
    assert math.log2(coarse / fine) > 2.8                            # order 4 but for the three steps of its start


DETERMINISTIC = ["ddim", "pndm", "euler", "heun", "dpm++2m"]


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_deterministic_samplers_are_exact_for_a_constant_denoiser(name):
    plan = NoiseSchedule(set_alpha_to_one=True).plan(name, 12)
    x = np.random.default_rng(0).standard_normal((1, 2, 2, 4))
    *_, end = plan.sample(lambda x, level: np.full_like(x, 0.7), plan.start(x), None)
    assert np.abs(end - 0.7).max() < 1e-12


@pytest.mark.parametrize("name", ["ddpm", "euler_a"])
def test_random_samplers_keep_the_variance_of_the_data(name):
    rng = np.random.default_rng(1)
    x = rng.standard_normal(40_000)
    sigmas = [*karras_sigmas(20.0, 0.01, 300).tolist(), 0.0]

    def noise():
        return rng.standard_normal(x.shape)

    if name == "ddpm":
        steps, denoise = time_walk(sigmas)
        *_, end = samplers.ddpm(denoise, x, steps, noise)
    else:
        *_, end = samplers.euler_a(gaussian, x * sigmas[0], sigmas, noise)
    assert end.std() == pytest.approx(S, rel=0.02)


def test_euler_ancestral_equals_ddpm_on_the_same_levels():
    config = CONFIG | {"timestep_spacing": "trailing"}
    schedule = NoiseSchedule.from_config(config)
    x = np.random.default_rng(2).standard_normal(SHAPE)
    ends = []
    for name in ("ddpm", "euler_a"):
        plan = schedule.plan(name, 20, strength=0.5)                 # starts from the same picture on either scale
        noise = torch_noise(3)
        *_, end = plan.sample(Denoiser(toy_model, plan), plan.start(x, INIT), noise)
        ends.append(end)
    assert difference(*ends) < 1e-5


# ---- manners

@pytest.mark.parametrize("strength, states", [(None, 8), (0.5, 4)])
@pytest.mark.parametrize("name", REFERENCE)
def test_a_sampler_yields_one_state_per_step(name, strength, states):
    plan = NoiseSchedule().plan(name, 8, strength=strength)
    x = plan.start(INIT, None if strength is None else INIT)
    assert len(plan) == states == len(list(plan.sample(lambda x, level: 0.5 * x, x, lambda: INIT)))


@pytest.mark.parametrize("name, calls", [("ddpm", 8), ("ddim", 8), ("pndm", 9), ("euler", 8), ("euler_a", 8),
                                         ("heun", 15), ("dpm++2m", 8)])
def test_calls_of_the_model(name, calls):
    seen = []
    plan = NoiseSchedule().plan(name, 8)
    list(plan.sample(lambda x, level: seen.append(level) or 0.5 * x, INIT, lambda: INIT))
    assert len(seen) == calls


@pytest.mark.parametrize("name", REFERENCE)
def test_float32_input_gives_float32_states(name):
    plan = NoiseSchedule(prediction_type="v_prediction").plan(name, 5)
    states = list(plan.sample(Denoiser(toy_model, plan), plan.start(INIT), lambda: INIT))
    assert {state.dtype for state in states} == {np.dtype("float32")}


@pytest.mark.parametrize("name", REFERENCE)
def test_the_input_and_the_states_handed_out_are_not_modified(name):
    plan = NoiseSchedule().plan(name, 6)
    x = plan.start(INIT)
    seen = [(x, x.copy())]
    for state in plan.sample(Denoiser(toy_model, plan), x, lambda: INIT):
        seen.append((state, state.copy()))
    assert all(np.array_equal(state, copy) for state, copy in seen)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_deterministic_samplers_draw_no_noise(name):
    plan = NoiseSchedule().plan(name, 4)
    for _ in plan.sample(Denoiser(toy_model, plan), plan.start(INIT), lambda: pytest.fail("noise was drawn")):
        pass


def test_an_unknown_sampler_is_met_with_the_nearest_known_one():
    with pytest.raises(UserError, match=r"unknown sampler 'dpm\+\+_2m': did you mean dpm\+\+2m\?"):
        samplers.find("dpm++_2m")


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
        denoise = Denoiser(lambda x, t: model, plan)
        assert np.abs(denoise(alpha * x0 + sigma * eps, level) - x0).max() < 1e-12


def test_the_model_sees_states_of_the_scale_it_was_trained_on():
    plan = NoiseSchedule().plan("euler", 5)
    level = plan.steps[0]
    seen = []
    Denoiser(lambda x, t: seen.append((x, t)) or x, plan)(np.full((1, 1), 3.0), level)
    assert seen == [(pytest.approx(3 / math.sqrt(1 + level**2)), 999.0)]


def test_guidance_moves_from_the_unconditional_to_the_conditional_prediction():
    def model(context):
        return lambda x, t: np.concatenate([x, x]) * context.mean(axis=(1, 2))[:, None, None, None]

    predict = guided(model, np.full((2, 7, 3), 5.0), np.full((2, 7, 3), 2.0), 7.5)
    assert np.allclose(predict(INIT, 1.0), INIT * (2 + 7.5 * (5 - 2)))


def test_guidance_keeps_float32():
    context = np.ones((2, 7, 3))
    predict = guided(lambda context: lambda x, t: np.concatenate([x, x]), context, context, np.float64(7.5))
    assert predict(INIT, 1.0).dtype == np.float32


def test_guidance_puts_the_unconditional_half_first():
    seen = []
    guided(lambda context: seen.extend(context[:, 0, 0]), np.full((2, 7, 3), 5.0), np.full((2, 7, 3), 2.0), 2.0)
    assert seen == [2, 2, 5, 5]


def test_without_guidance_the_unconditional_half_is_not_computed():
    context = np.ones((2, 7, 3))
    assert guided(lambda context: context, context, None, 1.0) is context
