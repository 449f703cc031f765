"""`npdiffusion train word`: textual inversion (Gal et al. 2022, arXiv:2208.01618).

All networks stay as they are, and a new word for the text encoder is learnt: n vectors v, as wide as the embeddings of
tokens, that stand where the word stands.

    dL/dv = Σ of the gradients of the embeddings at its places

They begin as the embedding of a word that is near in meaning, or as the mean of all embeddings.
"""
import pathlib

import numpy as np

from npdiffusion.adapters.textual_inversion import LearntWord, LearntWords
from npdiffusion.errors import UserError
from npdiffusion.kernels import reference
from npdiffusion.text import chunks
from npdiffusion.training import runs
from npdiffusion.training.fine_tuning import Tuning


class WordTuning(Tuning):
    """The vectors of settings.word, which all captions must have in them, except those of a prior"""
    def __init__(self, pipeline, settings, found):
        super().__init__(pipeline, settings, found)
        table = reference.stored(pipeline.text_encoder.embeddings.token_embedding.weight).astype(np.float32)
        first = first_vector(settings.begin, table, pipeline.tokenizer)
        self.parameters = {str(i): first.copy() for i in range(settings.vectors)}
        words = LearntWords().beside([LearntWord(settings.word, [*self.parameters.values()])])
        self.read = []
        for each in found:
            chunk = chunks.chunks([(each.caption, 1.0)], pipeline.tokenizer, words)[0]
            vectors = chunks.vectors(chunk)
            if not vectors and each.caption != settings.prior:
                raise UserError(f"{each.name}: its caption {each.caption[:60]!r} lacks the word that is to be learnt, "
                                f"{settings.word!r}")
            self.read.append((chunks.ids(chunk, pipeline.tokenizer)[None], vectors))

    def context(self, index):
        return np.concatenate([self.pipeline.text_encoder(ids, vectors=vectors)
                               for ids, vectors in (self.read[i] for i in index)])


def first_vector(word, table, tokenizer):
    """The embedding of a word, the mean of its tokens' if it has several, or that of all tokens for None      → (X,)"""
    if word is None:
        return table.mean(axis=0)
    ids = tokenizer.ids(word)
    if not ids:
        raise UserError(f"--begin: {word!r} has no letters to begin from")
    return table[ids].mean(axis=0)


def write(path, values, word):
    """The file, of one tensor (n, X) that is called as the word: as diffusers and A1111 read it"""
    from safetensors.numpy import save_file
    vectors = np.stack([values[str(i)] for i in range(len(values))])
    runs.written(pathlib.Path(path), lambda beside: save_file({word: vectors}, beside))
