"""What a command says: lines on stderr, results on stdout, a bar for what takes long, one line for what goes wrong."""
import contextlib
import os
import sys
import warnings

from npdiffusion.errors import UserError

# NumPy and tqdm are imported where they are used: --help and --version answer at once.


class Progress:
    """A bar on stderr with the seconds that each unit takes and the time left; called as generate's callback."""
    def __init__(self, unit, total=None):
        self.unit, self.total, self.done = unit, total, 0

    def __enter__(self):
        from tqdm import tqdm
        layout = "{percentage:3.0f}%|{bar:30}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_inv_fmt}]"
        self.bar = tqdm(total=self.total, unit=self.unit, file=sys.stderr, dynamic_ncols=True, bar_format=layout,
                        mininterval=0.1 if sys.stderr.isatty() else 10)             # fewer lines in a file
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
            tqdm.write(f"npdiffusion: warning: {text}", file=sys.stderr)            # above a bar, not into it

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show
        yield


def explain(error):
    """One line about an exception."""
    if isinstance(error, UserError):
        return one_line(error)
    if isinstance(error, ModuleNotFoundError) and not (error.name or "").startswith("npdiffusion"):
        return f"the Python package {error.name} is missing; install npdiffusion with all it needs (pip install .)"
    if isinstance(error, MemoryError):
        return f"not enough memory; a smaller picture needs less ({one_line(error) or 'no details known'})"
    return f"{one_line(f'{type(error).__name__}: {error}')} (a mistake in npdiffusion; -v shows where)"


def one_line(message):
    """Its text with each stretch of white space as one space."""
    return " ".join(str(message).split())


def printable(text):
    """A text from a file, for the terminal: control characters, which could move its cursor, are spelled out."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode("ascii") for c in text)


def say(message):
    """A line on stderr."""
    print(message, file=sys.stderr, flush=True)


def print_line(line):
    """A line on stdout, where names of files may have characters that its encoding lacks."""
    encoding = sys.stdout.encoding or "utf-8"
    with reader_may_go():
        print(str(line).encode(encoding, "backslashreplace").decode(encoding))


@contextlib.contextmanager
def reader_may_go():
    """What was printed is written out behind this; if whoever read it is gone, it goes nowhere, as all that follows."""
    try:
        yield
        if sys.stdout:
            sys.stdout.flush()
    except BrokenPipeError:           # pictures are wanted all the same
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
