"""Gradient checkpointing: a block that keeps its inputs alone, and is computed again when its gradients are wanted.

Chen et al. 2016, arXiv:1604.06174: of n equal blocks, memory holds the n inputs and what one block keeps, instead of
what all of them keep, for one more forward pass.

    unet.mid_block.resnets[0] = checkpointed(unet.mid_block.resnets[0])          one block
    checkpoint(unet)                                                             all residual blocks and transformers

Outside a tape the block is what it was, and `parameters.walk` finds its parameters under the same names.
"""
import numpy as np

from npdiffusion import kernels
from npdiffusion.models.conditioning import Conditioning
from npdiffusion.models.parameters import modules
from npdiffusion.training.tape import Tape, parameters_of
from npdiffusion.training.variable import Variable, value_of

LISTS = ("resnets", "attentions", "layers")              # of blocks that are worth it: UNet, VAE, text encoder


def checkpointed(layer):
    """A layer that, on a tape, remembers what it was given and nothing else; called as the layer, which gives one array."""
    return Checkpointed(layer)


def checkpoint(model):
    """Let every block of a model's lists (`LISTS`) be `checkpointed`, in place."""
    for _, module in [*modules(model)]:
        for name in LISTS:
            blocks = vars(module).get(name)
            if isinstance(blocks, list):
                blocks[:] = [each if isinstance(each, Checkpointed) else Checkpointed(each) for each in blocks]


class Checkpointed:
    """What `checkpointed` makes; attributes are the layer's."""
    __slots__ = ("layer",)

    def __init__(self, layer):
        self.layer = layer

    @property
    def __dict__(self):
        return vars(self.layer)

    def __getattr__(self, name):
        return getattr(self.layer, name)

    def __call__(self, *arguments, **options):
        tape = Tape.of_this_thread()
        if tape is None:
            return self.layer(*arguments, **options)
        given = [*arguments, *options.values()]
        arrays = [each.states if isinstance(each, Conditioning) else each for each in given]

        def call(values):
            """The layer, given other arrays; keys and values that conditioning remembers are those of others"""
            values = [each.with_states(value) if isinstance(each, Conditioning) else value
                      for value, each in zip(values, given)]
            return self.layer(*values[:len(arguments)], **dict(zip(options, values[len(arguments):])))

        with kernels.recorded(None):
            result = call([*map(value_of, arrays)])
        parameters = tape.among(parameters_of(self.layer).values())
        sources = [tape.node(each) if isinstance(each, (np.ndarray, Variable)) else None for each in arrays]
        if not parameters and not any(sources):
            return Variable(result, None, tape)
        values = [*map(value_of, arrays)]

        def pull(g):
            inner = Tape(parameters)
            inputs = [inner.variable(value) if source else value for value, source in zip(values, sources)]
            with inner:
                again = call(inputs)
            for name, gradient in inner.backward(again, g).items():
                yield tape.node(parameters[name]), gradient
            for variable, source in zip(inputs, sources):
                if source:
                    yield source, inner.gradient(variable)

        return tape.record(result, pull, type(self.layer).__name__, ["inputs"])
