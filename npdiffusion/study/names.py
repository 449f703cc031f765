"""Which layer launched an operation? Its name in the checkpoint, with the part of the model in front.

    unet.down_blocks.0.resnets.1.conv1             found by its weight
    unet.down_blocks.0.attentions.0.….attn2.attention     an operation without one: after the layer before it, whose
    unet.time_embedding.silu                               parent launches both
    controlnet.controlnet_cond_embedding.conv_in   of a ControlNet, where one leads the picture
"""
import fnmatch

from npdiffusion import kernels
from npdiffusion.errors import UserError, nearest
from npdiffusion.models.parameters import modules


class Names:
    """The layers of a pipeline: `layers` {name: layer}; `of` names an operation while it is watched."""
    def __init__(self, pipeline):
        self.models = pipeline.models | controlnets(pipeline) | picture_adapters(pipeline)
        self.before = ""                      # the layer whose operation came last
        self._look()

    def _look(self):
        self.owners = {f"{part}.{path}".rstrip("."): module for part, model in self.models.items()
                       for path, module in modules(model)}
        self.layers = {name: module for name, module in self.owners.items() if hasattr(module, "weight")}
        self._by_weight = {id(layer.weight): name for name, layer in self.layers.items()}

    def of(self, operation, arguments):
        """The name of an operation that `kernels.watched` reports"""
        weight = arguments.get("weight")
        if weight is not None:
            if id(weight) not in self._by_weight:
                self._look()                  # a LoRA has changed the weights
            self.before = self._by_weight.get(id(weight), f"{self.before.rpartition('.')[0]}.{operation}")
            return self.before
        if operation == "timestep_embedding":                       # of the UNet, or of the ControlNet before it
            return f"unet.{operation}"
        return f"{self.before.rpartition('.')[0]}.{operation}"

    def check(self, patterns):
        """UserError, with the nearest name, for a pattern (`*` stands for anything) that no operation can have."""
        for pattern in patterns:
            owner, _, operation = pattern.rpartition(".")
            known = operation in kernels.OPERATIONS and any(fnmatch.fnmatchcase(name, owner) for name in self.owners)
            if not known and not fnmatch.filter(self.layers, pattern):
                raise UserError(f"no layer is called {pattern}: {nearest(pattern, self.layers)}"
                                f"they are called as in the checkpoint, for example {next(iter(self.layers))}")


def controlnets(pipeline):
    """{name: ControlNet} of those that lead; of several, diffusers' names: controlnet.nets.0"""
    found = pipeline.controlnets
    return {"controlnet": found[0]} if len(found) == 1 else {f"controlnet.nets.{i}": each for i, each in enumerate(found)}


def picture_adapters(pipeline):
    """{name: network} of those by which pictures take part in a prompt, or lead"""
    prompts, features = pipeline.ip_adapter, pipeline.t2i_adapter
    found = {} if features is None else {"t2i_adapter": features.adapter}
    if prompts is None:
        return found
    one = len(prompts.adapters) == 1
    named = {"ip_adapter" if one else f"ip_adapter.{number}": each for number, each in enumerate(prompts.adapters)}
    return named | {"image_encoder": prompts.encoder} | found
