"""A look inside: what happens in the networks while a picture is made. The picture is bit for bit that made without looking.

    found = study.trace(pipeline, "a cat", steps=4)                every layer: shapes, GFLOP, milliseconds, numbers
    maps = study.attention_maps(pipeline, "a cat and a rocket")    what each place of the picture looks at
    film = study.filmstrip(pipeline, "a cat")                      x_t and x̂₀ after each step
    study.forward_process("cat.png", 8)                            the way there: a picture under more and more noise

    making.py      a picture, made while someone watches      names.py       layers by their names in the checkpoint
    tracing.py     trace                                      attention.py   attention_maps
    words.py       the words that maps are made for           strips.py      filmstrip, forward_process
    looking.py     everything at once, for a report           report/        the report: one HTML file
    steps.py       what each step sees and does               arithmetic.py  a sampler's step in numbers
    leaving_out.py the picture without each word              colours.py     a colour map for heat, maps over pictures
    lab.py         samplers on a distribution that is known

All of it rests on `kernels.watched`: models and samplers don't know of it, and nothing is slower while nobody looks.
"""
from npdiffusion.study.attention import AttentionMaps, attention_maps
from npdiffusion.study.strips import filmstrip, forward_process
from npdiffusion.study.tracing import Trace, trace

__all__ = ["AttentionMaps", "Trace", "attention_maps", "filmstrip", "forward_process", "trace"]
