"""Train the text encoder and the UNet together, on latents z₀ that were encoded before.

    z_t = α_t z₀ + σ_t ε            α_t² = ᾱ_t,  σ_t² = 1 − ᾱ_t,  ε ~ N(0, 1)
    v   = α_t ε − σ_t z₀            what the UNet predicts (Salimans & Ho 2022, arXiv:2202.00512)
    loss = w_t ‖v̂ − v‖²            w_t = min(SNR + 1, γ) / (SNR + 1),  SNR = α_t² / σ_t²

‖v̂ − v‖² is ‖ẑ₀ − z₀‖² times SNR + 1; the weight caps that factor at γ, the idea of Min-SNR (Hang et al. 2023,
arXiv:2303.09556), so that nearly clean latents do not take all the effort. One caption in ten is empty, for
classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598).

    python -m weights.recipe.train_unet [--minutes 80]       go on from where the last run stopped
"""

import argparse

import numpy as np
import torch
from diffusers import DDIMScheduler
from diffusers.models.attention_processor import AttnProcessor

from . import settings
from .encode import scene_of
from .models import new_text_encoder, new_unet, token_ids
from .muon import optimizers
from .scenes import caption
from .training import DEVICE, Averaged, Clock, half_precision, log, rate_at, save_atomically, set_rate, state

STATE = settings.RUNS / "unet.pt"
WORDINGS = 3                                                # captions kept ready for each scene


def captions_of(scenes):
    """→ (WORDINGS, N, 77) int16 token ids"""
    rng = np.random.default_rng([settings.SEED, 5])
    said = [scene_of(index)[0] for index in range(scenes)]
    return torch.stack([torch.from_numpy(token_ids([caption(scene, rng) for scene in said]).astype(np.int16))
                        for _ in range(WORDINGS)])


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


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=settings.UNET_TRAINING["minutes"])
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(settings.SEED)
    plan, bank = settings.UNET_TRAINING, state("latents")
    latents = bank["latents"].float() * bank["scaling_factor"]
    ids, empty = captions_of(len(latents)), torch.from_numpy(token_ids([""]))
    alphas_cumprod = DDIMScheduler(**settings.SCHEDULER).alphas_cumprod.to(DEVICE)

    text_encoder, unet = new_text_encoder().to(DEVICE), new_unet().to(DEVICE)
    if DEVICE.type == "cpu":                                # the fused attention's backward pass is slow on a CPU
        text_encoder.set_attn_implementation("eager")
        unet.set_attn_processor(AttnProcessor())
    both = torch.nn.ModuleList([text_encoder, unet])
    steppers = optimizers(both, plan["rate"], plain=("embedding.weight", "conv_in", "conv_out"))
    averaged = Averaged(both, plan["averaging"])
    step, elapsed = 0, 0.0
    if saved := state("unet"):
        both.load_state_dict(saved["model"])
        for stepper, its_state in zip(steppers, saved["optimizers"]):
            stepper.load_state_dict(its_state)
        averaged.load(saved["averaged"])
        step, elapsed = saved["step"], saved["elapsed"]
    clock = Clock(args.minutes, elapsed)
    parameters = sum(p.numel() for p in both.parameters())
    log("unet", parameters=parameters, scenes=len(latents), step=step, minutes=args.minutes)

    def save():
        save_atomically(dict(model=both.state_dict(), optimizers=[s.state_dict() for s in steppers],
                             averaged=averaged.parameters, step=step, elapsed=clock.elapsed), STATE)

    last_saved, losses = clock.elapsed, []
    while clock.progress < 1:
        generator = torch.Generator().manual_seed(settings.SEED + step)        # the data depend on the step alone
        n = plan["batch"]
        index = torch.randint(len(latents), (n,), generator=generator)
        words = ids[torch.randint(WORDINGS, (n,), generator=generator), index].long()
        words[torch.rand(n, generator=generator) < plan["empty_captions"]] = empty
        z0 = latents[index]
        noise = torch.randn(z0.shape, generator=generator)
        set_rate(steppers, plan["rate"] * rate_at(clock.progress, step, plan["warm_up"]))
        z0, words, t, noise = (x.to(DEVICE) for x in (z0, words, spread_timesteps(n, generator), noise))
        loss = loss_of(unet, text_encoder, z0, words, t, noise, alphas_cumprod)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        for stepper in steppers:
            stepper.step()
        both.zero_grad(set_to_none=True)
        averaged.update(both, step)
        step += 1
        losses.append(loss.item())
        if len(losses) == 50:
            log("unet", step=step, minutes=clock.elapsed / 60, loss=sum(losses) / len(losses))
            losses = []
        if clock.elapsed - last_saved > 180:
            save()
            last_saved = clock.elapsed
    save()


if __name__ == "__main__":
    main()
