"""A function that runs on several threads at once: `share_out(function, threads, arguments)`, for compiled code.

    thread 0       function(0, *arguments)
    thread 1       function(1, *arguments)        at the same time; together they are done when it returns

numba has `prange` for loops, which takes all of the function around one through LLVM three times, and 2 µs of each
launch. Kernels share out their work themselves (`memory.next_job`) and need no more than numba's threads: the function
`parallel_for` of its threading layers, which are C, is given a task, the function with its arguments bound.

    parallel_for(task, addresses, sizes, steps, data, …)       calls task(addresses, sizes, steps, data) in each thread

with addresses[0] that have advanced by steps[0] from thread to thread, and sizes[0] as the number of calls that are meant.
There is no array here: the address, beginning at zero with a step of one, is the number of the thread.
"""
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

WORD, BYTES = ir.IntType(64), ir.IntType(8).as_pointer()
TASK = ir.FunctionType(ir.VoidType(), [BYTES.as_pointer(), WORD.as_pointer(), WORD.as_pointer(), BYTES])
PARALLEL_FOR = ir.FunctionType(ir.VoidType(), [TASK.as_pointer(), *TASK.args, WORD, WORD, ir.IntType(32)])


@intrinsic
def share_out(typing, function, threads, arguments):
    """function(thread, *arguments) for thread 0 … threads − 1, at the same time

    function: compiled code that raises nothing     threads: at least 1, at most those that numba has started
    """
    signature = typing.resolve_function_type(function, (types.intp, *arguments.types), {})

    def code(context, builder, _, values):
        bound = cgutils.alloca_once_value(builder, values[2])
        called = context.get_function(function, signature)
        task = _task(builder.module, f"{builder.function.name}.task", called, bound.type)
        first = cgutils.alloca_once_value(builder, ir.Constant(BYTES, None))
        count = cgutils.alloca_once_value(builder, values[1])
        step = cgutils.alloca_once_value(builder, ir.Constant(WORD, 1))
        given = (first, count, step, builder.bitcast(bound, BYTES))
        alone = builder.icmp_signed("==", values[1], ir.Constant(WORD, 1))
        with builder.if_else(alone) as (here, elsewhere):
            with here:
                builder.call(task, given)
            with elsewhere:
                parallel_for = cgutils.get_or_insert_function(builder.module, PARALLEL_FOR, "numba_parallel_for")
                inner, arrays = ir.Constant(WORD, 0), ir.Constant(WORD, 1)
                builder.call(parallel_for, (task, *given, inner, arrays, builder.trunc(values[1], ir.IntType(32))))
        return context.get_dummy_value()

    return types.void(function, threads, arguments), code


def _task(module, name, function, bound):
    """The function that threads are given; `bound` is the type of the pointer to the arguments behind the thread's number.

    Not inlined: it is called in two places, and a kernel shall be compiled once.
    """
    task = ir.Function(module, TASK, name)
    task.linkage = "internal"
    task.attributes.add("noinline")
    builder = ir.IRBuilder(task.append_basic_block("entry"))
    addresses, sizes, _, data = task.args
    first = builder.ptrtoint(builder.load(addresses), WORD)
    arguments = cgutils.unpack_tuple(builder, builder.load(builder.bitcast(data, bound)))
    with cgutils.for_range(builder, builder.load(sizes)) as loop:
        function(builder, (builder.add(first, loop.index), *arguments))
    builder.ret_void()
    return task
