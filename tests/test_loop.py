"""The loop of a training: what is killed goes on bit for bit; what isn't finite stops it and is named."""
import os
import signal

import numpy as np
import pytest

from npdiffusion.training import loop, runs
from tests.errors import message_of
from tests.processes import run_python
from tests.small_training import small

STEPS = 12


def trained(folder, steps=STEPS, training=None, **options):
    """The state that a whole run ends with"""
    with runs.Run(folder, {}) as run:
        training = training or small()
        assert loop.train(training, run, steps, **options)
    return training.state()[0]


def same(one, two):
    return all((one[name] == two[name]).all() for name in one)


@pytest.mark.parametrize("moment", [
    "listener = lambda values: values['step'] == 7 and os.kill(os.getpid(), signal.SIGKILL)",
    "count = []; real = os.replace\n"
    "def replace(*paths): count.append(1) or len(count) == 6 and os.kill(os.getpid(), signal.SIGKILL); real(*paths)\n"
    "os.replace, listener = replace, None"])
@pytest.mark.skipif(os.name != "posix", reason="kills a process")
def test_a_killed_run_goes_on_bit_for_bit_as_if_it_had_not_been(tmp_path, moment):
    program = f"""
import os, signal, sys
from tests import small_training
from npdiffusion.training import loop, runs
{moment}
with runs.Run(sys.argv[1], {{}}) as run:
    loop.train(small_training.small(), run, {STEPS}, listener, save_every=0)
"""
    done = run_python("-c", program, str(tmp_path / "killed"))
    assert done.returncode == -signal.SIGKILL, done.stderr
    steps = []
    parts = trained(tmp_path / "killed", listener=lambda values: steps.append(values["step"]))
    assert 1 < steps[0] < 9 and steps[-1] == STEPS
    assert same(trained(tmp_path / "whole"), parts)
    logs = [[{**line, "seconds": 0} for line in runs.lines(tmp_path / name)] for name in ("killed", "whole")]
    assert logs[0] == logs[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_step_finish_and_keeps_the_state(tmp_path, number):
    before = signal.getsignal(number)
    with runs.Run(tmp_path / "stopped", {}) as run:
        training = small()
        assert not loop.train(training, run, STEPS, lambda values: values["step"] == 5 and os.kill(os.getpid(), number))
    assert training.step == 5 and signal.getsignal(number) is before
    assert same(trained(tmp_path / "stopped"), trained(tmp_path / "whole"))


def test_a_second_signal_ends_at_once(tmp_path):
    def twice(values):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
    with runs.Run(tmp_path, {}) as run, pytest.raises(KeyboardInterrupt):
        loop.train(small(), run, STEPS, twice)


def test_a_run_ends_when_its_time_is_over_and_goes_on(tmp_path):
    with runs.Run(tmp_path / "short", {}) as run:
        training = small()
        assert not loop.train(training, run, STEPS, seconds=0.0) and training.step == 0
    assert same(trained(tmp_path / "short"), trained(tmp_path / "whole"))


def test_steps_are_counted_on_from_those_of_an_earlier_run_while_optimiser_and_average_begin_anew(tmp_path):
    training = small(begun=100)
    state = trained(tmp_path, 104, training)
    assert training.optimizer.steps == training.average.updates == 4
    assert [line["step"] for line in runs.lines(tmp_path)] == [101, 102, 103, 104]
    with runs.Run(tmp_path, {}) as run:
        again = small(begun=100)
        assert loop.train(again, run, 104)
    assert same(state, again.state()[0]) and again.optimizer.steps == again.average.updates == 4


def test_the_loss_falls_and_the_average_follows(tmp_path):
    training = small()
    trained(tmp_path, 200, training)
    losses = [line["loss"] for line in runs.lines(tmp_path)]
    assert np.mean(losses[-10:]) < 0.2 * np.mean(losses[:10])
    for name, value in training.optimizer.parameters.items():
        difference = np.abs(training.average.values[name] - value).max()
        assert 0 < difference < 0.3


def test_steps_of_several_small_batches_equal_the_mean_of_their_gradients():
    one, two = small(clip=1e9), small(clip=1e9)
    _, gradients = zip(*(one._gradients(number) for number in range(2)))
    two.advance()
    moved = {name: value / np.abs(value).max() for name, value in two.optimizer.memory.items() if name.startswith("mean")}
    for name in ("first.weight", "second.weight"):
        mean = (gradients[0][name] + gradients[1][name]) / 2
        assert moved[f"mean.{name}"] == pytest.approx(mean / np.abs(mean).max(), abs=1e-5)


@pytest.mark.parametrize(("break_it", "where"), [
    (lambda p: p["first.weight"].__setitem__((0, 0), np.inf), "first.weight"),
    (lambda p: p["second.weight"].__setitem__((0, 0), np.nan), "second.weight")])
def test_a_loss_that_is_not_finite_stops_names_the_layer_and_keeps_the_last_state(tmp_path, break_it, where):
    kept = trained(tmp_path, 4)
    kept = {name: value.copy() for name, value in kept.items()}
    training = small()

    def spoil(values):
        if values["step"] == 6:
            break_it(training.optimizer.parameters)
    with runs.Run(tmp_path, {}) as run:
        text = message_of(loop.train, training, run, STEPS, spoil)
    assert text.startswith("step 7:") and f"appears in {where}" in text
    with runs.Run(tmp_path, {}) as run:
        tensors, facts = run.state({name: value.shape for name, value in kept.items()})
    assert facts["step"] == 4 and same(kept, tensors)


def test_batches_go_through_all_examples_once_an_epoch_and_differ_from_epoch_to_epoch():
    epochs = [[loop.shuffled(number, 10, 3, seed=1).tolist() for number in range(3 * epoch, 3 * epoch + 3)] for epoch in (0, 1)]
    assert all(len({*np.ravel(epoch)}) == 9 for epoch in epochs) and epochs[0] != epochs[1]
    assert loop.shuffled(4, 2, 5, seed=1).shape == (2,)
