"""A LoRA file, opened: which parameters of the model it changes and how, checked before a number is read.

    W' = W + s · α/R · ΔW        s: the strength that the user gives, α: of the file, R: rank; α = R where it has none

DoRA normalises W + α/R · ΔW. Where files name the lengths `dora_scale` (LyCORIS, kohya), s goes from W to the result,
as in A1111; where they are called `lora_magnitude_vector` (PEFT), s is a factor of ΔW inside, as in PEFT. At s = 1
both are the same, and at s = 0 nothing is changed at all.
"""
import functools
import hashlib
import math
import pathlib
from dataclasses import dataclass, field

import numpy as np

from npdiffusion.adapters import delta_weights, names, scales, textual_inversion
from npdiffusion.checkpoints import families, safetensors_file
from npdiffusion.errors import UserError
from npdiffusion.kernels.arrays import as_float32
from npdiffusion.models import parameters

BIASES = "diff_b", "up_bias"          # LyCORIS's change of a bias, and that of PEFT's lora_B, which α/R scales too


@dataclass
class LoRA:
    """A LoRA file for a model: which parameters it changes by what.

    changes: {(part, parameter): function (W, s) → ΔW}      unmatched: keys that belong to no layer, of `count`
    words: [LearntWord] that prompts may use with it
    stamp: of the file when it was opened
    """
    path: pathlib.Path
    stamp: tuple
    count: int
    unmatched: list
    words: list
    changes: dict = field(default_factory=dict)

    @functools.cached_property
    def hash(self):
        """The beginning of the SHA-256 of the numbers, without the header: what A1111 and catalogues of LoRAs go by"""
        sha = hashlib.sha256()
        with self.path.open("rb") as file:
            file.seek(8 + int.from_bytes(file.read(8), "little"))
            while chunk := file.read(1 << 20):
                sha.update(chunk)
        return sha.hexdigest()[:12]


def read_lora(path, shapes, config, family, fitting):
    """Open a LoRA for a model → LoRA

    shapes: {part: {parameter: shape}}; config: the UNet's; family: the model's, see checkpoints/families.py
    fitting: of learnt words, see textual_inversion.py
    Raises UserError if the file is no LoRA, damaged, for another family, or does not fit.
    """
    path = pathlib.Path(path)
    opened = safetensors_file.stamp(path)
    tensors = safetensors_file.read_file(path)
    other = names.told_by(names.FAMILIES, tensors)
    if other and other != family.name and not (other == families.XL and family.added):       # its refiner has as many blocks
        refuse_family(path, other, family)
    count, words = len(tensors), textual_inversion.bundled(tensors, path, fitting)
    layers = {part: [name.removesuffix(".weight") for name in found if name.endswith(".weight")]
              for part, found in shapes.items()}
    known = names.spellings(layers, config, family)
    found, unmatched = {}, []
    for key, tensor in tensors.items():
        spelling, role = names.split_key(key) or (None, None)
        if spelling not in known:
            unmatched.append(key)
        elif role in found.setdefault(known[spelling], {}):
            raise UserError(f"{path}: it has {role} of {'.'.join(known[spelling])[:200]} twice, in two spellings")
        else:
            found[known[spelling]][role] = tensor
    what = None if words else names.told_by(names.OTHER_KINDS, tensors)
    if what and all(roles.keys() <= {"alpha"} for roles in found.values()):      # which other kinds have, too
        raise UserError(f"{path}: this is {what}")
    if not found and not words:
        raise UserError(f"{path}: no LoRA for this model, none of its {len(tensors)} tensors belongs to a layer: "
                        f"{parameters.some(tensors)}")
    check_context(path, found, config.cross_attention_dim, family)
    scale = scales.beside(path)
    lora = LoRA(path, opened, count, unmatched, words)
    for (part, name), roles in found.items():
        layer, factor = delta_weights.Layer(roles, path, f"{part}.{name}"), 1.0
        if roles.keys() - set(BIASES):
            shape = shapes[part][f"{name}.weight"]
            lora.changes[part, f"{name}.weight"], factor = weight_change(layer, shape, scale(part, name))
        if roles.keys() & set(BIASES):
            if f"{name}.bias" not in shapes[part]:
                layer.fail("has a change of the bias, but the layer has no bias")
            lora.changes[part, f"{name}.bias"] = bias_change(layer, shapes[part][f"{name}.bias"], factor)
    return lora


def refuse_family(path, theirs, family):
    raise UserError(f"{path}: this LoRA is made for {theirs}, but the model is of another family, {family.name}")


def check_context(path, found, width, family):
    """UserError if the keys and values of cross-attention read contexts of another width."""
    for (_, name), roles in found.items():
        inner = next((roles[role] for role in ("down", "hada_w1_b") if role in roles), None)
        if inner and name.endswith((".attn2.to_k", ".attn2.to_v")):
            theirs = math.prod(inner.shape[1:])
            if theirs != width:
                other = f"{families.WIDTHS.get(theirs, 'another model')} (its context is {theirs} wide, not {width})"
                refuse_family(path, other, family)


def weight_change(layer, shape, advised):
    """A function (W, s) → ΔW for a weight of that shape, and α/R; advised: a function from R to it, or None"""
    kinds = {delta_weights.KINDS[role] for role in layer.tensors if role in delta_weights.KINDS}
    if len(kinds) != 1:
        layer.fail("has two kinds of changes at once" if kinds else f"has only {', '.join(sorted(layer.tensors))}")
    outputs, inputs, taps = shape[0], math.prod(shape[1:2]), math.prod(shape[2:])
    rank, product = kinds.pop()(layer, outputs, inputs, taps)
    scale = scales.alpha(layer) / rank if "alpha" in layer and rank else advised(rank) if advised else 1.0
    length = lengths(layer, outputs, inputs)

    @np.errstate(over="ignore", invalid="ignore")            # what is not finite is found at the end
    def change(weight, strength):
        difference = product().reshape(outputs, inputs, taps)
        difference *= scale if length else scale * strength
        if length:
            matrix = weight.reshape(outputs, inputs, taps)
            if "magnitude" in layer:
                difference = delta_weights.dora(matrix + strength * difference, length(), per_output=True) - matrix
            else:
                per_output = layer.tensors["dora_scale"].shape[0] == outputs
                difference = strength * (delta_weights.dora(matrix + difference, length(), per_output) - matrix)
        return layer.finite(difference, "the change").reshape(shape)
    return change, scale


def bias_change(layer, shape, factor):
    """A function (b, s) → Δb for a bias of that shape"""
    parts = [(1.0 if role == "diff_b" else factor, layer.matrix(role, *shape, 1)) for role in BIASES if role in layer]
    return lambda bias, strength: sum(strength * scale * difference().reshape(shape) for scale, difference in parts)


def lengths(layer, outputs, inputs):
    """DoRA's vector, a function → (outputs,) or (inputs,), or None without one

    PEFT's is one for each output. LyCORIS has (1, inputs, …) or, with wd_on_out, (outputs, 1, …).
    """
    role = next((role for role in ("magnitude", "dora_scale") if role in layer), None)
    if role is None:
        return None
    shape = layer.tensors[role].shape
    count = outputs if role == "magnitude" or shape[:1] == (outputs,) else inputs
    if math.prod(shape) != count:
        layer.fail(f"{role} is {shape}, but the layer has {outputs} outputs and {inputs} inputs")
    return lambda: layer.finite(as_float32(layer.tensors[role]()), role).reshape(-1)
