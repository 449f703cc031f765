"""What is computed once although several steps or several images need it; every result stays what it was.

    from the prompt alone      keys and values of each cross-attention       once a picture instead of once a step
    from latents and t alone   all that precedes the first cross-attention   once a step instead of for each prompt

A guided step asks the UNet about the same N latents under two prompts. It may therefore be given N latents and 2N
contexts, where latents i go with contexts i and N + i: the batch stays N up to the first place where a context enters,
and what was kept before that place (skip connections, residuals) is `repeated` when it meets the batch of 2N.
"""
import numpy as np


class Context:
    """Hidden states of prompts (N, S, X), and the keys and values that each cross-attention made of them.

    For one set of weights: a UNet whose weights have changed needs a new one.
    """
    def __init__(self, states):
        self.states = states
        self._found = {}

    def __len__(self):
        return len(self.states)

    def keys_and_values(self, attention):
        """Those that an `Attention` makes of the hidden states: k, v (N, S, C)"""
        if attention not in self._found:
            self._found[attention] = attention.keys_and_values(self.states)
        return self._found[attention]


def repeated(x, batch):
    """Row i of x for each of i, n + i, 2n + i, ... of a batch      (n, ...) → (batch, ...), x itself if batch is n"""
    return x if len(x) == batch else np.concatenate([x] * (batch // len(x)))
