"""The one exception that users are meant to see."""


class UserError(Exception):
    """Something the user gave (a file, a value, a name) can't be used; the message is one line that says what and what to do.

    The command line prints it after "npdiffusion: error:" and exits with 1; a traceback is shown only with -v.
    """
