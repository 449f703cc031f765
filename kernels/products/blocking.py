"""How a product is cut into jobs, whatever its numbers are: see matmul.py."""
from typing import NamedTuple

from .microkernel import PRODUCT

TILE_ROWS, COLUMNS = PRODUCT.rows, PRODUCT.columns
DEPTH = 256                                              # words of a row of A; a panel's part is 32 KB with AVX-512
MAX_TILES, MAX_PANELS = 12, 20                           # size of a job: A takes 170 KB, C 430 KB
JOBS_PER_THREAD = 4                                     # enough that the last job to finish does not matter much
SMALL = 500_000                                         # multiply-adds that are not worth waking threads for

TAIL_ROWS = TILE_ROWS // 3                               # up to two of these tiles take rows that full ones leave over


class Sizes(NamedTuple):
    """Of a product and of its jobs."""
    rows: int                                            # of x and y
    outputs: int                                         # of the weight
    columns: int                                         # of y: half the outputs with a gate
    depth: int
    block_rows: int                                      # of a job
    block_columns: int
    width: int                                           # of C in working memory, where a gate stands beside its value


def job_size(rows, columns, thread_count, max_panels):
    """(tiles, panels) of a job: large, but with some jobs for each thread.

    Rows that fit into one job are split last: all of a large weight is then read once, by whichever thread.
    """
    all_tiles, all_panels = -(-rows // TILE_ROWS), -(-columns // COLUMNS)
    row_parts, column_parts = -(-all_tiles // MAX_TILES), -(-all_panels // max_panels)
    wanted = JOBS_PER_THREAD * thread_count if thread_count > 1 else 1
    if row_parts == 1:
        column_parts = max(column_parts, min(wanted, -(-all_panels // 2)))
    row_parts = max(row_parts, min(-(-wanted // column_parts), -(-all_tiles // 4)))
    return -(-all_tiles // row_parts), -(-all_panels // column_parts)
