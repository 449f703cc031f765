"""What a command says: lines on stderr, results on stdout, a bar for what takes long, one line for what goes wrong."""
import contextlib
import os
import sys
import warnings

from npdiffusion.errors import UserError
from npdiffusion.kernels import BackendError

LONGEST, LONGEST_PATH = 480, 4096          # characters of a message beside the path in front, and of that

# NumPy and tqdm are imported where they are used: --help and --version answer at once.


class Progress:
    """A bar on stderr with the seconds that each unit takes and the time left; called as generate's callback."""
    layout = "{percentage:3.0f}%|{bar:30}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_inv_fmt}]"

    def __init__(self, unit, total=None):
        self.unit, self.total, self.done = unit, total, 0

    def __enter__(self):
        from tqdm import tqdm
        self.bar = tqdm(total=self.total, unit=self.unit, file=ERRORS, dynamic_ncols=True, bar_format=self.layout,
                        mininterval=0.1 if ERRORS.isatty() else 10)               # fewer lines in a file
        return self

    def __call__(self, done, total, latents=None):
        self.done, self.bar.total = done, total
        self.bar.update(done - self.bar.n)

    def __exit__(self, *exception):
        self.bar.close()


@contextlib.contextmanager
def one_line_warnings(verbose):
    """Within, warnings meant for users are shown as one line, each once; the others only if verbose."""
    seen = set()

    def show(message, category, filename, line_number, file=None, line=None):
        text = one_line(message)
        if text not in seen and (verbose or issubclass(category, UserWarning)):
            seen.add(text)
            from tqdm import tqdm
            tqdm.write(f"npdiffusion: warning: {text}", file=ERRORS)              # above a bar, not into it

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show
        yield


def explain(error):
    """One line about an exception."""
    if isinstance(error, (UserError, BackendError)):
        return one_line(error)
    if isinstance(error, ModuleNotFoundError) and not (error.name or "").startswith("npdiffusion"):
        return f"the Python package {error.name} is missing; install npdiffusion with all it needs (pip install .)"
    if isinstance(error, MemoryError):
        return f"not enough memory; a smaller picture needs less ({one_line(error) or 'no details known'})"
    return f"{one_line(f'{type(error).__name__}: {error}')} (a mistake in npdiffusion; -v shows where)"


def one_line(message):
    """Its text on one line that a terminal can show, shortened: a path in front is kept, long values are not."""
    text = printable(" ".join(str(message).split()))
    path, colon, rest = text.partition(": ")
    if ("/" not in path and "\\" not in path) or len(path) > LONGEST_PATH:
        path, colon, rest = "", "", text
    if len(rest) > LONGEST:
        rest = f"{rest[:LONGEST - 100]} … {rest[-90:]}"
    return path + colon + rest


def printable(text):
    """A text from a file, for the terminal: control characters, which could move its cursor, are spelled out."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode("ascii") for c in text)


def say(message):
    """A line on stderr."""
    ERRORS.write(f"{printable(str(message))}\n")


def print_line(line):
    """A line on stdout, where names of files may have characters that its encoding lacks."""
    if sys.stdout is not None:
        encoding = sys.stdout.encoding or "utf-8"
        with reader_may_go():
            print(printable(str(line)).encode(encoding, "backslashreplace").decode(encoding))


class Errors:
    """Standard error, where there is one: lines that nobody can read cost no picture."""
    encoding = property(lambda self: getattr(sys.stderr, "encoding", None) or "utf-8")

    def write(self, text):
        if sys.stderr is not None:
            with reader_may_go("stderr"):
                sys.stderr.write(text.encode(self.encoding, "backslashreplace").decode(self.encoding))

    def flush(self):
        """Every line is written out at once."""

    def isatty(self):
        return sys.stderr is not None and not sys.stderr.closed and sys.stderr.isatty()

    def fileno(self):
        return sys.stderr.fileno()


ERRORS = Errors()                          # one object, by which tqdm knows that a warning and a bar share a stream


@contextlib.contextmanager
def reader_may_go(name="stdout"):
    """Flush a standard stream; if its reader is gone or it is closed, this and all that follows goes nowhere."""
    stream = getattr(sys, name)
    try:
        yield
        if stream is not None:
            stream.flush()
    except (OSError, ValueError) as error:      # ValueError: the file is closed; pictures are wanted all the same
        if isinstance(error, ValueError) and not stream.closed:
            raise
        setattr(sys, name, None)
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def occupy_standard_streams():
    """Give closed standard streams (>&-) to the null device, so that no file of ours is opened under their numbers."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
