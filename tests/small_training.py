"""A training that takes no time, for tests of what happens around it."""
import numpy as np

from npdiffusion import kernels
from npdiffusion.training import loop, optimizers
from npdiffusion.training.averages import Average


def small(seed=0, **options):
    """The training of two layers to imitate another two; random numbers choose inputs and noise"""
    rng = np.random.default_rng(seed)
    first, second, *wanted = (rng.standard_normal((6, 6), dtype=np.float32) for _ in range(4))
    parameters = {"first.weight": first, "second.weight": second}

    def network(x, one, two):
        return kernels.linear(kernels.silu(kernels.linear(x, one)), two)

    def loss(number, rng):
        x = rng.standard_normal((8, 6), dtype=np.float32)
        noise = 0.01 * rng.standard_normal((8, 6), dtype=np.float32)
        return np.square(network(x, first, second) - network(x, *wanted) - noise).mean()
    return loop.Training(loss, optimizers.Adam(parameters), lambda step: 0.02, Average(parameters, 0.9), batches=2, **options)
