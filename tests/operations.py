"""What operations are tried on: shapes, numbers, and a comparison of compiled twins with the definitions in float64."""
import numpy as np

from npdiffusion.kernels import fast, reference
from tests.differences import agree

LIMIT = 1e-5                                             # largest error over largest value
CONVOLUTIONS = [                                         # image, (I, O), kernel, stride, padding
    ((2, 7, 9), (4, 33), 3, 1, (1, 1, 1, 1)),            # conv_in: few channels
    ((1, 9, 6), (64, 3), 3, 1, (1, 1, 1, 1)),            # conv_out: few outputs
    ((3, 9, 12), (20, 70), 3, 2, (1, 1, 1, 1)),          # down-sampling of the UNet
    ((2, 8, 5), (31, 32), 3, 2, (0, 1, 0, 1)),           # down-sampling of the VAE
    ((3, 5, 7), (48, 100), 1, 1, (0, 0, 0, 0)),
    ((1, 30, 29), (1, 17), 3, 1, (1, 1, 1, 1)),          # direct: one input, bands of rows, tiles that go on in the next row
    ((2, 11, 7), (16, 48), 5, 3, (2, 1, 0, 3)),          # rows of three phases, a panel that is half full
    ((2, 7, 8), (6, 10), 1, 2, (0, 0, 0, 0)),            # strides that leave out pixels
    ((1, 1, 1), (1, 1), 1, 1, (0, 0, 0, 0)),
    ((1, 6, 6), (2, 5), (2, 3), 2, (2, 0, 1, 3)),        # more zeros than needed, a kernel that is not square
    ((1, 24, 25), (320, 96), 3, 1, (1, 1, 1, 1)),        # several blocks of rows and of terms
    ((2, 9, 14), (64, 100), 3, 1, (1, 1, 1, 1)),         # Winograd: tiles beyond the edge, a panel that is not full
    ((1, 3, 3), (16, 16), 3, 1, (1, 1, 1, 1)),           # one tile
    ((3, 6, 5), (32, 48), 3, 1, (0, 2, 3, 0)),           # other paddings
]
PRODUCTS = [(1, 1, 1), (2, 320, 1280), (77, 96, 80), (231, 300, 70), (400, 7, 33)]           # rows, in, out
NORMS = [(1, 16, 16, 64, 32), (3, 7, 5, 96, 32), (2, 3, 1, 8, 4), (1, 1, 1, 6, 3), (1, 70, 33, 40, 8)]
ATTENTIONS = [                                           # N, T, S, heads, width, causal
    (2, 64, 77, 3, 40, False), (1, 1, 77, 2, 80, False), (1, 100, 33, 2, 64, False), (2, 70, 70, 1, 160, False),
    (1, 50, 300, 1, 512, False), (3, 9, 5, 2, 4, False), (1, 33, 257, 2, 13, False), (1, 40, 1, 2, 8, False),
    (2, 77, 77, 3, 64, True), (1, 200, 200, 2, 8, True), (1, 1, 1, 1, 1, True),
]


def values(*shape, seed=0, scale=1, mean=0):
    """Normal float32 numbers."""
    rng = np.random.default_rng([seed, *shape])
    return (rng.standard_normal(shape) * scale + mean).astype(np.float32)


def doubled(x):
    """float32 → float64, everything else unchanged"""
    return x.astype(np.float64) if isinstance(x, np.ndarray) and x.dtype == np.float32 else x


def error(y, exact):
    """Largest error over largest value."""
    assert y.shape == exact.shape
    return np.abs(y - exact).max() / np.abs(exact).max()


def assert_twin(name, *arguments, limit=LIMIT, **options):
    """The compiled twin gives what the definition gives in float64, in float32, and leaves its arguments alone."""
    exact = getattr(reference, name)(*map(doubled, arguments), **{k: doubled(v) for k, v in options.items()})
    given = [*arguments, *options.values()]
    before = [x.copy() if isinstance(x, np.ndarray) else x for x in given]
    y = getattr(fast, name)(*arguments, **options)
    assert y.dtype == np.float32
    agree("compiled twins", name, y, exact, limit, relative=True)
    for x, unchanged in zip(given, before):
        np.testing.assert_array_equal(x, unchanged)


def convolution(image, channels, kernel):
    """x, W and a bias for each image"""
    kernel = (kernel, kernel) if isinstance(kernel, int) else kernel
    inputs, outputs = channels
    return values(*image, inputs), values(outputs, inputs, *kernel), values(image[0], outputs)


def queries_keys_values(n, t, s, heads, width):
    """Scores with a standard deviation of 4, so that attention is far from uniform."""
    channels = heads * width
    return values(n, t, channels, scale=4), values(n, s, channels, seed=1), values(n, s, channels, seed=2)
