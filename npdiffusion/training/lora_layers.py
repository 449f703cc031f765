"""Low-rank adaptation (Hu et al. 2021, arXiv:2106.09685): beside a frozen weight W learns a product of two thin ones.

    y = W x + (α / r) B A x          A: (r, in), random     B: (out, r), zero at first, so that y is W x
    dB = (α/r) g (A x)ᵀ              dA = (α/r) Bᵀ g xᵀ      W needs neither gradient nor its input kept

Of a convolution A is one of the same kernel to r channels, and B a 1×1 convolution (LoCon). While a model is trained, its
layers are replaced by `LoRA`s that hold them; `detach` puts them back. Files are written under kohya's names, which
AUTOMATIC1111's web interface, ComfyUI and diffusers read, or under PEFT's.
"""
import math

import numpy as np

from npdiffusion import kernels
from npdiffusion.models.layers import Conv2d, Linear
from npdiffusion.models.resnet import Upsample2D
from npdiffusion.models.transformer import GEGLU

# Which layers learn, by the end of their names: those of attention, all of a transformer (kohya's choice), or all there are.
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "q_proj", "k_proj", "v_proj", "out_proj")
TRANSFORMER = (*ATTENTION, "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out", "fc1", "fc2")
LAYERS = {"attention": ATTENTION, "transformer": TRANSFORMER, "all": ("",)}
SPELLINGS = ("kohya", "peft")


class LoRA:
    """A layer with an addition; called as the layer. `layer` is frozen, `down` (A) and `up` (B) are to be trained."""
    def __init__(self, layer, rank, alpha, rng):
        self.layer, self.scale = layer, alpha / rank
        outputs, inputs, *taps = self.weighted.weight.shape
        bound = 1 / math.sqrt(inputs * math.prod(taps))
        self.down = rng.uniform(-bound, bound, (rank, inputs, *taps)).astype(np.float32)
        self.up = np.zeros((outputs, rank, *[1] * len(taps)), np.float32)

    @property
    def weighted(self):
        """The layer that has the weight."""
        return self.layer

    @property
    def dtype(self):
        return self.layer.dtype


class LinearLoRA(LoRA):
    """(..., in) → (..., out)"""
    def __call__(self, x, residual=None):
        return kernels.linear(kernels.linear(x, self.down) * self.scale, self.up, None, self.layer(x, residual))


class GEGLULoRA(LoRA):
    """(..., C) → (..., inner)"""
    @property
    def weighted(self):
        return self.layer.proj

    def __call__(self, x):
        both = kernels.linear(kernels.linear(x, self.down) * self.scale, self.up, None, self.layer.proj(x))
        value, gate = np.split(both, 2, axis=-1)
        return value * kernels.gelu(gate)


class Conv2dLoRA(LoRA):
    """(N, H, W, I) → (N, H_out, W_out, O)"""
    def __call__(self, x, residual=None, shift=None):
        y = self.layer(x, residual, shift)
        low = kernels.conv2d(x, self.down, None, self.layer.stride, self.layer.padding)
        return kernels.conv2d(low * self.scale, self.up, None, 1, (0, 0, 0, 0), y)


class Upsample2DLoRA(LoRA):
    """(N, H, W, C) → (N, height, width, C)"""
    @property
    def weighted(self):
        return self.layer.conv

    def __call__(self, x, height=None, width=None):
        y = self.layer(x, height, width)
        low = kernels.conv2d(kernels.upsample_nearest(x, *y.shape[1:3]), self.down, None, 1, (1, 1, 1, 1))
        return kernels.conv2d(low * self.scale, self.up, None, 1, (0, 0, 0, 0), y)


KINDS = {Linear: (LinearLoRA, ""), Conv2d: (Conv2dLoRA, ""), GEGLU: (GEGLULoRA, ".proj"), Upsample2D: (Upsample2DLoRA, ".conv")}


def attach(model, which, rank, alpha, rng):
    """Put a LoRA in place of each layer that learns, see LAYERS → {layer's name in the checkpoint: LoRA}"""
    attached = {}
    for path, owner, key in [*places(model)]:
        layer = owner[key] if isinstance(owner, list) else getattr(owner, key)
        kind, end = KINDS.get(type(layer), (None, ""))
        if kind and (path + end).endswith(LAYERS[which]):
            attached[path + end] = kind(layer, rank, alpha, rng)
            put(owner, key, attached[path + end])
    return attached


def detach(model):
    """Put the layers back."""
    for _, owner, key in [*places(model)]:
        layer = owner[key] if isinstance(owner, list) else getattr(owner, key)
        if isinstance(layer, LoRA):
            put(owner, key, layer.layer)


def put(owner, key, layer):
    if isinstance(owner, list):
        owner[key] = layer
    else:
        setattr(owner, key, layer)


def places(model, path=()):
    """Yield (path, owner, key) of every layer below a model, where it can be replaced; what holds the weight of a GEGLU, of
    upsampling or of a LoRA is a part of these, and isn't listed"""
    for key, value in enumerate(model) if isinstance(model, list) else vars(model).items():
        if isinstance(value, list) or hasattr(value, "__dict__"):
            yield ".".join((*path, str(key))), model, key
            if not isinstance(value, (LoRA, GEGLU, Upsample2D)):
                yield from places(value, (*path, str(key)))


def trained(attached):
    """{name: array} of what is trained; attached: {part of the model: {layer: LoRA}}"""
    return {f"{part}.{name}.{role}": getattr(lora, role)
            for part, loras in attached.items() for name, lora in loras.items() for role in ("down", "up")}


def spelled(values, parts, alpha, spelling="kohya"):
    """Arrays as `trained` names them → {name in a file: array}

    parts: {part: its row of adapters' names, see checkpoints/families.py}      PEFT's file has no α: B is multiplied by α / r
    """
    found = {}
    for name, down in values.items():
        if not name.endswith(".down"):
            continue
        part, _, layer = name.removesuffix(".down").partition(".")
        up, rank = values[f"{part}.{layer}.up"], len(down)
        if spelling == "kohya":
            before = parts[part].flat[0] + layer.replace(".", "_")
            found |= {f"{before}.lora_down.weight": down, f"{before}.lora_up.weight": up,
                      f"{before}.alpha": np.array(alpha, np.float32)}
        else:
            before = parts[part].dotted[0] + layer
            found |= {f"{before}.lora_A.weight": down, f"{before}.lora_B.weight": up * np.float32(alpha / rank)}
    return found
