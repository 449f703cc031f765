"""The machine's peak, as our register tile reaches it when all it reads stays in the nearest cache.

    C (rows × columns, in registers)  +=  A (rows × DEPTH) · B (DEPTH × columns)        over and over, on every thread

Nothing waits for memory, so this is the rate at which the processor multiplies and adds: what a kernel could reach.
"""
import numba
import numpy as np
from numba import prange

from bench.turns import seconds
from npdiffusion.kernels.arrays import aligned
from npdiffusion.kernels.codegen.compiling import inlined
from npdiffusion.kernels.products import amx_tile
from npdiffusion.kernels.products.int8_tile import HAS_DOT, make_int8_tile
from npdiffusion.kernels.products.microkernel import PRODUCT, make_tile
from npdiffusion.kernels.threads import start_threads

ROWS, COLUMNS = PRODUCT.rows, PRODUCT.columns
DEPTH = 128           # B takes 16 KB with AVX-512, A another 7
ROUNDS, BURSTS = 5_000, 20       # a burst takes about 5 ms: short enough that some are not disturbed

tile, int8_tile = make_tile(PRODUCT), make_int8_tile(PRODUCT)
of_halves, of_bytes = (amx_tile.make_amx_tile(amx_tile.ROWS, name) for name in ("tdpbf16ps", "tdpbusd"))
STRIDE = DEPTH if HAS_DOT else 4 * DEPTH                # words of a row of bytes


@inlined
def multiply(a, b, c, rounds, terms):
    for _ in range(rounds):
        tile(a, 0, DEPTH, 1, b, 0, c, 0, COLUMNS, terms, True)


@numba.njit(parallel=True, nogil=True)
def on_all_threads(a, b, c, rounds, terms):
    for thread in prange(len(a)):
        multiply(a[thread], b[thread], c[thread], rounds, terms)


@numba.njit(parallel=True, nogil=True)
def of_bytes_on_all_threads(a, b, c, rounds, terms):
    for thread in prange(len(a)):
        memory = c[thread]                                                        # C, the scales of A, and A
        for _ in range(rounds):
            int8_tile(memory, ROWS * COLUMNS + 16, STRIDE, ROWS * COLUMNS, 0, COLUMNS, b[thread], 0, (DEPTH + 1) * COLUMNS,
                      terms // 4, True)


def in_tile_registers(tile):
    """The same by a tile of `amx_tile`, which has ROWS rows of its own"""
    @numba.njit(parallel=True, nogil=True)
    def on_all_threads(a, b, c, rounds, terms):
        for thread in prange(len(a)):
            amx_tile.configure()
            for _ in range(rounds):
                tile(a[thread], 0, DEPTH, b[thread], 0, c[thread], 0, COLUMNS, DEPTH, c[thread], 0, COLUMNS)
            amx_tile.release()
    return on_all_threads


class Peak:
    """A participant that takes turns with those who are measured; `flops` is the best rate of all its turns."""
    def __init__(self, threads, dtype="float32"):
        self.threads, self.flops, self.rows = threads, 0.0, ROWS
        self.terms = DEPTH * {"float32": 1, "bfloat16": 2, "int8": 4}[dtype]      # in words of 32 bits
        self.run = of_bytes_on_all_threads if dtype == "int8" else on_all_threads
        if amx_tile.multiplies(dtype):
            self.rows, self.run = amx_tile.ROWS, in_tile_registers(of_bytes if dtype == "int8" else of_halves)
        self.a, self.c = _for_each(threads, self.rows * DEPTH), _for_each(threads, self.rows * (COLUMNS + 1 + STRIDE) + 16)
        self.b = _for_each(threads, DEPTH * COLUMNS)
        if dtype == "bfloat16":
            self.b = self.b.view(np.uint16)
        if dtype == "int8":                                                       # a row before it and one behind
            self.b = _for_each(threads, (DEPTH + 2) * COLUMNS).view(np.int32)
        self()
        self.flops = 0.0                                                          # that was compiling

    def __call__(self):
        start_threads()
        numba.set_num_threads(min(self.threads, numba.config.NUMBA_NUM_THREADS))
        time = min(seconds(lambda: self.run(self.a, self.b, self.c, ROUNDS, self.terms)) for _ in range(BURSTS))
        operations = 2 * self.threads * self.rows * COLUMNS * self.terms * ROUNDS
        self.flops = max(self.flops, operations / time)


def _for_each(threads, length):
    """(threads, length) zeros, each thread's on cache lines of its own"""
    memory = aligned(threads * -(-length // 16) * 16).reshape(threads, -1)
    memory.fill(0)
    return memory
