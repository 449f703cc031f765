"""What the UNet attends to: hidden states of the prompts, at each call of the model.

A prompt that changes with the steps has several contexts that take turns. Calls are counted as editing.py says, and a
pair of contexts, prompt and negative prompt, is prepared once, however often its turn comes: so keys and values are
computed once for it, as for a prompt that stays the same.
"""
import itertools
from collections import Counter

import numpy as np

from npdiffusion.text import chunks
from npdiffusion.text.emphasis import emphasise
from npdiffusion.text.reading import padded

MOST_KEPT = 16             # pairs of contexts of one chunk that stay prepared; keys and values of one are 15 MB in v1


class Contexts:
    """Contexts of one or two Readings, the prompt and the negative prompt, with the same number n of chunks.

    text_encoder: from ids (1, 77) and [(position, vector), ...] to hidden states (1, 77, X)
    """
    def __init__(self, readings, tokenizer, text_encoder):
        self.length = max(len(found) for reading in readings for found in reading.chunks.values())
        alike = [padded(reading, self.length) for reading in readings]     # or refused, before any is encoded
        self.schedules = [encode(reading, tokenizer, text_encoder) for reading in alike]

    def at(self, call):
        """Those that are in force at a call of the model, counted from 0: a list of one or two (1, 77 n, X)"""
        return [next((context for last, context in schedule if call <= last), schedule[-1][1])
                for schedule in self.schedules]

    def by_call(self, make, count=1):
        """predict(x, t) for one picture's, or one batch's, way through all steps

        make    from one or two contexts, each repeated for `count` pictures, (count, 77 n, X), to predict(x, t)
        """
        calls, made = itertools.count(), {}
        most = max(1, MOST_KEPT // (self.length * count))

        def predict(x, t):
            contexts = self.at(next(calls))
            pair = tuple(map(id, contexts))
            if pair not in made:
                if len(made) == most:
                    del made[next(iter(made))]
                made[pair] = make(*(np.repeat(context, count, axis=0) for context in contexts))
            return made[pair](x, t)

        return predict


def encode(reading, tokenizer, text_encoder):
    """A Reading → [(last, context (1, 77 n, X)), ...], n chunks; equal texts share one array"""
    texts, times = list(reading.chunks), Counter(text for _, text in reading.entries)
    states = []
    for parallel in zip(*reading.chunks.values()):         # the first chunk of all texts, the second, …
        encoded = [text_encoder(chunks.ids(chunk, tokenizer)[None], chunks.vectors(chunk)) for chunk in parallel]
        weights = np.stack([chunks.weights(chunk, tokenizer) for chunk in parallel])
        states.append(emphasise(np.concatenate(encoded), weights, [times[text] for text in texts]))
    contexts = dict(zip(texts, np.split(np.concatenate(states, axis=1), len(texts))))
    return [(last, contexts[text]) for last, text in reading.entries]
