"""The product of float32 in tile registers, of three bfloat16 for each number (`splitting`): blocked as in matmul.py.

A job gathers its rows of x into A, their parts side by side. A panel is split by each job that reads it, a block of DEPTH
words at a time, which then stays in the nearest cache while tiles run down the rows of A.

               DEPTH   DEPTH   DEPTH                 ┌─────┐
              ┌───────┬───────┬───────┐              │ B₁  │ DEPTH
       rows   │  A₁   │  A₂   │  A₃   │              ├─────┤
              │       │       │       │              │ B₂  │
              └───────┴───────┴───────┘              ├─────┤
                       STRIDE                        │ B₃  │
                                                     └─────┘
"""
from ..codegen.compiling import floats_in, floats_out, inlined, kernels_for, size, sizes_of
from ..codegen.memory import next_job
from . import amx_tile, blocking, epilogue
from .blocking import COLUMNS, Sizes
from .patches import Geometry, make_gather
from .splitting import PARTS, split_panel, split_run, zero_run

DEPTH = 80                                               # words: PARTS of a panel's take 30 KB, and STRIDE is an odd multiple
STRIDE = PARTS * DEPTH                                   # of a cache line, see amx_tile.py
PANEL = PARTS * DEPTH * COLUMNS
LEAST_ROWS = amx_tile.SIDE                               # of an image: with fewer, splitting the weights takes longest

multiply_rows = amx_tile.make_multiply_rows(pieces=(DEPTH, DEPTH * COLUMNS))


def suits(x, geometry, weight, rows):
    """Whether tile registers take a product of float32: runs of its terms must fill their words.

    x: as in `matmul.product`, where an array of more than two axes is a batch. What is chosen for it is chosen for each of its
    images alone, so that these get the same numbers in any batch.
    """
    images = len(x) if x.ndim > 2 else 1
    return (amx_tile.HAS_BFLOAT16 and weight.dtype == "float32" and geometry.channels % (2 * amx_tile.SIDE) == 0
            and rows >= LEAST_ROWS * images)


def scratch(block_rows, width):
    """Words of a thread's working memory: B, A and C"""
    return PANEL + block_rows * (STRIDE + width)


@inlined
def _two(panels):
    return 2


@inlined
def _put_split(x, source, count, buffer, target, panels):
    if source < 0:
        zero_run(buffer, target // 2, count, DEPTH)
    else:
        split_run(x, source, buffer, target // 2, count, DEPTH)


gather = make_gather(_two, _put_split)


_SIGNATURE = (sizes_of(Sizes), sizes_of(Geometry), floats_in, floats_in, floats_in, floats_in, floats_out, floats_out, size)


@kernels_for(**({"float32": _SIGNATURE} if amx_tile.HAS_BFLOAT16 else {}))
def multiply_split(thread, counter, sizes, geometry, x, panels, bias, residual, y, memory, share):
    sizes, geometry = Sizes(*sizes), Geometry(*geometry)
    jobs = blocking.jobs_of(sizes)
    b = thread * share
    a = b + PANEL
    c = a + sizes.block_rows * STRIDE
    job = next_job(counter)
    while job < jobs:
        first, last, column, end = blocking.rectangle(job, sizes)
        amx_tile.configure()
        _multiply_gathered(first, last, column, end, sizes, geometry, x, panels, memory, a, b, c)
        amx_tile.release()
        epilogue.write_rectangle(memory, c, first, last, column, end, sizes, geometry.out_height * geometry.out_width, bias,
                                 residual, y)
        job = next_job(counter)


@inlined
def _multiply_gathered(first, last, column, end, sizes, geometry, x, panels, memory, a, b, c):
    """memory[c:] = the sums of a job, block after block of terms"""
    value_panel, value_panels, gate_panel, all_panels = blocking.panels_of(column, end, sizes)
    for k0 in range(0, sizes.depth, 2 * DEPTH):
        terms = min(2 * DEPTH, sizes.depth - k0)
        gather(x, geometry, first, last, k0, k0 + terms, memory, a, STRIDE, panels)
        for p in range(all_panels):
            panel = value_panel + p if p < value_panels else gate_panel + p - value_panels
            split_panel(panels, (panel * sizes.depth + k0) * COLUMNS, COLUMNS, memory, b, terms // 2, DEPTH * COLUMNS)
            multiply_rows(last - first, memory, a, STRIDE, memory, b, memory, c + p * COLUMNS, sizes.width, terms // 2, k0 > 0)
