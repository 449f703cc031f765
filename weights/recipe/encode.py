"""The bank of latents: scenes drawn and encoded once, so that no picture is needed while the UNet trains.

Scene i comes from a generator seeded with i alone. So only the latents are stored; what a latent shows is known
again by drawing the scene's words anew (`scene_of`), and its caption takes another wording every time it is seen.
The bank grows while it is used: training starts with a few scenes and meets new ones all the way.
"""

import numpy as np
import torch

from . import settings
from .models import new_vae
from .scenes import draw, load_sprites, sample_scene
from .train_vae import to_tensor
from .training import DEVICE, averaged_into, begun, half_precision, log, save_atomically, state

PIECE = 1000                                                # scenes in a file


def scene_of(index):
    """→ (scene, generator that then draws it)"""
    rng = np.random.default_rng([settings.SEED, 4, index])
    return sample_scene(rng), rng


class Bank:
    """Latents of scenes 0 … n − 1: the posterior's means, scaled to a standard deviation of about 1."""

    def __init__(self, font=settings.FONT):
        self.font, self.latents, self.scenes = font, torch.empty(0), []
        self.vae = None                                     # loaded when there is something to encode

    def grow(self, count):
        """Have at least `count` scenes: from files of an earlier run, or drawn and encoded now."""
        while len(self.scenes) < count:
            piece, name = len(self.scenes) // PIECE, f"latents/{len(self.scenes) // PIECE:03}"
            saved = state(name)
            if saved is None:
                saved = dict(latents=self.encode(range(piece * PIECE, (piece + 1) * PIECE)))
                save_atomically(saved, settings.RUNS / f"{name}.pt")
            new = saved["latents"].float()
            if not piece:
                self.scaling_factor = self.scaling_factor_of(new)
            new *= self.scaling_factor
            self.latents = torch.cat([self.latents, new]) if piece else new
            self.scenes += [scene_of(index)[0] for index in range(piece * PIECE, (piece + 1) * PIECE)]
        log("unet", scenes=len(self.scenes), deviation=self.latents.std().item())

    @staticmethod
    def scaling_factor_of(latents):
        """What brings the first piece, and with it all, to a standard deviation of 1."""
        return round(1 / latents.float().std().item(), 5)

    @torch.no_grad()
    def encode(self, indices):
        """→ (N, 4, 16, 16) float16, not yet scaled"""
        if self.vae is None:
            self.sprites, self.vae = load_sprites(self.font), new_vae().to(memory_format=torch.channels_last)
            averaged_into([self.vae], begun("vae", dict(vae=self.vae))["averaged"])
            self.vae.to(DEVICE)
        pictures = np.stack([draw(scene, self.sprites, rng) for scene, rng in map(scene_of, indices)])
        with half_precision():
            means = [self.vae.encode(x).latent_dist.mean for x in to_tensor(pictures).split(25)]
        return torch.cat(means).half().cpu()
