"""The loss of a diffusion model against diffusers' schedulers and training utilities."""
import numpy as np
import pytest

from npdiffusion.diffusion.schedules.settings import NoiseSchedule
from npdiffusion.training.denoising import Denoising
from tests.differences import agree

KINDS = ("epsilon", "v_prediction", "sample")


def latents(n=6, seed=0):
    return np.random.default_rng(seed).standard_normal((n, 4, 3, 2), dtype=np.float32)


@pytest.fixture
def scheduler():
    """diffusers' scheduler of Stable Diffusion v1's betas"""
    diffusers = pytest.importorskip("diffusers")
    return diffusers.DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")


def test_noised_pictures_and_velocities_are_those_of_diffusers(scheduler):
    import torch
    x0, noise, t = latents(), latents(seed=1), np.array([0, 1, 250, 600, 998, 999])
    tensors = [torch.from_numpy(each) for each in (x0, noise, t)]
    denoising = Denoising(NoiseSchedule())
    agree("training", "noised latents", denoising.noised(x0, t, noise), scheduler.add_noise(*tensors).numpy(), 1e-6)
    velocity = Denoising(NoiseSchedule(prediction_type="v_prediction")).target(x0, t, noise)
    agree("training", "velocities", velocity, scheduler.get_velocity(*tensors).numpy(), 1e-6)
    assert denoising.target(x0, t, noise) is noise and denoising.noised(x0, t, noise).dtype == np.float32


@pytest.mark.parametrize("kind", KINDS[:2])
def test_min_snr_weights_are_those_of_diffusers_training_scripts(scheduler, kind):
    """examples/text_to_image/train_text_to_image.py: min(SNR, γ) / SNR, or / (SNR + 1) for v"""
    import torch
    from diffusers.training_utils import compute_snr
    t = np.arange(0, 1000, 37)
    snr = compute_snr(scheduler, torch.from_numpy(t))
    expected = torch.clamp(snr, max=5.0) / (snr + (kind == "v_prediction"))
    found = Denoising(NoiseSchedule(prediction_type=kind), gamma=5.0).weight(t)
    agree("training", f"Min-SNR weights, {kind}", found, expected.numpy(), 2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_right_prediction_costs_nothing_and_a_wrong_one_its_weighted_square(kind):
    denoising = Denoising(NoiseSchedule(prediction_type=kind), gamma=5.0)
    x0 = latents()
    t, noise = denoising.draw(x0.shape, np.random.default_rng(2))
    target = denoising.target(x0, t, noise)
    assert denoising.loss(target, x0, t, noise) == 0
    share = np.arange(6, dtype=np.float32)
    found = denoising.loss(target + 2, x0, t, noise, share)
    assert found == pytest.approx(float((4 * share * denoising.weight(t)).mean()), rel=1e-5) and found.dtype == np.float32


def test_the_same_error_of_the_clean_picture_weighs_the_same_whatever_is_predicted():
    """x̂₀ = (x_t − √(1−ᾱ) ε) / √ᾱ, or √ᾱ x_t − √(1−ᾱ) v: with Min-SNR both losses are min(SNR, γ) times its square."""
    x0, error, t = latents(), 0.1 * latents(seed=3), np.array([5, 100, 300, 500, 700, 990])
    noise = latents(seed=1)
    losses = []
    factors = {"epsilon": lambda signal, sigma: -signal / sigma, "v_prediction": lambda signal, sigma: -1 / sigma}
    for kind, factor in factors.items():
        denoising = Denoising(NoiseSchedule(prediction_type=kind), gamma=5.0)
        wrong = denoising.target(x0, t, noise) + factor(*denoising.levels(t)) * error
        losses.append(denoising.loss(wrong, x0, t, noise))
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_a_batch_sees_all_levels_of_noise_and_each_is_uniform():
    denoising, rng = Denoising(NoiseSchedule()), np.random.default_rng(0)
    drawn = np.array([denoising.draw((8, 1, 1, 1), rng)[0] for _ in range(500)])
    assert (np.sort(drawn // 125, axis=1) == np.arange(8)).all() and drawn.min() >= 0 and drawn.max() <= 999
    assert np.abs(drawn.mean(axis=0) - 499.5).max() < 40


def test_offset_noise_shifts_each_picture_and_channel_alone():
    denoising = Denoising(NoiseSchedule(), offset=0.5)
    plain = Denoising(NoiseSchedule()).draw((3, 16, 16, 4), np.random.default_rng(0))[1]
    shift = denoising.draw((3, 16, 16, 4), np.random.default_rng(0))[1] - plain
    assert np.abs(shift - shift[:, :1, :1]).max() < 1e-6 and 0.1 < shift[:, 0, 0].std() < 1
