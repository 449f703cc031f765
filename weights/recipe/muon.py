"""Muon (Jordan et al. 2024): momentum, made orthogonal before it is applied.

    M ← μ M + G          O = U Vᵀ, where M = U Σ Vᵀ          W ← (1 − λη) W − η · 0.2 √max(m, n) · O

A plain gradient step follows a few dominant directions of a weight matrix; with all singular values set to one the
rare directions learn at the same pace. U Vᵀ comes from five Newton-Schulz steps, matrix products alone. The factor
0.2 √max(m, n) gives the update the size of an AdamW step (Liu et al. 2025, arXiv:2502.16982), so one rate serves
both: a convolution counts as a matrix (out, in · kernel), while vectors, embeddings and the layers next to pixels
or latents go to AdamW.
"""

import torch

A, B, C = 3.4445, -4.7750, 2.0315                           # a s + b s³ + c s⁵, repeated, brings 0 < s ≤ 1 close to 1


def orthogonalised(m, steps=5):
    """M = U Σ Vᵀ → about U Vᵀ     (rows, columns) float32, computed in bfloat16"""
    x = m.bfloat16()
    wide = x.shape[0] <= x.shape[1]
    if not wide:
        x = x.T
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = A * x + (B * gram + C * gram @ gram) @ x
    return (x if wide else x.T).float()


class Muon(torch.optim.Optimizer):
    """Muon for parameters of two dimensions or more."""

    def __init__(self, parameters, lr, momentum=0.95, weight_decay=0.01):
        super().__init__(parameters, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                momentum.mul_(group["momentum"]).add_(p.grad)
                ahead = p.grad + group["momentum"] * momentum                  # Nesterov
                update = orthogonalised(ahead.reshape(len(p), -1))
                rate = group["lr"] * 0.2 * max(update.shape) ** 0.5
                p.mul_(1 - group["lr"] * group["weight_decay"]).add_(update.view(p.shape), alpha=-rate)


def optimizers(model, rate, plain=()):
    """[Muon, AdamW] for a model: AdamW takes vectors and parameters whose name holds one of the words in `plain`."""
    named = list(model.named_parameters())
    matrices = [p for name, p in named if p.ndim >= 2 and not any(word in name for word in plain)]
    others = [p for name, p in named if p.ndim < 2 or any(word in name for word in plain)]
    return [Muon(matrices, rate), torch.optim.AdamW(others, rate, betas=(0.9, 0.95), weight_decay=0.0)]
