"""Equations are read as they are printed, and both of their sides are computed.

    Equation(r"\\bar\\alpha_t = \\bar\\alpha_{t-1} (1 - \\beta_t)").check(names)         LaTeX, as in docs/notes
    Equation(latex("ᾱ_t = ᾱ_{t−1} (1 − β_t)")).check(names)                          Unicode, as in docstrings

`names` says what its letters are. A letter with an index is a name of its own (`x_0`) if there is one, else that item of x:
`\\bar\\alpha_{t-1}` is alpha_bar_t-1, which no name can be, hence alpha_bar[t - 1]. A letter before a parenthesis is called if
it can be; p(x ∣ z) is p["x|z"] if p is a dictionary. Two matrices (2-D arrays) side by side are a matrix product.

    \\sum_i, \\sum_{i=1}^{n}, \\prod, \\max_i     over the numbers that i is among `names`, or those of the bounds
    \\frac{\\partial y}{\\partial x}, \\nabla_x y   central differences; y is a function, or `Depends` on x
    \\int f(z) \\mathrm{d}z                     over the grid that z is; with bounds by Gauss' rule
    \\mathbb{E}[f(z)]                          names["E"] of the values, else their mean

An equation is a chain of sides between =, ≈, ∝, ≤ or ≥; \\qquad stands between two equations.
"""
import math
import re

import numpy as np

from tests.formulas import CLOSING, DIFFERENTIAL, FUNCTIONS, Parser, Token, enclosed, group, split, tokens


def normal(x, mean, variance):
    """The density N(x; mean, variance)"""
    return np.exp(-(x - mean)**2 / (2 * variance)) / np.sqrt(2 * np.pi * variance)


BUILT_IN = {"pi": math.pi, "e": math.e, "infty": math.inf, "N": normal, "E": lambda values: np.mean(values, axis=0),
            "max": np.maximum, "min": np.minimum, "diag": lambda x: np.diag(np.ravel(x))}


class Equation:
    """One display: equations between \\qquad, each a chain of sides."""
    def __init__(self, source):
        self.source = source
        self.tokens = tokens(source) if isinstance(source, str) else source

    def check(self, names, tolerance=1e-9, roughly=0.05):
        """AssertionError if two sides differ; whatever can't be computed raises its own error.      → largest difference of =

        tolerance: of =, over the largest value; roughly: of ≈
        """
        names, largest = BUILT_IN | names, 0.0
        for part in split(self.tokens, "\\qquad"):
            sides, relations = Parser(part).chain()
            assert relations, "an equation has two sides"
            values = [np.asarray(side(names), np.float64) for side in sides]
            for left, relation, right in zip(values, relations, values[1:]):
                assert holds(left, relation, right, tolerance, roughly), f"{left} {relation} {right}"
                largest = max(largest, difference(left, right)) if relation == "=" else largest
        return largest

    def mutants(self):
        """(what was done, Equation) for every mistake that could be made: a sign, a root, an index, a power, …"""
        sequence = self.tokens
        for i, token in enumerate(sequence):
            before, rest = sequence[:i], sequence[i + 1:]
            for what, replaced, after in mistakes(token, rest):
                wrong = Equation([*before, *replaced, *after])
                if wrong.readable:
                    yield f"{what}, token {i}", wrong

    @property
    def readable(self):
        try:
            return all(Parser(part).chain()[1] for part in split(self.tokens, "\\qquad"))
        except (ValueError, IndexError):
            return False


def mistakes(token, rest):
    """(what, tokens instead of this one, tokens behind it)"""
    kind, text = token

    def sign(text):
        return Token("sign", text)

    if kind == "sign" and text in "+-":
        yield "sign flipped", [sign("-" if text == "+" else "+")], rest
    if text == "\\sqrt":
        yield "root dropped", [], rest
    if text == "^":
        yield "power dropped", [], rest[len(group(rest)):]
    if text in FUNCTIONS:
        yield "function dropped", [], rest
    if text in ("\\cos", "\\sin"):
        yield "sine for cosine", [sign("\\sin" if text == "\\cos" else "\\cos")], rest
    if text == "\\frac":
        top = group(rest)
        bottom = group(rest[len(top):])
        if not {"\\partial", DIFFERENTIAL} & {each.text for each in bottom[:2]}:
            yield "fraction turned over", [token], [*bottom, *top, *rest[len(top) + len(bottom):]]
    if kind == "name" and re.search("_(bar|hat|tilde)$", text):
        yield "accent dropped", [Token("name", text.rpartition("_")[0])], rest
    if kind == "name":
        yield "factor dropped", [], rest[extent(rest):]
    if text == "(" and len(parts := split(rest[:enclosed([token, *rest])], "\\mid")) == 2:
        yield "given the other way round", [token, *parts[1], sign("\\mid"), *parts[0]], rest[sum(map(len, parts)) + 1:]
    if kind == "number" and float(text) < 100:
        yield "number changed", [Token("number", str(float(text) + 1).removesuffix(".0"))], rest
    if text == "_":
        index = [each.text for each in group(rest)]
        if index[-3:] == ["-", "1", "}"]:
            yield "t for t − 1", [token], [rest[1], *rest[len(index):]]
        elif index in (["t"], ["i"], ["n"]):
            yield "t − 1 for t", [token], [*map(sign, "{"), rest[0], sign("-"), Token("number", "1"), sign("}"), *rest[1:]]


def extent(rest):
    """How many tokens of what follows a name belong to it: index, power, arguments"""
    length = 0
    while length < len(rest) and rest[length].text in ("_", "^", "(", "["):
        length += rest[length].text in "_^"
        length += len(group(rest[length:])) if rest[length].text not in CLOSING else enclosed(rest[length:]) + 2
    return length


def holds(left, relation, right, tolerance, roughly):
    if not (np.isfinite(left).all() and np.isfinite(right).all()):
        return False
    if relation == "\\propto":
        ratio = left / right
        return ratio.size > 1 and np.ptp(ratio) <= tolerance * np.abs(ratio).max()
    if relation in ("\\le", "\\ge"):
        low, high = (left, right) if relation == "\\le" else (right, left)
        return bool((low <= high + 1e-12).all())
    if left.size > 1 < right.size and left.shape != right.shape:
        return False
    return difference(left, right) <= tolerance if relation == "=" else difference(left, right, least=1e-30) <= roughly


def difference(left, right, least=1e-3):
    """The largest difference over the largest value, or over `least` if all are smaller: some sides are 0"""
    return float(np.abs(left - right).max() / max(np.abs(left).max(), np.abs(right).max(), least))


# ---- Unicode, as in docstrings, into LaTeX

SIGNS = {"−": "-", "·": r" \cdot ", "√": r"\sqrt ", "ᵀ": r"^\top ", "⁻ˣ": "^{-x}", "ˣ": "^{x}", "∏": r"\prod ", "Σ": r"\sum ",
         "½": r"\frac{1}{2}",
         "²": "^2 ", "³": "^3 ", "⁴": "^4 ", "⁵": "^5 ", "≤": r"\le ", "⌊": r"\lfloor ", "⌋": r"\rfloor ", "⊙": r"\odot ",
         "′": r"_{\mathrm{prime}}",
         "ᾱ": r"\bar{\alpha}", "ₜ": "_t", "ᵢ": "_i", "ₖ": "_k", "ⁿ": "^n ", "'": r"_{\mathrm{prime}}",
         "ₛ": "_s", "∂": r"\partial ", "|": r"\mid ", "∅": r"\varnothing "}
LETTERS = dict(zip("αβγδεζηθκλμνξρστφχψωπΔΦ", ("alpha beta gamma delta epsilon zeta eta theta kappa lambda mu nu xi rho sigma "
                                               "tau phi chi psi omega pi Delta Phi").split()))
SUBSCRIPTS = str.maketrans("₂ₐᵦ", "2ab")
ABOVE = {"\N{COMBINING MACRON}": "bar", "\N{COMBINING CIRCUMFLEX ACCENT}": "hat", "\N{COMBINING TILDE}": "tilde"}


def latex(text):
    """Unicode mathematics as the docstrings write it: √(1 − ᾱ_t) ε̂, x Wᵀ + b, e^{−h}, σ_next²"""
    for accent, command in ABOVE.items():
        for letter in re.findall(rf"(\w){accent}", text):
            text = text.replace(letter + accent, rf"\{command}{{{LETTERS.get(letter, letter)}}}")
    text = re.sub(r"\b(ln|log|sin|cos|exp)\b", r"\\\1 ", text)
    text = re.sub(r"(?<![\w{\\])([A-Za-z]{2,})", r"\\mathrm{\1}", text)
    text = re.sub(r"_([A-Za-z]{2,})", r"_{\\mathrm{\1}}", text)
    text = re.sub(r"(\d)([A-Za-z](?:_\{[^{}]*\{[^{}]*\}\})?)", r"{\1 \2}", text)
    for mark in ("₂ₐ", "₂ᵦ", "ₐ", "ᵦ"):
        text = text.replace(mark, "_{" + mark.translate(SUBSCRIPTS) + "}")
    for digit, small in zip("0123456789", "₀₁₂₃₄₅₆₇₈₉"):
        text = text.replace(small, f"_{digit} ")
    for sign, command in SIGNS.items():
        text = text.replace(sign, command)
    return "".join(f"\\{LETTERS[each]} " if each in LETTERS else each for each in text)
