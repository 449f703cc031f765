"""The gradient of every operation: against torch's autograd in float64, against finite differences, as a transposed map."""
import numpy as np
import pytest
import torch

from npdiffusion import kernels
from npdiffusion.kernels import fast, fast_gradients, gradients, reference
from npdiffusion.kernels.backward import winograd_weights
from npdiffusion.kernels.backward.direct_weights import direct_gradient
from npdiffusion.kernels.backward.transposed import transposed
from npdiffusion.kernels.backward.weights import convolution_gradient
from npdiffusion.kernels.products.packing import Packed
from npdiffusion.kernels.products.winograd_transforms import (
    KERNEL,
    PATCH,
    output_gradient,
    output_transform,
    weight_gradient,
    weight_transform,
)
from npdiffusion.training.tape import Tape
from tests.differences import agree
from tests.operations import ATTENTIONS, CONVOLUTIONS, LIMIT, NORMS, PRODUCTS, convolution, queries_keys_values, values

F = torch.nn.functional


def torch_conv2d(x, weight, bias=None, stride=1, padding=(0, 0, 0, 0), residual=None):
    top, bottom, left, right = padding
    y = F.conv2d(F.pad(x.permute(0, 3, 1, 2), (left, right, top, bottom)), weight, None, stride).permute(0, 2, 3, 1)
    y = y if bias is None else y + (bias if bias.ndim == 1 else bias[:, None, None])
    return y if residual is None else y + residual


def torch_geglu(x, weight, bias):
    value, gate = F.linear(x, weight, bias).chunk(2, dim=-1)
    return value * F.gelu(gate)


def torch_group_norm(x, weight, bias, groups, eps):
    return F.group_norm(x.permute(0, 3, 1, 2), groups, weight, bias, eps).permute(0, 2, 3, 1)


def torch_attention(q, k, v, heads, causal=False):
    q, k, v = (each.unflatten(-1, (heads, -1)).transpose(1, 2) for each in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2).flatten(2)


def torch_upsample(x, height, width):
    return F.interpolate(x.permute(0, 3, 1, 2), size=(height, width), mode="nearest").permute(0, 2, 3, 1)


TORCH = {
    "linear": lambda x, weight, bias=None, residual=None: F.linear(x, weight, bias) + (0 if residual is None else residual),
    "conv2d": torch_conv2d,
    "linear_geglu": torch_geglu,
    "group_norm": torch_group_norm,
    "group_norm_silu": lambda *arguments: F.silu(torch_group_norm(*arguments)),
    "layer_norm": lambda x, weight, bias, eps: F.layer_norm(x, weight.shape, weight, bias, eps),
    "silu": F.silu,
    "gelu": F.gelu,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": F.relu,
    "softmax": lambda x: x.softmax(dim=-1),
    "attention": torch_attention,
    "upsample_nearest": torch_upsample,
    "upsample_conv2d": lambda x, weight, bias, *size: torch_conv2d(torch_upsample(x, *size), weight, bias, 1, (1, 1, 1, 1)),
}
IMAGES = [((2, 5, 7), (32, 48), (10, 14)), ((1, 3, 5), (8, 8), (6, 10)), ((2, 5, 7), (6, 10), (9, 13)),
          ((1, 5, 7), (6, 10), (4, 5)), ((2, 6, 7), (5, 3), (12, 14))]


def cases():
    """(operation, arguments) at ragged shapes; arrays are what gradients are wanted for."""
    for rows, inputs, outputs in PRODUCTS:
        yield "linear", (values(rows, inputs), values(outputs, inputs), values(outputs), values(rows, outputs))
        yield "linear_geglu", (values(rows, inputs), values(2 * outputs, inputs), values(2 * outputs))
    yield "linear", (values(3, 5, 7, 40), values(50, 40))
    for image, channels, kernel, stride, padding in CONVOLUTIONS:
        x, weight, bias = convolution(image, channels, kernel)
        residual = values(*reference.conv2d(x, weight, None, stride, padding).shape, seed=1)
        yield "conv2d", (x, weight, bias, stride, padding, residual)
        yield "conv2d", (x, weight, bias[0], stride, padding)
    for image, channels, size in IMAGES:
        x, weight, bias = convolution(image, channels, 3)
        yield "upsample_nearest", (x, *size)
        yield "upsample_conv2d", (x, weight, bias[0], *size)
    for n, h, w, c, groups in NORMS:
        if h * w * c == 2 * groups:
            continue                     # two numbers are ±1 when normalised, whatever they were: rounding is all the slope
        x = values(n, h, w, c, mean=3) * np.linspace(0.1, 4, c, dtype=np.float32)
        yield "group_norm", (x, values(c), values(c, seed=1), groups, 1e-5)
        yield "group_norm_silu", (x, values(c), values(c, seed=1), groups, 1e-5)
    for shape in [(2, 77, 192), (3, 5), (1, 40, 320), (2, 2, 769)]:
        yield "layer_norm", (values(*shape, scale=3, mean=1), values(shape[-1]), values(shape[-1], seed=1), 1e-5)
    for name in ("silu", "gelu", "quick_gelu", "relu", "softmax"):
        yield name, (values(3, 1001, scale=3),)
    for n, t, s, heads, width, causal in ATTENTIONS:
        yield "attention", (*queries_keys_values(n, t, s, heads, width), heads, causal)


def large_cases():
    """Where kernels go block by block: several of rows, columns, pixels and keys."""
    yield "linear", (values(700, 300), values(500, 300), values(500))
    yield "conv2d", (values(2, 3, 200, 20), values(150, 20, 3, 3), values(150), 1, (1, 1, 1, 1))
    yield "conv2d", (values(1, 5, 400, 5), values(7, 5, 3, 3), values(7), 2, (1, 1, 1, 1))
    yield "conv2d", (values(3, 20, 17, 100), values(3, 100, 3, 3), values(3), 1, (1, 1, 1, 1))
    yield "group_norm_silu", (values(2, 40, 41, 64, mean=3), values(64), values(64, seed=1), 8, 1e-5)
    for name in ("group_norm", "group_norm_silu"):       # images enough for all threads
        yield name, (values(9, 12, 13, 32, mean=3), values(32), values(32, seed=1), 8, 1e-5)
    yield "layer_norm", (values(400, 320, mean=3), values(320), values(320, seed=1), 1e-5)
    yield "attention", (*queries_keys_values(1, 300, 400, 2, 40), 2, False)
    yield "attention", (*queries_keys_values(2, 301, 301, 1, 96), 1, True)


CASES, LARGE = [*cases()], [*large_cases()]
NAMES = [f"{name}-{'-'.join('x'.join(map(str, x.shape)) for x in arguments if isinstance(x, np.ndarray))}"
         for name, arguments in CASES + LARGE]


def by_tape(name, arguments, g, wanted):
    """Gradients by the arguments number `wanted`, of the backend in use."""
    tape = Tape()
    variables = {i: tape.variable(arguments[i]) for i in wanted}
    with tape:
        y = getattr(kernels, name)(*(variables.get(i, x) for i, x in enumerate(arguments)))
    tape.backward(y, g)
    return [tape.gradient(variables[i]) for i in wanted]


def by_torch(name, arguments, g):
    """The same of all arrays, in float64."""
    tensors = [torch.from_numpy(x.astype(np.float64)).requires_grad_() if isinstance(x, np.ndarray) else x for x in arguments]
    TORCH[name](*tensors).backward(torch.from_numpy(g.astype(np.float64)))
    return [each.grad.numpy() for each in tensors if isinstance(each, torch.Tensor)]


@pytest.mark.parametrize(("name", "arguments"), CASES + LARGE, ids=NAMES)
def test_gradients_match_autograd(each_backend, name, arguments):
    wanted = [i for i, x in enumerate(arguments) if isinstance(x, np.ndarray)]
    before = [np.copy(x) for x in arguments]
    g = values(*getattr(reference, name)(*arguments).shape, seed=7)
    unchanged = g.copy()
    expected = by_torch(name, arguments, g)
    together = by_tape(name, arguments, g, wanted)
    for i, found, exact in zip(wanted, together, expected):
        assert found.dtype == np.float32 and found.shape == arguments[i].shape
        if np.abs(exact).max() > 1e-6 * np.abs(g).max():               # a single key or group member has gradient 0
            agree("gradients", f"{name} by argument {i}", found, exact, LIMIT, relative=True)
        else:
            agree("gradients", f"{name} by argument {i}, which is 0", found, exact, LIMIT)
    for i, found in zip(wanted, together):
        alone, = by_tape(name, arguments, g, [i])
        agree("gradients", f"{name} by argument {i} alone", alone, found, LIMIT * max(1, np.abs(found).max()))
    np.testing.assert_array_equal(g, unchanged)
    for x, same in zip(arguments, before):
        np.testing.assert_array_equal(x, same)


@pytest.mark.parametrize(("name", "arguments"), CASES, ids=NAMES[:len(CASES)])
def test_gradients_match_finite_differences(on_numpy, name, arguments):
    """⟨∇L, v⟩ = (L(x + h v) − L(x − h v)) / 2h in float64, for L = ⟨g, f(x)⟩ and a direction v"""
    operation, h = getattr(reference, name), 1e-6
    arguments = [x.astype(np.float64) if isinstance(x, np.ndarray) else x for x in arguments]
    wanted = [i for i, x in enumerate(arguments) if isinstance(x, np.ndarray)]
    g = values(*operation(*arguments).shape, seed=7).astype(np.float64)
    for i, gradient in zip(wanted, by_tape(name, arguments, g, wanted)):
        v = values(*arguments[i].shape, seed=8).astype(np.float64)
        there, back = ([*arguments[:i], arguments[i] + step * v, *arguments[i + 1:]] for step in (h, -h))
        slope = np.sum(g * (operation(*there) - operation(*back))) / (2 * h)
        size = np.sqrt(np.sum(gradient ** 2) * np.sum(v ** 2) / v.size) + np.sqrt(g.size)
        agree("gradients", f"{name} by argument {i}, finite differences", np.sum(gradient * v) / size, slope / size, 1e-6)


@pytest.mark.parametrize(("name", "arguments"), [
    (name, arguments) for name, arguments in CASES if name in ("linear", "conv2d", "upsample_nearest", "upsample_conv2d")])
def test_gradient_of_a_linear_operation_is_the_transposed_map(on_numpy, name, arguments):
    """⟨A x, y⟩ = ⟨x, Aᵀ y⟩, where A is the operation without what it adds"""
    x, rest = arguments[0].astype(np.float64), [*arguments[1:]]
    if name != "upsample_nearest":
        rest[1:2] = [np.zeros(len(rest[0]))]
        if name == "conv2d":
            rest = rest[:4]
        elif name == "linear":
            rest = rest[:2]
    y = getattr(reference, name)(x, *rest)
    other = values(*y.shape, seed=9).astype(np.float64)
    transposed, = by_tape(name, [x, *rest], other, [0])
    agree("gradients", f"{name} transposed", np.sum(x * transposed), np.sum(y * other), 1e-11 * np.abs(y).sum())


def test_gradient_of_the_time_embedding_matches_autograd(each_backend):
    t, g = np.array([0.5, 3, 41], np.float32), values(3, 10)
    for flip in (True, False):
        tensor = torch.tensor(t, dtype=torch.float64, requires_grad=True)
        angles = tensor[:, None] * torch.exp(-np.log(10000) * torch.arange(5, dtype=torch.float64) / 4)
        parts = (angles.cos(), angles.sin()) if flip else (angles.sin(), angles.cos())
        torch.cat(parts, dim=-1).backward(torch.from_numpy(g.astype(np.float64)))
        found, = by_tape("timestep_embedding", [t, 10, flip, 1], g, [0])
        agree("gradients", "timestep_embedding", found, tensor.grad.numpy(), LIMIT, relative=True)


def test_gradient_of_a_table_is_summed_where_a_row_stands_twice(each_backend):
    ids, weight, g = np.array([[1, 4, 1], [0, 1, 4]]), values(6, 3), values(2, 3, 3)
    table = torch.tensor(weight, requires_grad=True)
    F.embedding(torch.from_numpy(ids), table).backward(torch.from_numpy(g))
    found, = by_tape("embedding", [ids, weight], g, [1])
    agree("gradients", "embedding", found, table.grad.numpy(), LIMIT, relative=True)
    assert not found[[2, 3, 5]].any()


def test_gradient_by_a_bias_of_all_keys_is_zero(each_backend):
    """softmax doesn't see what all scores have in common"""
    q, k, v = queries_keys_values(1, 20, 30, 2, 8)
    _, dk, _ = by_tape("attention", [q, k, v, 2], values(1, 20, 16, seed=3), [0, 1, 2])
    assert np.abs(dk.sum(axis=1)).max() < 1e-5 * np.abs(dk).max() and np.abs(dk).max() > 0.1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(1, 1), (33, 7), (64, 320), (4, 320, 3, 3), (50, 3, 2, 3), (96, 20, 1, 1), (64, 64, 3, 3)])
def test_a_transposed_weight_has_the_same_numbers(shape, dtype):
    weight = values(*shape)
    packed = fast.pack_linear(weight, dtype) if len(shape) == 2 else fast.pack_conv2d(weight, dtype)
    expected = gradients.matrix(packed).T if len(shape) == 2 else gradients.flipped(gradients.matrix(packed))
    turned = transposed(packed)
    assert turned.dtype == dtype and turned.shape == expected.shape
    np.testing.assert_array_equal(gradients.matrix(turned), expected)
    np.testing.assert_array_equal(turned.panels, Packed(gradients.stored(turned), dtype).panels)       # zeros beyond the edges


@pytest.mark.parametrize(("name", "limit"), [("linear", LIMIT), ("conv2d", LIMIT), ("winograd", 0.02)])
def test_gradients_by_inputs_of_bfloat16_products_match_their_definition(name, limit):
    """Winograd's way rounds elsewhere, see test_bfloat16.py."""
    if name == "linear":
        g, packed, rest = values(70, 50), fast.pack_linear(values(50, 33), "bfloat16"), ()
    else:
        channels = (64, 64) if name == "winograd" else (50, 33)
        g, packed = values(2, 9, 7, channels[0]), fast.pack_conv2d(values(*channels, 3, 3), "bfloat16")
        rest = (2, 9, 7, channels[1]), 1, (1, 1, 1, 1)
        name = "conv2d"
    found = getattr(fast_gradients, name).x(g, packed, *rest)
    agree("gradients", f"{name} in bfloat16", found, getattr(gradients, name).x(g, packed, *rest), limit, relative=True)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("image", "kernel", "stride", "padding"), [
    ((9, 12), (3, 3), 2, (1, 1, 1, 1)), ((8, 5), (3, 3), 2, (0, 1, 0, 1)), ((7, 7), (1, 1), 2, (0, 0, 0, 0)),
    ((11, 10), (2, 5), 3, (2, 0, 1, 3)), ((5, 4), (1, 2), 4, (3, 0, 0, 5)), ((6, 6), (3, 3), 2, (4, 0, 5, 2)),
    ((1, 2), (1, 1), 3, (0, 0, 0, 0))])
def test_the_parts_of_a_strided_convolution_s_gradient_make_the_whole(image, kernel, stride, padding, dtype):
    """Paddings beyond what the kernel needs, rows that nothing has seen, pairs of bfloat16 that two taps share."""
    for outputs in (50, 33):
        weight = fast.pack_conv2d(values(outputs, 20, *kernel), dtype)
        size = [(length + sum(around) - taps) // stride + 1
                for length, around, taps in zip(image, (padding[:2], padding[2:]), kernel)]
        arguments = values(2, *size, outputs), weight, (2, *image, 20), stride, padding
        agree("gradients", f"conv2d of stride {stride} in {dtype}", fast_gradients.conv2d.x(*arguments),
              gradients.conv2d.x(*arguments), LIMIT, relative=True)


@pytest.mark.parametrize(("way", "image", "channels", "kernel", "stride", "padding"), [
    ("direct", (3, 28, 28), (16, 16), (3, 3), 1, (1, 1, 1, 1)),      # a narrow panel that is full, whole tiles
    ("direct", (2, 30, 41), (1, 13), (3, 3), 1, (1, 1, 1, 1)),       # one input; lanes beyond the outputs
    ("direct", (2, 29, 24), (7, 50), (3, 3), 2, (1, 1, 1, 1)),       # two panels, a small tile, rows of two phases
    ("direct", (1, 40, 37), (5, 33), (2, 4), 3, (2, 0, 1, 3)),       # zeros on one side only
    ("direct", (2, 9, 700), (3, 1), (3, 3), 1, (0, 1, 0, 1)),        # a row is a band
    ("direct", (5, 20, 20), (48, 16), (1, 1), 1, (0, 0, 0, 0)),
    ("Winograd", (2, 17, 14), (48, 96), (3, 3), 1, (1, 1, 1, 1)),    # tiles beyond the edge
    ("Winograd", (3, 16, 12), (80, 48), (3, 3), 1, (0, 2, 3, 0)),    # two blocks of inputs, a panel that is half full
    ("blocks", (6, 5, 4), (40, 33), (3, 3), 1, (1, 1, 1, 1)),        # small images
    ("blocks", (2, 12, 12), (100, 130), (3, 3), 1, (1, 1, 1, 1)),    # many channels, not whole vectors
    ("blocks", (3, 13, 12), (150, 100), (3, 3), 2, (0, 1, 0, 1)),
])
def test_gradients_of_weights_match_their_definition(way, image, channels, kernel, stride, padding):
    inputs, outputs = channels
    x, weight = values(*image, inputs), values(outputs, inputs, *kernel)
    g = values(*reference.conv2d(x, weight, None, stride, padding).shape, seed=1)
    is_direct = direct_gradient(g, x, kernel, stride, padding) is not None
    assert ("Winograd" if winograd_weights.suits(g, x, kernel, stride) else "direct" if is_direct else "blocks") == way
    expected = gradients.conv2d.weight(g.astype(np.float64), x.astype(np.float64), weight.shape, stride, padding)
    agree("gradients", f"conv2d by its weight, {way}", convolution_gradient(g, x, kernel, stride, padding), expected, LIMIT,
          relative=True)


def test_winograds_gradient_of_a_weight_is_the_same_group_by_group_and_of_an_enlarged_image(monkeypatch):
    x, weight = values(3, 13, 9, 64), values(96, 64, 3, 3)
    monkeypatch.setattr(winograd_weights, "GROUP", 36 * 96 * 20)
    for size in ((13, 9), (26, 18), (20, 21)):
        g = values(3, *size, 96, seed=1)
        found = fast_gradients.upsample_conv2d.weight(g, x, weight)
        expected = gradients.upsample_conv2d.weight(g.astype(np.float64), x.astype(np.float64), weight.shape)
        agree("gradients", "upsample_conv2d by its weight, Winograd", found, expected, LIMIT, relative=True)


@pytest.mark.parametrize(("there", "back", "inputs"), [(output_transform, output_gradient, PATCH),
                                                       (weight_transform, weight_gradient, KERNEL)])
def test_winograds_transforms_of_gradients_are_the_transposed_ones(there, back, inputs):
    matrix = np.array(there(np.eye(inputs)))
    agree("gradients", "Winograd's transforms", np.array(back(np.eye(len(matrix)))), matrix.T, 1e-15)


@pytest.mark.parametrize("shape", [(3,), (7, 5001), (4, 100, 100)])
@pytest.mark.parametrize("owned", [False, True])
def test_the_compiled_sum_of_two_gradients_is_numpys(shape, owned):
    a, b = values(*shape), values(*shape, seed=1)
    for one, other in ((a.copy(), b), (np.repeat(a, 2, axis=-1)[..., ::2], b), (a.copy(), np.broadcast_to(b[..., :1], shape)),
                       (a.astype(np.float64), b)):
        expected, untouched = one + other, other.copy()
        found = fast_gradients.total(one, other, owned)
        assert (found == expected).all() and found.dtype == expected.dtype
        assert (found is one) == owned and (other == untouched).all()


@pytest.mark.parametrize("name", kernels.OPERATIONS)
def test_every_operation_has_rules_on_both_backends(each_backend, name):
    rules, plain = kernels.gradient(name), getattr(gradients, name)
    assert rules.__name__ == name and plain.__doc__
    assert issubclass(rules, plain)
