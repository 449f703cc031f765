"""Draws the pictures of the notes that show the embedded model at work: python docs/notes/pictures_of_the_model.py [NAME ...]

Each function is a picture, docs/notes/pictures/NAME.webp, as in pictures.py.
"""
import sys

import matplotlib.pyplot as plt
import numpy as np
from pictures import axes, save

import npdiffusion
from npdiffusion import study
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


def looking():
    """Attention maps of the words of a prompt over its picture"""
    pipeline = npdiffusion.load()
    prompt = "a red apple on a meadow"
    settings = dict(steps=20, sampler="dpm++2m", seed=3)
    image, = pipeline.generate(prompt, progress=False, **settings)
    maps = study.attention_maps(pipeline, prompt, **settings)
    words = ["apple", "red", "meadow"]
    figure, panels = axes(len(words) + 1, height=2.2)
    panels[0].imshow(image)
    panels[0].set_title(prompt, fontsize=9, loc="center")
    for ax, word in zip(panels[1:], words):
        heat = maps.of(word)
        ax.imshow(np.asarray(image.convert("L")), cmap="gray", extent=(0, 1, 0, 1))
        ax.imshow(heat, cmap="magma", alpha=0.75, extent=(0, 1, 0, 1), interpolation="bilinear")
        ax.set_title(f"where {word!r} is looked up", fontsize=9, loc="center")
    for ax in panels:
        ax.set(xticks=[], yticks=[])
    return figure


def scales():
    """One seed, guidance scales from 1 to 12"""
    pipeline, scales = npdiffusion.load(), (1, 2, 4, 7.5, 12)
    images = [pipeline.generate("a cat on a beach", steps=20, sampler="dpm++2m", seed=5, guidance_scale=s, progress=False)[0]
              for s in scales]
    return row(images, [f"s = {s}" for s in scales], height=2.0)


def latents():
    """A picture, the four channels of its latents, and the picture that is decoded from them"""
    pipeline = npdiffusion.load()
    picture = apple(pipeline)
    mean, _ = pipeline.vae.encode(picture)
    latents = mean * pipeline.vae.config.scaling_factor
    decoded = pipeline.vae.decode(latents)
    side = latents.shape[1]
    figure, panels = axes(6, height=1.75)
    for ax, image in ((panels[0], to_images(picture)[0]), (panels[5], to_images(decoded)[0])):
        ax.imshow(image)
    for channel, ax in enumerate(panels[1:5]):
        ax.imshow(latents[0, :, :, channel], cmap="RdBu_r", vmin=-3, vmax=3)
    for ax, title in zip(panels, [f"{8 * side}×{8 * side}×3", *[f"channel {i}, {side}×{side}" for i in range(4)], "decoded"]):
        ax.set(xticks=[], yticks=[]), ax.set_title(title, fontsize=9, loc="center")
    return figure


def main(names):
    made = {name: make for name, make in globals().items()
            if callable(make) and make.__module__ == __name__ and name not in ("row", "apple", "main")}
    for name in names or made:
        save(made[name](), name)


if __name__ == "__main__":
    main(sys.argv[1:])
