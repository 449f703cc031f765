"""How a product is cut into jobs, whatever its numbers are: see matmul.py."""
from typing import NamedTuple

from ..codegen.compiling import inlined
from .microkernel import PRODUCT

TILE_ROWS, COLUMNS = PRODUCT.rows, PRODUCT.columns
DEPTH = 256                                              # words of a row of A; a panel's part is 32 KB with AVX-512
AMX_DEPTH, AMX_STRIDE = 320, 336                         # DEPTH with it, and from a row to the next: see amx_tile.py
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
    window: int = 0                                      # words of an image that a job reads instead of A, and pixels in
    window_columns: int = 0                              # a row of its results, see windows.py


def job_size(rows, columns, thread_count, max_panels, tile_rows, max_tiles):
    """(rows, panels) of a job: large, but with some jobs for each thread. `job_sizes` has the most of both.

    Rows that fit into one job are split last: all of a large weight is then read once, by whichever thread.
    """
    all_tiles, all_panels = -(-rows // tile_rows), -(-columns // COLUMNS)
    row_parts, column_parts = -(-all_tiles // max_tiles), -(-all_panels // max_panels)
    wanted = JOBS_PER_THREAD * thread_count if thread_count > 1 else 1
    if row_parts == 1:
        column_parts = max(column_parts, min(wanted, -(-all_panels // 2)))
    row_parts = max(row_parts, min(-(-wanted // column_parts), -(-all_tiles // 4)))
    return -(-all_tiles // row_parts) * tile_rows, -(-all_panels // column_parts)


@inlined
def jobs_of(sizes):
    """How many jobs a product is."""
    row_blocks = (sizes.rows + sizes.block_rows - 1) // sizes.block_rows
    return row_blocks * ((sizes.columns + sizes.block_columns - 1) // sizes.block_columns)


@inlined
def rectangle(job, sizes):
    """A job's (first, last, column, end): rows first … last − 1 and columns column … end − 1 of y.

    Jobs go down the rows first: threads that run at the same time read the same panels.
    """
    row_blocks = (sizes.rows + sizes.block_rows - 1) // sizes.block_rows
    first, column = job % row_blocks * sizes.block_rows, job // row_blocks * sizes.block_columns
    return first, min(first + sizes.block_rows, sizes.rows), column, min(column + sizes.block_columns, sizes.columns)


@inlined
def panels_of(column, end, sizes):
    """(first panel, panels, first panel of the gates, panels of both) that columns column … end − 1 of y need."""
    panel, panels = column // COLUMNS, (end - column + COLUMNS - 1) // COLUMNS
    if sizes.columns < sizes.outputs:
        gate_panel = (sizes.columns + column) // COLUMNS
        return panel, panels, gate_panel, panels + (sizes.columns + end - 1) // COLUMNS - gate_panel + 1
    return panel, panels, 0, panels


@inlined
def rows_in_full_tiles(rows):
    """How many rows of a job full tiles take; a rest that is larger than two small tiles fills one more."""
    return (rows + TILE_ROWS - 2 * TAIL_ROWS - 1) // TILE_ROWS * TILE_ROWS
