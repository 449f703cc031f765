"""Textual inversion: words that were learnt from pictures (Gal et al. 2022, arXiv:2208.01618).

A learnt word is n vectors, as wide as the text encoder's token embeddings, that take the place of n tokens; XL has two
text encoders, and their vectors stand side by side, as their states do. Three kinds of safetensors file hold one:

    emb_params        (n, X)             AUTOMATIC1111's; the word is the file's name
    <cat-toy>         (n, X) or (X,)     diffusers'; the word is the tensor's name, or the file's
    clip_l, clip_g    (n, X₁), (n, X₂)   for XL; the word is the file's name

and a LoRA may bring words along, known while it is active: bundle_emb.WORD.string_to_param.*, .clip_l, .clip_g.

Where the word stands in a prompt, its vectors stand. Upper and lower case are the same, and a word isn't found inside
of another one: "red" is in "red-haired", not in "tired".
"""
import pathlib
import re
from typing import NamedTuple

import numpy as np

from npdiffusion.adapters.folder import catalogue
from npdiffusion.checkpoints import families, safetensors_file
from npdiffusion.errors import UserError
from npdiffusion.kernels.arrays import as_float32

FOR_A1111 = "emb_params"
THE_VECTORS = f"{{'{FOR_A1111}': next(iter(d.get('string_to_param', d).values())).detach().clone().contiguous()}}"
MOST_VECTORS = 75
OF_ENCODERS = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}      # what their vectors are called in files for XL
BUNDLED, WITHIN = "bundle_emb.", ("string_to_param.*", FOR_A1111, *OF_ENCODERS.values())


class LearntWord(NamedTuple):
    word: str
    vectors: np.ndarray        # (n, X), float32; in XL of both text encoders, (n, X₁ + X₂)


class Fitting(NamedTuple):
    """What the words of a model must be. family: its name      widths: {"clip_l" or "clip_g": X}, of its text encoders"""
    family: str
    widths: dict


def fitting(family, models):
    """family: its row in checkpoints/families.py      models: {part: model} → Fitting"""
    return Fitting(family.name, {OF_ENCODERS[name]: models[name].config.hidden_size for name in family.text_encoders})


class LearntWords:
    """Words and what they stand for: vectors, or a file that is read when the word first occurs in a prompt."""
    def __init__(self):
        self._known = {}                                   # word in lower case → LearntWord, or (path, fitting)
        self._pattern, self._keys = None, []               # one group in the pattern for each key

    def add(self, path, word=None, fitting=None):
        """Learn the word of a file, or those of all files in a folder, which are called what the files are.

        word    to use for a file in place of its own      fitting: a `Fitting`, None if any will do
        Raises UserError for a file that can't be used; files of a folder are not looked into before they are needed.
        """
        path = pathlib.Path(path).expanduser()
        if path.is_dir():
            if word is not None:
                raise UserError(f"{path}: a folder has many words, so they can't all be called {word!r}: name a file")
            for name, file in catalogue(path).items():     # pickles too, so that naming one gets the advice to convert it
                key = _key(name.rpartition("/")[2])
                if key:                                    # a file that is called " " can't be named in a prompt
                    self._known.setdefault(key, (file, fitting))
        else:
            name, vectors = read_words(path, fitting)
            words = [word] if word is not None else [path.stem] if name in WITHIN else [name, path.stem]
            for each in words:
                if not isinstance(each, str) or not each.strip():
                    raise UserError(f"{path}: {each!r} can't be a word in a prompt")
                self._known[_key(each)] = LearntWord(each, vectors)
        self._compile()

    def remove(self, word=None):
        """Forget a word, or all words for None. UserError if it isn't known."""
        if word is None:
            self._known = {}
        elif self._known.pop(_key(word), None) is None:
            raise UserError(f"{word!r} is not a learnt word that is loaded")
        self._compile()

    def beside(self, others):
        """These words and others, [LearntWord], which give way to one of the same name → LearntWords"""
        if not others:
            return self
        both = LearntWords()
        both._known = {_key(other.word): other for other in others} | self._known
        both._compile()
        return both

    def __iter__(self):
        return iter(self._known)

    def split(self, text):
        """Yields the pieces of a text: str, and LearntWord; where one word begins another, the longer one"""
        end = 0
        for match in self._pattern.finditer(text) if self._known else ():
            if match.start() > end:
                yield text[end:match.start()]
            key = _key(match.group())                      # re.IGNORECASE takes more for the same than lower(): ſ for s
            yield self._look_up(key if key in self._known else self._keys[match.lastindex - 1])
            end = match.end()
        if end < len(text):
            yield text[end:]

    def _look_up(self, key):
        if not isinstance(self._known[key], LearntWord):
            path, fitting = self._known[key]
            self._known[key] = LearntWord(path.stem, read_words(path, fitting)[1])
        return self._known[key]

    def _compile(self):
        letter = r"[^\W\d_]"
        alternatives = []
        self._keys = sorted(self._known, key=len, reverse=True)
        for word in self._keys:
            before = f"(?<!{letter})" if word[0].isalpha() else ""
            after = f"(?!{letter})" if word[-1].isalpha() else ""
            alternatives.append(before + r"\s+".join(map(re.escape, word.split())) + after + "()")
        self._pattern = re.compile("|".join(alternatives), re.IGNORECASE)


def _key(word):
    return " ".join(word.lower().split())


def read_words(path, fitting=None):
    """A file with a learnt word → (name of the tensor, vectors (n, X), float32)

    fitting: of the model, or None if any will do
    Raises UserError for files of another kind and for vectors of another width.
    """
    if path.suffix in safetensors_file.PICKLES and path.is_file():
        raise UserError(safetensors_file.pickle_message(path, tensors=THE_VECTORS))
    tensors = safetensors_file.read_file(path)
    found = vectors(tensors, path, fitting)
    return next(iter(tensors)), found


def vectors(tensors, path, fitting=None):
    """A word's tensors, {name: Tensor}, one of any name or one for each text encoder → (n, X), float32

    UserError if they can't be a word's, or not of this model.
    """
    several = [*OF_ENCODERS.values()] if len(tensors) > 1 else []
    if len(tensors) != 1 and tensors.keys() != {*several}:
        raise UserError(f"{path}: not a learnt word (textual inversion): that is one tensor, or "
                        f"{' and '.join(OF_ENCODERS.values())}, and here are {len(tensors)}")
    if fitting is None:
        wanted = dict.fromkeys(several or tensors)
    elif "clip_g" in tensors and "clip_g" not in fitting.widths:
        raise UserError(f"{path}: a learnt word for {families.XL}, but the model is of another family, {fitting.family}")
    elif not several and len(fitting.widths) > 1:
        (name, tensor), = tensors.items()
        theirs = families.WIDTHS.get(tensor.shape[-1] if tensor.shape else 0, "another family")
        raise UserError(f"{path}: a learnt word of one text encoder, {name[:200]!a}, as for {theirs}; the model is of "
                        f"{fitting.family}, whose words have {' and '.join(fitting.widths)}")
    else:
        wanted = fitting.widths if several else dict(zip(tensors, fitting.widths.values()))
    found = [one_encoders(tensors[name], path, width, fitting) for name, width in wanted.items()]
    if len({len(each) for each in found}) > 1:
        raise UserError(f"{path}: {' and '.join(wanted)} have {' and '.join(str(len(each)) for each in found)} vectors, which "
                        "must be as many")
    return np.concatenate(found, axis=1)


def one_encoders(tensor, path, width=None, fitting=None):
    """A tensor of a file as what a word stands for in one text encoder, (n, X), float32; UserError if it can't be"""
    shape = (1, *tensor.shape) if len(tensor.shape) == 1 else tensor.shape
    if len(shape) != 2 or not 1 <= shape[0] <= MOST_VECTORS or shape[1] < 1:
        raise UserError(f"{path}: a learnt word is 1 to {MOST_VECTORS} vectors, and this tensor's shape is "
                        f"{list(tensor.shape)}")
    if width is not None and shape[1] != width:
        hint = (f" (it may be for {families.WIDTHS[shape[1]]}, but the model is of {fitting.family})"
                if shape[1] in families.WIDTHS else "")
        raise UserError(f"{path}: its vectors are {shape[1]} wide, but this text encoder's are {width}{hint}")
    found = as_float32(tensor()).reshape(shape)
    if not np.isfinite(found).all():
        raise UserError(f"{path}: holds values that are not finite (NaN or infinity)")
    return found


def bundled(tensors, path, fitting):
    """The words that a LoRA brings along: taken out of its tensors, {key: tensor} → [LearntWord]"""
    found = {}
    for key in [key for key in tensors if key.startswith(BUNDLED)]:
        word, _, kind = key.removeprefix(BUNDLED).partition(".")
        if not word.strip() or kind not in WITHIN:
            raise UserError(f"{path}: {key[:200]!a}: a word in a LoRA is called {BUNDLED}WORD.{WITHIN[0]}")
        found.setdefault(word, {})[kind] = tensors.pop(key)
    return [LearntWord(word, vectors(parts, f"{path}: {BUNDLED + word[:200]!a}", fitting)) for word, parts in found.items()]
