"""A small variational autoencoder of digits (Kingma & Welling 2013, arXiv:1312.6114), of the same layers as Stable Diffusion.

    encoder   28×28×1 → 14×14×32 → 7×7×64 → μ, log σ²      3×3 convolutions of stride 2, then a dense layer
    sample    z = μ + σ ε,  ε ~ N(0, 1)                    D numbers for a whole digit
    decoder   z → 7×7×64 → 14×14×32 → 28×28×1              a dense layer, then upsampling and 3×3 convolutions: logits ℓ

    ELBO = E log p(x|z) − KL(q(z|x) ‖ N(0, 1)) ≤ log p(x)
    log p(x|z) = Σ x ℓ − ln(1 + e^ℓ)                       each pixel a Bernoulli variable of probability 1/(1 + e^−ℓ)
    KL         = Σ ½ (μ² + σ² − 1 − log σ²)

Nats per image. Targets x are "binary", drawn anew each time with a pixel's grey as its probability (Salakhutdinov & Murray
2008), or "grey" themselves: then the first term is a cross-entropy, and figures of the two kinds can't be compared.

Stable Diffusion's AutoencoderKL is another layout, since it has no dense layer: its latent is a small picture, not a few
numbers for the whole. `train sd` trains one of that kind.
"""
import numpy as np

from npdiffusion import kernels
from npdiffusion.models.layers import Conv2d, Linear
from npdiffusion.training.variable import value_of

TARGETS = ("binary", "grey")
CHANNELS = 32, 64
SIDE = 7                                   # of the smallest feature map


class Encoder:
    """Pictures (N, 28, 28, 1) in [0, 1] → μ and log σ², each (N, D)"""
    def __init__(self, latent):
        self.conv1 = Conv2d(1, CHANNELS[0], stride=2)
        self.conv2 = Conv2d(*CHANNELS, stride=2)
        self.to_moments = Linear(SIDE * SIDE * CHANNELS[1], 2 * latent)

    def __call__(self, x):
        x = kernels.silu(self.conv1(x))
        x = kernels.silu(self.conv2(x))
        moments = self.to_moments(x.reshape(len(x), -1))
        return np.split(moments, 2, axis=-1)


class Decoder:
    """z (N, D) → logits (N, 28, 28, 1)"""
    def __init__(self, latent):
        self.from_latent = Linear(latent, SIDE * SIDE * CHANNELS[1])
        self.conv1 = Conv2d(*CHANNELS[::-1])
        self.conv2 = Conv2d(CHANNELS[0], 1)

    def __call__(self, z):
        x = kernels.silu(self.from_latent(z)).reshape(-1, SIDE, SIDE, CHANNELS[1])
        for conv in (self.conv1, self.conv2):
            x = kernels.upsample_conv2d(x, conv.weight, conv.bias, 2 * x.shape[1], 2 * x.shape[2])
            x = kernels.silu(x) if conv is self.conv1 else x
        return x


class DigitVAE:
    """Encoder and decoder of D latent numbers."""
    def __init__(self, latent):
        self.encoder, self.decoder = Encoder(latent), Decoder(latent)

    def elbo(self, targets, noise):
        """Targets (N, 28, 28, 1) in [0, 1], noise ε (N, D) → log p(x|z) and KL, the means over N, in nats per image"""
        mean, logvar = self.encoder(targets)
        logits = self.decoder(mean + np.exp(0.5 * logvar) * noise)
        likelihood = (targets * logits - softplus(logits)).sum(axis=(1, 2, 3))
        divergence = (0.5 * (np.square(mean) + np.exp(logvar) - 1 - logvar)).sum(axis=1)
        return likelihood.mean(), divergence.mean()


def softplus(logits):
    """ln(1 + e^ℓ) = m + ln(e^−m + e^(ℓ − m)), with m = max(ℓ, 0) so that nothing overflows

    np.logaddexp(0, ℓ) is the same in twenty times the time. m is a plain number: by it the slope is zero.
    """
    most = np.maximum(value_of(logits), 0)
    return most + np.log(np.exp(-most) + np.exp(logits - most))


def drawn(grey, targets, rng):
    """What the decoder is to say of pictures in [0, 1]: black and white ones drawn by their grey, or they themselves"""
    return grey if targets == "grey" else (rng.random(grey.shape, np.float32) < grey).astype(np.float32)


def probability(logits):
    """1 / (1 + e^−ℓ), which tanh computes without overflow"""
    return 0.5 + 0.5 * np.tanh(0.5 * logits)
