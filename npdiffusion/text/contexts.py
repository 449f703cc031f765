"""What the UNet attends to: hidden states of the prompts, at each call of the model.

A prompt that changes with the steps has several contexts that take turns. Calls are counted as editing.py says, and a
pair of contexts, prompt and negative prompt, is prepared once, however often its turn comes: so keys and values are
computed once for it, as for a prompt that stays the same.
"""
from collections import Counter

import numpy as np

from npdiffusion.models.conditioning import Conditioning
from npdiffusion.text import chunks
from npdiffusion.text.emphasis import emphasise
from npdiffusion.text.reading import padded

MOST_KEPT = 16             # pairs of contexts of one chunk that stay prepared; keys and values of one are 15 MB in v1


class Contexts:
    """Contexts of one or two Readings, the prompt and the negative prompt, with the same number n of chunks.

    text_encoder   from ids (1, 77) and [(position, vector), ...] to hidden states (1, 77, X)
    count          how many pictures are made at once, each with these contexts
    timestep_cond  (1, D), the embedded guidance scale, for models that guidance is distilled into; or None
    """
    def __init__(self, readings, tokenizer, text_encoder, count=1, timestep_cond=None):
        self.count, self.timestep_cond = count, timestep_cond
        self.length = max(len(found) for reading in readings for found in reading.chunks.values())
        alike = [padded(reading, self.length) for reading in readings]     # or refused, before any is encoded
        self.schedules = [encode(reading, tokenizer, text_encoder) for reading in alike]
        self._prepared = {}

    def at(self, call):
        """The context of each Reading at a call of the model, counted from 0: one or two arrays (1, 77 n, X)"""
        return [next((context for last, context in schedule if call <= last), schedule[-1][1])
                for schedule in self.schedules]

    def conditioning(self, call):
        """What the UNet gets at a call of the model, counted from 0: contexts (M, 77 n, X), the negative prompt's first

        The same object for the same contexts, so that keys and values are computed once for them.
        """
        contexts = self.at(call)
        pair = tuple(map(id, contexts))
        if pair not in self._prepared:
            if len(self._prepared) == max(1, MOST_KEPT // (self.length * self.count)):
                del self._prepared[next(iter(self._prepared))]
            states = [np.repeat(context, self.count, axis=0) for context in reversed(contexts)]
            self._prepared[pair] = Conditioning(np.concatenate(states), self.timestep_cond)
        return self._prepared[pair]


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
