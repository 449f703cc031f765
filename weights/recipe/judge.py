"""Judge the model by something that is not a model: which sprite is nearest, which colour is the ground.

    ground     median colour of the picture's border                      → nearest colour of the palette
    subject    what differs from the ground, cut out and made 24 × 24     → nearest of all sprites, drawn on the same ground
                                                                            and cut out likewise (mean squared difference)
    PSNR       unseen scenes, encoded and decoded                         → mean of 10 log₁₀(255² / mean squared error)

The captions name pairs of subject and background that training never showed. Every pair is asked for plainly and
once more with a size or a place; seeds are fixed. Right means nearest of all 116 subjects, so guessing scores 1 %.

    python -m weights.recipe.judge [--with npdiffusion|diffusers] [--steps 50] [--guidance 4] [--captions 240]
"""

import argparse
import json

import numpy as np
from PIL import Image
from tqdm import tqdm

from . import settings
from .scenes import COLOURS, PLACES, Scene, caption, draw, held_out, load_sprites, sample_scene, scaled
from .subjects import NAMES

FRAME = 3                                                   # pixels of border that show the ground
DIFFERS = 36                                                # of 255, in one channel at least: this is no longer ground
THUMBNAIL = 24


# Looking at a picture ------------------------------------------------------------------------------------------

def ground_of(picture):
    """Median colour of the border.     (H, W, 3) uint8 → (3,) float"""
    inside = np.zeros(picture.shape[:2], bool)
    inside[FRAME:-FRAME, FRAME:-FRAME] = True
    return np.median(picture[~inside], axis=0)


def nearest_colour(colour):
    """→ its name in the palette"""
    return min(COLOURS, key=lambda name: ((np.array(settings.PALETTE[name]) - colour) ** 2).sum())


def thumbnail(picture, ground):
    """What stands out from the ground, centred in a square.     → (24, 24, 3) float; None if nothing stands out"""
    stands_out = (np.abs(picture - ground) > DIFFERS).any(axis=2)
    rows, columns = (np.flatnonzero(stands_out.sum(axis) >= 2) for axis in (1, 0))       # a lone pixel is a speck
    if not len(rows) or not len(columns):
        return None
    height, width = rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
    side = max(height, width)
    square = np.empty((side, side, 3), np.uint8)
    square[:] = ground.round()
    top, left = (side - height) // 2, (side - width) // 2
    square[top:top + height, left:left + width] = picture[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1]
    small = Image.fromarray(square).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    return np.asarray(small, np.float32)


def thumbnails_on(ground, sprites):
    """Every sprite drawn on this ground and cut out in the same way.     → {name: (24, 24, 3)}"""
    out = {}
    for name, sprite in sprites.items():
        sprite = scaled(sprite, 80)
        picture = Image.new("RGB", (96, 96), tuple(int(c) for c in ground.round()))
        picture.paste(sprite, tuple((96 - side) // 2 for side in sprite.size), sprite)
        small = thumbnail(np.asarray(picture), ground)
        if small is not None:                               # not a trace of it is seen on this ground
            out[name] = small
    return out


def look(picture, sprites):
    """→ (name of the subject or None, name of the background)     picture: (H, W, 3) uint8"""
    ground = ground_of(picture)
    seen = thumbnail(picture, ground)
    if seen is None:
        return None, nearest_colour(ground)
    known = thumbnails_on(ground, sprites)
    return min(known, key=lambda name: ((known[name] - seen) ** 2).mean()), nearest_colour(ground)


# Asking --------------------------------------------------------------------------------------------------------

def exam(count, names=NAMES):
    """The first `count` questions: all held-out pairs plainly, then again with a size or a place.     → list of Scene"""
    rng = np.random.default_rng([settings.SEED, 6])
    pairs = [(name, colour) for name in names for colour in COLOURS if held_out(name, colour)]
    pairs = [pairs[i] for i in rng.permutation(len(pairs))]
    extras = [dict(size="small"), dict(size="big"), *(dict(place=place) for place in PLACES)]
    plain = [Scene((name,), colour) for name, colour in pairs]
    placed = [Scene((name,), colour, **extras[i % len(extras)]) for i, (name, colour) in enumerate(pairs)]
    return (plain + placed)[:count]


def marks(questions, pictures, sprites):
    """→ (N, 2) bool: subject right, background right"""
    seen = [look(np.asarray(picture), sprites) for picture in pictures]
    return np.array([(subject == asked.subjects[0], ground == asked.background)
                     for asked, (subject, ground) in zip(questions, seen)])


def psnr(a, b):
    """Mean over scenes of 10 log₁₀(255² / mean squared error), in decibel.     a, b: (N, H, W, 3) uint8"""
    squared = ((a.astype(np.float64) - b) ** 2).mean(axis=(1, 2, 3))
    return float(np.mean(10 * np.log10(255 ** 2 / squared)))


def unseen_scenes(count, sprites):
    """→ (count, 128, 128, 3) uint8, from a generator that training does not use"""
    rng = np.random.default_rng([settings.SEED, 1])
    return np.stack([draw(sample_scene(rng), sprites, rng) for _ in range(count)])


def to_uint8(x):
    """−1 … 1 → 0 … 255"""
    return ((x.clip(-1, 1) + 1) * 127.5).round().astype(np.uint8)


# Who draws -----------------------------------------------------------------------------------------------------

class WithNpdiffusion:
    def __init__(self, model, steps, guidance):
        import npdiffusion
        self.pipeline, self.steps, self.guidance = npdiffusion.load(str(model)), steps, guidance

    def generate(self, captions, seeds):
        for text, seed in zip(captions, seeds):
            yield from self.pipeline.generate(text, steps=self.steps, guidance_scale=self.guidance, sampler="ddim", seed=seed)

    def reconstruct(self, pictures):
        x = pictures.astype(np.float32) / 127.5 - 1
        return to_uint8(self.pipeline.vae.decode(self.pipeline.vae.latents(x, lambda: 0)))      # without noise: the mean


class WithDiffusers:
    """The same from the reference, in batches."""

    def __init__(self, model, steps, guidance, batch=16):
        import torch
        from diffusers import StableDiffusionPipeline
        self.torch, self.steps, self.guidance, self.batch = torch, steps, guidance, batch
        self.pipeline = StableDiffusionPipeline.from_pretrained(model, torch_dtype=torch.float32)
        self.pipeline.set_progress_bar_config(disable=True)

    def generate(self, captions, seeds):
        for i in range(0, len(captions), self.batch):
            generators = [self.torch.Generator().manual_seed(seed) for seed in seeds[i:i + self.batch]]
            yield from self.pipeline(
                captions[i:i + self.batch], num_inference_steps=self.steps, guidance_scale=self.guidance,
                height=settings.PIXELS, width=settings.PIXELS, generator=generators).images

    def reconstruct(self, pictures):
        x = self.torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
        with self.torch.no_grad():
            mean = self.pipeline.vae.encode(x).latent_dist.mean
            return to_uint8(self.pipeline.vae.decode(mean).sample.permute(0, 2, 3, 1).numpy())


WITH = {"npdiffusion": WithNpdiffusion, "diffusers": WithDiffusers}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--with", dest="library", choices=WITH, default="npdiffusion")
    parser.add_argument("--model", default=settings.WEIGHTS)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance", type=float, default=settings.GUIDANCE)
    parser.add_argument("--captions", type=int, default=240)
    parser.add_argument("--font", default=settings.FONT)
    parser.add_argument("--mistakes", action="store_true", help="print every caption that was not fulfilled")
    args = parser.parse_args()
    sprites, artist = load_sprites(args.font), WITH[args.library](args.model, args.steps, args.guidance)

    questions = exam(args.captions)
    texts = [caption(question) for question in questions]
    drawing = tqdm(artist.generate(texts, list(range(len(texts)))), total=len(texts), unit="picture")
    pictures = [np.asarray(picture) for picture in drawing]
    right = marks(questions, pictures, sprites)
    scenes = unseen_scenes(64, sprites)
    reconstruction = np.concatenate([artist.reconstruct(batch) for batch in np.split(scenes, 8)])
    if args.mistakes:
        for text, picture, (subject, ground) in zip(texts, pictures, right):
            if not (subject and ground):
                print(f"{text:60} looks like {look(picture, sprites)}")
    figures = dict(
        captions=len(texts), steps=args.steps, guidance=args.guidance, library=args.library,
        subject=round(100 * right[:, 0].mean(), 1), background=round(100 * right[:, 1].mean(), 1),
        psnr=round(psnr(reconstruction, scenes), 2),
    )
    print(f"subject right     {figures['subject']:5.1f} %\nbackground right  {figures['background']:5.1f} %\n"
          f"VAE, 64 scenes    {figures['psnr']:5.2f} dB")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
