"""Products in bfloat16, weights in float32: half the traffic, and twice the rate where processors multiply bfloat16.

    forwards     y = x̃ W̃ᵀ, where ~ rounds to bfloat16; sums are float32
    backwards    dx = g̃ W̃,  dW = gᵀ x, and dW goes to W, as if W had not been rounded

Where the processor has tile registers for bfloat16, dW = g̃ᵀ x̃.

Rounding has slope 0 nearly everywhere, so its gradient is taken to be 1 (straight through, Bengio et al. 2013,
arXiv:1308.3432). Steps are smaller than what bfloat16 can tell apart: hence the float32 weights, which the optimiser changes
(mixed precision, Micikevicius et al. 2017, arXiv:1710.03740). float32's range needs no scaling of the loss.
"""
import contextlib

from npdiffusion import kernels
from npdiffusion.models.layers import Conv2d
from npdiffusion.models.parameters import DELICATE, modules


@contextlib.contextmanager
def products_in_bfloat16(model):
    """Within, the products of a model take bfloat16, but the delicate ones (`parameters.DELICATE`); its arrays stay what
    they are, and are rounded anew each time: enter this for each step, inside `with tape:`."""
    layers = [layer for path, layer in modules(model) if hasattr(layer, "prepare") and not DELICATE.search(f"{path}.weight")]
    before = [(layer, layer.weight, getattr(layer, "dtype", None)) for layer in layers]
    try:
        for layer in layers:
            pack = kernels.pack_conv2d if isinstance(layer, Conv2d) else kernels.pack_linear
            layer.weight = pack(layer.weight, "bfloat16")
            if hasattr(layer, "dtype"):
                layer.dtype = "bfloat16"
        yield
    finally:
        for layer, weight, dtype in before:
            layer.weight = weight
            if dtype is not None:
                layer.dtype = dtype
