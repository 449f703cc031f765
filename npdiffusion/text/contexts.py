"""What the UNet attends to: hidden states of the prompts, at each call of the model.

A prompt that changes with the steps has several contexts that take turns. Calls are counted as editing.py says, and a
pair of contexts, prompt and negative prompt, is prepared once, however often its turn comes: so keys and values are
computed once for it, as for a prompt that stays the same.
"""
from collections import Counter
from typing import NamedTuple

import numpy as np

from npdiffusion.errors import UserError
from npdiffusion.models.conditioning import Conditioning
from npdiffusion.text import chunks
from npdiffusion.text.emphasis import emphasise
from npdiffusion.text.reading import padded

MOST_KEPT = 16             # pairs of contexts of one chunk that stay prepared; keys and values of one are 15 MB in v1


class Context(NamedTuple):
    """states (1, 77 n, X) of a prompt, and in XL its pooled vector (1, P), that of the first chunk; else None"""
    states: np.ndarray
    pooled: np.ndarray | None = None


class Contexts:
    """Contexts of a prompt, or of it and the negative prompt, with the same number n of chunks.

    prompts        for each of them its Readings, one for each text encoder
    encoders       [`encoders.Encoder`], whose states come side by side; the last one's pooled vector is taken
    clip_skip      see encoders.py
    count          how many pictures are made at once, each with these contexts
    timestep_cond  (1, D), the embedded guidance scale, for models that guidance is distilled into; or None
    sizes          for XL: the sizes that its UNet reads, [(D,)], for each prompt; or None
    zeros          whether zeros stand for the negative prompt, whatever it is
    given          for each of them a `Context` in place of what it says, or None
    """
    def __init__(self, prompts, encoders, clip_skip=0, count=1, timestep_cond=None, sizes=None, zeros=False,
                 given=(None, None)):
        self.count, self.timestep_cond, self.sizes = count, timestep_cond, sizes
        self.pictures = ()                                 # [models.ip_adapter.ImagePrompt], in place of some words
        self.length = max(len(found) for readings in prompts for reading in readings for found in reading.chunks.values())
        given = given[:len(prompts)]
        lengths = [context.states.shape[1] // encoders[0].tokenizer.length for context in given if context is not None]
        zeros = zeros and len(prompts) > 1 and given[1] is None
        self.length = max([self.length, *lengths])
        if lengths and min(lengths) < self.length:
            raise UserError(f"prompt_embeds, negative_prompt_embeds: one has {min(lengths)} chunks of states, the other one, "
                            f"or the text in its place, {self.length}: both must have as many")
        alike = [[padded(reading, self.length) for reading in readings] for readings in prompts]     # or refused, at once
        self.schedules = [
            side_by_side([encode(reading, encoder, clip_skip) for reading, encoder in zip(readings, encoders)])
            if context is None else [(0, context)] for readings, context in zip(alike[:1] if zeros else alike, given)]
        if zeros:
            _, like = self.schedules[0][0]
            self.schedules.append([(0, Context(*(part if part is None else np.zeros_like(part) for part in like)))])
        self._prepared = {}

    def at(self, call):
        """The `Context` of each prompt at a call of the model, counted from 0: one or two"""
        return [at(schedule, call) for schedule in self.schedules]

    def conditioning(self, call):
        """What the UNet gets at a call of the model, counted from 0: contexts (M, 77 n, X), the negative prompt's first

        The same object for the same contexts, so that keys and values are computed once for them.
        """
        contexts = self.at(call)
        pair = tuple(map(id, contexts))
        if pair not in self._prepared:
            if len(self._prepared) == max(1, MOST_KEPT // (self.length * self.count)):
                del self._prepared[next(iter(self._prepared))]
            self._prepared[pair] = Conditioning(
                self._batch([context.states for context in contexts]), self.timestep_cond,
                None if contexts[0].pooled is None else self._batch([context.pooled for context in contexts]),
                None if self.sizes is None else self._batch([np.array([each], np.float32) for each in self.sizes]),
                self.pictures)
        return self._prepared[pair]

    def _batch(self, parts):
        """What belongs to the prompts, (1, …) each → (M, …), the negative prompt's first"""
        return np.concatenate([np.repeat(part, self.count, axis=0) for part in reversed(parts[:len(self.schedules)])])


def at(schedule, call):
    """What holds at a call, of [(last, what), …]"""
    return next((what for last, what in schedule if call <= last), schedule[-1][1])


def encode(reading, encoder, clip_skip=0):
    """A Reading → [(last, Context), ...], n chunks; equal texts share one context"""
    tokenizer = encoder.tokenizer
    texts, times = list(reading.chunks), Counter(text for _, text in reading.entries)
    states, pooled = [], None
    for parallel in zip(*reading.chunks.values()):         # the first chunk of all texts, the second, …
        encoded, vectors = zip(*(encoder(chunks.ids(chunk, tokenizer)[None], chunks.vectors(chunk), clip_skip)
                                 for chunk in parallel))
        pooled = pooled or vectors
        weights = np.stack([chunks.weights(chunk, tokenizer) for chunk in parallel])
        states.append(emphasise(np.concatenate(encoded), weights, [times[text] for text in texts]))
    whole = np.split(np.concatenate(states, axis=1), len(texts))
    contexts = {text: Context(*both) for text, *both in zip(texts, whole, pooled)}
    return [(last, contexts[text]) for last, text in reading.entries]


def side_by_side(schedules):
    """[(last, Context), …] of each text encoder → one of all: states of width X₁ + X₂ + …, the last one's pooled vector"""
    if len(schedules) == 1:
        return schedules[0]
    joined, found = {}, []
    for last in sorted({last for schedule in schedules for last, _ in schedule}):
        contexts = [at(schedule, last) for schedule in schedules]
        key = tuple(map(id, contexts))
        if key not in joined:
            joined[key] = Context(np.concatenate([context.states for context in contexts], axis=-1), contexts[-1].pooled)
        found.append((last, joined[key]))
    return found
