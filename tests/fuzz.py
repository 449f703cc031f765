"""Inputs that are nearly right, for every reader: none may end in another exception than UserError, take 5 s or 1 GB.

    python -m tests.fuzz --inputs 1000000 --seed 1 --progress fuzz.json       goes on where it was stopped
    python -m tests.fuzz --again "loras 1 4711"                               one of them, with its traceback

An input is made of the seed, the name of its reader (fuzz_readers.py) and a number, so that it can be made again.
"""
import argparse
import collections
import contextlib
import json
import pathlib
import random
import signal
import sys
import tempfile
import time
import traceback
import warnings

from npdiffusion.command.talk import LONGEST, LONGEST_PATH, one_line
from npdiffusion.errors import UserError
from tests.fuzz_readers import READERS

try:
    import resource
except ImportError:                                      # Windows: memory isn't looked at
    resource = None

SECONDS, BYTES = 5, 1 << 30
SHOWN = 3                                                # findings of a kind


class TakesTooLong(BaseException):
    """Not an Exception, which a reader might take for a damaged file."""


@contextlib.contextmanager
def opened(names):
    """{name: Reader} of the names, in a temporary folder"""
    memory = "/dev/shm" if pathlib.Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=memory) as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = {}
        for name in names:
            own = pathlib.Path(folder, name.replace(" ", "-"))
            own.mkdir()
            found[name] = READERS[name](own)
        yield found


def peak():
    """Bytes that this process has taken at most"""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) if resource else 0


def attempt(name, reader, seed, number):
    """Read one input → None, or what was wrong: (kind, text, the input)"""
    chance, start, before = random.Random(f"{seed} {name} {number}"), time.process_time(), peak()
    try:
        with limited():
            reader.attempt(chance)
    except UserError as error:
        if len(one_line(error)) > LONGEST + LONGEST_PATH:
            return "a long message", one_line(error)[:200], error.given
    except (Exception, TakesTooLong) as error:           # noqa: BLE001, that is what is looked for
        where = [frame for frame in traceback.extract_tb(error.__traceback__) if "/tests/" not in frame.filename] or [None]
        place = where[-1] and f"{pathlib.Path(where[-1].filename).name}:{where[-1].lineno}"
        return f"{type(error).__name__} in {place}", str(error)[:300], getattr(error, "given", b"")
    if time.process_time() - start > SECONDS:
        return "slow", f"{time.process_time() - start:.1f} s", b""
    if peak() - before > BYTES:
        return "large", f"{(peak() - before) / 1e9:.1f} GB", b""
    return None


@contextlib.contextmanager
def limited():
    """Within, TakesTooLong after SECONDS of this process's time."""
    if not hasattr(signal, "setitimer"):
        yield
        return

    def stop(*arguments):
        raise TakesTooLong(f"more than {SECONDS} s")
    previous = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, previous)


def run(names, inputs, seed=0, first=0, report=None):
    """Try `inputs` inputs of these readers, each its share, from round `first` on → list of (reader, number, kind, text, input)

    report: called as report(round, inputs so far, findings) after each round
    """
    findings = []
    with opened(names) as readers:
        per_round = sum(reader.share for reader in readers.values())
        for each in range(first, max(first + 1, -(-inputs // per_round))):
            for name, reader in readers.items():
                for number in range(each * reader.share, (each + 1) * reader.share):
                    wrong = attempt(name, reader, seed, number)
                    if wrong:
                        findings.append((name, number, *wrong))
            if report:
                report(each + 1, (each + 1) * per_round, findings)
    return findings


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--readers", default=",".join(READERS), help="names with commas between them (default: all)")
    parser.add_argument("--progress", type=pathlib.Path, help="JSON file of what is done, with which another run goes on")
    parser.add_argument("--again", help='"READER SEED NUMBER" of one input')
    options = parser.parse_args()
    if options.again:
        return again(*options.again.rsplit(" ", 2))
    done = {"round": 0, "kinds": {}}
    if options.progress and options.progress.exists():
        done = json.loads(options.progress.read_text())
    kinds, start, said = collections.Counter(done["kinds"]), time.time(), 0

    def report(rounds, inputs, findings):
        nonlocal said
        while findings:
            name, number, kind, text, given = findings.pop(0)
            kinds[f"{name}: {kind}"] += 1
            if kinds[f"{name}: {kind}"] <= SHOWN:
                print(f'{kind}: {text!a}   --again "{name} {options.seed} {number}"   {given[:80]!a}', flush=True)
        if time.time() - said > 60 or inputs >= options.inputs:
            said = time.time()
            print(f"{inputs} inputs, {sum(kinds.values())} findings, {said - start:.0f} s, {peak() / 1e9:.2f} GB", flush=True)
            if options.progress:
                options.progress.write_text(json.dumps({"round": rounds, "kinds": kinds}))
    run(options.readers.split(","), options.inputs, options.seed, done["round"], report)
    return 1 if kinds else 0


def again(name, seed, number):
    """Read one input, with its traceback."""
    with opened([name]) as readers:
        try:
            readers[name].attempt(random.Random(f"{seed} {name} {number}"))
        except BaseException as error:                   # noqa: BLE001
            print(error.given[:2000])
            traceback.print_exc()
            return 1
    print("fine")
    return 0


if __name__ == "__main__":
    sys.exit(main())
