"""Which layer made the first value that is not finite?

A model's result is checked once per call. Only when it holds a NaN or an infinity is the call repeated with every
operation watched, so that the message can name the layer; ordinary calls pay nothing for it.
"""
import numpy as np

from npdiffusion import kernels
from npdiffusion.errors import UserError
from npdiffusion.models.parameters import modules


def finite(model, name, *arguments, method="__call__"):
    """model(*arguments), or another method's result; UserError that names the layer if some of it is not finite."""
    result = getattr(model, method)(*arguments)
    if not np.isfinite(result).all():
        explain(model, name, [arguments], method)
    return result


def explain(model, name, calls, method="__call__"):
    """Repeat calls of a model whose results were not finite, [arguments, ...], and raise the UserError that names the layer."""
    layers = {id(layer.weight): f"{name}.{path}" for path, layer in modules(model) if hasattr(layer, "weight")}
    passed, found = [f"the input of {name}"], []

    def watch(operation, arguments, output):
        layer = layers.get(id(arguments.get("weight")))
        if not found and not np.isfinite(output).all():
            found.append(layer or f"{operation} after {passed[-1]}")
        if layer:
            passed.append(layer)

    for arguments in calls:
        with kernels.watched(watch):
            getattr(model, method)(*arguments)
        if found:
            break
    where = found[0] if found else passed[-1]
    raise UserError(f"a value that is not finite (NaN or infinity) first appears in {where}; the weights are damaged, or "
                    "too large for float32 at this input")
