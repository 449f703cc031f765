"""The questions: captions that name what training never showed, and what is measured of the answers.

A subject on a ground, two subjects together, a subject in another colour: all from the tenth of combinations that is
held out. Half of the questions are worded plainly, half in one of many ways; seeds are 0, 1, 2, …

    PSNR       unseen scenes, encoded and decoded          → mean of 10 log₁₀(255² / mean squared error)
"""

from dataclasses import dataclass
from itertools import combinations

import numpy as np

from . import settings
from .captions import caption
from .scenes import COLOURS, PLACES, SCENERY, UNCOUNTED, Scene, draw, held_out, sample_scene, tints_of
from .subjects import NAMES

QUESTIONS = dict(subject=150, words=100, two=80, tint=70, count=50, scenery=50)


@dataclass(frozen=True)
class Question:
    kind: str
    scene: Scene
    text: str
    seed: int


def exam(share=1.0, kinds=tuple(QUESTIONS), names=NAMES):
    """The first `share` of the questions of each kind, always with the same words and seeds.     → list of Question"""
    rng = np.random.default_rng([settings.SEED, 6])

    def shuffled(rows):
        return [rows[i] for i in rng.permutation(len(rows))]

    on_colour = shuffled([(name, colour) for name in names for colour in COLOURS if held_out(name, colour)])
    on_scenery = shuffled([(name, scenery) for name in names for scenery in SCENERY if held_out(name, scenery)])
    pairs = shuffled([pair for pair in combinations(sorted(names), 2) if held_out(*pair)])
    shifted = shuffled([(name, tint) for name in names for tint in tints_of(name) if held_out(name, f"in {tint}")])
    counted = [row for row in on_colour if row[0] not in UNCOUNTED]
    extras = [dict(size="small"), dict(size="big"), *(dict(place=place) for place in PLACES),
              *(dict(size="small", place=place) for place in PLACES)]
    colours = shuffled(COLOURS)
    asked = dict(
        subject=[Scene((name,), colour) for name, colour in on_colour],
        words=[Scene((name,), colour, **extras[i % len(extras)]) for i, (name, colour) in enumerate(on_colour[::-1])],
        two=[Scene(pair, colours[i % len(colours)]) for i, pair in enumerate(pairs)],
        tint=[Scene((name,), next(c for c in colours[i % 9:] + colours if c != tint), tint=tint)
              for i, (name, tint) in enumerate(2 * shifted)],
        count=[Scene((name,), colour, count=2 + i % 2) for i, (name, colour) in enumerate(counted)],
        scenery=[Scene((name,), scenery) for name, scenery in on_scenery],
    )
    questions = []
    for kind, count in QUESTIONS.items():
        wordings = np.random.default_rng([settings.SEED, 7])
        for i, scene in enumerate(asked[kind][:count]):
            text = caption(scene, wordings, whole=True) if i % 2 else caption(scene)
            questions.append((i < round(share * count), Question(kind, scene, text, len(questions))))
    return [question for among, question in questions if among and question.kind in kinds]


def figures_of(questions, marks):
    """→ {kind: share right}: "subject", "words" and so on as in `QUESTIONS`, "background" on plain colours"""
    right = {"background": [m["ground"] for q, m in zip(questions, marks) if q.scene.background in COLOURS]}
    for q, m in zip(questions, marks):
        right.setdefault(q.kind, []).append({
            "words": m["size"] and m["place"], "scenery": m["ground"], "count": m["subject"],
        }.get(q.kind, m["subject"]))
        if q.kind in ("words", "scenery"):
            right.setdefault(f"subject, {q.kind}", []).append(m["subject"])
    return {kind: round(100 * float(np.mean(values)), 1) for kind, values in right.items() if values}


def unseen_scenes(count, sprites):
    """→ (count, 128, 128, 3) uint8, from a generator that training does not use"""
    rng = np.random.default_rng([settings.SEED, 1])
    return np.stack([draw(sample_scene(rng), sprites, rng) for _ in range(count)])


def psnr(a, b):
    """Mean over scenes of 10 log₁₀(255² / mean squared error), in decibel.     a, b: (N, H, W, 3) uint8"""
    squared = ((a.astype(np.float64) - b) ** 2).mean(axis=(1, 2, 3))
    return float(np.mean(10 * np.log10(255 ** 2 / squared)))
