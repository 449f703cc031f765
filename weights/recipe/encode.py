"""Draw the scenes that the UNet learns from and encode them once, so that no picture is needed while it trains.

Scene i comes from a generator seeded with i alone. So only the latents are stored; what a latent shows is known
again by drawing the scene's words anew (`scene_of`), and its caption can take another wording every time it is
seen.

    python -m weights.recipe.encode            writes runs/latents.pt, in pieces, and goes on where it stopped
"""

import argparse

import numpy as np
import torch

from . import settings
from .models import new_vae
from .scenes import draw, load_sprites, sample_scene
from .train_vae import to_tensor
from .training import DEVICE, averaged_into, half_precision, log, save_atomically, state

LATENTS = settings.RUNS / "latents.pt"
PIECE = 1000


def scene_of(index):
    """→ (scene, generator that then draws it)"""
    rng = np.random.default_rng([settings.SEED, 4, index])
    return sample_scene(rng), rng


@torch.no_grad()
def encode(vae, indices, sprites):
    """→ (N, 4, 16, 16) float16, the posterior's means, not yet scaled"""
    pictures = np.stack([draw(scene, sprites, rng) for scene, rng in map(scene_of, indices)])
    with half_precision():
        means = [vae.encode(x).latent_dist.mean for x in to_tensor(pictures).split(25)]
    return torch.cat(means).half().cpu()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=settings.UNET_TRAINING["scenes"])
    parser.add_argument("--font", default=settings.FONT)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    sprites, vae = load_sprites(args.font), new_vae().to(memory_format=torch.channels_last)
    averaged_into([vae], state("vae")["averaged"])
    vae.to(DEVICE)

    bank = state("latents")
    side = settings.PIXELS // 8
    latents = bank["latents"] if bank else torch.empty(0, 4, side, side, dtype=torch.half)
    while len(latents) < args.scenes:
        latents = torch.cat([latents, encode(vae, range(len(latents), len(latents) + PIECE), sprites)])
        factor = round(1 / latents[:5 * PIECE].float().std().item(), 5)        # of the first pieces, so that it stays
        save_atomically(dict(latents=latents, scaling_factor=factor), LATENTS)
        log("encode", scenes=len(latents), scaling_factor=factor)


if __name__ == "__main__":
    main()
