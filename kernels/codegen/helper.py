"""A process that compiles kernels for another one, see processes.py: python -m npdiffusion.kernels.codegen.helper

It says that it is ready, compiles the kernel that a line names (its module, its name), says so, and goes on until there
are no more lines.
"""
import importlib
import sys

from . import compiling

if __name__ == "__main__":
    print("ready", flush=True)
    for line in sys.stdin:
        module, name = line.split()
        importlib.import_module(module)
        next(each for each in compiling.declared() if each.name == name).compile()
        print("done", flush=True)
