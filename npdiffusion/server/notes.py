"""Warnings that concern a request go to the one who sent it, not to the terminal of the server.

`warnings.catch_warnings` is for a whole process, and requests are read beside the thread that makes pictures. So one
function stands in for `warnings.showwarning` while the server runs, and asks where the current thread, or the current
task, wants them.
"""
import contextlib
import contextvars
import warnings

MOST = 20                             # of a request

_here = contextvars.ContextVar("notes", default=None)


@contextlib.contextmanager
def collected(into):
    """Within, in this thread or task, messages of warnings are added to a list, each once, and shown nowhere else."""
    token = _here.set(into)
    try:
        yield into
    finally:
        _here.reset(token)


@contextlib.contextmanager
def handed_out():
    """Within, `collected` works; warnings of anyone else are shown as before."""
    before = warnings.showwarning

    def show(message, category, filename, line_number, file=None, line=None):
        into = _here.get()
        if into is None:
            before(message, category, filename, line_number, file, line)
        elif issubclass(category, UserWarning) and len(into) < MOST and str(message) not in into:
            into.append(str(message))

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = before
