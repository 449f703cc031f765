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
import bisect
import math
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
    return list(changes(prompt, steps, earlier))


def changes(prompt, steps, earlier=None):
    """The entries of `schedule` one at a time: whoever reads them may find that they are too many, or too long."""
    tree = parse_edits(prompt)
    nodes = list(_nodes(tree))
    lengths = {len(node.choices) for node in nodes if isinstance(node, Alternation)}
    edits = sorted({_step(node.when, steps, earlier) for node in nodes if isinstance(node, Edit)})
    ends = range(1, steps + 1) if lengths else sorted({steps, *(end for end in edits if end >= 1)})
    pieces, turns, known = _prepared(tree, steps, earlier), math.lcm(*lengths), {}
    for end in ends:
        same = end % turns, bisect.bisect_left(edits, end)        # what the text depends on
        if same not in known:
            known[same] = pieces if isinstance(pieces, str) else pieces(end)
        yield end, known[same]


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


def _prepared(tree, steps, earlier):
    """What a tree says: a text, or a function from a step, counted from 1, to the text there."""
    pieces = []
    for node in tree:
        if isinstance(node, Alternation):
            node = _turns([_prepared(choice, steps, earlier) for choice in node.choices])
        elif isinstance(node, Edit):
            node = _edit(_step(node.when, steps, earlier), _prepared(node.before, steps, earlier),
                         _prepared(node.after, steps, earlier))
        if isinstance(node, str) and pieces and isinstance(pieces[-1], str):
            pieces[-1] += node
        else:
            pieces.append(node)
    if all(isinstance(piece, str) for piece in pieces):
        return "".join(pieces)
    return lambda step: "".join([piece if isinstance(piece, str) else piece(step) for piece in pieces])


def _turns(choices):
    """One of these each step"""
    if all(isinstance(choice, str) for choice in choices):
        return choices[0] if len({*choices}) == 1 else lambda step: choices[(step - 1) % len(choices)]

    def turn(step):
        choice = choices[(step - 1) % len(choices)]
        return choice if isinstance(choice, str) else choice(step)
    return turn


def _edit(last, before, after):
    """`before` up to the step `last`, then `after`"""
    def text(step):
        found = before if step <= last else after
        return found if isinstance(found, str) else found(step)
    return text
