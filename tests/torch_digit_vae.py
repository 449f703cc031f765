"""The VAE of digits in torch, with the weights of ours: what training.digit_vae is compared with."""
import torch
from torch.nn import functional as F

from npdiffusion.training import initial


class TorchDigitVAE(torch.nn.Module):
    """Parameters under our names; channels first inside."""
    def __init__(self, model):
        super().__init__()
        self.names = [*initial.of(model)]
        for name, value in initial.of(model).items():
            self.register_parameter(name.replace(".", "_"), torch.nn.Parameter(torch.from_numpy(value.copy())))

    def p(self, name):
        return getattr(self, f"{name}_weight"), getattr(self, f"{name}_bias")

    def encode(self, x):
        x = F.silu(F.conv2d(x, *self.p("encoder_conv1"), stride=2, padding=1))
        x = F.silu(F.conv2d(x, *self.p("encoder_conv2"), stride=2, padding=1))
        return F.linear(x.permute(0, 2, 3, 1).flatten(1), *self.p("encoder_to_moments")).chunk(2, dim=1)

    def decode(self, z):
        x = F.silu(F.linear(z, *self.p("decoder_from_latent"))).reshape(len(z), 7, 7, 64).permute(0, 3, 1, 2)
        x = F.silu(F.conv2d(F.interpolate(x, scale_factor=2), *self.p("decoder_conv1"), padding=1))
        return F.conv2d(F.interpolate(x, scale_factor=2), *self.p("decoder_conv2"), padding=1)

    def elbo(self, targets, noise):
        """targets (N, 28, 28, 1) and noise (N, D), NumPy → log p(x|z) and KL, means over N"""
        x = torch.from_numpy(targets).permute(0, 3, 1, 2)
        mean, logvar = self.encode(x)
        logits = self.decode(mean + (0.5 * logvar).exp() * torch.from_numpy(noise))
        likelihood = -F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(dim=(1, 2, 3))
        divergence = 0.5 * (mean ** 2 + logvar.exp() - 1 - logvar).sum(dim=1)
        return likelihood.mean(), divergence.mean()
