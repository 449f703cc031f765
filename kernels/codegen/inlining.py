"""Functions that kernels call: typed by numba, but left to LLVM as they are until they stand in a kernel.

    numba.njit      f → optimised → machine code, with wrappers for Python; in its caller g: optimised and generated again,
                    with all of g; in the caller of g again
    inlined         f → LLVM's language; a kernel is optimised and generated once, with all that it calls

Nobody but kernels calls these functions, so they need neither wrappers nor machine code of their own, and LLVM sees a
kernel as a whole. The first picture on a machine waits for this: it makes a third of the work of compiling.

They raise nothing: what numba would pass on from callee to caller is left out. `py_func` is the function for Python.
"""
import inspect

from numba.core import compiler, cpu, typed_passes, untyped_passes
from numba.core.codegen import JITCodeLibrary
from numba.core.registry import cpu_target
from numba.core.typing import signature
from numba.extending import intrinsic


class Source(JITCodeLibrary):
    """Code that is only linked into other code: neither optimised nor made into machine code."""

    def _optimize_functions(self, module):
        module.data_layout = self._codegen._data_layout

    def _optimize_final_module(self):
        pass

    def _finalize_final_module(self):
        self._finalized = True


class Compiler(compiler.CompilerBase):
    """numba's passes without those for what these functions don't have: closures, literals, `with`, rewritten arrays."""
    PASSES = (untyped_passes.TranslateByteCode, untyped_passes.FixupArgs, untyped_passes.IRProcessing,
              untyped_passes.RewriteSemanticConstants, untyped_passes.DeadBranchPrune, untyped_passes.GenericRewrites,
              untyped_passes.ReconstructSSA, typed_passes.NopythonTypeInference, typed_passes.PreLowerStripPhis,
              typed_passes.IRLegalization, typed_passes.NativeLowering, typed_passes.NoPythonBackend)

    def define_pipelines(self):
        passes = compiler.PassManager("inlined")
        for each in self.PASSES:
            passes.add_pass(each, each.__name__)
        passes.finalize()
        return [passes]


def inlined(function, fastmath):
    """A function for use in kernels, which is compiled for each of the signatures with which they call it.

    fastmath: names of LLVM's flags for arithmetic
    """
    flags = compiler.Flags()
    flags.no_compile = flags.no_cpython_wrapper = flags.no_cfunc_wrapper = flags.nrt = True
    flags.error_model, flags.fastmath = "numpy", cpu.FastMathOptions(fastmath)
    own = inspect.signature(function)

    def define(typing, *arguments, **named):
        arguments = own.bind(*arguments, **named).args
        target = cpu_target.target_context
        library = Source(target.codegen(), function.__qualname__)
        compiled = Compiler(typing, target, library, arguments, None, flags, {}).compile_extra(function)

        def generate(context, builder, signature, values):
            context.active_code_library.add_linking_library(library)
            return context.call_internal_no_propagate(builder, compiled.fndesc, signature, values)[1]

        return signature(compiled.signature.return_type, *arguments), generate

    typing = inspect.Parameter("typing", inspect.Parameter.POSITIONAL_ONLY)
    define.__name__, define.__doc__ = function.__name__, function.__doc__
    define.__signature__ = own.replace(parameters=[typing, *own.parameters.values()])
    made = intrinsic(define)
    made.py_func = function
    return made
