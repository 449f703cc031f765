"""What a command says reaches terminals as plain lines, and costs nothing where nobody reads it."""
import io
import os
import subprocess
import sys

import pytest

from npdiffusion.command import talk
from npdiffusion.errors import UserError


@pytest.mark.parametrize("call, stream", [(talk.say, "stderr"), (talk.print_line, "stdout")])
def test_control_characters_are_spelled_out(call, stream, monkeypatch):
    monkeypatch.setattr(sys, stream, io.StringIO())
    call("X\x1b]0;owned\x07\x1b[2JScheduler\x9b")
    assert getattr(sys, stream).getvalue() == "X\\x1b]0;owned\\x07\\x1b[2JScheduler\\x9b\n"


def test_an_error_is_one_short_line_behind_its_path():
    path = "/models/" + "long/" * 200 + "config.json"
    line = talk.explain(UserError(f"{path}: act_fn = {'x' * 100_000!r}, but\x1b[31m silu\nis needed"))
    assert line.startswith(f"{path}: act_fn = 'xxx") and line.endswith("but\\x1b[31m silu is needed")
    assert len(line) <= len(path) + 500 and "\n" not in line
    assert len(talk.explain(UserError("x" * 100_000))) <= 500


@pytest.mark.parametrize("call, stream", [(talk.say, "stderr"), (talk.print_line, "stdout")])
def test_a_stream_that_is_missing_or_closed_or_has_no_reader_is_no_error(call, stream, monkeypatch):
    reading, writing = os.pipe()
    os.close(reading)
    closed = io.StringIO()
    closed.close()
    for given in (None, closed, open(writing, "w")):
        monkeypatch.setattr(sys, stream, given)
        call("a line")
        call("another")
        with talk.Progress("step", 2) as bar:
            bar(1, 2)


def test_files_are_not_opened_under_the_numbers_of_closed_streams():
    code = ("from npdiffusion.command.talk import occupy_standard_streams as o; o(); import os; "
            "raise SystemExit(os.open(os.devnull, os.O_RDONLY) <= 2)")
    assert subprocess.run(["sh", "-c", f'exec "{sys.executable}" -c "{code}" <&- >&- 2>&-'], check=False).returncode == 0
