"""Words that the embedded model doesn't know: it learnt five hundred, and draws nothing, or anything, for the others.

    "a lighthouse at dawn"    →    {"lighthouse": "castle", "dawn": "sunset"}

What it knows stands in weights/words.json, beside its weights. A prompt is looked at as the text encoder reads it: tags,
weights and brackets are gone, wildcards filled in, and learnt words are known.
"""
import functools
import pathlib
import warnings

import npdiffusion.weights
from npdiffusion.checkpoints.text_files import read_json
from npdiffusion.errors import nearest

FOLDER = pathlib.Path(npdiffusion.weights.__file__).parent
MOST, LONGEST = 8, 30      # words that are named, and letters of each
ALIKE = 0.78               # for errors.nearest: lets "elefant" be an elephant, and keeps "mona" from being the moon
SHORTEST_PART = 4          # letters: "seahorse" has a horse in it, "education" no cat


class UnknownWords(UserWarning):
    """A prompt has words that the embedded model doesn't know."""


@functools.cache
def vocabulary():
    """weights/words.json: subjects, grounds, words and near, as weights/recipe/words.py explains them."""
    found = read_json(FOLDER / "words.json")
    return found | {"words": frozenset(found["words"].split())}


def subjects():
    """All subjects, each a dictionary with emoji, name, caption, plural and colours"""
    return [subject for kind in vocabulary()["subjects"].values() for subject in kind]


def words(reading, tokenizer):
    """The words of a `reading.Reading` in lower case, in their order, each once; learnt words are left out."""
    texts = ([token.id for chunk in chunks for token in chunk if token.word is None] for chunks in reading.chunks.values())
    return list(dict.fromkeys(word for ids in texts for word in tokenizer.decode(ids).split()))


def unknown(words):
    """Words, as above → {word that the embedded model doesn't know: the nearest that it knows, or ""}

    The search ends with more than MOST of them. Numbers, contractions and punctuation are passed over; an emoji counts
    as a word that is not known, nearest to its name.
    """
    known, emojis = vocabulary()["words"], {subject["emoji"]: subject["name"] for subject in subjects()}
    found = {}
    for word in words:
        if word[0].isalpha() and word not in known:
            found[word] = near(word)
        else:
            found |= {character: emojis[character] for character in word if character in emojis}
        if len(found) > MOST:
            break
    return found


def near(word):
    """The known word that comes nearest in meaning, is a part of the word, or is spelt nearly the same; or "" """
    table = vocabulary()
    for singular in word, word.removesuffix("s"):
        if singular in table["near"]:
            return table["near"][singular]
    names = [name for subject in subjects() for name in (subject["name"], subject["plural"]) if name]
    parts = [name for name in names if len(name) >= SHORTEST_PART and word.endswith(name)]
    alike = [name for name in (*names, *table["grounds"]) if name[0] == word[0]]
    return max(parts, key=len, default="") or nearest(word, alike, "{}", cutoff=ALIKE)


def check_words(reading, tokenizer):
    """An `UnknownWords` warning, one line, about the words of a Reading that the embedded model doesn't know, if any."""
    line = note(reading, tokenizer)
    if line:
        warnings.warn(line, UnknownWords, stacklevel=2)


def note(reading, tokenizer):
    """One line about the words of a Reading that the embedded model doesn't know, or None if it knows them all."""
    found = unknown(words(reading, tokenizer))
    if not found:
        return None
    shown = [f'"{word[:LONGEST]}"' + (f" (nearest: {known})" if known else "") for word, known in found.items()]
    shown[MOST:] = ["…"] * (len(shown) > MOST)
    return f"the embedded model doesn't know {', '.join(shown)}; npdiffusion subjects shows what it can draw"
