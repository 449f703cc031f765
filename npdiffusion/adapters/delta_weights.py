"""What an adapter adds to a weight: ΔW, as large as W, from a few small matrices.

    LoRA    up · down                              Hu et al. 2021, arXiv:2106.09685
    LoHa    (w1_a · w1_b) ∘ (w2_a · w2_b)          element by element; Hyeon-Woo et al. 2021 (FedPara), arXiv:2108.06098
    LoKr    w1 ⊗ w2, whole or products a · b       Kronecker's product; Yeh et al. 2023 (LyCORIS), arXiv:2309.14859
    full    diff                                   for biases and norms too

O outputs, I inputs, K = kh · kw taps (1 for a linear layer), R rank. A convolution (O, I, kh, kw) is taken as a matrix
(O, I · K); `_a · _b` may be in Tucker form instead, with a core (R, R, kh, kw) between two matrices.

Each kind is a function of the tensors of one layer. It says which matrix each of them has to be, which is checked
against the file's table of contents, and returns R and a function that reads and multiplies them: ΔW (O, I · K) = R, f.
"""
import math

import numpy as np

from npdiffusion.errors import UserError
from npdiffusion.kernels.arrays import as_float32

LARGEST_RANK = 4096


class Layer:
    """The tensors that a file has for one layer, by role; name: what messages call the layer"""
    def __init__(self, tensors, source, name):
        self.tensors, self.source, self.name = tensors, source, name

    def __contains__(self, role):
        return role in self.tensors

    def rank(self, role):
        """Number of rows of the matrix of that role, which is a rank."""
        if role not in self.tensors:
            self.fail(f"{role} is missing")
        shape = self.tensors[role].shape
        if not shape or not 1 <= shape[0] <= LARGEST_RANK:
            self.fail(f"{role} is {shape}; ranks from 1 to {LARGEST_RANK} are possible")
        return shape[0]

    def matrix(self, role, rows, columns):
        """A function that reads the matrix of that role: (rows, columns) float32; UserError if it has another shape."""
        if role not in self.tensors:
            self.fail(f"{role} is missing")
        tensor = self.tensors[role]
        if not tensor.shape or tensor.shape[0] != rows or math.prod(tensor.shape) != rows * columns:
            self.fail(f"{role} is {tensor.shape} where {(rows, columns)} would fit: it is for a model of other sizes")
        return lambda: self.finite(as_float32(tensor()), role).reshape(rows, columns)

    def finite(self, array, role):
        if not np.isfinite(array).all():
            self.fail(f"{role} holds values that are not finite (NaN or infinity)")
        return array

    def fail(self, problem):
        raise UserError(f"{self.source}: {self.name[:200]!a}: {problem}")


def lora(layer, outputs, inputs, taps):
    """up (O, R) · down (R, I · K), or with Tucker's core "mid" """
    rank = layer.rank("down")
    if "mid" in layer:
        return rank, tucker(layer, "mid", layer.matrix("up", outputs, layer.rank("mid")), "down", inputs, taps)
    up, down = layer.matrix("up", outputs, rank), layer.matrix("down", rank, inputs * taps)
    return rank, lambda: up() @ down()


def loha(layer, outputs, inputs, taps):
    rank, first = factors(layer, "hada_w1", "hada_t1", outputs, inputs, taps)
    _, second = factors(layer, "hada_w2", "hada_t2", outputs, inputs, taps)
    return rank, lambda: first() * second()


def lokr(layer, outputs, inputs, taps):
    """w1 is (O₁, I₁), w2 (O / O₁, I / I₁ · K); R is None if both are whole, since there is none then"""
    rows, columns = (layer.rank("lokr_w1"), layer.tensors["lokr_w1"].shape[-1]) if "lokr_w1" in layer else \
        (layer.rank("lokr_w1_a"), math.prod(layer.tensors["lokr_w1_b"].shape[1:]) if "lokr_w1_b" in layer else 0)
    if outputs % rows or not columns or inputs % columns:
        layer.fail(f"lokr_w1 is {(rows, columns)}, which does not divide {(outputs, inputs)}: "
                   "it is for a model of other sizes")
    rank1, w1 = factors(layer, "lokr_w1", None, rows, columns, 1)
    rank2, w2 = factors(layer, "lokr_w2", "lokr_t2", outputs // rows, inputs // columns, taps)
    return rank2 or rank1, lambda: np.kron(w1(), w2())


def full(layer, outputs, inputs, taps):
    return None, layer.matrix("diff", outputs, inputs * taps)


KINDS = {"up": lora, "down": lora, "mid": lora, "diff": full,
         **dict.fromkeys(("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"), loha),
         **dict.fromkeys(("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"), lokr)}


def factors(layer, name, core, outputs, inputs, taps):
    """The matrix `name` (O, I · K), which is whole, or a product `name`_a (O, R) · `name`_b (R, I · K), or in Tucker
    form, where `name`_a is (R, O) → R or None, function"""
    if name in layer:
        return None, layer.matrix(name, outputs, inputs * taps)
    rank = layer.rank(f"{name}_b")
    if core in layer:
        across = layer.matrix(f"{name}_a", layer.rank(core), outputs)
        return rank, tucker(layer, core, lambda: across().T, f"{name}_b", inputs, taps)
    a, b = layer.matrix(f"{name}_a", outputs, rank), layer.matrix(f"{name}_b", rank, inputs * taps)
    return rank, lambda: a() @ b()


def tucker(layer, core, a, b, inputs, taps):
    """W[o, i, k] = Σ_pq  core[p, q, k] a[o, p] b[q, i]       core (P, Q, kh, kw), a: function → (O, P), b (Q, I)"""
    p, q = layer.rank(core), layer.rank(b)
    core, b = layer.matrix(core, p, q * taps), layer.matrix(b, q, inputs)

    def product():
        left = (a() @ core()).reshape(-1, q, taps)
        return (b().T @ left).reshape(len(left), inputs * taps)
    return product


def dora(weight, length, per_output):
    """m · V / ‖V‖      V (O, I, K) → the same; length m: (O,), of each output's weights, or (I,), of each input's"""
    others = (1, 2) if per_output else (0, 2)
    norm = np.sqrt(np.square(weight).sum(others, keepdims=True))
    return length.reshape(norm.shape) / norm * weight
