"""The bank of latents: scenes drawn and encoded once, so that no picture is needed while the UNet trains.

Scene i comes from a generator seeded with i alone. So only the latents are stored; what a latent shows is known
again by drawing the scene's words anew (`scene_of`), and its caption takes another wording every time it is seen.
The bank grows while it is used: training starts with a few scenes and meets new ones all the way.
"""

from functools import partial

import numpy as np
from tqdm import tqdm

from npdiffusion.checkpoints.text_files import read_json
from npdiffusion.training.runs import written

from . import settings
from .models import new_vae
from .scenes import draw, load_sprites, sample_scene
from .train_vae import to_array
from .training import fill, shipped_steps

PIECE = 1000                                                # scenes in a file


def scene_of(index):
    """→ (scene, generator that then draws it)"""
    rng = np.random.default_rng([settings.SEED, 4, index])
    return sample_scene(rng), rng


def piece_path(piece, folder="latents"):
    return settings.RUNS / folder / f"{piece:03}.npy"


def scaling_factor():
    """What brings latents to a standard deviation of 1: the shipped model's, as long as its encoder stays, else that of
    the first piece; 1 before there is one."""
    if shipped_steps("vae"):
        return read_json(settings.MODEL / "vae" / "config.json")["scaling_factor"]
    return round(1 / float(np.load(piece_path(0)).std(dtype=np.float64)), 5) if piece_path(0).exists() else 1.0


class Bank:
    """Latents of scenes 0 … n − 1: the posterior's means, scaled to a standard deviation of about 1.

    drawn(scene, sprites, rng): how a scene is made a picture      folder: of the files, in the runs
    """

    def __init__(self, font=settings.FONT, drawn=draw, folder="latents"):
        self.font, self.drawn, self.folder, self.pieces, self.scenes = font, drawn, folder, [], []
        self.vae = None                                     # loaded when there is something to encode

    def __getitem__(self, indices):
        """(N,) → latents (N, 16, 16, 4) float32, as diffusion has them"""
        return np.stack([self.pieces[i // PIECE][i % PIECE] for i in indices]).astype(np.float32) * np.float32(self.factor)

    def grow(self, count):
        """Have at least `count` scenes: from files of an earlier run, or drawn and encoded now."""
        missing = range(len(self.pieces), -(-count // PIECE))
        for piece in tqdm(missing, desc="scenes", unit="thousand", disable=len(missing) < 2):
            path, indices = piece_path(piece, self.folder), range(piece * PIECE, (piece + 1) * PIECE)
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                written(path, partial(save, self.encode(indices)))
            self.pieces.append(np.load(path))
            self.scenes += [scene_of(index)[0] for index in indices]
        self.factor = scaling_factor()

    def encode(self, indices):
        """→ (N, 16, 16, 4) float16, not yet scaled"""
        if self.vae is None:
            self.sprites, self.vae = load_sprites(self.font), fill(dict(vae=new_vae()))["vae"]
        pictures = to_array(np.stack([self.drawn(scene, self.sprites, rng) for scene, rng in map(scene_of, indices)]))
        means = [self.vae.encode(some)[0] for some in np.array_split(pictures, max(1, len(pictures) // 25))]
        return np.concatenate(means).astype(np.float16)


def save(array, path):
    with open(path, "wb") as file:                          # np.save would append .npy to the name
        np.save(file, array)
