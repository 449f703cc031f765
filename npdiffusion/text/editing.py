"""Prompts that change while the picture is made, in the notation of AUTOMATIC1111's web interface.

    [from:to:when]   first `from`, later `to`    [to:when]   later `to` is added    [from::when]   `from` is taken away
    [a|b|c]          another word in each step

`when` with a point is a share of the steps, without one a number of steps. Such brackets may be nested, and may hold
emphasis, ( ) and [ ]; emphasis itself is left in place for emphasis.py. Whatever doesn't fit the notation is text, and
so is a whole prompt with a | outside of [ | ].

    "a [cat:dog:0.5]", 10 steps  →  [(5, "a cat"), (10, "a dog")]

How the web interface counts, and so do these pictures: the model's calls are numbered from 0, and an entry (last, text)
holds up to and including call number `last`. The first text of a schedule thus lasts one call longer than its
number says. Samplers that call the model twice a step have twice as many steps, and image to image counts from its own
first call although shares are of all steps.
"""
import re
import warnings
from dataclasses import dataclass

from npdiffusion.diffusion.samplers import SAMPLERS

TOKEN = re.compile(r"\\.|[^\\\[\]():|]+|[\[\]():|]")
NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
DEEPEST = 50               # brackets in brackets: what is deeper is text


class PromptNote(UserWarning):
    """Something in a prompt is taken otherwise than it may have been meant."""


@dataclass
class Edit:
    """`before` up to a step, `after` from then on; both are lists of text, Edit and Alternation."""
    before: list
    after: list
    when: str


@dataclass
class Alternation:
    """One of `choices`, each a list like those above, in turn."""
    choices: list


def calls(sampler, steps):
    """How many calls of the model a prompt's numbers of steps and shares are counted in; sampler: its name, or None"""
    return steps * (SAMPLERS[sampler].calls if sampler else 1)


def schedule(prompt, steps, earlier=None):
    """What the prompt says when: [(last, text), ...], ascending; the last `last` is `steps`.

    steps    calls of the model, see `calls`
    earlier  where this is the second pass of a picture (hires fix), the calls of the first: 1.5 is the middle of the
             second pass then, and numbers of steps count on from the first
    """
    tree = parse_edits(prompt)
    ends, alternates = {steps}, False
    for node in _nodes(tree):
        if isinstance(node, Alternation):
            alternates = True
        else:
            ends.add(_step(node.when, steps, earlier))
    ends = range(1, steps + 1) if alternates else sorted(end for end in ends if end >= 1)
    return [(end, _text(tree, end, steps, earlier)) for end in ends]


def parse_edits(prompt):
    """A prompt as a list of text, Edit and Alternation"""
    tokens = TOKEN.findall(prompt)
    if sum(map(len, tokens)) < len(prompt):                  # a backslash with nothing to protect
        return [prompt]
    top, groups = [], []                                     # groups: open brackets, [bracket, parts, separators]

    def literal():
        """No bracket can be closed around what is no notation: all that are open are text."""
        for bracket, parts, separators in groups:
            top.append(bracket)
            for part, separator in zip(parts, [*separators, ""]):
                top.extend([*part, separator])
        groups.clear()

    for token in tokens:
        if token in "([":
            groups.append([token, [[]], []])
            if len(groups) > DEEPEST:
                literal()
        elif token in ":|" and groups:
            groups[-1][1].append([])
            groups[-1][2].append(token)
        elif token in ")]" and groups:
            closed = _close(*groups[-1], token)
            if closed is None:
                literal()
                top.append(token)
            else:
                groups.pop()
                (groups[-1][1][-1] if groups else top).extend(closed)
        else:
            (groups[-1][1][-1] if groups else top).append(token)
    literal()
    if "|" in top:
        if any(_nodes(top)):
            warnings.warn("the prompt has a | outside of [a|b], so that none of its [ ] change with the steps: the "
                          "whole prompt is taken as it stands", PromptNote, stacklevel=2)
        return [prompt]
    return top


def _close(opening, parts, separators, closing):
    """What a pair of brackets means: a list of nodes, or None if it is no notation."""
    if opening == "(":
        fits = closing == ")" and separators in ([], [":"])
    else:
        fits = closing == "]"
        if fits and separators and set(separators) == {"|"}:
            return [Alternation(parts)]
        if fits and separators in ([":"], [":", ":"]):
            *texts, when = parts
            if all(isinstance(node, str) for node in when) and NUMBER.fullmatch("".join(when).strip()):
                return [Edit(texts[0] if len(texts) == 2 else [], texts[-1], "".join(when).strip())]
        fits = fits and not separators
    if not fits:
        return None
    inside = parts[0] if len(parts) == 1 else [*parts[0], ":", *parts[1]]
    return [opening, *inside, closing]


def _step(when, steps, earlier):
    """The last call that `from` is for."""
    number = float(when)
    if earlier is not None:
        number -= 1 if "." in when else earlier
    return int(max(0, min(steps, number * steps if "." in when else number)))


def _nodes(tree):
    """All Edits and Alternations of a tree."""
    for node in tree:
        if not isinstance(node, str):
            yield node
            for branch in node.choices if isinstance(node, Alternation) else (node.before, node.after):
                yield from _nodes(branch)


def _text(tree, step, steps, earlier):
    """What a tree says in a step, counted from 1."""
    texts = []
    for node in tree:
        if isinstance(node, Alternation):
            node = _text(node.choices[(step - 1) % len(node.choices)], step, steps, earlier)
        elif isinstance(node, Edit):
            first = step <= _step(node.when, steps, earlier)
            node = _text(node.before if first else node.after, step, steps, earlier)
        texts.append(node)
    return "".join(texts)
