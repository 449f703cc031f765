"""A run folder survives kills, full disks and other mistakes with its last good state."""
import json
import os

import numpy as np
import pytest
from PIL import Image

from npdiffusion.training import runs
from npdiffusion.training.curves import curves, ticks
from tests.errors import message_of

SETTINGS = {"what": "vae", "latent": 2, "rate": 1e-3}
TENSORS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(2, np.float32)}
SHAPES = {"a": (2, 3), "b": (2,)}


def filled(folder, steps=(1, 2, 3), kept=2):
    """A folder with a state of step `kept`, and a line for each of the steps"""
    with runs.Run(folder, SETTINGS) as run:
        for step in steps:
            run.write(step=step, loss=1 / step)
            if step == kept:
                run.save(TENSORS, {"step": step})
    return folder


def test_a_state_comes_back_and_lines_after_it_are_taken_out(tmp_path):
    with runs.Run(filled(tmp_path), SETTINGS) as run:
        tensors, facts = run.state(SHAPES)
        assert facts == {"step": 2} and all((tensors[name] == TENSORS[name]).all() for name in TENSORS)
        run.write(step=3, loss=7)
    assert [line["loss"] for line in runs.lines(tmp_path)] == [1, 0.5, 7]


def test_half_a_line_at_the_end_is_cut_off(tmp_path):
    with open(filled(tmp_path, steps=(1, 2)) / runs.LOG, "ab") as log:
        log.write(b'{"step": 3, "lo')
    with runs.Run(tmp_path, SETTINGS) as run:
        run.state(SHAPES)
    assert [line["step"] for line in runs.lines(tmp_path)] == [1, 2]


def test_a_folder_of_other_settings_is_refused_by_the_setting(tmp_path):
    filled(tmp_path)
    text = message_of(runs.Run, tmp_path, SETTINGS | {"latent": 3})
    assert "latent = 2, not 3" in text
    (tmp_path / runs.SETTINGS).unlink()
    assert "run.json is missing" in message_of(runs.Run, tmp_path, SETTINGS)


def test_two_trainings_at_once_are_refused(tmp_path):
    pytest.importorskip("fcntl")
    with runs.Run(tmp_path, SETTINGS):
        assert "another training" in message_of(runs.Run, tmp_path, SETTINGS)
    with runs.Run(tmp_path, SETTINGS) as run:
        assert run.state(SHAPES) is None


def test_a_disk_that_fills_leaves_the_state_before(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")
    before = sorted(os.listdir(filled(tmp_path)))
    with runs.Run(tmp_path, SETTINGS) as run:
        run.state(SHAPES)
        for name in ("replace", "fsync"):
            with monkeypatch.context() as patch:
                patch.setattr(os, name, full)
                text = message_of(run.save, {name: value + 1 for name, value in TENSORS.items()}, {"step": 9})
                assert text.startswith(str(tmp_path / runs.STATE)) and "No space left" in text
        tensors, facts = run.state(SHAPES)
    assert facts == {"step": 2} and (tensors["a"] == TENSORS["a"]).all() and sorted(os.listdir(tmp_path)) == before


def test_damaged_states_and_logs_are_named(tmp_path):
    path = filled(tmp_path) / runs.STATE
    with runs.Run(tmp_path, SETTINGS) as run:
        assert "'b' is (2,) instead of (3,)" in message_of(run.state, SHAPES | {"b": (3,)})
        run.save(TENSORS | {"b": np.full(2, np.nan, np.float32)}, {"step": 2})
        assert "not finite" in message_of(run.state, SHAPES)
        run.save(TENSORS, {"step": -1})
        assert "damaged" in message_of(run.state, SHAPES)
        path.write_bytes(path.read_bytes()[:-3])
        assert "damaged or cut short" in message_of(run.state, SHAPES)
    (tmp_path / runs.LOG).write_text("[]\n")
    assert "line 1" in message_of(runs.lines, tmp_path)
    (tmp_path / runs.LOG).write_text("")
    assert "nothing was logged" in message_of(runs.lines, tmp_path)


def test_a_folder_that_can_not_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    assert "no training can be kept here" in message_of(runs.Run, tmp_path / "file" / "run", SETTINGS)


def test_curves_have_a_panel_for_each_value_and_fall_where_the_loss_does():
    lines = [{"step": step, "loss": 100 / step, "seconds": 1.0} | ({"elbo": -1.0} if step % 10 == 0 else {})
             for step in range(1, 101)]
    picture = curves(lines)
    assert picture.size == (640, 2 * 240)
    ink = np.asarray(picture)[:, :, 0] == 0x1f
    left, right = (np.flatnonzero(ink[:240, columns].any(axis=1)).mean() for columns in (slice(57, 70), slice(560, 620)))
    assert left < right - 60 and ink[240:].any()


@pytest.mark.parametrize("log", [[{"step": 1, "loss": 2.0}], [{"step": 1, "loss": 0.0}], [{"step": 1}],
                                 [{"step": 1, "loss": 1e-30}, {"step": 2, "loss": 1e30}],
                                 [{"step": 1, "loss": float("nan")}, {"step": 2, "loss": 3.0}]])
def test_curves_are_drawn_of_any_log(log):
    assert isinstance(curves(log), Image.Image)


def test_ticks_are_round_and_within():
    assert ticks(0, 100) == [0, 50, 100] and ticks(0, 1) == [0, 0.5, 1] and ticks(-4, 4) == [-4, -2, 0, 2, 4]
    for bottom, top in ((0, 1), (-107.3, -81.2), (3.2e-5, 9e-5), (5, 5)):
        marks = ticks(bottom, top)
        assert all(bottom - 1e-9 <= mark <= top + 1e-9 for mark in marks) and len(marks) <= 6
        assert json.loads(json.dumps(marks)) == marks
