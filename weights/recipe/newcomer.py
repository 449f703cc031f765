"""A subject that the model has never seen, learnt from six pictures, and judged by something that is not a model.

    python -m weights.recipe.newcomer draw pictures/          six pictures of a traffic light, called "zog", with captions
    npdiffusion train lora --data pictures/ -o zog.safetensors --steps 250 --rate 2e-3 --layers transformer
    python -m weights.recipe.newcomer judge zog.safetensors   ten scenes with grounds that it wasn't learnt on

`judge` takes a LoRA, a learnt word, or the folder of a model all weights of which were trained (`train dreambooth`). A word
alone can't show what no network can draw: for it `--subject octopus`, in both commands, takes one of the 160 subjects under
the new name.

The judge is `recognition`'s: what it cuts out of a picture has to be nearer to the traffic light than to each of the 160
subjects. It is judged itself by ten scenes that are drawn, and the model is asked without the file, too.
"""

import argparse
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

import npdiffusion
from npdiffusion.checkpoints.safetensors_file import read_file
from npdiffusion.pictures.sheets import sheet
from npdiffusion.text.known_words import UnknownWords

from . import settings
from .captions import caption
from .recognition import Judge
from .scenes import Scene, draw, load_sprites
from .subjects import NAMES

NAME = "zog"
SEEN = ("red", "blue", "green", "yellow", "white", "orange")
NEW = ("purple", "pink", "brown", "gray", "meadow", "beach", "sea", "snow", "sunset", "night")


def traffic_light():
    """→ RGBA image, as a sprite of `scenes.load_sprites`"""
    sprite = Image.new("RGBA", (136, 340))
    pen = ImageDraw.Draw(sprite)
    pen.rounded_rectangle((0, 0, 135, 339), 34, "#33373d", "#d9dde3", 10)
    for top, light in ((24, "#e8392f"), (126, "#f7c52d"), (228, "#3fb757")):
        pen.ellipse((24, top, 112, top + 88), light)
    return sprite


def scenes_on(grounds):
    return [Scene((NAME,), ground) for ground in grounds]


def drawn(scenes, sprite, seed):
    """The scenes themselves      → list of (128, 128, 3) uint8"""
    return [draw(scene, {NAME: sprite}, np.random.default_rng([settings.SEED, seed, i])) for i, scene in enumerate(scenes)]


def write_pictures(folder, sprite):
    """What is learnt from: a PNG for each of the grounds, and its caption in a text file beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    scenes = scenes_on(SEEN)
    for scene, picture in zip(scenes, drawn(scenes, sprite, 10)):
        Image.fromarray(picture).save(folder / f"{scene.background}.png")
        (folder / f"{scene.background}.txt").write_text(caption(scene) + "\n", encoding="utf-8")


def generated(pipeline, scenes):
    """What a pipeline draws for the scenes' captions, in a word of which it may never have read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnknownWords)
        return [pipeline.generate(caption(scene), steps=20, sampler="dpm++2m", seed=seed, progress=False)[0]
                for seed, scene in enumerate(scenes)]


def recognised(judge, scenes, pictures):
    """→ for each scene whether it is the newcomer that the judge sees"""
    return [judge.marks(scene, picture)["subject"] for scene, picture in zip(scenes, pictures)]


def changed(model, path):
    """The pipeline with what was learnt: a LoRA, a word, or a whole model"""
    if path.is_dir():
        return npdiffusion.load(path)
    pipeline = npdiffusion.load(model)
    if any("lora" in name for name in read_file(path)):
        pipeline.load_lora_weights(path)
    else:
        pipeline.load_textual_inversion(path, token=NAME)
    return pipeline


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("draw", "judge"))
    parser.add_argument("path", type=Path, help="folder of pictures; file, or folder of a model")
    parser.add_argument("--subject", choices=NAMES, default=None, metavar="NAME", help="instead of a traffic light")
    parser.add_argument("--model", default=None, help="default: the embedded one")
    parser.add_argument("--font", default=settings.FONT)
    parser.add_argument("--sheet", type=Path, default=None, metavar="FILE", help="keep the ten pictures, too")
    args = parser.parse_args(arguments)
    sprites = load_sprites(args.font) if args.subject or args.what == "judge" else {}
    sprite = sprites.pop(args.subject) if args.subject else traffic_light()
    if args.what == "draw":
        write_pictures(args.path, sprite)
        return
    judge, scenes = Judge(sprites | {NAME: sprite}), scenes_on(NEW)
    pictures = generated(changed(args.model, args.path), scenes)
    without = recognised(judge, scenes, generated(npdiffusion.load(args.model), scenes))
    right = recognised(judge, scenes, pictures)
    for scene, seen in zip(scenes, right):
        print(f"{caption(scene):40} {'yes' if seen else 'no'}")
    print(f"recognised in {sum(right)} of {len(NEW)} new scenes, in {sum(without)} without {args.path.name}, "
          f"in {sum(recognised(judge, scenes, drawn(scenes, sprite, 11)))} that are drawn")
    if args.sheet:
        sheet(pictures, [caption(scene) for scene in scenes], columns=5).save(args.sheet, quality=85)


if __name__ == "__main__":
    main()
