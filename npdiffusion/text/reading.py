"""Reading a prompt: what it says at each step, in chunks of weighted tokens. Needs a tokenizer and no model."""
import re
import warnings
from typing import NamedTuple

from npdiffusion.errors import UserError, nearest
from npdiffusion.settings import SYNTAXES
from npdiffusion.text import chunks, editing, emphasis
from npdiffusion.text.editing import PromptNote

AND_WORD = re.compile(r"\bAND\b")
MOST_CHUNKS = 1000         # of all texts of a prompt: hidden states of one are 0.24 MB in v1


class Reading(NamedTuple):
    """A prompt as it was understood."""
    entries: list              # [(last, text), ...]: the text that holds up to call number `last`, see editing.py
    chunks: dict               # {text: list of chunks}, all of the same length


def read_prompt(prompt, steps, tokenizer, syntax="a1111", words=None, earlier=None):
    """A prompt → Reading

    steps    how many the sampler takes, doubled for those that call the model twice a step; earlier: see editing.py
    syntax   "a1111": with emphasis, editing and chunks; "plain": as it is, cut off after 75 tokens, as in diffusers
    words    learnt words, or None
    Warns of what may have been meant otherwise. Raises UserError for text that is no Unicode, or endless,
    and for more than MOST_CHUNKS chunks in all.
    """
    check_syntax(syntax)
    if syntax == "plain":
        tokens = [token for group in chunks.tokens(prompt, 1.0, tokenizer, words) for token in group]
        fitting = len(tokenizer.cut([token.id for token in tokens]))
        return Reading([(steps, prompt)], {prompt: [tokens[:fitting]]})
    if AND_WORD.search(prompt):
        warnings.warn("AND doesn't combine prompts here, it is taken as a word", PromptNote, stacklevel=2)
    entries, found = [], {}
    for entry in editing.changes(prompt, steps, earlier):
        entries.append(entry)
        text = entry[1]
        if text not in found:
            found[text] = chunks.chunks(emphasis.weighted(text), tokenizer, words)
            _check_size(len(found), len(found[text]))      # at once, before more is read
    return padded(Reading(entries, found))


def check_syntax(name):
    """UserError unless there is a syntax of that name."""
    if name not in SYNTAXES:
        raise UserError(f"unknown prompt_syntax {name!r}: {nearest(name, SYNTAXES)}known are {', '.join(SYNTAXES)}")


def padded(reading, length=0):
    """The same with empty chunks, so that all its texts have as many as the longest one, and `length` at least

    UserError for more than MOST_CHUNKS chunks in all.
    """
    length = max(length, *map(len, reading.chunks.values()))
    _check_size(len(reading.chunks), length)
    return reading._replace(chunks={text: found + [[]] * (length - len(found))
                                    for text, found in reading.chunks.items()})


def _check_size(texts, length):
    if texts * length > MOST_CHUNKS:
        raise UserError(f"the prompt is {texts} texts that take turns, with {length} chunks of 75 tokens for each: more "
                        f"than {MOST_CHUNKS} chunks in all; shorten it or the negative prompt, or let less change by step")
