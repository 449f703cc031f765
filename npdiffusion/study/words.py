"""The words that attention maps are made for: the tokens of a prompt, with start, end and padding.

Positions of the context, 77 for each chunk, become columns: one for each token, one for the start tokens of all chunks, one
for their end tokens and one for all padding. The columns of a place sum to what its positions do, which is 1. A prompt
that changes with the steps has columns for each of its texts, and those of the others are 0 meanwhile.
"""
from typing import NamedTuple

import numpy as np

from npdiffusion.adapters import tags
from npdiffusion.errors import UserError, nearest
from npdiffusion.text import chunks
from npdiffusion.text.editing import calls
from npdiffusion.text.reading import padded, read_prompt

START, END, PADDING = "<start>", "<end>", "<padding>"


class Word(NamedTuple):
    """A column. text: as maps call it, "cap-" where the word goes on; word: the whole word of a token, "capybara" """
    text: str
    word: str
    kind: str = "token"            # or "start", "end", "padding"
    id: int | None = None
    weight: float = 1.0


class Words:
    """The columns of a prompt, `list`, and which positions belong to them at each call of the model."""
    def __init__(self, pipeline, resolved):
        request = resolved.request
        prompt = tags.take_tags(request.prompt)[0]
        words = pipeline.words.beside(pipeline.adapters.words)
        texts = [prompt] if resolved.guidance <= 1 else [prompt, request.negative_prompt]
        readings, self.entries, earlier = [], [], None
        for way in resolved.passes:
            found = [read_prompt(text, calls(resolved.sampler, way.steps), pipeline.tokenizer, request.prompt_syntax, words,
                                 None if earlier is None else calls(resolved.sampler, earlier)) for text in texts]
            readings.append(found)
            self.entries.append(found[0].entries)
            earlier = way.steps
        length = max(len(found) for pair in readings for reading in pair for found in reading.chunks.values())
        self.list, self._positions, self.length = [], {}, length * pipeline.tokenizer.length
        for reading, *_ in readings:
            for text, found in padded(reading, length).chunks.items():
                if text not in self._positions:
                    self._positions[text] = self._columns(found, pipeline.tokenizer)
        self._groups = {}

    def _columns(self, found, tokenizer):
        """[(column, positions), ...] of a text; appends the columns to the list"""
        starts, ends, padding, columns = [], [], [], []
        first = len(self.list)
        self.list.append(Word(START, START, "start"))
        for number, chunk in enumerate(found):
            base = number * tokenizer.length
            starts.append(base)
            ends.append(base + 1 + len(chunk))
            padding += range(base + 2 + len(chunk), base + tokenizer.length)
            for position, (token, text, word) in enumerate(spelling(chunk, tokenizer), start=base + 1):
                columns.append((len(self.list), [position]))
                self.list.append(Word(text, word, "token", None if token.word else token.id, token.weight))
        self.list += [Word(END, END, "end"), Word(PADDING, PADDING, "padding")]
        return [(first, starts), *columns, (len(self.list) - 2, ends), (len(self.list) - 1, padding)]

    def group(self, way, call, positions):
        """(S, columns) float32 of 0 and 1: which position belongs to which column, at a call, from 0, of a pass"""
        text = next((text for last, text in self.entries[way] if call <= last), self.entries[way][-1][1])
        if (text, positions) not in self._groups:
            group = np.zeros((positions, len(self.list)), np.float32)
            for column, places in self._positions[text]:
                group[[place for place in places if place < positions], column] = 1
            self._groups[text, positions] = group
        return self._groups[text, positions]


def spelling(chunk, tokenizer):
    """(token, its text, the whole word that it is part of) for each Token of a chunk"""
    word = []
    for number, token in enumerate(chunk, start=1):
        goes_on = token.word is None and not tokenizer.pieces[token.id].endswith("</w>") and number < len(chunk)
        text = token.word or chunks.spelt(token.id, tokenizer)
        word.append((token, text, text.removesuffix("-") if goes_on else text))
        if not goes_on:
            whole = "".join(part for _, _, part in word)
            yield from ((each, shown, whole) for each, shown, _ in word)
            word = []


def find_word(words, word):
    """The columns of a word, or of a token by its text; UserError, with the nearest one, if the prompt has none such."""
    wanted = str(word).strip().casefold()
    found = [column for column, each in enumerate(words) if wanted in (each.text.casefold(), each.word.casefold())]
    if not found:
        known = list(dict.fromkeys(each.word for each in words))
        raise UserError(f"the prompt has no word {word!r}: {nearest(word, known)}its words are {', '.join(known)}")
    return found
