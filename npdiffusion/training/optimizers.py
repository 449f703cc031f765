"""Optimisers: from gradients to new parameters.

    θ parameters     g their gradients     η learning rate     λ weight decay     t = 1, 2, … counts steps

    optimizer.step(gradients, rate)      changes the arrays of `parameters` in place, so that models see it

Parameters and gradients are {name: array}, float32. `rate` is given anew each time, see rates.py. What an optimiser
remembers is in `memory`, {name: array}, which is all that has to be saved to go on as if it had never stopped, and
`steps`. Hyperparameters are Python floats, so float32 stays float32; where no default is argued for it is torch.optim's.
"""
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from npdiffusion import kernels
from npdiffusion.kernels import threads


class Optimizer:
    """What all have in common: parameters, the number of steps, and memories that begin as zeros."""
    slots: tuple[str, ...] = ()           # names of what is remembered for each parameter
    large: float = 50_000                 # numbers of a parameter that is worth a thread

    def __init__(self, parameters, decay=0.0):
        self.parameters, self.decay, self.steps = parameters, decay, 0
        self.memory = {f"{slot}.{name}": np.zeros(value.shape, np.float32)
                       for slot in self.slots for name, value in parameters.items()}

    def step(self, gradients, rate):
        """One step with gradients {name: array}, for all parameters or some, and the learning rate, a Python float

        Threads take a large parameter each: NumPy works on one alone, and products of small matrices are not worth sharing.
        """
        def alone(name):
            with threads.alone():
                self.move(name, gradients[name], rate)
        self.steps += 1
        large = [name for name, gradient in gradients.items() if gradient.size >= self.large]
        with ThreadPoolExecutor(threads.get_threads()) as pool:
            moved = pool.map(alone, large)
            for name in gradients.keys() - {*large}:
                self.move(name, gradients[name], rate)
            for _ in moved:                              # raises what was raised there
                pass

    def move(self, name, gradient, rate):
        """The step of one parameter, by `update` of each kind."""
        self.update(self.parameters[name], gradient, rate, *(self.memory[f"{slot}.{name}"] for slot in self.slots))


class SGD(Optimizer):
    """Stochastic gradient descent (Robbins & Monro 1951) with momentum μ (Polyak 1964; Nesterov's form: Sutskever et al. 2013)

        g ← g + λ θ      m ← μ m + g      θ ← θ − η m,  or with Nesterov's look ahead  θ − η (g + μ m)
    """
    slots = ("momentum",)

    def __init__(self, parameters, momentum=0.0, nesterov=False, decay=0.0):
        super().__init__(parameters, decay)
        self.momentum, self.nesterov = momentum, nesterov

    def update(self, value, gradient, rate, m):
        gradient = gradient + self.decay * value
        m *= self.momentum
        m += gradient
        value -= rate * (gradient + self.momentum * m if self.nesterov else m)


class Adam(Optimizer):
    """Adam (Kingma & Ba 2014, arXiv:1412.6980, algorithm 1); its equations stand where they are computed, kernels/steps.py"""
    slots = ("mean", "square")
    large = math.inf                      # the kernel shares out a parameter itself
    apart = False

    def __init__(self, parameters, betas=(0.9, 0.999), eps=1e-8, decay=0.0):
        super().__init__(parameters, decay)
        self.betas, self.eps = betas, eps

    def update(self, value, gradient, rate, mean, square):
        kernels.step("adam")(value, gradient, mean, square, self.steps, rate, self.betas, self.eps, self.decay, self.apart)


class AdamW(Adam):
    """Adam with decay beside the step, not inside the averages (Loshchilov & Hutter 2017, arXiv:1711.05101, algorithm 2)"""
    apart = True

    def __init__(self, parameters, betas=(0.9, 0.999), eps=1e-8, decay=0.01):
        super().__init__(parameters, betas, eps, decay)


class Muon(Optimizer):
    """Muon (Jordan et al. 2024): momentum, made orthogonal before it is applied, for weights of two dimensions or more

        m ← μ m + (1 − μ) g      M = (1 − μ) g + μ m = U Σ Vᵀ      θ ← (1 − η λ) θ − η · 0.2 √max(rows, columns) · U Vᵀ

    A plain gradient step follows a few dominant directions of a weight; with all singular values set to one the rare
    ones learn at the same pace. 0.2 √max gives the step the size of AdamW's (Liu et al. 2025, arXiv:2502.16982), so
    that one rate serves both. A convolution (O, I, kh, kw) counts as a matrix (O, I · kh · kw).
    """
    slots = ("momentum",)
    large = 0

    def __init__(self, parameters, momentum=0.95, decay=0.1):
        super().__init__(parameters, decay)
        flat = [name for name, value in parameters.items() if value.ndim < 2]
        if flat:
            raise ValueError(f"Muon is for matrices: {flat[0]} has {parameters[flat[0]].ndim} dimensions")
        self.momentum = momentum

    def update(self, value, gradient, rate, m):
        m += (1 - self.momentum) * (gradient - m)
        ahead = (gradient + self.momentum * (m - gradient)).reshape(len(value), -1)
        value *= 1 - rate * self.decay
        value -= (rate * 0.2 * math.sqrt(max(ahead.shape))) * orthogonal(ahead).reshape(value.shape)


POLYNOMIAL = 3.4445, -4.7750, 2.0315       # a s + b s³ + c s⁵, repeated, brings 0 < s ≤ 1 near 1: between 0.7 and 1.2


def orthogonal(matrix, steps=5):
    """M = U Σ Vᵀ → about U Vᵀ, by Newton–Schulz steps: matrix products alone      (rows, columns) → the same, float32

        X ← q X,  q = a + b A + c A²,  A = X Xᵀ          X = M / ‖M‖ at first, the wide way round so that A is small

    All q are polynomials of the first A, so they commute, and X itself is needed at the end alone: P ← q P, A ← q A q.
    """
    a, b, c = POLYNOMIAL
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix / max(float(np.linalg.norm(matrix)), 1e-7)
    wide = np.ascontiguousarray(x.T) if tall else x
    gram = kernels.linear(wide, wide)                    # linear(x, w) is x wᵀ; A, q and P are symmetric
    product = np.eye(len(gram), dtype=np.float32)
    for step in range(steps):
        q = b * gram + c * kernels.linear(gram, gram)
        q.reshape(-1)[::len(q) + 1] += a
        product = kernels.linear(q, product) if step else q
        if step < steps - 1:                             # the last A is not needed
            gram = kernels.linear(kernels.linear(q, gram), q)
    return kernels.linear(x, product) if tall else kernels.linear(product, np.ascontiguousarray(x.T))


class Together:
    """Several optimisers as one, each with parameters of its own: Muon for matrices, AdamW for the rest"""
    def __init__(self, *optimizers):
        self.optimizers = optimizers
        self.parameters = {name: value for each in optimizers for name, value in each.parameters.items()}
        self.memory = {name: value for each in optimizers for name, value in each.memory.items()}

    @property
    def steps(self):
        return self.optimizers[0].steps

    @steps.setter
    def steps(self, steps):
        for each in self.optimizers:
            each.steps = steps

    def step(self, gradients, rate):
        for each in self.optimizers:
            each.step({name: value for name, value in gradients.items() if name in each.parameters}, rate)


def muon_and_adamw(parameters, plain=()):
    """Muon for matrices and convolutions; AdamW without decay for vectors, and where a name holds one of the words in `plain`

    Those are best the tables of embeddings and the layers next to pixels or latents (Jordan et al. 2024).
    """
    matrices = {name: value for name, value in parameters.items()
                if value.ndim >= 2 and not any(word in name for word in plain)}
    others = {name: value for name, value in parameters.items() if name not in matrices}
    return Together(Muon(matrices, decay=0.01), AdamW(others, betas=(0.9, 0.95), decay=0.0))
