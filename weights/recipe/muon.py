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


def orthogonalised(matrices, steps=5):
    """M = U Σ Vᵀ → about U Vᵀ, for each of a list of matrices

    A step multiplies X from the left by a polynomial of the Gram matrix X Xᵀ, and the Gram matrix from both sides. So
    the steps run on the small Gram matrices, all of one size together, and their product meets X once.
    """
    wide = [m if m.shape[0] <= m.shape[1] else m.T for m in matrices]
    wide = [x / (x.norm() + 1e-7) for x in wide]
    out = list(wide)
    for rows in {len(x) for x in wide}:
        which = [i for i, x in enumerate(wide) if len(x) == rows]
        gram = torch.stack([wide[i] @ wide[i].T for i in which])
        identity = torch.eye(rows, device=gram.device)
        product = identity
        for _ in range(steps):
            polynomial = A * identity + B * gram + C * gram @ gram
            product, gram = polynomial @ product, polynomial @ gram @ polynomial
        for i, left in zip(which, product):
            out[i] = left @ wide[i]
    return [x if x.shape == m.shape else x.T for x, m in zip(out, matrices)]


class Muon(torch.optim.Optimizer):
    """Muon for parameters of two dimensions or more."""

    def __init__(self, parameters, lr, momentum=0.95, weight_decay=0.01):
        super().__init__(parameters, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            learning = [p for p in group["params"] if p.grad is not None]
            momenta = [self.state[p].setdefault("momentum", torch.zeros_like(p)) for p in learning]
            torch._foreach_mul_(momenta, group["momentum"])
            torch._foreach_add_(momenta, [p.grad for p in learning])
            ahead = torch._foreach_add([p.grad for p in learning], momenta, alpha=group["momentum"])       # Nesterov
            updates = orthogonalised([x.reshape(len(x), -1) for x in ahead])
            torch._foreach_mul_(learning, 1 - group["lr"] * group["weight_decay"])
            for p, update in zip(learning, updates):
                p.add_(update.reshape(p.shape), alpha=-group["lr"] * 0.2 * max(update.shape) ** 0.5)


def optimizers(model, rate, plain=()):
    """[Muon, AdamW] for a model: AdamW takes vectors and parameters whose name holds one of the words in `plain`."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    matrices = [p for name, p in named if p.ndim >= 2 and not any(word in name for word in plain)]
    others = [p for name, p in named if p.ndim < 2 or any(word in name for word in plain)]
    return [Muon(matrices, rate), torch.optim.AdamW(others, rate, betas=(0.9, 0.95), weight_decay=0.0)]
