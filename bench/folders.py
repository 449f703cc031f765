"""A model folder to load: the one that is named, or a temporary one with random weights of full size.

The random one is written by a process of its own, whose memory and imported libraries then are not ours.
"""
import contextlib
import multiprocessing
import pathlib
import tempfile

from bench import models


def of(text):
    """The path that an option names; a ~ that the shell left in place is the home folder."""
    return pathlib.Path(text).expanduser()


def add_argument(parser):
    parser.add_argument("--model", type=of, default=None,
                        help="a folder in diffusers layout (default: a temporary one, random weights of full size)")


@contextlib.contextmanager
def folder(given):
    """The folder to load, with its files in the page cache."""
    with contextlib.ExitStack() as stack:
        if given is None:
            given = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()), "model")
            print("writing a random model of full size ...", flush=True)
            writer = multiprocessing.get_context("spawn").Process(target=models.write_folder, args=(given,))
            writer.start()
            writer.join()
            if writer.exitcode:
                raise SystemExit("bench: the random model could not be written")
        for path in given.rglob("*.safetensors"):
            with path.open("rb") as file:
                while file.read(1 << 24):
                    pass
        yield given
