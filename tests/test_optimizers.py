"""What moves parameters equals torch's optimisers, diffusers' schedules and averages, step for step."""
import numpy as np
import pytest

from npdiffusion.kernels import fast_steps, steps
from npdiffusion.training import optimizers, rates
from npdiffusion.training.averages import Average
from npdiffusion.training.clipping import accumulated, clipped, norm
from tests.differences import agree

SHAPES = {"a": (5, 7), "b": (7, 3), "c": (11,)}
STEPS = 12


def numbers(seed, shapes=SHAPES):
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}


def both(make, optimizer, shapes=SHAPES, rate=0.02):
    """Parameters after STEPS steps with the same gradients: ours, and torch's"""
    torch = pytest.importorskip("torch")
    values = numbers(0, shapes)
    tensors = {name: torch.nn.Parameter(torch.from_numpy(value.copy())) for name, value in values.items()}
    mine, theirs = make(values), optimizer(torch)(list(tensors.values()))
    for step in range(STEPS):
        gradients, lr = numbers(step + 1, shapes), rate / (step + 1)
        mine.step(gradients, lr)
        for name, tensor in tensors.items():
            tensor.grad = torch.from_numpy(gradients[name].copy())
        theirs.param_groups[0]["lr"] = lr
        theirs.step()
    return values, {name: tensor.detach().numpy() for name, tensor in tensors.items()}


@pytest.mark.parametrize(("what", "make", "optimizer"), [
    ("SGD", optimizers.SGD, lambda torch: torch.optim.SGD),
    ("SGD, momentum and decay", lambda p: optimizers.SGD(p, 0.9, decay=0.1),
     lambda torch: lambda p: torch.optim.SGD(p, momentum=0.9, weight_decay=0.1)),
    ("SGD, Nesterov", lambda p: optimizers.SGD(p, 0.9, nesterov=True),
     lambda torch: lambda p: torch.optim.SGD(p, momentum=0.9, nesterov=True)),
    ("Adam", optimizers.Adam, lambda torch: torch.optim.Adam),
    ("Adam, decay", lambda p: optimizers.Adam(p, (0.8, 0.95), decay=0.1),
     lambda torch: lambda p: torch.optim.Adam(p, betas=(0.8, 0.95), weight_decay=0.1)),
    ("AdamW", optimizers.AdamW, lambda torch: torch.optim.AdamW),
])
def test_an_optimiser_takes_the_steps_of_torchs(each_backend, what, make, optimizer):
    found, expected = both(make, optimizer)
    for name in SHAPES:
        assert found[name].dtype == np.float32
        agree("optimisers", f"{what}, {STEPS} steps", found[name], expected[name], 1e-6)


@pytest.mark.parametrize("options", [{}, {"decay": 0.1}, {"decay": 0.1, "apart": True, "betas": (0.5, 0.9), "eps": 1e-3}])
@pytest.mark.parametrize("shape", [(1,), (5, 7), (8192, 3), (33, 1000, 2)])
def test_adams_compiled_twin_takes_the_same_step(shape, options):
    """One number, less than a vector, whole jobs, and more than a thread's"""
    value, gradient, mean, square = (numbers(seed, {"x": shape})["x"] for seed in range(4))
    square *= square
    exact = [x.astype(np.float64) for x in (value, gradient, mean, square)]
    untouched = gradient.copy()
    fast_steps.adam(value, gradient, mean, square, 3, 0.02, **options)
    steps.adam(*exact, 3, 0.02, **options)
    for name, found, expected in zip(("θ", "g", "m", "v"), (value, gradient, mean, square), exact):
        assert found.dtype == np.float32
        agree("optimisers", f"Adam's compiled step, {name}", found, expected, 1e-6, relative=True)
    assert (gradient == untouched).all()


def test_adams_compiled_twin_moves_views_and_other_types_by_the_definition():
    whole, gradient = numbers(0, {"x": (6, 8)})["x"], numbers(1, {"x": (4, 3)})["x"]
    view, plain, double = whole[1:5, ::3], whole[1:5, ::3].copy(), whole[1:5, ::3].astype(np.float64)
    outside = whole[:, 1::3].copy()
    for value in (view, plain, double):
        fast_steps.adam(value, gradient, np.zeros_like(value), np.zeros_like(value), 1, 0.02)
    agree("optimisers", "Adam's step of a view", view, plain, 1e-6)
    agree("optimisers", "Adam's step of a view", view, double, 1e-6)
    assert (whole[:, 1::3] == outside).all()


def test_muon_takes_the_steps_of_torchs_whose_products_are_rounded_to_bfloat16():
    """A step is rate · 0.2 √7 times a matrix whose entries torch knows to 8 bits."""
    matrices = {name: SHAPES[name] for name in ("a", "b")}
    found, expected = both(optimizers.Muon, lambda torch: lambda p: torch.optim.Muon(
        p, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"), matrices)
    for name in matrices:
        agree("optimisers", f"Muon, {STEPS} steps, torch's in bfloat16", found[name], expected[name], 1e-3)


@pytest.mark.parametrize("shape", [(6, 6), (4, 9), (9, 4)])
def test_newton_schulz_keeps_singular_vectors_and_brings_singular_values_near_one(shape):
    matrix = numbers(3, {"m": shape})["m"]
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    inside = u.T @ optimizers.orthogonal(matrix) @ vt.T
    assert np.abs(inside - np.diag(np.diag(inside))).max() < 1e-4
    large = s > 0.1 * s.max()
    assert (np.diag(inside)[large] > 0.65).all() and (np.diag(inside) < 1.25).all()


def test_muon_refuses_vectors_and_leaves_them_to_adamw():
    parameters = numbers(0)
    with pytest.raises(ValueError, match="c has 1 dimensions"):
        optimizers.Muon(parameters)
    pair = optimizers.muon_and_adamw(parameters, plain=("b",))
    assert [list(each.parameters) for each in pair.optimizers] == [["a"], ["b", "c"]]
    before = {name: value.copy() for name, value in parameters.items()}
    pair.step(numbers(1), 0.01)
    assert all((before[name] != parameters[name]).any() for name in SHAPES) and pair.steps == 1


@pytest.mark.parametrize("make", [lambda p: optimizers.SGD(p, 0.9), optimizers.Adam, optimizers.muon_and_adamw])
def test_an_optimiser_that_gets_memory_and_steps_goes_on_as_if_it_had_not_stopped(make):
    whole, parts = numbers(0), numbers(0)
    one, two = make(whole), make(parts)
    for step in range(6):
        one.step(numbers(step + 1), 0.01)
        two.step(numbers(step + 1), 0.01)
        if step == 2:
            kept, steps, two = {name: value.copy() for name, value in two.memory.items()}, two.steps, make(parts)
            two.steps = steps
            for name, value in two.memory.items():
                value[...] = kept[name]
    assert all((whole[name] == parts[name]).all() for name in SHAPES)


def test_an_optimiser_leaves_gradients_as_they_are():
    for make in (lambda p: optimizers.SGD(p, 0.9, decay=0.1), lambda p: optimizers.Adam(p, decay=0.1), optimizers.AdamW):
        gradients, untouched = numbers(1), numbers(1)
        make(numbers(0)).step(gradients, 0.1)
        assert all((gradients[name] == untouched[name]).all() for name in SHAPES)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_schedules_equal_those_of_diffusers(schedule):
    torch, optimization = pytest.importorskip("torch"), pytest.importorskip("diffusers.optimization")
    name = "constant_with_warmup" if schedule == "constant" else schedule
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    theirs = optimization.get_scheduler(name, optimizer, num_warmup_steps=5, num_training_steps=30)
    expected = []
    for _ in range(30):
        expected.append(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()
    found = [rates.rate(step, 0.5, 30, schedule, warm_up=5) for step in range(30)]
    agree("learning rates", f"{schedule}, 30 steps", found, expected, 1e-12)


def test_a_level_schedule_stays_up_for_two_thirds_then_falls_to_zero():
    found = [rates.rate(step, 1.0, 30, "level") for step in range(31)]
    assert found[:21] == [1.0] * 21 and found[25] == pytest.approx(0.5) and found[30] == pytest.approx(0, abs=1e-12)
    with pytest.raises(ValueError, match="unknown"):
        rates.rate(0, 1.0, 30, "nonsense")


def test_averaged_weights_equal_diffusers_ema():
    torch, training_utils = pytest.importorskip("torch"), pytest.importorskip("diffusers.training_utils")
    parameters = numbers(0)
    average = Average(parameters, decay=0.6)
    tensors = [torch.nn.Parameter(torch.from_numpy(value.copy())) for value in parameters.values()]
    theirs = training_utils.EMAModel(tensors, decay=0.6)
    for step in range(STEPS):
        for value, tensor in zip(parameters.values(), tensors):
            value += step
            tensor.data += step
        average.update()
        theirs.step(tensors)
    for name, expected in zip(SHAPES, theirs.shadow_params):
        agree("averaged weights", f"{STEPS} updates", average.values[name], expected.numpy(), 2e-5)
    kept, averaged = parameters["a"].copy(), average.values["a"].copy()
    average.swap()
    assert (parameters["a"] == averaged).all() and (average.values["a"] == kept).all()


def test_clipping_equals_torchs_and_keeps_short_gradients():
    torch = pytest.importorskip("torch")
    gradients = numbers(4)
    tensors = [torch.nn.Parameter(torch.zeros(shape)) for shape in SHAPES.values()]
    for tensor, gradient in zip(tensors, gradients.values()):
        tensor.grad = torch.from_numpy(gradient.copy())
    length = torch.nn.utils.clip_grad_norm_(tensors, 1.5)
    agree("clipping", "length", norm(gradients), length, 1e-5)
    for found, tensor in zip(clipped(gradients, 1.5).values(), tensors):
        agree("clipping", "gradients", found, tensor.grad.numpy(), 1e-6)
    assert clipped(gradients, 100.0) is gradients


def test_gradients_of_several_batches_are_averaged():
    batches = [numbers(seed) for seed in range(3)]
    mean = accumulated(iter(batches))
    for name in SHAPES:
        agree("accumulated gradients", "3 batches", mean[name], np.mean([batch[name] for batch in batches], axis=0), 1e-6)
    assert (batches[0]["a"] == numbers(0)["a"]).all()
    with pytest.raises(ValueError, match="no gradients"):
        accumulated([])
