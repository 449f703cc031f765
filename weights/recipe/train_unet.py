"""Train the text encoder and the UNet together, on latents z₀ from the bank.

    z_t = α_t z₀ + σ_t ε            α_t² = ᾱ_t,  σ_t² = 1 − ᾱ_t,  ε ~ N(0, 1)
    v   = α_t ε − σ_t z₀            what the UNet predicts (Salimans & Ho 2022, arXiv:2202.00512)
    loss = w_t ‖v̂ − v‖²            w_t = min(SNR + 1, γ) / (SNR + 1),  SNR = α_t² / σ_t²

‖v̂ − v‖² is ‖ẑ₀ − z₀‖² times SNR + 1; the weight caps that factor at γ, the idea of Min-SNR (Hang et al. 2023,
arXiv:2303.09556), so that nearly clean latents do not take all the effort. One caption in ten is empty, for
classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598; docs/notes/13-guidance.md). Where the loss comes from:
docs/notes/06-loss.md

    python -m weights.recipe.train_unet [--minutes 80]       go on from where the last run stopped
"""

import numpy as np

from npdiffusion.diffusion.schedules.settings import NoiseSchedule
from npdiffusion.training.denoising import Denoising
from npdiffusion.training.precision import products_in_bfloat16

from . import settings
from .captions import caption
from .encode import PIECE, Bank
from .models import new_text_encoder, new_unet, token_ids
from .training import Clock, fill, learn, named, parser, prepared, rate_at, steps_behind


class Capped(Denoising):
    """Denoising with the weight above, γ = `gamma`."""

    def weight(self, t):
        """w = min(SNR + 1, γ) / (SNR + 1) = min(1, γ (1 − ᾱ)), (N,) float32"""
        return np.minimum(1, self.gamma * (1 - self.schedule.alphas_cumprod[t])).astype(np.float32)


def denoising():
    return Capped(NoiseSchedule.from_config(settings.SCHEDULER), settings.UNET_TRAINING["snr_cap"])


def scenes_at(step):
    """How many scenes the bank holds at a step; each leg begins with few, since what scenes show may have changed."""
    plan = settings.UNET_TRAINING
    begun = max(end for end in (0, *plan["legs"]) if end <= step)
    return min(plan["scenes"], plan["first_scenes"] + PIECE * ((step - begun) // plan["more_every"]))


def examples(bank, step):
    """The batch of a step, which depends on the step alone.     → (N, 16, 16, 4) latents, (N, 77) token ids"""
    plan = settings.UNET_TRAINING
    rng = np.random.default_rng([settings.SEED, 5, step])
    index = rng.integers(scenes_at(step), size=plan["batch"])
    said = ["" if rng.random() < plan["empty_captions"] else caption(bank.scenes[i], rng) for i in index]
    return bank[index], token_ids(said)


def loss_of(unet, text_encoder, z0, ids, t, noise, denoising):
    """z0, noise: (N, H, W, 4)      ids: (N, 77)      t: (N,)"""
    predicted = unet(denoising.noised(z0, t, noise), t, text_encoder(ids))
    return denoising.loss(predicted, z0, t, noise)


def rate(step, begun):
    """Share of the peak: it falls at the end of each leg, after which it warms up again."""
    plan = settings.UNET_TRAINING
    fresh = max([begun, *(end for end in plan["legs"] if end <= step)])
    return rate_at(step, next(end for end in plan["legs"] if step < end), fresh, plan["warm_up"], plan["decay"])


def main(arguments=None):
    args = prepared(parser(__doc__).parse_args(arguments))
    clock, plan, end = Clock(args.minutes), settings.UNET_TRAINING, settings.UNET_TRAINING["legs"][-1]
    if steps_behind("unet") >= end or not args.minutes:
        return steps_behind("unet") >= end
    text_encoder, unet, bank = new_text_encoder(), new_unet(), Bank(args.font)
    learnt, noising = named(fill(dict(text_encoder=text_encoder, unet=unet))), denoising()

    bank.grow(scenes_at(steps_behind("unet")))

    def loss(step):
        if scenes_at(step) > len(bank.scenes):
            bank.grow(scenes_at(step))
        z0, ids = examples(bank, step)
        t, noise = noising.draw(z0.shape, np.random.default_rng([settings.SEED, 9, step]))
        with products_in_bfloat16(unet), products_in_bfloat16(text_encoder):
            return loss_of(unet, text_encoder, z0, ids, t, noise, noising)

    return learn("unet", learnt, loss, plan, rate, end, clock.left)


if __name__ == "__main__":
    main()
