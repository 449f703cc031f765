"""Operations can be watched: from several places at once, by the thread that launches them, with all arguments."""
import inspect
import threading

import numpy as np
import pytest

from npdiffusion import kernels
from npdiffusion.kernels import fast, reference

pytestmark = pytest.mark.usefixtures("on_numpy")
X = np.array([[1, -2, 3, 4]], np.float32)
WEIGHT = np.eye(4, dtype=np.float32)


def watching(seen):
    """A context that appends the name of every operation that is reported to `seen`."""
    return kernels.watched(lambda name, arguments, result: seen.append(name))


def test_a_watch_receives_name_arguments_and_result():
    seen = []
    with kernels.watched(lambda *report: seen.append(report)):
        y = kernels.silu(X)
    (name, arguments, result), = seen
    assert name == "silu" and list(arguments) == ["x"] and arguments["x"] is X and result is y


def test_arguments_are_reported_by_name_however_they_are_given():
    seen, residual = [], np.ones((1, 4), np.float32)
    with kernels.watched(lambda name, arguments, result: seen.append(arguments)):
        kernels.linear(X, WEIGHT, None, residual)
        kernels.linear(X, residual=residual, weight=WEIGHT)
    for arguments in seen:
        assert list(arguments) == ["x", "weight", "bias", "residual"]
        assert arguments["weight"] is WEIGHT and arguments["bias"] is None and arguments["residual"] is residual


def test_arguments_that_are_not_given_are_reported_with_their_defaults():
    seen = []
    with kernels.watched(lambda name, arguments, result: seen.append(arguments)):
        kernels.attention(X[None], X[None], X[None], 2, causal=True)
    assert seen[0]["heads"] == 2 and seen[0]["causal"] is True and seen[0]["dtype"] == "float32"


@pytest.mark.parametrize("name", kernels.OPERATIONS)
def test_both_backends_name_the_arguments_alike(name):
    compiled, plain = ([(each.name, each.kind, each.default) for each in signature.parameters.values()]
                       for signature in (inspect.signature(getattr(module, name)) for module in (fast, reference)))
    assert compiled == plain


def test_an_outer_watch_sees_what_happens_before_within_and_after_an_inner_one():
    outer, inner = [], []
    with watching(outer):
        kernels.silu(X)
        with watching(inner):
            kernels.gelu(X)
        kernels.relu(X)
    kernels.softmax(X)
    assert outer == ["silu", "gelu", "relu"] and inner == ["gelu"]


def test_watches_may_end_in_any_order():
    first, second = [], []
    a, b = watching(first), watching(second)
    a.__enter__()
    b.__enter__()
    kernels.silu(X)
    a.__exit__(None, None, None)
    kernels.gelu(X)
    b.__exit__(None, None, None)
    kernels.relu(X)
    assert first == ["silu"] and second == ["silu", "gelu"]


def test_the_same_watch_entered_twice_is_called_twice_and_ends_once_for_each():
    seen = []

    def watch(name, arguments, result):
        seen.append(name)

    with kernels.watched(watch):
        with kernels.watched(watch):
            kernels.silu(X)
        kernels.gelu(X)
    assert seen == ["silu", "silu", "gelu"]


def test_the_outermost_watch_is_called_first():
    order = []
    with kernels.watched(lambda *report: order.append("outer")), kernels.watched(lambda *report: order.append("inner")):
        kernels.silu(X)
    assert order == ["outer", "inner"]


def test_threads_see_their_own_operations_only():
    seen = {"silu": [], "gelu": []}
    entered, done = threading.Barrier(2), threading.Barrier(2)

    def work(name):
        with watching(seen[name]):
            entered.wait(10)                             # both watch before either computes
            for _ in range(20):
                getattr(kernels, name)(X)
            done.wait(10)

    workers = [threading.Thread(target=work, args=(name,)) for name in seen]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert seen == {"silu": ["silu"] * 20, "gelu": ["gelu"] * 20}


def test_a_watch_does_not_see_a_thread_that_does_not_watch():
    seen = []
    with watching(seen):
        silu = kernels.silu                              # looked up here, but launched by the other thread
        for target in (lambda: kernels.gelu(X), lambda: silu(X)):
            worker = threading.Thread(target=target)
            worker.start()
            worker.join()
        kernels.relu(X)
    assert seen == ["relu"]


def test_a_watch_may_launch_operations_itself():
    seen, outer = [], []

    def watch(name, arguments, result):
        seen.append(kernels.softmax(result).sum())

    with watching(outer), kernels.watched(watch):
        kernels.silu(X)
    assert outer == ["silu"] and seen == [pytest.approx(1)]


def test_an_operation_that_fails_is_not_reported():
    seen = []
    with watching(seen):
        with pytest.raises(ValueError, match="matmul|shape"):
            kernels.linear(X, np.ones((2, 5), np.float32))
        kernels.silu(X)
    assert seen == ["silu"]


def test_what_a_watch_raises_reaches_the_caller_and_ends_nothing_else():
    seen = []

    def watch(name, arguments, result):
        raise LookupError(name)

    with watching(seen):
        with pytest.raises(LookupError, match="silu"), kernels.watched(watch):
            kernels.silu(X)
        kernels.gelu(X)
    assert seen == ["silu", "gelu"]


def test_operations_are_called_directly_while_nobody_watches():
    with watching([]):
        assert kernels.silu is not reference.silu
    assert kernels.silu is reference.silu
