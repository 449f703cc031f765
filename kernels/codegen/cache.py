"""Compiled kernels on disk, which save time and must never cost a picture.

The folder is named after all that machine code depends on. numba itself looks at the file of the compiled function
alone, and would not notice an edit in another one (a tile shape, say): hence the digest of every source in kernels/.
The first writable place of these is taken: $NUMBA_CACHE_DIR, `__pycache__` in kernels/, the user's cache folder, and at
last a private temporary folder, with a warning.

numba loads whatever lies under a kernel's names. A power cut or a damaged disk would therefore end every later run, or
run wrong machine code: so each kernel has a third file, a `seal` with the digests of the other two, written after them
and checked before they are loaded. What does not agree is deleted and compiled again.
"""
import functools
import hashlib
import os
import pathlib
import shutil
import sys
import tempfile
import warnings

import llvmlite
import numba

from ..environment import target

SOURCES = pathlib.Path(__file__).resolve().parent.parent
_CODE_SETTINGS = ("OPT", "LOOP_VECTORIZE", "SLP_VECTORIZE", "BOUNDSCHECK", "DEBUGINFO_DEFAULT", "FASTMATH")


@functools.cache
def folder():
    """The folder that holds compiled kernels of these sources for this CPU."""
    sources = _digest(b"".join(path.read_bytes() for path in sorted(SOURCES.rglob("*.py"))))[:12]
    settings = [getattr(numba.config, name, None) for name in _CODE_SETTINGS]
    machine = _digest(repr((numba.__version__, llvmlite.__version__, sys.platform, target(), settings)).encode())[:12]
    own = SOURCES / "__pycache__"
    user = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "npdiffusion")
    places = [pathlib.Path(numba.config.CACHE_DIR)] if numba.config.CACHE_DIR else [own, user]
    place = next((p for p in places if _writable(p)), None) or _private_temporary_folder()
    if place == own:                                     # kernels of sources that are gone: nobody else has this folder
        for old in place.glob("kernels-*"):
            if not old.name.startswith(f"kernels-{sources}-"):
                shutil.rmtree(old, ignore_errors=True)
    return place / f"kernels-{sources}-{machine}"


class Entry:
    """The files of one kernel: numba's index and machine code, and the seal.

    path: the folder where numba puts them     name: with which their names begin
    """
    def __init__(self, path, name):
        self.path = pathlib.Path(path)
        self.stem = f"{name}-"
        self.python = f".py{sys.version_info[0]}{sys.version_info[1]}"
        self.seal = self.path / f"{name}{self.python}.seal"

    def files(self):
        """Those of numba for this version of Python: names in order."""
        try:
            names = os.listdir(self.path)
        except OSError:
            return []
        return sorted(name for name in names
                      if name.startswith(self.stem) and self.python in name and name.endswith((".nbi", ".nbc")))

    def is_intact(self):
        """Whether there are files, and they are those that were sealed."""
        try:
            sealed = self.seal.read_text(encoding="ascii", errors="replace")
        except OSError:
            return False
        return sealed != "" and sealed == self._digests()

    def write_seal(self):
        """Seal the files that are there; OSError if that is impossible."""
        digests, part = self._digests(), self.seal.with_name(f"{self.seal.name}.{os.getpid()}.part")
        if not digests:                                  # another process has discarded them
            return
        try:
            part.write_text(digests, encoding="ascii")
            os.replace(part, self.seal)
        except OSError:
            part.unlink(missing_ok=True)
            raise

    def discard(self):
        """Delete what can be deleted."""
        for file in [self.seal, *(self.path / name for name in self.files())]:
            try:
                file.unlink()
            except OSError:
                continue

    def _digests(self):
        """A line for each file: digest and name; empty if one of them can't be read."""
        try:
            return "".join(f"{_digest((self.path / name).read_bytes())}  {name}\n" for name in self.files())
        except OSError:
            return ""


def _digest(data):
    return hashlib.sha256(data).hexdigest()


def _writable(place):
    """True if the folder exists or can be made, and takes files."""
    try:
        place.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=place).close()
    except OSError:
        return False
    return True


def _private_temporary_folder():
    """A folder that nobody else can write to: a cache is code. Kept between runs if it is ours already."""
    user = os.getuid() if hasattr(os, "getuid") else 0   # on Windows the folder lies in the user's profile anyway
    place = pathlib.Path(tempfile.gettempdir(), f"npdiffusion-kernels-{user}")
    try:
        place.mkdir(mode=0o700, exist_ok=True)
        status = place.lstat()
        if place.is_symlink() or (hasattr(os, "getuid") and (status.st_uid != user or status.st_mode & 0o077)):
            raise PermissionError
    except OSError:
        place = pathlib.Path(tempfile.mkdtemp(prefix="npdiffusion-kernels-"))
    warnings.warn(f"no cache folder is writable, compiled kernels go to {place} (choose one: NUMBA_CACHE_DIR)", stacklevel=3)
    return place
