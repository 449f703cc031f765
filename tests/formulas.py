"""From the tokens of an equation to functions that compute its sides: what equations.py is built on.

    names: what the letters are, {Python's word: number, array, function, dictionary or Depends}
"""
import inspect
import math
import re
from typing import NamedTuple

import numpy as np
from scipy.integrate import trapezoid

GREEK = {*("alpha beta gamma delta epsilon zeta eta theta kappa mu nu xi rho sigma tau phi chi psi omega pi lambda ell varphi "
           "Delta Sigma Phi Lambda Omega Theta infty varnothing").split()}
RELATIONS = {"=", "\\approx", "\\propto", "\\le", "\\ge"}
FUNCTIONS = {"\\log": np.log, "\\ln": np.log, "\\exp": np.exp, "\\cos": np.cos, "\\sin": np.sin, "\\tanh": np.tanh}
CLOSING = {"(": ")", "[": "]", "{": "}", "\\lVert": "\\rVert", "\\lvert": "\\rvert", "\\lfloor": "\\rfloor",
           "\\langle": "\\rangle"}
COMMAS = {",", ";", "\\mid", "\\Vert"}
DIFFERENTIAL = "\\mathrm{d}"              # upright, as in an integral: the letter d may be anything
ENDS = {"+", "-", DIFFERENTIAL, "\\qquad", *CLOSING.values(), *COMMAS, *RELATIONS}       # of a product
INVISIBLE = {"\\left", "\\right", "\\big", "\\Big", "\\bigl", "\\bigr", "\\Bigl", "\\Bigr", "\\thinspace", "\\quad", "&", "."}
TOKEN = re.compile(r"""
    \\(?:mathrm|mathcal|mathbb|mathbf|operatorname|text)\s*\{(?P<word>[^{}]*)\}
  | \\(?P<accent>bar|hat|tilde)\s*(?:\{(?P<inner>[^{}]*)\}|(?P<single>\\[A-Za-z]+|[A-Za-z]))
  | (?P<letter>[A-Za-z]) | (?P<number>\d+(?:\.\d+)?) | (?P<command>\\[A-Za-z]+) | (?P<sign>[^\s\\])""", re.VERBOSE)


class Token(NamedTuple):
    """kind is "name", "number" or "sign"; text is what a name is called in Python, or the sign itself"""
    kind: str
    text: str


def tokens(text):
    """The tokens of an equation in LaTeX; ValueError for what GitHub's Markdown might change before it is set."""
    found, end = [], 0
    for match in TOKEN.finditer(text):
        if text[end:match.start()].strip():
            raise ValueError(f"{text[end:match.start()]!r} isn't understood in {text!r}")
        end = match.end()
        word, accent, letter, number, command = match.group("word", "accent", "letter", "number", "command")
        over_index = text[match.end():].lstrip().startswith("_")
        if command and (command[1:] in GREEK or (command in ("\\min", "\\max") and not over_index)):
            letter = command[1:]
        if accent:
            letter = (match["inner"] or match["single"]).lstrip("\\") + "_" + accent
        if word == "d":
            found.append(Token("sign", DIFFERENTIAL))
        elif word is not None or letter:
            found.append(Token("name", identifier(word if letter is None else letter)))
        elif number:
            found.append(Token("number", number))
        elif (sign := command or match["sign"]) not in INVISIBLE:
            found.append(Token("sign", sign))
    return found


def identifier(name):
    """Python's word for it: `lambda` is taken"""
    return "lambda_" if name == "lambda" else name.replace("-", "_").replace(" ", "_")


def group(sequence):
    """What { } enclose, these included, or one token"""
    if sequence[0].text != "{":
        return sequence[:1]
    return sequence[:enclosed(sequence) + 2]


def enclosed(sequence):
    """How many tokens stand between sequence[0], which opens something, and what closes it"""
    opening, closing = sequence[0].text, CLOSING[sequence[0].text]
    depth = 0
    for i, token in enumerate(sequence):
        depth += (token.text == opening) - (token.text == closing)
        if depth == 0:
            return i - 1
    raise ValueError(f"{opening} isn't closed")


def split(sequence, *separators):
    """Parts between separators that no parenthesis encloses"""
    parts, depth = [[]], 0
    for token in sequence:
        if depth == 0 and token.text in separators:
            parts.append([])
        else:
            depth += (token.text in CLOSING) - (token.text in CLOSING.values())
            parts[-1].append(token)
    return parts


class Depends:
    """A quantity that is computed anew from other names whenever it is looked up, for derivatives: Depends(lambda x: x**2)"""
    def __init__(self, function):
        self.function, self.parameters = function, list(inspect.signature(function).parameters)

    def value(self, names):
        return self.function(*(lookup(names, each) for each in self.parameters))


def lookup(names, name):
    value = names[name]
    return value.value(names) if isinstance(value, Depends) else value


class Parser:
    """Recursive descent; what it returns are functions of `names`."""
    def __init__(self, sequence):
        self.sequence, self.at = sequence, 0

    @property
    def next(self):
        return self.sequence[self.at].text if self.at < len(self.sequence) else ""

    def take(self):
        self.at += 1
        return self.sequence[self.at - 1]

    def part(self):
        """The tokens within what opens here, which is stepped over; or the next token alone"""
        rest = self.sequence[self.at:]
        length = enclosed(rest) if rest[0].text in CLOSING else None
        self.at += 1 if length is None else length + 2
        return rest[:1] if length is None else rest[1:length + 1]

    def chain(self):
        sides, relations = [self.sum()], []
        while self.next in RELATIONS:
            relations.append(self.take().text)
            sides.append(self.sum())
        if self.at < len(self.sequence):
            raise ValueError(f"{self.next!r} isn't understood")
        return sides, relations

    def sum(self):
        terms, signs = [], []
        while True:
            signs.append(-1 if self.next == "-" else 1)
            if self.next in ("+", "-"):
                self.take()
            terms.append(self.product())
            if self.next not in ("+", "-"):
                break

        def value(names):
            total = None
            for sign, term in zip(signs, terms):
                term = term(names) if sign > 0 else -term(names)
                total = term if total is None else total + term
            return total
        return value

    def product(self):
        result = self.factor()
        while self.next and self.next not in ENDS:
            how = self.take().text if self.next in ("/", "\\cdot", "\\times", "\\odot") else ""
            result = product(result, self.factor(), how)
        return result

    def factor(self):
        kind, text = self.sequence[self.at]
        if text in BIG:
            return self.big()
        if text == "\\int":
            return self.integral()
        if text == "\\nabla":
            return self.gradient()
        if text in FUNCTIONS:
            self.take()
            power, argument = self.power(), self.factor()
            return raised(lambda names: FUNCTIONS[text](argument(names)), power)
        if kind == "name":
            return self.name()
        if kind == "number":
            self.take()
            return raised(lambda names: float(text) if "." in text else int(text), self.power())
        if text == "\\sqrt":
            self.take()
            inner = self.operand()
            return raised(lambda names: np.sqrt(inner(names)), self.power())
        if text == "\\frac":
            return self.fraction()
        if text in CLOSING:
            inside = self.part()
            if text == "\\langle":
                left, right = (Parser(each).whole() for each in split(inside, ","))
                return lambda names: np.sum(left(names) * right(names))
            inner = Parser(inside).whole()
            around = {"\\lVert": lambda x: np.sqrt(np.sum(np.square(x))), "\\lvert": np.abs, "\\lfloor": np.floor}
            function = around.get(text, lambda x: x)
            return raised(lambda names: function(inner(names)), self.power())
        raise ValueError(f"{text!r} isn't understood")

    def whole(self):
        value = self.sum()
        if self.at < len(self.sequence):
            raise ValueError(f"{self.next!r} isn't understood")
        return value

    def operand(self):
        """What \\sqrt, ^ and \\frac act on: what is in { } or ( ), or one token"""
        if self.next in ("{", "("):
            return Parser(self.part()).whole()
        if self.sequence[self.at].kind == "number":
            return Parser([self.take()]).whole()
        return self.name(plain=True)

    def power(self):
        if self.next != "^":
            return None
        self.take()
        if self.next == "\\top":
            self.take()
            return "transposed"
        if self.next == "-":
            raise ValueError("a power of more than one token stands in { }")
        return self.operand()

    def name(self, plain=False):
        """A name with its index, power and arguments; `plain`: without the latter two"""
        base, index = self.take().text, None
        if self.next == "_":
            self.take()
            index = self.part()
        symbol = lambda names: resolved(names, base, index)
        if plain:
            return symbol
        power = self.power()
        if self.next not in ("(", "["):
            return raised(symbol, power)
        inside = self.part()
        written = "".join({"\\mid": "|", "\\Vert": "||"}.get(each.text, each.text.lstrip("\\")) for each in inside)
        after = self.power()

        def value(names):
            found = symbol(names)
            if isinstance(found, dict):
                found = found[written]
                found = found.value(names) if isinstance(found, Depends) else found
                if not callable(found):
                    return found
            arguments = [Parser(each).whole()(names) for each in split(inside, *COMMAS)]
            if callable(found):
                return found(*arguments)
            argument, = arguments
            return multiplied(raise_to(found, power, names), raise_to(argument, after, names))

        def applied(names):
            found = symbol(names)
            if callable(found) or isinstance(found, dict):
                return raise_to(raise_to(value(names), power, names), after, names)
            return value(names)
        return applied

    def fraction(self):
        self.take()
        top, bottom = self.part(), self.part()
        if bottom[0].text in ("\\partial", DIFFERENTIAL):
            variable = bottom[1:]
            function = Parser(top[1:]).whole() if top[1:] else self.factor()
            return lambda names: derivative(function, names, variable)
        top, bottom = Parser(top).whole(), Parser(bottom).whole()
        return raised(lambda names: top(names) / bottom(names), self.power())

    def gradient(self):
        self.take()
        variable = [self.sequence[self.at - 1]]
        if self.next == "_":
            self.take()
            variable = self.part()
        function = self.factor()

        def value(names):
            x = np.asarray(names[variable[0].text])
            return derivative(function, names, variable) if x.ndim == 0 else np.array([
                derivative(function, names, [*variable, Token("sign", "_"), Token("number", str(i))]) for i in range(x.size)
            ]).reshape(x.shape)
        return value

    def integral(self):
        self.take()
        low = high = None
        if self.next == "_":
            self.take()
            low = self.operand()
            high = self.power()
        body = self.product()
        if self.next != DIFFERENTIAL:
            raise ValueError("an integral ends with \\mathrm{d} and its variable")
        self.take()
        variable = self.take().text

        def value(names):
            if low is None:
                return trapezoid(body(names), names[variable])
            nodes, weights = np.polynomial.legendre.leggauss(60)
            a, b = low(names), high(names)
            x = a + (b - a) * (nodes + 1) / 2
            return (b - a) / 2 * sum(w * body(names | {variable: each}) for w, each in zip(weights, x))
        return value

    def big(self):
        """\\sum, \\prod or \\max over one or several indices, or without one over all elements"""
        reduce = BIG[self.take().text]
        if self.next != "_":
            body = self.product()
            return lambda names: ALL[reduce](body(names))
        self.take()
        index = self.part()
        last = self.power()
        limits = next((each for each in ("=", "\\le", "\\ne") if len(split(index, each)) > 1), None)
        body = self.product()

        def value(names):
            if limits:
                (letter,), bound = split(index, limits)
                bound = Parser(bound).whole()(names)
                if limits == "=":
                    numbers = range(int(bound), int(last(names)) + 1)
                else:
                    numbers = [n for n in names[letter.text] if (n <= bound if limits == "\\le" else n != bound)]
                return reduce([body(names | {letter.text: n}) for n in numbers])
            values, letters = [{}], [each.text for each in index if each.text != ","]
            for letter in letters:
                values = [{**each, letter: n} for each in values for n in names[letter]]
            return reduce([body(names | each) for each in values])
        return value


BIG = {"\\sum": sum, "\\prod": math.prod, "\\max": lambda values: np.max(values, axis=0)}
ALL = {BIG["\\sum"]: np.sum, BIG["\\prod"]: np.prod, BIG["\\max"]: np.max}


def resolved(names, base, index):
    if index is None:
        return lookup(names, base)
    full = base + "_" + "".join(each.text for each in index)
    if full in names:
        return lookup(names, full)
    found = lookup(names, base)
    if isinstance(found, dict) and (written := "".join(each.text for each in index)) in found:
        return found[written]
    places = tuple(Parser(each).whole()(names) for each in split(index, ","))
    place = places[0] if len(places) == 1 else places
    return found(*places) if callable(found) and not isinstance(found, dict) else found[place]


def raised(value, power):
    return value if power is None else lambda names: raise_to(value(names), power, names)


def raise_to(value, power, names):
    if power is None:
        return value
    if power == "transposed":
        return np.swapaxes(value, -1, -2)
    return value ** np.float64(power(names)) if not isinstance(power(names), int) else value ** power(names)


def product(left, right, how):
    if how == "/":
        return lambda names: left(names) / right(names)
    if how == "\\odot":
        return lambda names: left(names) * right(names)
    return lambda names: multiplied(left(names), right(names))


def multiplied(left, right):
    return left @ right if np.ndim(left) == 2 == np.ndim(right) else left * right


def derivative(function, names, variable):
    """∂ function / ∂ variable, a name or an item of one, by central differences of fourth order"""
    name, *index = (each.text for each in variable)
    x = np.asarray(lookup(names, name), np.float64)
    if index:
        where = Parser(variable[2:] if index[1] != "{" else variable[3:-1])
        place = tuple(int(Parser(each).whole()(names)) for each in split(where.sequence, ","))
        place = np.unravel_index(place[0], x.shape) if len(place) == 1 else place
        step = np.zeros_like(x)
        step[place] = 1
    else:
        step = np.ones_like(x)
    h = 1e-3 * max(1.0, float(np.abs(x).max()))

    def at(distance):
        value = function(names | {name: x + distance * step})
        return value(x + distance * step) if callable(value) else value
    return (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)
