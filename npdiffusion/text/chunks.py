"""Chunks: prompts of any length, for a text encoder that reads T = 77 tokens.

    start  75 tokens  end   |   start  75 tokens  end   |   …

Each chunk is encoded by itself, and the UNet attends to all of them side by side. A comma is a good place to end one:
where the chunk is full and its last comma is at most 20 tokens back, what follows that comma moves to the next chunk,
as in AUTOMATIC1111's web interface.
"""
from typing import NamedTuple

import numpy as np

from npdiffusion.errors import UserError
from npdiffusion.text.emphasis import BREAK

COMMA = ",</w>"
BACKTRACK = 20             # tokens
MOST = 100                 # chunks of a prompt: more is a mistake, or takes all memory


class Token(NamedTuple):
    """One token of a chunk; `learnt` is the vector (X,) that stands in place of the id's own, `word` what it is for."""
    id: int
    weight: float = 1.0
    learnt: np.ndarray | None = None
    word: str | None = None


def chunks(parts, tokenizer, words=None):
    """Weighted parts as of `emphasis.weighted` → list of chunks, one or more, each a list of at most 75 Tokens

    words: learnt words, see adapters/textual_inversion.py; the vectors of a word aren't torn apart
    """
    comma_id, room = tokenizer.vocabulary.get(COMMA), tokenizer.room
    found, comma = [[]], None                              # comma: where the last one of this chunk is
    for part in parts:
        if part == BREAK:
            found.append([])
            comma = None
            continue
        for group in tokens(*part, tokenizer, words):
            if group[0].id == comma_id:
                comma = len(found[-1])
            elif len(found[-1]) == room and comma is not None and room - comma <= BACKTRACK:
                found.append(found[-1][comma + 1:])
                del found[-2][comma + 1:]
                comma = None
            if len(found[-1]) + len(group) > room:
                found.append([])
                comma = None
            found[-1] += group
    if len(found) > 1 and not found[-1]:
        found.pop()
    if len(found) > MOST:
        count = sum(map(len, found))
        size, most = (f"{count} tokens", MOST * room) if count > MOST * room else (f"{len(found)} chunks", MOST)
        raise UserError(f"the prompt has {size}, more than the {most} that are allowed")
    return found


def tokens(text, weight, tokenizer, words=None):
    """Yields lists of Tokens that belong together: one for each id, and all vectors of a learnt word"""
    for piece in [text] if words is None else words.split(text):
        if isinstance(piece, str):
            yield from ([Token(number, weight)] for number in tokenizer.ids(piece))
        else:
            yield [Token(0, weight, vector, piece.word) for vector in piece.vectors]


def ids(chunk, tokenizer):
    """A chunk as the text encoder reads it: start, tokens, end, padding      (T,), int64"""
    return tokenizer.frame([token.id for token in chunk])


def weights(chunk, tokenizer):
    """What each of these ids weighs      (T,), float32"""
    framed = np.ones(tokenizer.length, np.float32)
    with np.errstate(over="ignore"):                       # a weight that is too large is reported when it is applied
        framed[1:len(chunk) + 1] = [token.weight for token in chunk]
    return framed


def vectors(chunk):
    """Which of these ids learnt vectors stand in place of: [(position, vector (X,)), ...]"""
    return [(position, token.learnt) for position, token in enumerate(chunk, start=1) if token.learnt is not None]


def spelt(number, tokenizer):
    """A token's characters, with - where its word goes on"""
    piece = tokenizer.pieces[number]
    return (tokenizer.decode([number]) or piece) + ("" if piece.endswith("</w>") else "-")
