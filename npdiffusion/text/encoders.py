"""What a text encoder makes of a chunk's ids: states that the UNet attends to, and in XL a vector for the prompt as a whole.

    v1, SD 2     the last layer's states, after the final norm; N layers less with clip_skip N
    XL           two encoders; of each the last but one layer's states, without the norm, side by side: N layers less from the
                 end with clip_skip N, at least one. Beside them the pooled vector of the second one, whose layers all take part
                 (Podell et al. 2023, arXiv:2307.01952, section 2.1)

T tokens, X channels; float32.
"""
from typing import NamedTuple

import numpy as np

from npdiffusion.models import diagnosis
from npdiffusion.models.clip import CLIPTextModel
from npdiffusion.text.tokenizer import CLIPTokenizer


class Encoder(NamedTuple):
    """A text encoder with its tokenizer, called as in error messages; penultimate, pools: see above

    first: where among the numbers of a learnt word those of this encoder begin
    """
    name: str
    model: CLIPTextModel
    tokenizer: CLIPTokenizer
    penultimate: bool = False
    pools: bool = False
    first: int = 0

    def __call__(self, ids, vectors=(), clip_skip=0):
        """Ids (1, T), [(position, vector), ...] of learnt words → states (1, T, X), pooled (1, P) or None"""
        own = slice(self.first, self.first + self.model.config.hidden_size)
        fitting = tuple((position, vector[own]) for position, vector in vectors)
        if not self.penultimate:
            return diagnosis.finite(self.model, self.name, ids, clip_skip, fitting), None
        states = self.model.hidden_states(ids, vectors=fitting)
        last = self.model.final_layer_norm(states[-1])
        if not np.isfinite(last).all():
            diagnosis.explain(self.model, self.name, [(ids, 0, fitting)])
        return states[-1 - max(clip_skip, 1)], self.model.pooled(last, ids) if self.pools else None


def encoders_of(family, models, tokenizers):
    """Those of a model in the order of their states in the context → [Encoder]      models, tokenizers: {part: it}"""
    found, first = [], 0
    for name in family.text_encoders:
        last = name == family.text_encoders[-1]
        found.append(Encoder(name, models[name], tokenizers[name], family.penultimate, last and bool(family.added), first))
        first += models[name].config.hidden_size
    return found
