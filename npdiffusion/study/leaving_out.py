"""What does a word do? The picture is made again without it, from the same noise.

Attention says where a place looks; this says what comes of it, and the two need not agree.
"""
import re
import warnings
from typing import NamedTuple

import numpy as np
from PIL import Image

from npdiffusion.adapters.tags import TAG

WORD = re.compile(r"[^\W\d_](?:[\w'’-]*\w)?")
NO_WORDS = ("BREAK", "AND")
MOST = 12                      # words that are left out, the first ones


class Without(NamedTuple):
    """The picture without a word. change: mean difference to the whole prompt's, in levels of 255; where: (H, W), the same"""
    word: str
    prompt: str
    image: Image.Image
    change: float
    where: np.ndarray


def shorter(prompt):
    """[(word, the prompt without it), ...]: words of letters outside of <tags>, in their order"""
    covered = [match.span() for match in TAG.finditer(prompt)]
    return [(match[0], " ".join((prompt[:match.start()] + prompt[match.end():]).split())) for match in WORD.finditer(prompt)
            if match[0] not in NO_WORDS and not any(start <= match.start() < end for start, end in covered)]


def leave_out(pipeline, resolved, image, most=MOST):
    """Yields `Without` for each word, the first `most` of them      resolved, image: the picture of the whole prompt"""
    for word, prompt in shorter(resolved.request.prompt)[:most]:
        changed, = again(pipeline, resolved, prompt)
        where = np.abs(np.asarray(changed, np.float32) - np.asarray(image, np.float32)).mean(axis=2)
        yield Without(word, prompt, changed, float(where.mean()), where)


def again(pipeline, resolved, prompt):
    """The first picture of a `Resolved` once more, from the same noise, for another prompt → list of one"""
    request = resolved.request.changed(prompt=prompt, seed=resolved.seeds[0], count=1,
                                       subseed=resolved.subseeds[0] if resolved.subseeds else resolved.request.subseed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")                        # what there was to say of the prompt has been said
        return pipeline.make(pipeline.resolve(request))
