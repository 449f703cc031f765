"""How large jobs of products may be: the best that was measured for a kind of numbers and the register tile that takes them.

`python -m bench tune` tries sizes in whole steps and decodings and writes the best into job_sizes.json. A larger job reads less
from memory for each of its products, as long as it stays in the second-level cache. Results don't depend on it: how a job's
terms are summed is the same for every size.
"""
import functools
import json
import pathlib
from typing import NamedTuple

from . import amx_tile
from .microkernel import PRODUCT

TABLE = pathlib.Path(__file__).with_name("job_sizes.json")


class JobSizes(NamedTuple):
    """At most. What isn't measured for a tile is as it was on two cores with 1 MB of second-level cache each."""
    tiles: int = 12                                      # high, one below the other
    panels: int = 20                                     # wide
    winograd_tiles: int = 8                              # high, of Winograd's M: 36 matrices a panel wide
    pixels: int = 256                                    # of a window; a large image's may have twice as many
    kilowords: int = 128                                 # 1024 words of A and C in an int8 job


def kind(dtype):
    """How the table names weights of that dtype on this processor, such as "float32 14×32": numbers, and rows × columns."""
    tiles = amx_tile.multiplies(dtype) or (dtype == "float32" and amx_tile.HAS_BFLOAT16)        # see split_matmul.py
    rows = amx_tile.ROWS if tiles else PRODUCT.rows
    return f"{dtype} {rows}×{PRODUCT.columns}"


@functools.cache
def of(dtype):
    """`JobSizes` for weights of that dtype."""
    return JobSizes(**read().get(kind(dtype), {}))


def read():
    """{kind: {name of a size: number}}"""
    return json.loads(TABLE.read_text(encoding="utf-8"))
