"""Judge the model by something that is not a model: `recognition` looks at what it draws for the questions of `exam`.

    python -m weights.recipe.judge [--steps 50] [--guidance 2] [--share 1]
    python -m weights.recipe.judge --with font|autoencoder        the judge's own trial: drawn scenes have to pass
    python -m weights.recipe.judge --few-steps --kinds subject    four steps of lcm without guidance, with the LoRA
    python -m weights.recipe.judge --scribbles 100 [--with font]  the ControlNet, by scribbles that it never saw
"""

import argparse
import json

import numpy as np
from tqdm import tqdm

from . import curves, settings
from .exam import QUESTIONS, exam, figures_of, psnr, unseen_scenes
from .recognition import Judge
from .scenes import draw, load_sprites
from .train_control import PART as CONTROLNET
from .train_control import followed, unseen_scribbles
from .train_few_steps import FEW
from .train_few_steps import FILE as LORA_FILE


def to_uint8(x):
    """−1 … 1 → 0 … 255"""
    return ((x.clip(-1, 1) + 1) * 127.5).round().astype(np.uint8)


class Artist:
    """The model; lora: a file that it draws with, or None"""

    def __init__(self, model, steps, guidance, sampler, lora=None):
        import npdiffusion
        self.pipeline = npdiffusion.load(str(model))
        if lora:
            self.pipeline.load_lora_weights(lora)
        self.options = dict(steps=steps, guidance_scale=guidance, sampler=sampler)

    def generate(self, questions):
        for question in questions:
            yield from self.pipeline.generate(question.text, seed=question.seed, **self.options)

    def reconstruct(self, pictures):
        x = pictures.astype(np.float32) / 127.5 - 1
        mean = self.pipeline.vae.latents(x, lambda: 0)      # without noise
        return to_uint8(self.pipeline.vae.decode(mean))


class Drawn:
    """The scenes themselves, which the judge has to pass; with an artist, after a trip through its autoencoder."""

    def __init__(self, sprites, artist=None):
        self.sprites, self.artist = sprites, artist

    def generate(self, questions):
        for question in questions:
            picture = draw(question.scene, self.sprites, np.random.default_rng([settings.SEED, 8, question.seed]))
            yield self.reconstruct(picture[None])[0]

    def reconstruct(self, pictures):
        return self.artist.reconstruct(pictures) if self.artist else pictures


def arguments(description):
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--with", dest="drawer", choices=("model", "font", "autoencoder"), default="model")
    parser.add_argument("--model", default=settings.MODEL)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance", type=float, default=settings.GUIDANCE)
    parser.add_argument("--sampler", choices=("ddim", "dpm++2m", "lcm"), default="ddim")
    parser.add_argument("--font", default=settings.FONT)
    return parser


def judged_scribbles(count, drawer, artist, sprites, judge):
    """How well scribbles are followed, by the model or by the scenes that they were drawn of   → {name: percent or IoU}"""
    asked = unseen_scribbles(count, sprites)
    if drawer == "font":
        answers = [(scene.picture, scene.followed(scene.picture)) for scene in asked]
    else:
        artist.pipeline.load_controlnet(settings.MODEL / CONTROLNET)
        answers = tqdm(followed(artist.pipeline, asked, **artist.options), total=count, unit="picture")
    pictures, scores = zip(*answers)
    right = [judge.marks(scene.question.scene, picture) for scene, picture in zip(asked, pictures)]
    return {"IoU": float(np.mean(scores)), "lowest": min(scores),
            "0.6 or more, %": 100 * float(np.mean(np.array(scores) >= 0.6)),
            **{f"{name}, %": 100 * float(np.mean([mark[name] for mark in right])) for name in ("subject", "ground")}}


def main():
    parser = arguments(__doc__)
    parser.add_argument("--share", type=float, default=1.0, help="of the questions of each kind, the first ones")
    parser.add_argument("--kinds", default=",".join(QUESTIONS), help="of questions, with commas")
    parser.add_argument("--mistakes", action="store_true", help="print every caption that was not fulfilled")
    parser.add_argument("--record", type=int, metavar="STEP", help="keep the figures for recipe/curves.py")
    parser.add_argument("--few-steps", action="store_true", help="four steps of lcm without guidance, with the LoRA")
    parser.add_argument("--lora", default=None, metavar="FILE", help="draw with this one")
    parser.add_argument("--scribbles", type=int, metavar="N", help="judge the ControlNet instead, by so many")
    args = parser.parse_args()
    if args.few_steps:
        args.steps, args.sampler, args.guidance, args.lora = *FEW.values(), args.lora or settings.MODEL / LORA_FILE
    sprites, drawing = load_sprites(args.font), (args.model, args.steps, args.guidance, args.sampler, args.lora)
    model = Artist(*drawing) if args.drawer != "font" else None
    artist, judge = model if args.drawer == "model" else Drawn(sprites, model), Judge(sprites)
    if args.scribbles:
        print(*(f"{name:16} {value:6.2f}" for name, value in
                judged_scribbles(args.scribbles, args.drawer, model, sprites, judge).items()), sep="\n")
        return

    questions = exam(args.share, args.kinds.split(","))
    marks, errors = [], []
    for question, picture in zip(questions, tqdm(artist.generate(questions), total=len(questions), unit="picture")):
        marks.append(judge.marks(question.scene, picture))
        errors.append(judge.error(question.scene, picture))
        if args.mistakes and not all(marks[-1].values()):
            wrong = ", ".join(name for name, right in marks[-1].items() if not right)
            tqdm.write(f"{question.seed:3} {question.text:60} wrong: {wrong}")
    figures, errors = figures_of(questions, marks), [error for error in errors if error is not None]
    if errors:
        figures["error"] = round(float(np.mean(errors)), 1)
    if args.drawer != "font":
        scenes = unseen_scenes(64, sprites)
        figures["psnr"] = round(psnr(np.concatenate([artist.reconstruct(b) for b in np.split(scenes, 8)]), scenes), 2)
    if args.record:
        curves.record(figures, args.record)
    for name, value in figures.items():
        print(f"{name:20} {value:6.2f} {dict(psnr='dB', error='of 255').get(name, '%')}")
    print(json.dumps(dict(questions=len(questions), steps=args.steps, guidance=args.guidance, sampler=args.sampler,
                          drawn_by=args.drawer, **figures)))


if __name__ == "__main__":
    main()
