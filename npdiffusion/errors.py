"""The one exception that users are meant to see, and the hint for a name that is nearly right."""
from collections.abc import Iterable

LONGEST = 200      # characters of a name that are compared


class UserError(ValueError):
    """Something the user gave (a file, a value, a name) can't be used; the message is one line that says what and what to do.

    As a ValueError it is caught by what is written for other libraries, too; inside, it goes before one (`except UserError:
    raise`), since its message is made already.
    The command line prints it after "npdiffusion: error:" and exits with 1; a traceback is shown only with -v.
    """


def nearest(name: object, known: Iterable[str], hint: str = "did you mean {}? ", otherwise: str = "",
            cutoff: float = 0.5) -> str:
    """`hint` with the nearest of the known names in it, or `otherwise` if none is near; upper and lower case are one.

    cutoff: how alike they must be, from 0 to 1, see difflib.SequenceMatcher.ratio
    """
    import difflib
    spelled = {other.casefold(): other for other in known}
    near = difflib.get_close_matches(str(name)[:LONGEST].casefold(), spelled, n=1, cutoff=cutoff)
    return hint.format(spelled[near[0]]) if near else otherwise
