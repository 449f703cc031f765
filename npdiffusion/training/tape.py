"""A tape: what a forward pass computed, in order, so that it can be walked back for the gradients.

    tape = Tape(parameters)                      {name: array}
    with tape:
        loss = np.square(unet(latents, t, states) - noise).mean()
    gradients = tape.backward(loss)              {name: array}

The chain rule for L(h(f(x))) is dx = J_fᵀ (J_hᵀ dL): the last function's turn comes first, and each needs the gradient
of its result alone (reverse accumulation; Linnainmaa 1970, and Rumelhart, Hinton & Williams 1986 as back-propagation).
So the tape is a list of nodes, one for each result:

    node      gradient   ∂L/∂result, the sum over all that used the result
              pull       from that to gradients of what the result was made of, which are nodes as well

Models run as they are. While a tape records, `kernels.linear(...)` and the others compute as always, then note a node;
the rules are those of kernels/gradients.py. What lies between operations, x + y or np.concatenate, reaches the tape by
way of `Variable`, an array that knows its node. Parameters are found by identity: they stay the arrays that they are.
"""
import contextlib
import functools
import inspect

import numpy as np

from npdiffusion import kernels
from npdiffusion.training.variable import Variable, summed_to, value_of

MOST_PACKED = 4 << 20      # bytes of a weight that stays packed until the walk back: all of a large model would be there twice


class Node:
    """Something that has a gradient. Without `pull` it is a leaf: a parameter, or an input that was asked for."""
    __slots__ = ("gradient", "line", "owned", "pull")

    def __init__(self, pull=None, line=""):
        self.gradient, self.owned, self.pull, self.line = None, False, pull, line      # line: what print(tape) says of it

    def add(self, g):
        """gradient += g, in memory of its own from the second time on; the first may belong to others as well."""
        if self.gradient is None:
            self.gradient = g
        else:
            self.gradient, self.owned = kernels.gradient("total")(self.gradient, g, self.owned), True


class Tape:
    """Gradients by `parameters`, {name: array or Packed}, of what is computed within `with tape:` by this thread.

    All others are frozen: products with them keep no input, and no gradient is computed for them. The arrays are known
    by identity, so optimisers change them in place. A tape may be used again and again; an exception empties it.
    """
    def __init__(self, parameters=()):
        self.parameters = dict(parameters)
        self.leaves = {id(parameter): Node() for parameter in self.parameters.values()}
        self.nodes = []                          # in the order of the forward pass
        self._recording = contextlib.ExitStack()

    @staticmethod
    def of_this_thread():
        """The tape that records now, if any"""
        return getattr(kernels.recorder(), "__self__", None)

    def among(self, arrays):
        """{name: parameter} of those parameters that are among `arrays`"""
        wanted = {*map(id, arrays)}
        return {name: parameter for name, parameter in self.parameters.items() if id(parameter) in wanted}

    def __str__(self):
        """A line for each node: what computed it, its shape, what is kept for the walk back"""
        return "\n".join(f"{number:>4}  {node.line}" for number, node in enumerate(self.nodes))

    def __enter__(self):
        self._recording.enter_context(kernels.recorded(self._operation))
        return self

    def __exit__(self, kind, *_):
        self._recording.close()
        if kind is not None:
            self.nodes.clear()

    def variable(self, x):
        """x, an array, as a Variable whose gradient `gradient` will give; of a parameter, the Variable that stands for it"""
        return Variable(x, self.leaves.get(id(x)) or Node(), self)

    def backward(self, result, gradient=1.0):
        """Walk back from a Variable → {name: ∂L/∂parameter} of all parameters that it depends on, arrays of their own

        gradient: ∂L/∂result, a number or an array like it; 1 if the result is the loss itself. The tape is empty after
        this, and what nodes have kept is given up one by one: memory falls on the way.
        """
        if self.node(result) not in self.nodes:
            raise ValueError("there is nothing to walk back to: the result depends on none of the tape's parameters, or the "
                             "tape has been walked back before")
        result.node.add(np.broadcast_to(np.asarray(gradient, result.dtype), result.shape))
        while self.nodes:
            node = self.nodes.pop()
            if node.gradient is not None:
                for source, g in node.pull(node.gradient):
                    source.add(g)
                node.gradient = node.pull = None         # whoever holds the result would hold all that led to it
        return {name: own(self.leaves[id(parameter)]) for name, parameter in self.parameters.items()
                if self.leaves[id(parameter)].gradient is not None}

    def gradient(self, variable):
        """∂L/∂variable, an array like it, of what `variable` made; zeros if the loss doesn't depend on it"""
        g = variable.node.gradient
        return np.zeros(variable.shape, variable.dtype) if g is None else np.array(g)

    def node(self, x):
        """The node of a Variable or of a parameter; None for all that needs no gradient"""
        if isinstance(x, Variable):
            if x.node is not None and x.tape is not self:
                raise ValueError("this Variable belongs to another tape")
            return x.node
        return self.leaves.get(id(x))

    def record(self, result, pull, name, kept=()):
        """A Variable with a node of its own

        pull: from its gradient to (node, gradient) of all that it was made of     name, kept: for `print(tape)`
        """
        node = Node(pull, f"{name:<16} {result.shape!s:<20} {', '.join(sorted(kept))}".rstrip())
        self.nodes.append(node)
        return Variable(result, node, self)

    def join(self, name, result, parts):
        """`result` as a Variable; parts: [(x, pull)], what it was made of, with the way from its gradient to x's"""
        parts = [(node, pull) for x, pull in parts if (node := self.node(x)) is not None]
        if not parts:
            return Variable(result, None, self)
        return self.record(result, lambda g: ((node, pull(g)) for node, pull in parts), name)

    def follow(self, rules, arguments, result, values=None):
        """`result`, which rules (see kernels/gradients.py) were made for and `arguments` {name: value} led to, as a Variable

        values: what rules are given of the arguments, if it isn't these themselves
        """
        sources = {name: node for name, x in arguments.items() if (node := self.node(x)) is not None}
        if not sources:
            return Variable(result, None, self)
        steps, needed = _plan(rules, frozenset(sources))
        kept = {name: _kept(name, values or arguments, result) for name in needed}
        shapes = {name: arguments[name].shape for name in sources}

        def pull(g):
            for rule, targets, names in steps:
                gradients = rule(g, **{name: kept[name] for name in names})
                for target, each in zip(targets, gradients if len(targets) > 1 else (gradients,)):
                    if target in sources:
                        yield sources[target], summed_to(each, shapes[target])

        return self.record(result, pull, rules.__name__, needed)

    def _operation(self, name, operation):
        """What `kernels` gives out under an operation's name while this tape records."""
        rules, defaults = kernels.gradient(name), _defaults(inspect.unwrap(operation))
        packed = getattr(rules, "_packed", None)

        def call(*args, **options):
            arguments = defaults | dict(zip(defaults, args)) | options
            values = {name: value_of(x) for name, x in arguments.items()}
            if packed and isinstance(values["weight"], np.ndarray) and values["weight"].nbytes <= MOST_PACKED:
                values["weight"] = packed(values["weight"])              # once for both ways
            return self.follow(rules, arguments, operation(**values), values)
        return call


def parameters_of(module):
    """{name: parameter} of everything below `module`: arrays, and weights that `prepare` has packed"""
    found = {}

    def look(value, path):
        if isinstance(value, np.ndarray) or hasattr(value, "unpack"):
            found[".".join(path)] = value
        elif isinstance(value, list) or hasattr(value, "__dict__"):
            for name, each in enumerate(value) if isinstance(value, list) else vars(value).items():
                look(each, (*path, str(name)))

    look(module, ())
    return found


def own(leaf):
    """The gradient of a leaf, which forgets it, in memory that nobody else has."""
    g, leaf.gradient = leaf.gradient, None
    owned, leaf.owned = leaf.owned, False
    return g if owned else np.array(g)


@functools.cache
def _defaults(operation):
    """{argument: default} of an operation, in order."""
    return {name: each.default for name, each in inspect.signature(operation).parameters.items()}


@functools.cache
def _plan(rules, wanted):
    """The rules that give the gradients of `wanted` arguments: [(rule, arguments, what it takes)], and all they take

    A rule for several arguments is taken if there is none for one alone, or if it saves calling two.
    """
    found = {tuple(name.split("_")): rule for each in reversed(rules.__mro__) for name, rule in vars(each).items()
             if not name.startswith("_")}
    steps, left = [], set(wanted)
    for targets in sorted(found, key=len, reverse=True):
        asked = left.intersection(targets)
        if len(targets) > 1 and (len(asked) > 1 or any((each,) not in found for each in asked)):
            steps.append(targets)
            left.difference_update(targets)
    steps += [(target,) for target in sorted(left) if (target,) in found]
    if missing := left - {target for targets in steps for target in targets}:
        raise TypeError(f"{rules.__name__} has no gradient by {', '.join(sorted(missing))}")
    plan = [(found[targets], targets, [*inspect.signature(found[targets]).parameters][1:]) for targets in steps]
    return plan, {name for _, _, names in plan for name in names}


def _kept(name, arguments, result):
    """What a rule's argument stands for, to be kept until the walk back."""
    if name == "y":
        return result
    if name.endswith("_shape"):
        return arguments[name.removesuffix("_shape")].shape
    return value_of(arguments[name])
