"""The folder of a training run: it can be killed at any time, and goes on bit for bit as if it had not been.

    run.json             what is trained, on what, with which settings; written once
    state.safetensors    the last good state: parameters, averages, the optimiser's memory, and how many steps it has behind it
    log.jsonl            a line for each step: {"step", "loss", "rate", "seconds", …}
    curves.png           those lines, drawn, see curves.py

A state is one file, so that its parts are always of the same step; it is written beside and then moved, so that there is
always a whole one. Random numbers need no state: those of step t come from a generator seeded by (seed, t), see loop.py.
Lines of the log after the state's step are taken out when a run goes on, since those steps are made again.
"""
import contextlib
import json
import os
import pathlib

import numpy as np
import safetensors
from safetensors.numpy import save_file

from npdiffusion.checkpoints.safetensors_file import read_file
from npdiffusion.checkpoints.text_files import read_json, read_text
from npdiffusion.errors import UserError
from npdiffusion.pictures.images import remove_leftovers

SETTINGS, STATE, LOG = "run.json", "state.safetensors", "log.jsonl"
LARGEST_LOG = 256 << 20                    # bytes that are read of a log


class Run:
    """An open run folder, which no other process can open meanwhile. UserError for one that can't be used.

    settings: {name: what JSON can hold}, which decides what the training computes; a folder of other settings is refused
    """
    def __init__(self, folder, settings):
        self.folder, self.settings = pathlib.Path(folder), settings
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.log = open(self.folder / LOG, "a+b")
        except OSError as error:
            raise UserError(f"{folder}: no training can be kept here ({error.strerror or error})") from None
        try:
            self._lock()
            self._compare()
        except BaseException:
            self.log.close()
            raise
        remove_leftovers(self.folder)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.log.close()

    def _lock(self):
        with contextlib.suppress(ImportError):           # on Windows two trainings at once are the user's care
            import fcntl
            try:
                fcntl.flock(self.log, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"{self.folder}: another training is at work in this folder") from None

    def _compare(self):
        path, wanted = self.folder / SETTINGS, json.loads(json.dumps(self.settings))
        if path.exists():
            found = read_json(path)
            for name in sorted(wanted.keys() | found.keys()):
                if wanted.get(name) != found.get(name):
                    raise UserError(f"{self.folder}: it holds a run with {name} = {found.get(name)!r}, not "
                                    f"{wanted.get(name)!r}; go on with its settings, or take another folder")
        elif os.path.getsize(self.folder / LOG) or (self.folder / STATE).exists():
            raise UserError(f"{self.folder}: {SETTINGS} is missing, so nothing tells what was trained here; "
                            "take another folder")
        else:
            written(path, lambda beside: beside.write_text(json.dumps(wanted, indent=1, ensure_ascii=False) + "\n",
                                                           encoding="utf-8"))

    def save(self, tensors, facts):
        """Keep a state: {name: array}, and {name: number} beside them. UserError if it can't be written; the old one stays."""
        whole = {name: np.ascontiguousarray(value) for name, value in tensors.items()}

        def write(beside):
            self.log.flush()
            os.fsync(self.log.fileno())                  # lines up to a state are there before the state is
            save_file(whole, beside, {"facts": json.dumps(facts)})
        written(self.folder / STATE, write)

    def state(self, shapes):
        """What was last kept → ({name: array}, facts), or None; log lines after it are taken out

        shapes: {name: shape} that are expected; UserError for a state that is damaged or of other parameters
        """
        path = self.folder / STATE
        if not path.exists():
            self._keep_lines(0)
            return None
        tensors = read_file(path)
        found = {name: tensor.shape for name, tensor in tensors.items()}
        if found != shapes:
            wrong = sorted(name for name in found.keys() | shapes.keys() if found.get(name) != shapes.get(name))
            raise UserError(f"{path}: not the state of this training; {wrong[0][:200]!a} is {found.get(wrong[0], 'missing')} "
                            f"instead of {shapes.get(wrong[0], 'nothing')}")
        try:
            with safetensors.safe_open(path, framework="np") as file:
                facts = json.loads((file.metadata() or {})["facts"])
            if not isinstance(facts["step"], int) or facts["step"] < 0:
                raise ValueError("step is not a number of steps")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(f"{path}: the state is damaged ({error})") from None
        arrays = {name: tensor() for name, tensor in tensors.items()}
        for name, array in arrays.items():
            if not np.isfinite(array).all():
                raise UserError(f"{path}: {name[:200]!a} holds values that are not finite (NaN or infinity)")
        self._keep_lines(facts["step"])
        return arrays, facts

    def write(self, **values):
        """Append a line to the log."""
        try:
            self.log.write(json.dumps(values).encode() + b"\n")
            self.log.flush()
        except OSError as error:
            raise UserError(f"{self.folder / LOG}: can't be written ({error.strerror or error})") from None

    def _keep_lines(self, step):
        """Cut the log after the line of a step's end."""
        self.log.seek(0)
        kept = 0
        for line in self.log:
            try:
                entry = json.loads(line)
                if not line.endswith(b"\n") or entry["step"] > step:
                    break
            except (ValueError, KeyError, TypeError, RecursionError):
                break
            kept += len(line)
        self.log.truncate(kept)


def written(path, write):
    """Let write(beside) fill a file, then move it to its path. UserError if it can't be; nothing is left behind then."""
    beside = path.with_name(f".npdiffusion-{os.getpid()}-{os.urandom(4).hex()}.part")
    try:
        write(beside)
        with open(beside, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(beside, path)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path}: can't be written ({getattr(error, 'strerror', None) or error}); "
                        "what was kept before stays") from None
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()


def lines(folder):
    """The lines of a run's log: [{name: number}, ...], at least one. UserError if there is none, or one is damaged."""
    path = pathlib.Path(folder, LOG)
    found = []
    for number, line in enumerate(read_text(path, LARGEST_LOG).splitlines(), start=1):
        try:
            entry = json.loads(line)
            if not isinstance(entry, dict) or not isinstance(entry["step"], int):
                raise ValueError("no step in it")
            found.append({name: value for name, value in entry.items()
                          if isinstance(value, (int, float)) and not isinstance(value, bool)})
        except (ValueError, KeyError, RecursionError) as error:
            raise UserError(f"{path}, line {number}: not what a training writes ({error})") from None
    if not found:
        raise UserError(f"{path}: nothing was logged yet")
    return found
