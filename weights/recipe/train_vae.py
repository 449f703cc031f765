"""Train the autoencoder: picture x (3 × 128 × 128) ↔ latent z (4 × 16 × 16).

    loss = |x̂ − x| + |∇x̂ − ∇x| + 10 (x̂ − x)² + 10⁻⁴ KL(q(z|x) ‖ N(0, 1))

The gradient term asks for crisp edges, without the adversarial and perceptual networks of the paper (Esser et al.
2021, arXiv:2012.09841). The networks are convolutional, so they learn from 64 × 64 crops: of three random crops the
busiest, since plain ground teaches little.

In a second part of the plan the encoder stays as it is, so that latents keep their meaning while the UNet learns
them, and the decoder alone is improved.

    python -m weights.recipe.train_vae [--minutes 29]        go on from where the last run stopped
"""

import argparse
import math

import numpy as np
import torch

from . import settings
from .exam import psnr, unseen_scenes
from .models import new_vae
from .muon import optimizers
from .scenes import load_sprites, pictures
from .training import DEVICE, Averaged, Clock, averaged_into, begun, half_precision, log, rate_at, save, set_rate


def to_tensor(pictures):
    """(N, H, W, 3) uint8 → (N, 3, H, W) float32 in −1 … 1, stored channels last"""
    x = torch.from_numpy(np.ascontiguousarray(pictures)).to(DEVICE).permute(0, 3, 1, 2)
    return x.float().div_(127.5).sub_(1).contiguous(memory_format=torch.channels_last)


def busiest_crop(picture, size, rng):
    corners = rng.integers(0, settings.PIXELS - size + 1, (3, 2))
    crops = [picture[top:top + size, left:left + size] for top, left in corners]
    return max(crops, key=np.var)


def loss_of(vae, x, kl_weight, squared_weight):
    posterior = vae.encode(x).latent_dist
    y = vae.decode(posterior.sample()).sample.float()
    difference = y - x
    edges = difference.diff(dim=2).abs().mean() + difference.diff(dim=3).abs().mean()
    mean, logvar = posterior.mean.float(), posterior.logvar.float()
    kl = 0.5 * (mean ** 2 + logvar.exp() - 1 - logvar).mean()
    squared = (difference ** 2).mean()
    return difference.abs().mean() + edges + squared_weight * squared + kl_weight * kl, squared


@torch.no_grad()
def reconstruct(vae, pictures):
    """(N, 128, 128, 3) uint8 → the same through the latent, with the posterior's mean"""
    out = []
    for batch in np.array_split(pictures, max(1, len(pictures) // 16)):
        with half_precision():
            y = vae.decode(vae.encode(to_tensor(batch)).latent_dist.mean).sample
        out.append(((y.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy())
    return np.concatenate(out)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--until", choices=("encoder", "decoder"), default="decoder", help="part after which to stop")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after so long, to be continued")
    parser.add_argument("--font", default=settings.FONT)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    torch.manual_seed(settings.SEED)
    clock, sprites = Clock(args.minutes), load_sprites(args.font)
    train("encoder", sprites, clock)
    if args.until == "decoder":
        train("decoder", sprites, clock)


def train(part, sprites, clock):
    """part: "encoder", which trains the decoder too, or "decoder" alone."""
    plan, models = settings.VAE_TRAINING, dict(vae=new_vae())
    saved, vae = begun("vae", models), models["vae"].to(DEVICE, memory_format=torch.channels_last)
    first, steps = (0, plan["steps"]) if part == "encoder" else (plan["steps"], plan["decoder_steps"])
    step, fresh = saved["step"], saved["fresh"]
    if step >= first + steps:
        return
    if part == "decoder":
        for frozen in (vae.encoder, vae.quant_conv):
            frozen.requires_grad_(False)
        if step == first:                                   # the encoder that stays is the averaged one
            averaged_into([vae], [p.to(DEVICE) for p in saved["averaged"]])
            saved["optimizers"], fresh = None, step
    learning = [p for p in vae.parameters() if p.requires_grad]
    steppers = optimizers(vae, plan["rate"], plain=("conv_in", "conv_out", "quant_conv"))
    for stepper, its_state in zip(steppers, saved["optimizers"] or ()):
        stepper.load_state_dict(its_state)
    averaged = Averaged(vae, plan["averaging"])
    averaged.load(saved["averaged"])
    log("vae", part=part, parameters=sum(p.numel() for p in learning), step=step)
    unseen = unseen_scenes(64, sprites)

    def checkpoint():
        averaged.swap(vae)
        score = psnr(reconstruct(vae, unseen), unseen)
        averaged.swap(vae)
        log("vae", step=step, psnr=score)
        save("vae", models, steppers, averaged, step, fresh)

    while step < first + steps and not clock.over:
        rng = np.random.default_rng([settings.SEED, 2, step])                 # the data depend on the step alone
        source = pictures(sprites, rng)
        x = to_tensor(np.stack([busiest_crop(next(source), plan["crop"], rng) for _ in range(plan["batch"])]))
        set_rate(steppers, plan["rate"] * rate_at(step, first + steps, fresh, plan["warm_up"], steps))
        with half_precision():
            loss, squared = loss_of(vae, x, plan["kl"], plan["squared"])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        for stepper in steppers:
            stepper.step()
        vae.zero_grad(set_to_none=True)
        averaged.update(vae, step - fresh)
        step += 1
        if step % 50 == 0:
            log("vae", step=step, loss=loss.item(), squared=squared.item())
        if step % 200 == 0:
            checkpoint()
    checkpoint()


if __name__ == "__main__":
    main()
