"""Train the text encoder and the UNet together, on latents z₀ from the bank.

    z_t = α_t z₀ + σ_t ε            α_t² = ᾱ_t,  σ_t² = 1 − ᾱ_t,  ε ~ N(0, 1)
    v   = α_t ε − σ_t z₀            what the UNet predicts (Salimans & Ho 2022, arXiv:2202.00512)
    loss = w_t ‖v̂ − v‖²            w_t = min(SNR + 1, γ) / (SNR + 1),  SNR = α_t² / σ_t²

‖v̂ − v‖² is ‖ẑ₀ − z₀‖² times SNR + 1; the weight caps that factor at γ, the idea of Min-SNR (Hang et al. 2023,
arXiv:2303.09556), so that nearly clean latents do not take all the effort. One caption in ten is empty, for
classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598). Where the loss comes from: docs/notes/06-loss.md

    python -m weights.recipe.train_unet [--minutes 80]       go on from where the last run stopped
"""

import argparse
import math

import numpy as np
import torch
from diffusers import DDIMScheduler
from diffusers.models.attention_processor import AttnProcessor

from . import settings
from .captions import caption
from .encode import PIECE, Bank
from .models import new_text_encoder, new_unet, token_ids
from .muon import optimizers
from .training import DEVICE, Averaged, Clock, begun, half_precision, log, rate_at, save, set_rate


def scenes_at(step):
    """How many scenes the bank holds at a step."""
    plan = settings.UNET_TRAINING
    return min(plan["scenes"], plan["first_scenes"] + PIECE * (step // plan["more_every"]))


def examples(bank, step):
    """The batch of a step, which depends on the step alone.     → (N, 4, 16, 16) latents, (N, 77) token ids"""
    plan = settings.UNET_TRAINING
    rng = np.random.default_rng([settings.SEED, 5, step])
    index = rng.integers(scenes_at(step), size=plan["batch"])
    said = ["" if rng.random() < plan["empty_captions"] else caption(bank.scenes[i], rng) for i in index]
    return bank.latents[torch.from_numpy(index)], torch.from_numpy(token_ids(said))


def spread_timesteps(n, generator):
    """n time steps in 0 … 999, one from each n-th of the range, so that every batch sees all noise levels."""
    where = (torch.arange(n) + torch.rand(n, generator=generator)) / n
    return (where * settings.SCHEDULER["num_train_timesteps"]).long()


def loss_of(unet, text_encoder, z0, ids, t, noise, alphas_cumprod):
    alpha_bar = alphas_cumprod[t].view(-1, 1, 1, 1)
    alpha, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    v = alpha * noise - sigma * z0
    with half_precision():
        context = text_encoder(ids).last_hidden_state
        predicted = unet(alpha * z0 + sigma * noise, t, context).sample.float()
    snr_plus_1 = 1 / (1 - alpha_bar)
    weight = snr_plus_1.clamp(max=settings.UNET_TRAINING["snr_cap"]) / snr_plus_1
    return (weight * (predicted - v) ** 2).mean()


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after so long, to be continued")
    parser.add_argument("--font", default=settings.FONT)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    torch.manual_seed(settings.SEED)
    plan, clock = settings.UNET_TRAINING, Clock(args.minutes)

    text_encoder, unet = new_text_encoder(), new_unet()
    models = dict(text_encoder=text_encoder, unet=unet)
    saved, both = begun("unet", models), torch.nn.ModuleList(models.values()).to(DEVICE)
    if DEVICE.type == "cpu":                                # the fused attention's backward pass is slow on a CPU
        text_encoder.set_attn_implementation("eager")
        unet.set_attn_processor(AttnProcessor())
    steppers = optimizers(both, plan["rate"], plain=("embedding.weight", "conv_in", "conv_out"))
    averaged = Averaged(both, plan["averaging"])
    averaged.load(saved["averaged"])
    step, fresh = saved["step"], saved["fresh"]
    for stepper, its_state in zip(steppers, saved["optimizers"] or ()):
        stepper.load_state_dict(its_state)
    alphas_cumprod, bank = DDIMScheduler(**settings.SCHEDULER).alphas_cumprod.to(DEVICE), Bank(args.font)
    log("unet", parameters=sum(p.numel() for p in both.parameters()), step=step)

    losses = []
    while step < plan["legs"][-1] and not clock.over:
        if step in plan["legs"]:
            fresh = step                                    # warm up again
        leg_end = next(end for end in plan["legs"] if step < end)
        if scenes_at(step) > len(bank.scenes):
            bank.grow(scenes_at(step))
        z0, ids = examples(bank, step)
        generator = torch.Generator().manual_seed(settings.SEED + step)
        noise, t = torch.randn(z0.shape, generator=generator), spread_timesteps(len(z0), generator)
        set_rate(steppers, plan["rate"] * rate_at(step, leg_end, fresh, plan["warm_up"], plan["decay"]))
        z0, ids, t, noise = (x.to(DEVICE) for x in (z0, ids, t, noise))
        loss = loss_of(unet, text_encoder, z0, ids, t, noise, alphas_cumprod)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        for stepper in steppers:
            stepper.step()
        both.zero_grad(set_to_none=True)
        averaged.update(both, step - fresh)
        step += 1
        losses.append(loss.item())
        if step % 50 == 0:
            log("unet", step=step, loss=sum(losses) / len(losses))
            losses = []
        if step % 200 == 0:
            save("unet", models, steppers, averaged, step, fresh)
    save("unet", models, steppers, averaged, step, fresh)


if __name__ == "__main__":
    main()
