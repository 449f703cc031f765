"""An array on a tape: what lies between the operations of `kernels`, by NumPy's own protocols.

x + y, np.exp(x) and the like ask x for `__array_ufunc__` (NEP 13), np.concatenate, np.clip, ... for `__array_function__`
(NEP 18). Both compute with the plain arrays, and note how gradients go back. Where y = f(a, b):

    da = g ∂f/∂a, summed over the axes along which a was broadcast, element by element

Rules are as in kernels/gradients.py: one under each argument's name, which takes what must be kept for it.
"""
import numpy as np


def value_of(x):
    """The plain array of a Variable; anything else is what it is"""
    return x.value if isinstance(x, Variable) else x


# --- element by element: y = f(a) or y = f(a, b) ---------------------------------------------------------------------

class add:
    def a(g): return g
    def b(g): return g


class subtract:
    def a(g): return g
    def b(g): return -g


class multiply:
    def a(g, b): return g * b
    def b(g, a): return g * a


class divide:
    def a(g, b): return g / b
    def b(g, y, b): return -g * y / b


class power:
    """aᵇ, by a alone"""
    def a(g, a, b): return g * b * a ** (b - 1)


class maximum:
    """max(a, b); where they are equal the gradient is a's"""
    def a(g, a, b): return np.where(a >= b, g, g.dtype.type(0))
    def b(g, a, b): return np.where(a >= b, g.dtype.type(0), g)


class minimum:
    """min(a, b); where they are equal the gradient is a's"""
    def a(g, a, b): return np.where(a <= b, g, g.dtype.type(0))
    def b(g, a, b): return np.where(a <= b, g.dtype.type(0), g)


class logaddexp:
    """ln(eᵃ + eᵇ), of slope eᵃ⁻ʸ"""
    def a(g, y, a): return g * np.exp(a - y)
    def b(g, y, b): return g * np.exp(b - y)


class matmul:
    """y = a b      da = g bᵀ      db = aᵀ g      both at least matrices"""
    def a(g, b): return g @ np.swapaxes(b, -1, -2)
    def b(g, a): return np.swapaxes(a, -1, -2) @ g


class positive:
    def a(g): return g


class negative:
    def a(g): return -g


class absolute:
    def a(g, a): return g * np.sign(a)


class exp:
    def a(g, y): return g * y


class expm1:
    def a(g, y): return g * (y + 1)


class log:
    def a(g, a): return g / a


class log1p:
    def a(g, a): return g / (1 + a)


class sqrt:
    def a(g, y): return g / (2 * y)


class square:
    def a(g, a): return 2 * g * a


class tanh:
    def a(g, y): return g * (1 - y * y)


class sin:
    def a(g, a): return g * np.cos(a)


class cos:
    def a(g, a): return -g * np.sin(a)


UFUNCS = {getattr(np, rules.__name__): rules for rules in (
    add, subtract, multiply, divide, power, maximum, minimum, logaddexp, matmul, positive, negative, absolute, exp, expm1,
    log, log1p, sqrt, square, tanh, sin, cos)}


def summed_to(g, shape):
    """The gradient of what was broadcast from `shape` to the shape of g: the sum over what it was repeated for"""
    if g.shape == shape:
        return g
    g = g.sum(axis=tuple(range(g.ndim - len(shape))))
    return g.sum(axis=tuple(axis for axis, size in enumerate(shape) if size == 1), keepdims=True).reshape(shape)


# --- the array -------------------------------------------------------------------------------------------------------

class Variable(np.lib.mixins.NDArrayOperatorsMixin):
    """An array `value` with a node on a tape; `node` is None where no gradient is wanted. Made by tapes alone."""
    __slots__ = ("node", "tape", "value")

    def __init__(self, value, node, tape):
        self.value, self.node, self.tape = value, node, tape

    shape = property(lambda self: self.value.shape)
    ndim = property(lambda self: self.value.ndim)
    size = property(lambda self: self.value.size)
    dtype = property(lambda self: self.value.dtype)
    T = property(lambda self: self.transpose())

    def __len__(self):
        return len(self.value)

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def __repr__(self):
        return f"Variable({self.value!r})"

    def __float__(self):
        return float(self.value)

    def item(self):
        """The one number that it holds"""
        return self.value.item()

    def __array__(self, dtype=None, copy=None):
        if self.node is not None:
            raise TypeError("a Variable was used as a plain array, which would lose its gradient: give its .value where none "
                            "is wanted; operations of kernels take it only within `with tape:`")
        return np.array(self.value, dtype) if copy else np.asarray(self.value, dtype)

    # --- protocols

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **options):
        if method != "__call__" or (out is not None and out[0] is not self):
            raise TypeError(f"no gradient is known for np.{ufunc.__name__}.{method}" + (" with out=" if out else ""))
        result = ufunc(*map(value_of, inputs), **options)
        if not is_floating(result):                      # x > 0 is a plain array: it has no slope
            return result
        if ufunc not in UFUNCS and any(self.tape.node(x) is not None for x in inputs):
            raise TypeError(f"no gradient is known for np.{ufunc.__name__}")
        return self.tape.follow(UFUNCS.get(ufunc), dict(zip("ab", inputs)), result)          # also x += y: x is another then

    def __array_function__(self, function, types, arguments, options):
        if function in FUNCTIONS:
            return FUNCTIONS[function](*arguments, **options)
        result = function(*map(_plain, arguments), **{name: _plain(x) for name, x in options.items()})
        if is_floating(result):
            raise TypeError(f"no gradient is known for np.{function.__name__}")
        return result

    # --- what moves and sums numbers

    def _then(self, name, result, pull):
        """`result` of this array alone; pull: from its gradient to the one here"""
        return self.tape.join(name, result, [(self, pull)])

    def __getitem__(self, index):
        shape = self.shape

        def pull(g):
            gradient = np.zeros(shape, g.dtype)
            if _is_basic(index):
                gradient[index] = g
            else:
                np.add.at(gradient, index, g)            # a row may have been taken more than once
            return gradient
        return self._then("slice", self.value[index], pull)

    def __setitem__(self, index, x):
        """A new array from here on: others that were made of the old one keep it."""
        value = self.value.copy()
        value[index] = value_of(x)

        def outside(g):
            g = g.copy()
            g[index] = 0
            return g

        shape = np.shape(x)
        new = self.tape.join("assignment", value, [(self, outside), (x, lambda g: summed_to(g[index], shape))])
        self.value, self.node = new.value, new.node

    def sum(self, axis=None, keepdims=False):
        """Σ over axes"""
        shape = self.shape
        return self._then("sum", self.value.sum(axis, keepdims=keepdims), lambda g: _spread(g, shape, axis, keepdims))

    def mean(self, axis=None, keepdims=False):
        """Σ over axes / how many"""
        total = self.sum(axis, keepdims)
        return total / (self.size / max(1, total.size))

    def reshape(self, *shape):
        """The same numbers in another shape"""
        before = self.shape
        return self._then("reshape", self.value.reshape(*shape), lambda g: g.reshape(before))

    def transpose(self, *axes):
        """Axes in another order, by default reversed"""
        axes = axes[0] if len(axes) == 1 and not isinstance(axes[0], int) else axes or None
        back = None if axes is None else np.argsort([axis % self.ndim for axis in axes])
        return self._then("transpose", self.value.transpose(axes), lambda g: g.transpose(back))

    def swapaxes(self, a, b):
        """Two axes exchanged"""
        return self._then("swapaxes", self.value.swapaxes(a, b), lambda g: g.swapaxes(a, b))

    def astype(self, dtype, **options):
        """In another type of number; the gradient comes back in this one"""
        before = self.dtype
        return self._then("astype", self.value.astype(dtype, **options), lambda g: g.astype(before, copy=False))

    def copy(self):
        """The same numbers; a Variable is never changed, so nothing needs copying"""
        return Variable(self.value, self.node, self.tape)

    def clip(self, low=None, high=None):
        """Within bounds; no gradient where a bound was the answer"""
        inside = (low is None or self.value >= low) & (high is None or self.value <= high)
        return self._then("clip", self.value.clip(low, high), lambda g: g * inside)


def _spread(g, shape, axis, keepdims):
    """Every number that went into a sum gets the gradient of the sum."""
    if axis is not None and not keepdims:
        g = np.expand_dims(g, axis)
    return np.broadcast_to(g, shape)


def _concatenate(arrays, axis=0):
    values = [*map(value_of, arrays)]
    ends = np.cumsum([x.shape[axis] for x in values]).tolist()

    def part(start, end):
        return lambda g: np.ascontiguousarray(g[_along(axis, g.ndim, start, end)])        # once, not by each that takes it

    parts = [part(start, end) for start, end in zip([0, *ends], ends)]
    return _tape_of(arrays).join("concatenate", np.concatenate(values, axis), zip(arrays, parts))


def _stack(arrays, axis=0):
    return _concatenate([np.expand_dims(x, axis) for x in arrays], axis)


def _split(x, sections, axis=0):
    size = x.shape[axis]
    bounds = [size * i // sections for i in range(1, sections)] if isinstance(sections, int) else [*sections]
    np.split(x.value, sections, axis)                    # says what is wrong with sections, if anything is
    return [x[_along(axis, x.ndim, start, end)] for start, end in zip([0, *bounds], [*bounds, size])]


def _along(axis, ndim, start, end):
    """The index of a slice along one axis"""
    return (slice(None),) * (axis % ndim) + (slice(start, end),)


def _where(condition, a, b):
    condition = np.asarray(value_of(condition), bool)

    def branch(chosen, shape):
        return lambda g: summed_to(g * chosen, shape)

    branches = [(a, branch(condition, np.shape(a))), (b, branch(~condition, np.shape(b)))]
    return _tape_of((a, b)).join("where", np.where(condition, value_of(a), value_of(b)), branches)


def _expand_dims(x, axis):
    return x.reshape(np.expand_dims(x.value, axis).shape)


def _squeeze(x, axis=None):
    return x.reshape(x.value.squeeze(axis).shape)


def _broadcast_to(x, shape):
    before = x.shape
    return x._then("broadcast_to", np.broadcast_to(x.value, shape), lambda g: summed_to(g, before))


FUNCTIONS = {np.concatenate: _concatenate, np.stack: _stack, np.split: _split, np.where: _where, np.expand_dims: _expand_dims,
             np.squeeze: _squeeze, np.broadcast_to: _broadcast_to, np.sum: Variable.sum, np.mean: Variable.mean,
             np.reshape: Variable.reshape, np.transpose: Variable.transpose, np.swapaxes: Variable.swapaxes,
             np.clip: Variable.clip, np.copy: Variable.copy}


def is_floating(x):
    """Whether x holds numbers that have slopes"""
    return hasattr(x, "dtype") and x.dtype.kind == "f"


def _is_basic(index):
    """Whether an index takes each number once at most: slices, numbers, masks"""
    return all(i is None or i is Ellipsis or isinstance(i, (slice, int, np.integer)) or np.asarray(i).dtype == np.bool_
               for i in (index if isinstance(index, tuple) else (index,)))


def _plain(x):
    return type(x)(map(_plain, x)) if isinstance(x, (list, tuple)) else value_of(x)


def _tape_of(arrays):
    return next(x.tape for x in arrays if isinstance(x, Variable))
