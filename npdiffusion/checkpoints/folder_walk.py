"""What is in a folder that a user names and in those below it, bounded however much that is."""
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

MOST = 100_000                        # files and folders of any kind that are looked at


class TooMany(Exception):
    """There is more in a folder than is looked at; `folder` is where it ended."""
    def __init__(self, folder: Path):
        super().__init__(f"{folder}: at most {MOST} files and folders are looked at")
        self.folder = folder


def walk(folder: Path, deepest: int, whole: Callable[[Path], bool] = lambda path: False) -> Iterator[Path]:
    """Files below a folder, and folders that are wanted as a `whole`, in the order of names; hidden ones are left out.

    deepest: how many folders within folders are looked through
    What can't be listed is passed over. TooMany when MOST are counted, after those that were yielded.
    """
    ended: list[Path] = []
    yield from _walk(folder, deepest, whole, itertools.count(1), ended)
    if ended:
        raise TooMany(ended[0])


def _walk(folder, deepest, whole, looked_at, ended):
    paths = []
    try:
        with os.scandir(folder) as inside:
            for entry in inside:
                if next(looked_at) > MOST:
                    ended.append(folder)
                    break
                if not entry.name.startswith("."):
                    paths.append(folder / entry.name)
    except OSError:
        return
    for path in sorted(paths):
        if path.is_file() or whole(path):
            yield path
        elif path.is_dir() and deepest:
            yield from _walk(path, deepest - 1, whole, looked_at, ended)
