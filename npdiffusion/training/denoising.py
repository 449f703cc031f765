"""The loss of a diffusion model: how well it tells noise from picture, at a random level of noise.

    x_t = √ᾱ x₀ + √(1−ᾱ) ε       ε ~ N(0, 1), t uniform                 Ho, Jain & Abbeel 2020, arXiv:2006.11239, eq. 14
    L   = w ‖prediction − target‖²,   target = ε, or v = √ᾱ ε − √(1−ᾱ) x₀       Salimans & Ho 2022, arXiv:2202.00512
    w   = min(SNR, γ) / SNR for ε, min(SNR, γ) / (SNR + 1) for v, or 1          Hang et al. 2023, arXiv:2303.09556

SNR = ᾱ / (1−ᾱ). The error of x̂₀ is SNR⁻¹ times that of ε, so Min-SNR's weight is min(SNR, γ) times the error of x̂₀: nearly
clean pictures don't take all the effort. Offset noise shifts ε by one number for each picture and channel, for pictures
darker or brighter than the mean (Guttenberg 2023).

N pictures (N, H, W, C), float32; ᾱ of T time steps; γ about 5.
"""
from dataclasses import dataclass

import numpy as np

from npdiffusion.diffusion.schedules.settings import NoiseSchedule


@dataclass(frozen=True)
class Denoising:
    """schedule: of the checkpoint, with its prediction type      gamma: of Min-SNR, None for w = 1      offset: of the noise"""
    schedule: NoiseSchedule
    gamma: float | None = None
    offset: float = 0.0

    def draw(self, shape, rng):
        """Time steps and noise for pictures of a shape (N, H, W, C) → t (N,), ε like them

        One t lies in each N-th of the range: each is uniform, but a batch sees all levels.
        """
        n, *_, channels = shape
        t = ((rng.permutation(n) + rng.random(n)) / n * self.schedule.num_train_timesteps).astype(np.int64)
        noise = rng.standard_normal(shape, np.float32)
        if self.offset:
            noise += np.float32(self.offset) * rng.standard_normal((n, 1, 1, channels), np.float32)
        return t, noise

    def levels(self, t):
        """√ᾱ and √(1−ᾱ), (N, 1, 1, 1) float32"""
        abar = self.schedule.alphas_cumprod[t].reshape(-1, 1, 1, 1)
        return np.sqrt(abar).astype(np.float32), np.sqrt(1 - abar).astype(np.float32)

    def noised(self, x0, t, noise):
        """x_t"""
        signal, sigma = self.levels(t)
        return signal * x0 + sigma * noise

    def target(self, x0, t, noise):
        """What the model is to predict"""
        signal, sigma = self.levels(t)
        return {"epsilon": noise, "v_prediction": signal * noise - sigma * x0, "sample": x0}[self.schedule.prediction_type]

    def weight(self, t):
        """w, (N,) float32"""
        if self.gamma is None:
            return np.ones(len(t), np.float32)
        abar = self.schedule.above_zero(self.schedule.alphas_cumprod[t])
        snr = abar / (1 - abar)
        below = {"epsilon": snr, "v_prediction": snr + 1, "sample": 1.0}[self.schedule.prediction_type]
        return (np.minimum(snr, self.gamma) / below).astype(np.float32)

    def loss(self, prediction, x0, t, noise, share=1.0):
        """Mean of w ‖prediction − target‖² over pictures and the numbers of each; share: a weight for each picture, (N,)"""
        error = np.square(prediction - self.target(x0, t, noise)).mean(axis=(1, 2, 3))
        return (self.weight(t) * share * error).mean()
