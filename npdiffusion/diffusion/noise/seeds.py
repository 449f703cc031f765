"""Seeds: whole numbers of 64 bits, with or without a sign."""
import operator

from npdiffusion.errors import UserError

SMALLEST, LARGEST = -2**63, 2**64 - 1


def wrapped(seed):
    """An integer from −2⁶³ to 2⁶⁴ − 1 → the same modulo 2⁶⁴; UserError for anything else."""
    try:
        number = operator.index(seed)
    except TypeError:
        raise UserError(f"the seed should be a whole number, not {seed!r}") from None
    if not SMALLEST <= number <= LARGEST:
        raise UserError(f"the seed {number} is out of range, which is -2^63 to 2^64 - 1")
    return number % 2**64
