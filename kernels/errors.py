"""What users are told when the compiled backend can't run: an exception whose message is one line."""


class BackendError(RuntimeError):
    """The environment keeps the numba backend from running; the message is one line that says what to change."""
