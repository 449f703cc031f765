"""How kernels become machine code, and what numba's language lacks for them.

    compiling.py   declaring, compiling and loading kernels         memory.py       indexing without checks, a shared counter
    inlining.py    functions that kernels call                      exponential.py  eˣ and 2ˣ in vectors
    sharing.py     running one on several threads                   processes.py    compiling several at once
    cache.py       compiled kernels on disk                         helper.py       a process that does its share
    bfloat16.py    a type that numba does not have                  streaming.py    stores that pass by the caches
"""
