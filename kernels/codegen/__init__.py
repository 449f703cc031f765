"""How kernels become machine code, and what numba's language lacks for them.

    compiling.py   declaring, compiling and loading kernels         memory.py       indexing without checks, a shared counter
    cache.py       compiled kernels on disk                         exponential.py  eˣ and 2ˣ in vectors
    bfloat16.py    a type that numba does not have                  processes.py    compiling several at once
                                                                    helper.py       a process that does its share
"""
