"""`npdiffusion train dreambooth`: a subject from a few pictures, by all weights (Ruiz et al. 2022, arXiv:2208.12242).

    L = mean over the subject's pictures + λ · mean over pictures of its class, which the model drew before

A LoRA changes a few thin matrices; here everything moves, a little, so the learning rate is small, and without the second
term ("prior preservation", `prior` in the settings) the class would soon look like the one subject. Weights, gradients and
AdamW's two memories are float32: 16 bytes for each number of the UNet, which is 14 GB for Stable Diffusion v1.
"""
from dataclasses import dataclass

import numpy as np

from npdiffusion.checkpoints import conversion
from npdiffusion.kernels import reference
from npdiffusion.kernels.arrays import as_float32
from npdiffusion.models.parameters import modules
from npdiffusion.training.fine_tuning import Tuning


class DreamBooth(Tuning):
    """All parameters of the UNet, and of the text encoder if settings say so, as arrays of their own while they learn"""
    def __init__(self, pipeline, settings, found):
        super().__init__(pipeline, settings, found)
        self.ids = np.stack([pipeline.tokenizer.encode(each.caption) for each in found])
        self.states = None if settings.text_encoder else pipeline.text_encoder(self.ids)
        self.before, self.parameters = [], {}
        for part in ("unet", "text_encoder") if settings.text_encoder else ("unet",):
            self.take_out(part)

    def take_out(self, part):
        """Put copies in the place of a network's parameters, packed ones included."""
        for path, module in [*modules(self.pipeline.models[part])]:
            for name, value in [*vars(module).items()]:
                if hasattr(value, "shape") and not hasattr(module, "shape"):       # what a packed weight is made of is its own
                    learnt = as_float32(reference.stored(value)).copy()
                    self.before.append((module, name, value))
                    self.parameters[f"{part}.{path}.{name}"] = learnt
                    setattr(module, name, learnt)

    def context(self, index):
        return self.pipeline.text_encoder(self.ids[index]) if self.states is None else self.states[index]

    def detach(self):
        """Give the networks back the parameters that they had."""
        for module, name, value in self.before:
            setattr(module, name, value)


@dataclass(frozen=True)
class Learnt:
    """A tensor for `conversion.convert`, in the place of the checkpoint's"""
    value: np.ndarray
    tensor: object

    def __getattr__(self, name):                             # name, path and kind of number are the checkpoint's
        return getattr(self.tensor, name)

    def __call__(self, into=None):
        return self.value


def write(path, values, opened):
    """The whole model with what was learnt, as a folder in diffusers' layout; opened: the checkpoint, loading.Opened

    Numbers are rounded to the kind that the checkpoint has. UserError as of `conversion.convert`.
    """
    changed = {}
    for name, value in values.items():
        part, _, parameter = name.partition(".")
        changed[part, parameter] = Learnt(value, opened.model.parts[part].tensors[parameter])
    return conversion.convert(opened, path, changed=changed)
