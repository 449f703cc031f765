"""What makes pictures faster at the cost of exactness: the embedded model's with each such setting beside those without it.

    python -m bench savings                      20 of the recipe's questions, 20 steps of dpm++2m: about three minutes
    python -m bench savings --sampler ddim --steps 50 --only steps

Told are decibels, 10 log₁₀(255² / mean squared error) of a picture's levels, and seconds a picture; where the font is that the
recipe draws with, also what its judge finds right (weights/recipe/judge.py). Fewer steps are what any other saving has to beat.
"""
import itertools
import pathlib
import statistics
import time

import numpy as np

import npdiffusion
from bench import turns
from weights.recipe import exam, settings

PLAIN = "float32"
SAVINGS = {                           # keywords of npdiffusion.load, share of the steps
    PLAIN: ({}, 1), "bfloat16": ({"dtype": "bfloat16"}, 1), "int8": ({"dtype": "int8"}, 1),
    "3/4 of the steps": ({}, 3 / 4), "2/3 of the steps": ({}, 2 / 3), "half the steps": ({}, 1 / 2)}
SAME = 1e-3                           # mean squared error below which levels differ by rounding alone


def add_arguments(parser):
    parser.add_argument("--questions", type=int, default=20, help="how many (default 20)")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--sampler", default="dpm++2m")
    parser.add_argument("--only", type=lambda text: text.split(","), default=[""], help=f"parts of {', '.join(SAVINGS)}")
    parser.add_argument("--threads", type=int, default=None, help="default: physical cores")
    parser.add_argument("--font", type=pathlib.Path, default=pathlib.Path(settings.FONT), help="of the judge")


def run(arguments):
    """Pictures with each saving beside those without: decibels, seconds, the judge's marks."""
    threads, asked, found = turns.set_threads(arguments.threads), questions(arguments.questions), {}
    judge = judge_with(arguments.font)
    for name, (loading, share) in SAVINGS.items():
        if name != PLAIN and not any(part in name for part in arguments.only):
            continue
        pipeline, pictures, seconds = npdiffusion.load(threads=threads, **loading), [], []
        for question in asked:
            before = time.perf_counter()
            pictures += pipeline.generate(question.text, seed=question.seed, steps=round(share * arguments.steps),
                                          sampler=arguments.sampler, progress=False)
            seconds.append(time.perf_counter() - before)
        noise = decibels(pictures, found[PLAIN][0] if found else pictures)
        marks = exam.figures_of(asked, [judge.marks(question.scene, picture) for question, picture in zip(asked, pictures)]
                                ) if judge else {}
        found[name] = pictures, noise, statistics.median(seconds), marks
    rows = [(name, *((None, None) if name == PLAIN else (statistics.mean(noise), min(noise))), seconds, *marks.values())
            for name, (_, noise, seconds, marks) in found.items()]
    turns.table([("dB, mean", ".1f"), ("least", ".1f"), ("s a picture", ".2f"),
                 *((f"{kind}, %", ".1f") for kind in found[PLAIN][-1])], rows)
    turns.last_line(benchmark="savings", steps=arguments.steps, sampler=arguments.sampler, threads=threads, **{
        name: {"dB": statistics.mean(noise), "least": min(noise), "seconds": seconds, **marks}
        for name, (_, noise, seconds, marks) in found.items()})


def questions(count):
    """So many of the recipe's, of all kinds in turn"""
    asked = exam.exam()
    kinds = [[question for question in asked if question.kind == kind] for kind in exam.QUESTIONS]
    return [question for row in itertools.zip_longest(*kinds) for question in row if question][:count]


def judge_with(font):
    """The recipe's judge, or None without its font"""
    if not font.exists():
        return None
    from weights.recipe.recognition import Judge
    from weights.recipe.scenes import load_sprites
    return Judge(load_sprites(font))


def decibels(pictures, others):
    """Of each picture beside another, both with 8 bits a channel"""
    found = []
    for picture, other in zip(pictures, others):
        squared = np.square(np.asarray(picture, np.float64) - np.asarray(other, np.float64)).mean()
        found.append(float(10 * np.log10(255**2 / max(squared, SAME))))
    return found
