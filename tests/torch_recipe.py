"""The recipe's losses and its optimiser in torch: what the training of the embedded model is compared with."""
import torch

A, B, C = 3.4445, -4.7750, 2.0315


def unet_loss(unet, text_encoder, z0, ids, t, noise, alphas_cumprod, cap):
    """z0, noise: (N, C, H, W); the loss of weights/recipe/train_unet.py, as its first lines have it"""
    return weighted_loss(unet, z0, text_encoder(ids).last_hidden_state, t, noise, alphas_cumprod, cap)


def weighted_loss(unet, z0, states, t, noise, alphas_cumprod, cap):
    alpha_bar = alphas_cumprod[t].view(-1, 1, 1, 1)
    alpha, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    v = alpha * noise - sigma * z0
    predicted = unet(alpha * z0 + sigma * noise, t, states).sample
    snr_plus_1 = 1 / (1 - alpha_bar)
    return (snr_plus_1.clamp(max=cap) / snr_plus_1 * (predicted - v) ** 2).mean()


def controlnet_loss(controlnet, unet, z0, states, picture, t, noise, alphas_cumprod, cap):
    """That of weights/recipe/train_control.py; picture: (N, 3, 8H, 8W)"""
    def led(x, t, states):
        skips, middle = controlnet(x, t, states, controlnet_cond=picture, return_dict=False)
        return unet(x, t, states, down_block_additional_residuals=skips, mid_block_additional_residual=middle)
    return weighted_loss(led, z0, states, t, noise, alphas_cumprod, cap)


def vae_loss(vae, x, noise, kl_weight, squared_weight):
    """x, noise: (N, C, H, W); the loss of weights/recipe/train_vae.py"""
    posterior = vae.encode(x).latent_dist
    difference = vae.decode(posterior.mean + posterior.std * noise).sample - x
    edges = difference.diff(dim=2).abs().mean() + difference.diff(dim=3).abs().mean()
    kl = 0.5 * (posterior.mean ** 2 + posterior.var - 1 - posterior.logvar).mean()
    return difference.abs().mean() + edges + squared_weight * (difference ** 2).mean() + kl_weight * kl


def orthogonalised(m, steps=5):
    """M = U Σ Vᵀ → about U Vᵀ: X ← (a + b X Xᵀ + c (X Xᵀ)²) X, step by step"""
    x = m if m.shape[0] <= m.shape[1] else m.T
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = A * x + (B * gram + C * gram @ gram) @ x
    return x if m.shape[0] <= m.shape[1] else x.T


class Muon(torch.optim.Optimizer):
    """M ← μ M + G, orthogonal steps along G + μ M, of 0.2 √max(m, n) times the rate"""
    def __init__(self, parameters, lr, momentum=0.95, weight_decay=0.01):
        super().__init__(parameters, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                momentum.mul_(group["momentum"]).add_(p.grad)
                update = orthogonalised((p.grad + group["momentum"] * momentum).reshape(len(p), -1))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update.reshape(p.shape), alpha=-group["lr"] * 0.2 * max(update.shape) ** 0.5)


def stepped(named, loss, rate, steps, plain):
    """Train {name: torch parameter} in place for so many steps → their losses

    Muon for matrices and convolutions, AdamW for vectors and where a name holds one of the words in `plain`
    """
    matrices = [p for name, p in named.items() if p.ndim >= 2 and not any(word in name for word in plain)]
    others = [p for name, p in named.items() if p.ndim < 2 or any(word in name for word in plain)]
    optimizers = [Muon(matrices, rate), torch.optim.AdamW(others, rate, betas=(0.9, 0.95), weight_decay=0.0)]
    losses = []
    for step in range(steps):
        value = loss(step)
        value.backward()
        torch.nn.utils.clip_grad_norm_(named.values(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(value.item())
    return losses
