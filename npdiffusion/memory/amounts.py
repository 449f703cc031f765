"""Amounts of memory as people write them: "4GB", "1.5 GB", "900MiB". Imports nothing heavy: the options are read with it."""
import re

from npdiffusion.errors import UserError

UNITS = {"": 1, "b": 1, "k": 1e3, "kb": 1e3, "kib": 2**10, "m": 1e6, "mb": 1e6, "mib": 2**20, "g": 1e9, "gb": 1e9,
         "gib": 2**30}
AMOUNT = re.compile(r"\s*(\d{1,15}(?:\.\d{0,9})?)\s*([A-Za-z]*)\s*")


def amount(value):
    """Bytes from a number, or a text like "4GB", "1.5 GB" or "900MiB"; UserError for anything else"""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0:
        return float(value)
    match = AMOUNT.fullmatch(value) if isinstance(value, str) else None
    if not match or match[2].lower() not in UNITS or float(match[1]) == 0:
        raise UserError(f"max_memory is {value!r}: an amount like 4GB or 900MB is needed")
    return float(match[1]) * UNITS[match[2].lower()]
