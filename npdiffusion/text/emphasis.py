"""Emphasis: how much each part of a prompt weighs, in the notation of AUTOMATIC1111's web interface.

    (word)   × 1.1    (word:1.3)   × 1.3    [word]   ÷ 1.1    nested: multiplied    \\( \\) \\[ \\] \\\\   as text
    BREAK    outside of brackets: what follows starts a new chunk, see chunks.py

Brackets that aren't closed reach to the end; closing ones that were never opened are text. The weights w act on what
the text encoder made of the words, z, and then everything is scaled so that the mean stays what it was:

    z' = w z · mean(z) / mean(w z)          docs/notes/12-words.md
"""
import math
import re
import warnings

import numpy as np

from npdiffusion.errors import UserError
from npdiffusion.text.editing import DEEPEST, PromptNote

TOKEN = re.compile(r"\\[()\[\]\\]?|:\s*([+-]?[.0-9]+)\s*\)|[()\[\]:]|[^\\()\[\]:]+")
BREAKS = re.compile(r"(?:(?<!\s)\s+)?\bBREAK\b\s*")      # white space is looked at from its start only: linear
OPENING = {")": "(", "]": "["}
CLOSING = {"(": ")", "[": "]"}
FACTORS = {"(": 1.1, "[": 1 / 1.1}
NO_WEIGHT = "is no weight such as ':1.3', so it is taken as text"
BREAK = ("BREAK", -1.0)     # a part like others while brackets multiply its weight, so that inside of them it is a word


def weighted(prompt):
    """A prompt as parts: [(text, weight), ...], neighbours of one weight joined; `BREAK` where a chunk ends.

    Warns (`PromptNote`) of a weight that is no number, which is then text, and of a bracket that isn't closed.
    """
    parts = []
    opened = {"(": [], "[": []}                            # the first parts of brackets that are still open
    colon = None                                           # where a colon stands that may have been meant for a weight

    def close(bracket, factor):
        for part in parts[opened[bracket].pop():]:
            part[1] *= factor

    for match in TOKEN.finditer(prompt):
        token = match.group()
        if token[0] == "\\":
            parts.append([token[1:], 1.0])
        elif token in opened and len(opened[token]) < DEEPEST:
            opened[token].append(len(parts))
            colon = None
        elif match.group(1) and opened["("]:
            weight = _number(match.group(1))
            if weight is None:
                _note(token[:-1], NO_WEIGHT)
                parts.append([token[:-1], 1.0])
            close("(", FACTORS["("] if weight is None else weight)
        elif token in OPENING and opened[OPENING[token]]:
            if token == ")" and colon is not None:
                _note(prompt[colon:match.start()], NO_WEIGHT)
            close(OPENING[token], FACTORS[OPENING[token]])
            colon = None
        else:
            if token == ":":
                colon = match.start()
            first, *others = BREAKS.split(token)
            parts.append([first, 1.0])
            for text in others:
                parts += [list(BREAK), [text, 1.0]]
    for bracket, factor in FACTORS.items():
        if opened[bracket]:
            rest = "".join(text for text, _ in parts[opened[bracket][0]:])
            _note(bracket + rest, f"isn't closed by {CLOSING[bracket]}, so its weight reaches to the end")
        while opened[bracket]:
            close(bracket, factor)
    return _joined(parts)


def _joined(parts):
    """Neighbours of the same weight become one, since words may reach across brackets; what is empty is left out."""
    joined = []
    for text, weight in parts:
        if joined and joined[-1][1] == weight:
            joined[-1][0] += text
        else:
            joined.append([text, weight])
    if any(text == BREAK[0] and weight != BREAK[1] for text, weight in joined):
        warnings.warn("BREAK inside of brackets is a word, not the end of a chunk", PromptNote, stacklevel=3)
    return [(text, weight) for text, weight in joined if text]


def _number(text):
    """The number a weight stands for, or None if it is none."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _note(text, what):
    text = " ".join(text.split())
    shown = text if len(text) <= 60 else text[:60] + "…"
    warnings.warn(f"{shown!r} in the prompt {what}", PromptNote, stacklevel=3)


def emphasise(states, weights, counts=None):
    """Weigh the hidden states of B texts and restore their mean      (B, T, X), (B, T) → (B, T, X), float32

    counts   how often each text occurs in the schedule that it is part of, (B,): the mean is that of the whole schedule
    States whose weights are all 1 are returned as they are. UserError if the weights are too large for float32, or
    leave nothing.
    """
    if (weights == 1).all():
        return states
    with np.errstate(over="ignore", invalid="ignore"):
        emphasised = states * weights[:, :, None]
        before, after = (np.average(z.mean(axis=(1, 2), dtype=np.float64), weights=counts)
                         for z in (states, emphasised))
        emphasised = emphasised * (float(before / after) if after else math.inf)
    if not np.isfinite(emphasised).all():
        raise UserError("the weights in the prompt leave nothing that can be encoded: they are too large, or all are 0")
    return emphasised
