"""Where learning begins: random weights, so that what goes through a layer keeps about its size.

    weights and biases of products     uniform in ±1/√n, n inputs to each output: torch's default (LeCun et al. 1998)
    tables of embeddings               normal, of deviation 0.02, CLIP's for tokens
    norms                              scale 1, shift 0, as a fresh model has them
"""
import math

import numpy as np

from npdiffusion.models import parameters
from npdiffusion.models.layers import Conv2d, Embedding, Linear


def begin(model, rng):
    """Give a fresh model its first weights, in place → {name: array} of all its parameters, those arrays themselves"""
    for _, layer in parameters.modules(model):
        if isinstance(layer, Embedding):
            layer.weight[...] = 0.02 * rng.standard_normal(layer.weight.shape, dtype=np.float32)
        elif isinstance(layer, (Conv2d, Linear)):
            bound = 1 / math.sqrt(layer.weight[0].size)
            layer.weight[...] = rng.uniform(-bound, bound, layer.weight.shape)
            if layer.bias is not None:
                layer.bias[...] = rng.uniform(-bound, bound, layer.bias.shape)
    return of(model)


def of(model):
    """{name: array} of a model's parameters"""
    return {name: getattr(owner, attribute) if isinstance(attribute, str) else owner[attribute]
            for name, owner, attribute in parameters.walk(model)}
