"""Draws the pictures of the notes that show the embedded model at work: python docs/notes/pictures_of_the_model.py [NAME ...]

Each function is a picture, docs/notes/pictures/NAME.webp, as in pictures.py.
"""
import sys

import matplotlib.pyplot as plt
import numpy as np
from pictures import axes, save

import npdiffusion
from npdiffusion.pictures.images import to_images

PROMPT = "a red apple on a meadow"


def row(pictures, titles, height=1.75):
    """Pictures side by side, each under its title"""
    figure, panels = axes(len(pictures), height=height)
    for ax, picture, title in zip(panels, pictures, titles):
        ax.imshow(picture)
        ax.set(xticks=[], yticks=[]), ax.set_title(title, fontsize=9, loc="center")
        plt.setp(ax.spines.values(), visible=False)
    return figure


def apple(pipeline):
    """A picture of the model as an array (1, H, W, 3) in [−1, 1]"""
    image, = pipeline.generate(PROMPT, steps=25, sampler="dpm++2m", seed=3, progress=False)
    return np.asarray(image, np.float32)[None] / 127.5 - 1


def drowning():
    """The forward process, in latents, decoded"""
    pipeline = npdiffusion.load()
    mean, _ = pipeline.vae.encode(apple(pipeline))
    latents = mean * pipeline.vae.config.scaling_factor
    noise = np.random.default_rng(0).standard_normal(latents.shape, dtype=np.float32)
    abar, times = pipeline.schedule.alphas_cumprod, (0, 100, 250, 450, 700, 999)
    noisy = [float(abar[t]) ** 0.5 * latents + float(1 - abar[t]) ** 0.5 * noise for t in times]
    return row(to_images(np.concatenate([pipeline.vae.decode(x) for x in noisy])), [f"t = {t}" for t in times])


def main(names):
    made = {name: make for name, make in globals().items()
            if callable(make) and make.__module__ == __name__ and name not in ("row", "apple", "main")}
    for name in names or made:
        save(made[name](), name)


if __name__ == "__main__":
    main(sys.argv[1:])
