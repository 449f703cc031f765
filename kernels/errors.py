"""The exception for a backend that can't run here."""


class BackendError(RuntimeError):
    """The environment keeps the numba backend from running; the message is one line that says what to change."""
