"""The tape: whole models against torch, NumPy between the operations, what is kept, and blocks that are computed again."""
import gc
import threading
import weakref

import numpy as np
import pytest
import torch

from npdiffusion import kernels
from npdiffusion.kernels.gradients import matrix
from npdiffusion.kernels.products import packing
from npdiffusion.models import layers
from npdiffusion.models.conditioning import Conditioning
from npdiffusion.models.parameters import modules, walk
from npdiffusion.training.gradient_checkpointing import checkpoint, checkpointed
from npdiffusion.training.precision import products_in_bfloat16
from npdiffusion.training.tape import Tape, parameters_of
from tests import references
from tests.differences import agree
from tests.operations import values
from tests.references import random, twin

LIMIT = 1.5e-5                                           # largest error over largest value, float32, of 40 layers and more

# ---- whole models


def unet_case():
    """(torch model, twin, f, arrays by which gradients are wanted, their function, g)"""
    theirs = references.torch_unet(**references.TINY_UNET)
    ours, t = twin(theirs), np.array([999, 41.625], np.float32)
    return (theirs, ours, lambda x, states: ours(x, t, states), [random(2, 9, 13, 4), random(2, 77, 24, seed=1)],
            lambda x, states: theirs(x.permute(0, 3, 1, 2), torch.tensor(t), states).sample.permute(0, 2, 3, 1))


def encoder_case():
    theirs = references.torch_vae(**references.TINY_VAE)
    ours = twin(theirs)
    return (theirs, ours, lambda x: np.concatenate(ours.encode(x), axis=-1), [np.tanh(random(1, 24, 40, 3))],
            lambda x: theirs.encode(x.permute(0, 3, 1, 2)).latent_dist.parameters.permute(0, 2, 3, 1))


def decoder_case():
    theirs = references.torch_vae(**references.TINY_VAE)
    ours = twin(theirs)
    return (theirs, ours, lambda z: ours.decode(z * ours.config.scaling_factor), [random(1, 6, 10, 4)],
            lambda z: theirs.decode(z.permute(0, 3, 1, 2)).sample.permute(0, 2, 3, 1))


def text_case():
    theirs = references.torch_text_encoder(**references.TINY_TEXT)
    ours, ids = twin(theirs), np.random.default_rng(0).integers(0, 600, (2, 77))
    return theirs, ours, lambda: ours(ids), [], lambda: theirs(torch.from_numpy(ids)).last_hidden_state


def by_tape(model, function, inputs, g):
    """→ ({name: gradient}, [gradient of each input], number of nodes)"""
    tape = Tape(parameters_of(model))
    variables = [tape.variable(x) for x in inputs]
    with tape:
        y = function(*variables)
    nodes = len(tape.nodes)
    return tape.backward(y, g), [tape.gradient(variable) for variable in variables], nodes


@pytest.mark.parametrize("case", [unet_case, encoder_case, decoder_case, text_case],
                         ids=["UNet", "encoder", "decoder", "text encoder"])
def test_gradients_of_whole_models_match_autograd(each_backend, case, request):
    """On the scale of their layer: gradients of key biases are 0, and what is left of them is rounding over rounding."""
    what = request.node.callspec.id
    theirs, ours, function, inputs, reference = case()
    theirs.double().requires_grad_(True)
    tensors = [torch.from_numpy(x.astype(np.float64)).requires_grad_() for x in inputs]
    expected_y = reference(*tensors)
    g = random(*expected_y.shape, seed=5)
    expected_y.backward(torch.from_numpy(g.astype(np.float64)))
    found, of_inputs, _ = by_tape(ours, function, inputs, g)
    expected = {name.removeprefix("text_model."): each.grad.numpy() for name, each in theirs.named_parameters()
                if each.grad is not None}
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        layer = name.rpartition(".")[0]
        scale = max(np.abs(each).max() for other, each in expected.items() if other.rpartition(".")[0] == layer)
        agree("gradients of models", f"{what}, {name}", gradient / scale, expected[name].reshape(gradient.shape) / scale, LIMIT)
    for x, tensor in zip(of_inputs, tensors):
        agree("gradients of models", f"{what} by its input", x, tensor.grad.numpy(), LIMIT, relative=True)


@pytest.mark.parametrize("case", [unet_case, decoder_case, text_case])
def test_checkpointed_blocks_give_equal_gradients_from_fewer_nodes(on_numpy, case):
    _, ours, function, inputs, _ = case()
    names = [name for name, _, _ in walk(ours)]
    g = random(*function(*inputs).shape, seed=5)
    expected, expected_of_inputs, many = by_tape(ours, function, inputs, g)
    checkpoint(ours)
    assert [name for name, _, _ in walk(ours)] == names
    found, of_inputs, few = by_tape(ours, function, inputs, g)
    assert found.keys() == expected.keys() and few < many / 2
    for name, gradient in found.items():
        layer = name.rpartition(".")[0]
        scale = max(np.abs(each).max() for other, each in expected.items() if other.rpartition(".")[0] == layer)
        agree("gradients of models", f"{name}, checkpointed", gradient / scale, expected[name] / scale, LIMIT)
    for x, y in zip(of_inputs, expected_of_inputs):
        agree("gradients of models", "input, checkpointed", x, y, LIMIT, relative=True)


def test_a_checkpointed_block_passes_gradients_to_conditioning(on_numpy):
    _, ours, _, (x, states), _ = unet_case()
    block = ours.mid_block.attentions[0]
    x, results = random(2, 3, 4, 64), []
    for layer in (block, checkpointed(block)):
        tape = Tape()
        variable = tape.variable(states)
        with tape:
            y = layer(x, Conditioning(variable))
        tape.backward(y, np.ones(y.shape, np.float32))
        results.append(tape.gradient(variable))
    np.testing.assert_array_equal(*results)
    assert np.abs(results[0]).max() > 0


def test_a_checkpointed_block_outside_a_tape_is_the_block(on_numpy):
    _, ours, _, _, _ = decoder_case()
    block, x = ours.decoder.mid_block.resnets[0], random(1, 3, 4, 32)
    np.testing.assert_array_equal(checkpointed(block)(x), block(x))
    assert checkpointed(block).conv1 is block.conv1


# ---- what is recorded, and what is kept

def dense(inputs=6, outputs=5):
    layer = layers.Linear(inputs, outputs)
    layer.weight[:], layer.bias[:] = values(outputs, inputs), values(outputs)
    return layer


def test_inference_finds_operations_as_they_are(on_numpy):
    plain = kernels.linear
    with Tape():
        assert kernels.linear is not plain
    assert kernels.linear is plain


def test_other_threads_are_not_recorded(on_numpy):
    found, plain = [], kernels.linear
    with Tape():
        thread = threading.Thread(target=lambda: found.append(kernels.linear))
        thread.start()
        thread.join()
    assert found == [plain]


def test_watches_see_plain_arrays_while_a_tape_records(on_numpy):
    layer, seen = dense(), []
    tape = Tape(parameters_of(layer))
    with tape, kernels.watched(lambda name, arguments, result: seen.append((name, arguments["x"], result))):
        y = layer(tape.variable(values(2, 6)))
    (name, x, result), = seen
    assert name == "linear" and type(x) is np.ndarray and result is y.value


def test_a_frozen_product_keeps_no_input(on_numpy):
    layer, tape = dense(), Tape()
    scale = tape.variable(np.ones(6, np.float32))
    with tape:
        x = scale + values(2, 6)
        kept = weakref.ref(x.value)
        y = layer(x)
        del x
        gc.collect()
        assert kept() is None
    tape.backward(y.sum())
    np.testing.assert_allclose(tape.gradient(scale), 2 * layer.weight.sum(axis=0), rtol=1e-6)


def test_memory_falls_while_walking_back(on_numpy):
    layer, alive = dense(6, 6), []
    tape = Tape(parameters_of(layer))
    with tape:
        x, kept = tape.variable(values(2, 6)), []
        for _ in range(4):
            x = layer(x)
            kept.append(weakref.ref(x.value))
        loss = x.sum()
        del x
    first = tape.nodes[0]
    pull = first.pull
    first.pull = lambda g: alive.append([each() is not None for each in kept]) or pull(g)
    assert [each() is not None for each in kept] == [True, True, True, False]       # what later layers were given
    tape.backward(loss)
    assert alive == [[False] * 4] and not tape.nodes


def test_a_tape_is_printed_with_what_it_keeps(on_numpy):
    layer = dense()
    tape = Tape(parameters_of(layer))
    with tape:
        kernels.silu(layer(values(2, 6))).sum()
    assert [line.split() for line in str(tape).splitlines()] == [
        ["0", "linear", "(2,", "5)", "x"], ["1", "silu", "(2,", "5)", "x"], ["2", "sum", "()"]]


def test_what_needs_no_gradient_makes_no_node(on_numpy):
    layer, tape = dense(), Tape()
    with tape:
        y = np.square(layer(values(2, 6)) - 1).mean()
    assert not tape.nodes
    assert float(y) == pytest.approx(np.square(layer(values(2, 6)) - 1).mean())
    np.testing.assert_array_equal(np.asarray(y), y.value)


def test_a_parameter_is_found_beside_what_needs_no_gradient(on_numpy):
    """A bias that is added to a frozen layer's result, outside of any operation"""
    layer, bias = dense(), values(5, seed=3)
    tape = Tape({"bias": bias})
    with tape:
        loss = (layer(values(2, 6)) + bias).sum()
    np.testing.assert_array_equal(tape.backward(loss)["bias"], np.full(5, 2, np.float32))


def test_gradients_of_a_parameter_that_is_used_twice_are_summed(on_numpy):
    layer, x = dense(6, 6), values(3, 6)
    tape = Tape(parameters_of(layer))
    with tape:
        loss = layer(layer(x)).sum()
    found = tape.backward(loss)
    tensors = {name: torch.tensor(each, requires_grad=True) for name, each in parameters_of(layer).items()}
    y = torch.from_numpy(x)
    for _ in range(2):
        y = torch.nn.functional.linear(y, tensors["weight"], tensors["bias"])
    y.sum().backward()
    for name, tensor in tensors.items():
        agree("gradients", "a layer that is used twice", found[name], tensor.grad.numpy(), LIMIT, relative=True)


def test_gradients_are_arrays_of_their_own_and_a_tape_is_used_again(on_numpy):
    layer, residual = dense(), values(2, 5, seed=4)
    tape = Tape({**parameters_of(layer), "residual": residual})
    results = []
    for _ in range(2):
        with tape:
            loss = kernels.linear(values(2, 6), layer.weight, layer.bias, residual).sum()
        results.append(tape.backward(loss))
        for gradient in results[-1].values():
            gradient *= 1                                # may be written to
    for name, gradient in results[0].items():
        np.testing.assert_array_equal(gradient, results[1][name])
        assert not np.shares_memory(gradient, results[1][name])


def test_a_packed_weight_is_a_parameter_like_an_array():
    layer = dense(40, 50)
    weight, x = layer.weight, values(3, 40)
    found = []
    before = kernels.backend()
    kernels.use_backend("numba")
    try:
        for packed in (False, True):
            if packed:
                layer.prepare("float32")
            tape = Tape(parameters_of(layer))
            with tape:
                loss = np.square(layer(x)).mean()
            found.append(tape.backward(loss)["weight"])
    finally:
        kernels.use_backend(before)
    assert layer.weight is not weight
    np.testing.assert_array_equal(*found)


def test_an_array_is_packed_once_for_both_ways_and_anew_for_the_next_step(monkeypatch):
    x, matrix, kernel, count = values(2, 6, 5, 8), values(16, 8), values(20, 16, 3, 3), []
    pack = packing.Packed.__init__
    monkeypatch.setattr(packing.Packed, "__init__", lambda self, *arguments: count.append(1) or pack(self, *arguments))
    tape = Tape({"matrix": matrix, "kernel": kernel})
    gradients = []
    for step in (1, 2):
        with tape:
            given = tape.variable(x)
            loss = kernels.conv2d(kernels.linear(given, matrix), kernel, padding=(1, 1, 1, 1)).sum()
        gradients.append(tape.backward(loss))
        assert len(count) == 2 * step
        matrix *= 2
    agree("tape", "gradients after a weight has changed", 2 * gradients[0]["kernel"], gradients[1]["kernel"], LIMIT,
          relative=True)


def test_a_parameter_on_which_the_loss_does_not_depend_has_no_gradient(on_numpy):
    used, unused = dense(), dense()
    tape = Tape({"used": used.weight, "unused": unused.weight})
    with tape:
        loss = used(values(2, 6)).sum()
    assert tape.backward(loss).keys() == {"used"}
    with tape, pytest.raises(ValueError, match="nothing to walk back to"):
        tape.backward(kernels.silu(values(2)))


def test_a_tape_is_walked_back_once(on_numpy):
    tape = Tape()
    loss = tape.variable(values(3)).sum()
    tape.backward(loss)
    with pytest.raises(ValueError, match="walked back before"):
        tape.backward(loss)


def test_an_exception_empties_the_tape(on_numpy):
    layer = dense()
    tape = Tape(parameters_of(layer))
    with pytest.raises(LookupError), tape:
        layer(values(2, 6))
        raise LookupError
    assert not tape.nodes
    assert kernels.linear is kernels._module("reference").linear


def test_a_variable_is_not_taken_for_an_array_outside_its_tape(on_numpy):
    tape = Tape()
    x = tape.variable(values(2, 3))
    with pytest.raises(TypeError, match="lose its gradient"):
        np.asarray(x)
    with pytest.raises(ValueError, match="another tape"):
        Tape().node(x)


def test_products_in_bfloat16_give_gradients_of_the_float32_weights(each_backend):
    _, ours, function, inputs, _ = unet_case()
    for _, layer in modules(ours):
        if hasattr(layer, "prepare"):
            layer.weight = matrix(layer.weight)          # as in training: arrays, packed when they are used
    weights = parameters_of(ours)
    g = random(*function(*inputs).shape, seed=5)
    expected, _, _ = by_tape(ours, function, inputs, g)
    tape = Tape(weights)
    with tape, products_in_bfloat16(ours):
        y = function(*inputs)
    found = tape.backward(y, g)
    assert found.keys() == expected.keys()
    assert all(parameters_of(ours)[name] is weight and found[name].dtype == np.float32 for name, weight in weights.items())
    length = np.sqrt(sum(np.sum(each ** 2) for each in expected.values()))
    difference = np.sqrt(sum(np.sum((found[name] - each) ** 2) for name, each in expected.items()))
    assert 1e-4 < difference / length < 0.05


# ---- NumPy between the operations: each against torch

A, B = values(3, 4, 5, seed=1), values(4, 1, seed=2)
POSITIVE = np.abs(A) + 0.5
BETWEEN = {
    "sum with a broadcast": (lambda a, b: a + b, lambda a, b: a + b),
    "difference": (lambda a, b: 1 - (b - a) + 2, lambda a, b: 1 - (b - a) + 2),
    "product": (lambda a, b: 0.5 * a * b, lambda a, b: 0.5 * a * b),
    "quotient": (lambda a, b: b / (a * a + 1), lambda a, b: b / (a * a + 1)),
    "power": (lambda a, b: (a * a + 1) ** 1.5 - -b, lambda a, b: (a * a + 1) ** 1.5 + b),
    "exponentials": (lambda a, b: np.exp(a) + np.expm1(b) + np.tanh(a), lambda a, b: a.exp() + b.expm1() + a.tanh()),
    "logarithms": (lambda a, b: np.log(a * a + 1) + np.log1p(b * b), lambda a, b: (a * a + 1).log() + (b * b).log1p()),
    "logaddexp": (np.logaddexp, torch.logaddexp),
    "roots and squares": (lambda a, b: np.sqrt(np.square(a) + 1) + b, lambda a, b: (a.square() + 1).sqrt() + b),
    "waves": (lambda a, b: np.sin(a) * np.cos(b), lambda a, b: a.sin() * b.cos()),
    "extremes": (lambda a, b: np.maximum(a, b) + np.minimum(a, 0.3), lambda a, b: torch.maximum(a, b) + a.clamp(max=0.3)),
    "absolute": (lambda a, b: np.abs(a) * b, lambda a, b: a.abs() * b),
    "clip": (lambda a, b: np.clip(a, -1, 0.5) * b, lambda a, b: a.clamp(-1, 0.5) * b),
    "where": (lambda a, b: np.where(a > b, a * a, b), lambda a, b: torch.where(a > b, a * a, b)),
    "matrix product": (lambda a, b: a @ (b * np.ones((4, 5), np.float32)).T, lambda a, b: a @ (b * torch.ones(4, 5)).T),
    "sums over axes": (lambda a, b: a.sum(axis=(0, 2)) + np.sum(b, axis=1) + np.mean(a, -1, keepdims=True).sum() + a.mean(),
                       lambda a, b: a.sum((0, 2)) + b.sum(1) + a.mean(-1).sum() + a.mean()),
    "concatenation": (
        lambda a, b: np.concatenate([a, b + a, a[..., :2]], axis=-1),
        lambda a, b: torch.cat([a, b + a, a[..., :2]], -1)),
    "stack": (lambda a, b: np.stack([a, a * b], axis=1), lambda a, b: torch.stack([a, a * b], 1)),
    "split": (lambda a, b: np.split(a, 2, axis=1)[1] * np.split(b, [1, 3])[1], lambda a, b: a.split(2, 1)[1] * b[1:3]),
    "shapes": (lambda a, b: np.transpose(a, (2, 0, 1)).reshape(5, -1).swapaxes(0, 1) + b.T.reshape(-1)[0],
               lambda a, b: a.permute(2, 0, 1).reshape(5, -1).T + b.reshape(-1)[0]),
    "axes of length 1": (lambda a, b: np.broadcast_to(np.expand_dims(np.squeeze(b, 1), 0), (3, 4))[..., None] * a,
                         lambda a, b: b.squeeze(1).expand(3, 4)[..., None] * a),
    "slices": (lambda a, b: a[1:, ::2, -1] + b[0], lambda a, b: a[1:, ::2, -1] + b[0]),
    "rows twice": (lambda a, b: a[np.array([0, 2, 0]), [1, 3, 1]] * b[2], lambda a, b: a[[0, 2, 0], [1, 3, 1]] * b[2]),
    "mask": (lambda a, b: a[A > 0] * b[0], lambda a, b: a[torch.from_numpy(A > 0)] * b[0]),
}


@pytest.mark.parametrize("what", BETWEEN)
def test_numpy_between_the_operations_matches_torch(what):
    ours, theirs = BETWEEN[what]
    tensors = [torch.tensor(x, requires_grad=True) for x in (A, B)]
    expected = theirs(*tensors)
    g = values(*expected.shape, seed=6) if expected.ndim else np.float32(1.5)
    expected.backward(torch.from_numpy(np.asarray(g)))
    tape = Tape()
    variables = [tape.variable(x) for x in (A, B)]
    y = ours(*variables)
    assert y.dtype == np.float32
    agree("gradients", f"NumPy: {what}, forwards", y.value, expected.detach().numpy(), LIMIT, relative=True)
    tape.backward(y, g)
    for variable, tensor in zip(variables, tensors):
        agree("gradients", f"NumPy: {what}", tape.gradient(variable), tensor.grad.numpy(), LIMIT, relative=True)


def test_assignment_into_a_variable_passes_both_gradients_on(on_numpy):
    """As a learnt word takes the place of a token's row"""
    a, vector, g = values(2, 4, 3), values(3, seed=1), values(2, 4, 3, seed=2)
    tape = Tape()
    x, word = tape.variable(a), tape.variable(vector)
    y = x + 0
    y[:, 1] = word
    np.testing.assert_array_equal(y.value[:, 1], [vector, vector])
    np.testing.assert_array_equal(x.value, a)
    tape.backward(y, g)
    np.testing.assert_array_equal(tape.gradient(word), g[:, 1].sum(axis=0))
    expected = g.copy()
    expected[:, 1] = 0
    np.testing.assert_array_equal(tape.gradient(x), expected)


def test_in_place_arithmetic_makes_another_variable(on_numpy):
    tape = Tape()
    x = tape.variable(values(3))
    y = before = x * 2
    y += 1
    np.testing.assert_array_equal(before.value, 2 * x.value)
    np.testing.assert_array_equal(y.value, before.value + 1)
    plain = values(3)
    with pytest.raises(TypeError, match="no gradient is known for"):
        plain += x


@pytest.mark.parametrize("call", [np.arctan, np.cumsum, np.multiply.reduce, lambda x: 2 ** x],
                         ids=["arctan", "cumsum", "reduce", "exponent"])
def test_numpy_without_a_rule_is_refused(on_numpy, call):
    with pytest.raises(TypeError, match="gradient"):
        call(Tape().variable(values(3)))


def test_numpy_without_slopes_gives_plain_arrays(on_numpy):
    x = Tape().variable(values(3))
    assert type(x > 0) is np.ndarray and np.isfinite(x).all() and np.argmax(x) == np.argmax(x.value)
    assert np.shape(x) == (3,) and len(x) == 3 and x.ndim == 1 and x.size == 3


def test_a_learnt_word_gets_a_gradient_through_the_text_encoder(on_numpy):
    _, ours, _, _, _ = text_case()
    ids, vector = np.zeros((1, 9), np.int64), values(24)
    tape = Tape({"word": vector})
    with tape:
        y = ours(ids, vectors=[(3, vector)])
    found = tape.backward(y, np.ones(y.shape, np.float32))["word"]
    assert np.abs(found).max() > 1e-3
