"""Train a ControlNet that reads scribbles: the UNet and the text encoder stay as they are.

    r    = Z(ControlNet(z_t, t, words, scribble))     goes to the UNet's skips and middle (Zhang et al. 2023, arXiv:2302.05543)
    loss = w_t ‖v̂(z_t, t, words, r) − v‖²            as of train_unet

It begins as a copy of the UNet's way down; the convolutions Z, and the last that reads the scribble, as zeros, so that r = 0
at first. What else reads the scribble begins with weights of deviation √(2 / inputs), which keep the size of what goes
through (He et al. 2015, arXiv:1502.01852). The first three convolutions stay so: they see the picture at full size, and
their gradients would take as much time as all others of it.

Scenes are bent, and scribbles drawn anew each time, see scribbles.py. Half of the captions are empty, as in the paper, and
most others don't say size and place: what they leave open the scribble has to tell.

    python -m weights.recipe.train_control [--minutes 40]    go on from where the last run stopped
"""

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

import npdiffusion
from npdiffusion.models.configs import UNetConfig
from npdiffusion.models.controlnet import ControlNetModel
from npdiffusion.training import initial

from . import settings
from .captions import caption
from .encode import PIECE, Bank, scene_of
from .exam import Question, exam
from .models import new_text_encoder, new_unet, token_ids
from .scenes import Scene, load_sprites
from .scribbles import draw_bent, iou, scribble, seen
from .train_unet import denoising
from .training import Clock, fill, learn, named, newest_model, parser, prepared, rate_at, steps_behind

PART = "controlnet"
FROZEN = tuple(f"{PART}.controlnet_cond_embedding.{layer}." for layer in ("conv_in", "blocks.0", "blocks.1"))


def new_controlnet():
    return ControlNetModel(UNetConfig.from_dict(settings.UNET), settings.HINT)


def begin(controlnet, unet):
    """Give it its first weights, in place; those that stay are such as float16 can tell."""
    theirs, rng = initial.of(unet), np.random.default_rng([settings.SEED, *PART.encode()])
    for name, value in initial.of(controlnet).items():
        if name in theirs:
            value[...] = theirs[name]
        elif value.ndim == 4 and not name.startswith(("controlnet_down_blocks", "controlnet_mid_block",
                                                      "controlnet_cond_embedding.conv_out")):
            value[...] = (np.sqrt(2 / value[0].size) * rng.standard_normal(value.shape)).astype(np.float16)
        else:
            value[...] = 0


def newest(controlnet, unet):
    """Give it its newest weights, see training.fill."""
    fill({PART: controlnet}, lambda _, model: begin(model, unet))


def scenes_at(step):
    """How many scenes the bank holds at a step."""
    plan = settings.CONTROL_TRAINING
    return min(plan["scenes"], plan["first_scenes"] + PIECE * (step // plan["more_every"]))


def to_hint(lines):
    """(N, H, W) uint8 → what a ControlNet is shown, (N, H, W, 3) float32 in [0, 1]"""
    return np.repeat(lines[..., None], 3, axis=-1).astype(np.float32) / 255


def examples(bank, sprites, step):
    """The batch of a step, which depends on the step alone.

    → (N, 16, 16, 4) latents, (N, 77) token ids, (N, 128, 128, 3) scribbles
    """
    plan = settings.CONTROL_TRAINING
    rng = np.random.default_rng([settings.SEED, 11, step])
    index = rng.integers(scenes_at(step), size=plan["batch"])
    said, lines = [], []
    for i in index:
        scene, drawing = scene_of(i)
        lines.append(scribble(draw_bent(scene, sprites, drawing)[1], rng)[0])
        scene = scene if rng.random() < plan["placed"] else replace(scene, size="", place="")
        said.append("" if rng.random() < plan["wordless"] else caption(scene, rng))
    return bank[index], token_ids(said), to_hint(np.stack(lines))


def loss_of(controlnet, unet, z0, states, hints, t, noise, denoising):
    """z0, noise: (N, H, W, 4)      states: (N, 77, X)      hints: (N, 8H, 8W, 3)      t: (N,)"""
    noised = denoising.noised(z0, t, noise)
    residuals = controlnet(noised, t, states, controlnet.controlnet_cond_embedding(hints))
    return denoising.loss(unet(noised, t, states, residuals), z0, t, noise)


# How well scribbles are followed -------------------------------------------------------------------------------

@dataclass(frozen=True)
class Unseen:
    """A question, the scene that answers it and its picture, a scribble of that, and the area that the scribble runs around"""
    question: Question
    scene: Scene
    picture: np.ndarray
    lines: np.ndarray
    area: np.ndarray

    def followed(self, picture):
        """The IoU of a picture"""
        return iou(seen(picture, self.scene.background), self.area)


def unseen_scribbles(count, sprites):
    """→ [Unseen] of the exam's questions about one subject, held out as they are, in sizes and at places that the question
    doesn't say, bent and drawn by generators that training does not use"""
    found = []
    for question in exam(kinds=("subject",), names=tuple(sprites))[:count]:
        rng = np.random.default_rng([settings.SEED, 12, question.seed])
        size, place = ("", "small", "big")[rng.integers(3)], str(rng.choice([*settings.OFFSET]))
        scene = replace(question.scene, size=size, place="" if size == "big" else place)
        picture, mask = draw_bent(scene, sprites, rng)
        found.append(Unseen(question, scene, picture, *scribble(mask, rng)))
    return found


def followed(pipeline, asked, **options):
    """How well a pipeline that has the ControlNet follows some `unseen_scribbles`: yields (picture, IoU)"""
    for each in asked:
        picture, = pipeline.generate(each.question.text, control_image=Image.fromarray(each.lines), seed=each.question.seed,
                                     progress=False, **options)
        yield picture, each.followed(picture)


def main(arguments=None):
    args = prepared(parser(__doc__).parse_args(arguments))
    clock, plan = Clock(args.minutes), settings.CONTROL_TRAINING
    if steps_behind(PART) >= plan["steps"] or not args.minutes:
        return steps_behind(PART) >= plan["steps"]
    text_encoder, unet, controlnet, sprites = new_text_encoder(), new_unet(), new_controlnet(), load_sprites(args.font)
    fill(dict(text_encoder=text_encoder, unet=unet))
    newest(controlnet, unet)
    learnt = {name: value for name, value in named({PART: controlnet}).items() if not name.startswith(FROZEN)}
    bank, noising = Bank(args.font, lambda *scene: draw_bent(*scene)[0], "bent"), denoising()
    bank.grow(scenes_at(steps_behind(PART)))

    def loss(step):
        if scenes_at(step) > len(bank.scenes):
            bank.grow(scenes_at(step))
        z0, ids, hints = examples(bank, sprites, step)
        t, noise = noising.draw(z0.shape, np.random.default_rng([settings.SEED, 13, step]))
        return loss_of(controlnet, unet, z0, text_encoder(ids), hints, t, noise, noising)

    def after(step, training):
        if step % plan["iou_every"] == 0 or step == plan["steps"]:
            pipeline = npdiffusion.load(newest_model())
            pipeline.controlnets = [controlnet]
            training.average.swap()
            scores = [score for _, score in followed(pipeline, unseen_scribbles(plan["watched"], sprites), steps=8,
                                                     sampler="dpm++2m")]
            training.average.swap()
            return {"iou": float(np.mean(scores))}

    def rate(step, fresh):
        return rate_at(step, plan["steps"], fresh, plan["warm_up"], plan["decay"])

    return learn(PART, learnt, loss, plan, rate, plan["steps"], clock.left, after)


if __name__ == "__main__":
    main()
