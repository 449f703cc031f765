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
from npdiffusion.text.contexts import at
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
    """The columns of a prompt, `list`, and which positions belong to them at each call of the model.

    XL's text encoders read the same positions; where they read different texts (`prompt_2`), a column is both: "cat/dog".
    """
    def __init__(self, pipeline, resolved):
        request, encoders = resolved.request, pipeline.encoders
        prompt = tags.take_tags(request.prompt)[0]
        words = pipeline.words.beside(pipeline.adapters.words)
        texts = [(prompt, request.prompt_2), (request.negative_prompt, request.negative_prompt_2)]
        texts = texts[:1] if resolved.guidance <= 1 else texts
        self._tokenizers = [encoder.tokenizer for encoder in encoders]
        readings, self.entries, earlier = [], [], None
        for way in resolved.passes:
            found = [[read_prompt(other if number and other else text, calls(resolved.sampler, way.steps), tokenizer,
                                  request.prompt_syntax, words, None if earlier is None else calls(resolved.sampler, earlier))
                      for number, tokenizer in enumerate(self._tokenizers)] for text, other in texts]
            readings.append(found)
            ends = sorted({last for reading in found[0] for last, _ in reading.entries})
            self.entries.append([(last, tuple(at(reading.entries, last) for reading in found[0])) for last in ends])
            earlier = way.steps
        length = max(len(found) for pair in readings for each in pair for reading in each for found in reading.chunks.values())
        self.list, self._positions = [], {}
        for (mine, *_), entries in zip(readings, self.entries):
            chunks = [padded(reading, length).chunks for reading in mine]
            for _, read in entries:
                if read not in self._positions:
                    self._positions[read] = self._columns([found[text] for found, text in zip(chunks, read)])
        self._groups = {}

    def _columns(self, found):
        """[(column, positions), ...] of what each text encoder reads, lists of chunks; appends the columns to the list"""
        shared, columns, first = {"start": [], "end": [], "padding": []}, [], len(self.list)
        self.list.append(Word(START, START, "start"))
        read = [[word for chunk in chunks for word in framed(chunk, tokenizer)]
                for chunks, tokenizer in zip(found, self._tokenizers)]
        for position, words in enumerate(zip(*read)):
            word = together(words)
            if word.kind in shared:
                shared[word.kind].append(position)
            else:
                columns.append((len(self.list), [position]))
                self.list.append(word)
        self.list += [Word(END, END, "end"), Word(PADDING, PADDING, "padding")]
        return [(first, shared["start"]), *columns, (len(self.list) - 2, shared["end"]),
                (len(self.list) - 1, shared["padding"])]

    def group(self, way, call, positions):
        """(S, columns) float32 of 0 and 1: which position belongs to which column, at a call, from 0, of a pass"""
        text = at(self.entries[way], call)
        if (text, positions) not in self._groups:
            group = np.zeros((positions, len(self.list)), np.float32)
            for column, places in self._positions[text]:
                group[[place for place in places if place < positions], column] = 1
            self._groups[text, positions] = group
        return self._groups[text, positions]


def framed(chunk, tokenizer):
    """A Word for each position of a chunk: start, its tokens, end, padding      Tokens → list of T"""
    words = [Word(START, START, "start"),
             *(Word(text, word, "token", None if token.word else token.id, token.weight)
               for token, text, word in spelling(chunk, tokenizer)), Word(END, END, "end")]
    return [*words, *[Word(PADDING, PADDING, "padding")] * (tokenizer.length - len(words))]


def together(words):
    """What the text encoders read at one position, as one Word"""
    words = sorted(words, key=lambda word: ("token", "start", "end", "padding").index(word.kind))
    first = words[0]
    if len({word.text for word in words}) == 1:
        return first
    text, word = ("/".join(dict.fromkeys(getattr(each, name) for each in words)) for name in ("text", "word"))
    return first._replace(text=text, word=word)


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
