"""What the number formats do to pictures: the embedded model's in bfloat16 and int8 beside those of float32.

    python -m bench formats                      20 of the recipe's questions, 20 steps of dpm++2m: about a minute and a half

Told are decibels, 10 log₁₀(255² / mean squared error) of a picture's levels, and seconds a picture; where the font is that the
recipe draws with, also what its judge finds right (weights/recipe/judge.py).
"""
import itertools
import pathlib
import statistics
import time

import numpy as np

import npdiffusion
from bench import turns
from weights.recipe import exam, settings

FORMATS = "bfloat16", "int8"
SAME = 1e-3                           # mean squared error below which levels differ by rounding alone


def add_arguments(parser):
    parser.add_argument("--questions", type=int, default=20, help="how many (default 20)")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--sampler", default="dpm++2m")
    parser.add_argument("--threads", type=int, default=None, help="default: physical cores")
    parser.add_argument("--font", type=pathlib.Path, default=pathlib.Path(settings.FONT), help="of the judge")


def run(arguments):
    """Pictures in each number format beside those of float32: decibels, seconds, the judge's marks."""
    threads, asked, found = turns.set_threads(arguments.threads), questions(arguments.questions), {}
    judge = judge_with(arguments.font)
    for dtype in ("float32", *FORMATS):
        pipeline, pictures, seconds = npdiffusion.load(dtype=dtype, threads=threads), [], []
        for question in asked:
            before = time.perf_counter()
            pictures += pipeline.generate(question.text, seed=question.seed, steps=arguments.steps, sampler=arguments.sampler,
                                          progress=False)
            seconds.append(time.perf_counter() - before)
        noise = decibels(pictures, found["float32"][0] if found else pictures)
        marks = exam.figures_of(asked, [judge.marks(question.scene, picture) for question, picture in zip(asked, pictures)]
                                ) if judge else {}
        found[dtype] = pictures, noise, statistics.median(seconds), marks
    rows = [(dtype, *((None, None) if dtype == "float32" else (statistics.mean(noise), min(noise))), seconds, *marks.values())
            for dtype, (_, noise, seconds, marks) in found.items()]
    turns.table([("dB, mean", ".1f"), ("least", ".1f"), ("s a picture", ".2f"),
                 *((f"{kind}, %", ".1f") for kind in found["float32"][-1])], rows)
    turns.last_line(benchmark="formats", steps=arguments.steps, sampler=arguments.sampler, threads=threads, **{
        dtype: {"dB": statistics.mean(noise), "least": min(noise), "seconds": seconds, **marks}
        for dtype, (_, noise, seconds, marks) in found.items()})


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
