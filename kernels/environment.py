"""numba's own environment variables, checked before anything is compiled: with some values it aborts the process.

`fast.py` imports this first.
"""
import os
import subprocess
import sys

from .errors import BackendError
from .machine import may_use_tiles

try:
    import numba
except ValueError:                                       # the one setting that keeps it from being imported
    raise BackendError(f"NUMBA_NUM_THREADS is {os.environ.get('NUMBA_NUM_THREADS')}: at least 1 thread is needed; unset it "
                       "for one on each core") from None
from llvmlite import binding as llvm
from numba.core.codegen import get_host_cpu_features

# Compiles one sum of 16 floats for the CPU and features given, and runs it.
_PROBE = """
import ctypes, sys
from llvmlite import binding as llvm
llvm.initialize_native_target()
llvm.initialize_native_asmprinter()
machine = llvm.Target.from_triple(llvm.get_process_triple()).create_target_machine(cpu=sys.argv[1], features=sys.argv[2])
module = llvm.parse_assembly('''
    define void @add(ptr %a) {
        %x = load <16 x float>, ptr %a, align 4
        %y = fadd <16 x float> %x, %x
        store <16 x float> %y, ptr %a, align 4
        ret void
    }''')
engine = llvm.create_mcjit_compiler(module, machine)
engine.finalize_object()
ctypes.CFUNCTYPE(None, ctypes.c_void_p)(engine.get_function_address('add'))(ctypes.byref((ctypes.c_float * 16)()))
"""


def target():
    """Name and features of the CPU that kernels are compiled for: this one, or NUMBA_CPU_NAME and NUMBA_CPU_FEATURES.

    Features that the system doesn't let the process use are left out.
    """
    name, features = numba.config.CPU_NAME, numba.config.CPU_FEATURES
    name = llvm.get_host_cpu_name() if name is None else name
    features = get_host_cpu_features() if features is None else features
    if "+amx-tile" in features.split(",") and not may_use_tiles():
        features = ",".join(feature for feature in features.split(",") if not feature.startswith("+amx-"))
    return name, features


def is_chosen():
    """Whether the target is one that NUMBA_CPU_NAME or NUMBA_CPU_FEATURES chooses."""
    return (numba.config.CPU_NAME, numba.config.CPU_FEATURES) != (None, None)


def check():
    """BackendError, naming the variable, for a setting of numba's with which kernels can't be compiled or run."""
    if numba.config.DISABLE_JIT:
        raise BackendError("NUMBA_DISABLE_JIT is set, but the numba backend compiles everything: unset it, or choose the "
                           "numpy backend")
    for feature in (numba.config.CPU_FEATURES or "").split(","):
        if feature and feature[0] not in "+-":
            raise BackendError(f"NUMBA_CPU_FEATURES has {feature!r}: each feature begins with + or -, as in +avx2")
    if is_chosen():
        _check_target(*target())


def _check_target(name, features):
    """In a process of its own, because LLVM writes its complaints to stderr and foreign instructions end a process."""
    done = subprocess.run([sys.executable, "-c", _PROBE, name, features], capture_output=True, text=True, check=False)
    if "not a recognized processor" in done.stderr:
        raise BackendError(f"NUMBA_CPU_NAME is {name!r}, which is no processor that LLVM knows: unset it to compile for "
                           "this machine")
    if done.returncode != 0:
        raise BackendError(f"NUMBA_CPU_NAME or NUMBA_CPU_FEATURES ask for instructions that this processor lacks ({name}): "
                           "unset them to compile for this machine")
