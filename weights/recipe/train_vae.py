"""Train the autoencoder: picture x (3 × 128 × 128) ↔ latent z (4 × 16 × 16).

    loss = |x̂ − x| + |∇x̂ − ∇x| + 2 (x̂ − x)² + 10⁻⁴ KL(q(z|x) ‖ N(0, 1))

The gradient term asks for crisp edges, without the adversarial and perceptual networks of the paper (Esser et al.
2021, arXiv:2012.09841). The networks are convolutional, so they learn from 64 × 64 crops: of three random crops the
busiest, since plain ground teaches little.

    python -m weights.recipe.train_vae [--minutes 29]        go on from where the last run stopped
"""

import argparse

import numpy as np
import torch

from . import settings
from .judge import psnr, unseen_scenes
from .models import new_vae
from .muon import optimizers
from .scenes import load_sprites, scenes
from .training import DEVICE, Averaged, Clock, half_precision, log, rate_at, save_atomically, set_rate, state

STATE = settings.RUNS / "vae.pt"


def to_tensor(pictures):
    """(N, H, W, 3) uint8 → (N, 3, H, W) float32 in −1 … 1, stored channels last"""
    x = torch.from_numpy(np.ascontiguousarray(pictures)).to(DEVICE).permute(0, 3, 1, 2)
    return x.float().div_(127.5).sub_(1).contiguous(memory_format=torch.channels_last)


def busiest_crop(picture, size, rng):
    corners = rng.integers(0, settings.PIXELS - size + 1, (3, 2))
    crops = [picture[top:top + size, left:left + size] for top, left in corners]
    return max(crops, key=np.var)


def loss_of(vae, x, kl_weight):
    posterior = vae.encode(x).latent_dist
    y = vae.decode(posterior.sample()).sample.float()
    difference = y - x
    edges = difference.diff(dim=2).abs().mean() + difference.diff(dim=3).abs().mean()
    mean, logvar = posterior.mean.float(), posterior.logvar.float()
    kl = 0.5 * (mean ** 2 + logvar.exp() - 1 - logvar).mean()
    squared = (difference ** 2).mean()
    return difference.abs().mean() + edges + 2 * squared + kl_weight * kl, squared


@torch.no_grad()
def reconstruct(vae, pictures):
    """(N, 128, 128, 3) uint8 → the same through the latent, with the posterior's mean"""
    out = []
    for batch in np.array_split(pictures, max(1, len(pictures) // 16)):
        with half_precision():
            y = vae.decode(vae.encode(to_tensor(batch)).latent_dist.mean).sample
        out.append(((y.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy())
    return np.concatenate(out)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=settings.VAE_TRAINING["minutes"])
    parser.add_argument("--font", default=settings.FONT)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(settings.SEED)
    plan, sprites = settings.VAE_TRAINING, load_sprites(args.font)

    vae = new_vae().to(DEVICE, memory_format=torch.channels_last)
    both = optimizers(vae, plan["rate"], plain=("conv_in", "conv_out", "quant_conv"))
    averaged = Averaged(vae, plan["averaging"])
    step, elapsed = 0, 0.0
    if saved := state("vae"):
        vae.load_state_dict(saved["model"])
        for optimizer, its_state in zip(both, saved["optimizers"]):
            optimizer.load_state_dict(its_state)
        averaged.load(saved["averaged"])
        step, elapsed = saved["step"], saved["elapsed"]
    clock = Clock(args.minutes, elapsed)
    log("vae", parameters=sum(p.numel() for p in vae.parameters()), step=step, minutes=args.minutes)

    unseen = unseen_scenes(64, sprites)

    def checkpoint():
        averaged.swap(vae)
        score = psnr(reconstruct(vae, unseen), unseen)
        averaged.swap(vae)
        log("vae", step=step, minutes=clock.elapsed / 60, psnr=score)
        save_atomically(dict(model=vae.state_dict(), optimizers=[o.state_dict() for o in both],
                             averaged=averaged.parameters, step=step, elapsed=clock.elapsed), STATE)

    last_saved = clock.elapsed
    while clock.progress < 1:
        rng = np.random.default_rng([settings.SEED, 2, step])                 # the data depend on the step alone
        source = scenes(sprites, rng)
        x = to_tensor(np.stack([busiest_crop(next(source)[1], plan["crop"], rng) for _ in range(plan["batch"])]))
        set_rate(both, plan["rate"] * rate_at(clock.progress, step, plan["warm_up"]))
        with half_precision():
            loss, squared = loss_of(vae, x, plan["kl"])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        for optimizer in both:
            optimizer.step()
        vae.zero_grad(set_to_none=True)
        averaged.update(vae, step)
        step += 1
        if step % 50 == 0:
            log("vae", step=step, minutes=clock.elapsed / 60, loss=loss.item(), squared=squared.item())
        if clock.elapsed - last_saved > 180:
            checkpoint()
            last_saved = clock.elapsed
    checkpoint()


if __name__ == "__main__":
    main()
