"""The chapters of docs/notes as the tests read them: what stands between `<!-- where` and `-->` is run, then the equation
that follows, between two lines of $$, is computed with the names that it left.

What every chapter's `where` may use: np, math, rng (a generator with a fixed seed), kernels (the definitions in plain NumPy),
Depends (formulas.py), gradient (numerical), and standard_normal(n), places and weights of an exact E over n independent
N(0, 1).
"""
import ast
import contextlib
import io
import math
import pathlib
import re
from typing import NamedTuple

import numpy as np

from npdiffusion.kernels import reference
from tests.equations import Equation, latex
from tests.formulas import Depends

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "notes"
CHAPTERS = sorted(FOLDER.glob("[0-9][0-9]-*.md"))
PART = re.compile(r"^<!-- where\n(?P<where>.*?)^-->$|^\$\$\n(?P<equation>.*?)^\$\$$", re.MULTILINE | re.DOTALL)
ANSWER = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"\[`([\w.]+)`\]\(([^)#]+\.py)\)")
PICTURE = re.compile(r"!\[[^\]]*\]\(pictures/([\w-]+)\.(?:webp|png)\)")


class Display(NamedTuple):
    """An equation of a chapter: its line there, what its letters are, and how exact its sides are"""
    line: int
    equation: Equation
    names: dict
    tolerance: float
    roughly: float

    def check(self, equation=None):
        with np.errstate(all="ignore"):
            return (equation or self.equation).check(self.names, self.tolerance, self.roughly)


def standard_normal(n=1, nodes=24):
    """z, E: E(a polynomial's values at z) is its mean for z ~ N(0, 1), exactly (Gauss-Hermite); with n > 1, z is a list"""
    places, weights = np.polynomial.hermite_e.hermegauss(nodes)
    z = [each.ravel() for each in np.meshgrid(*[places] * n, indexing="ij")]
    weights = math.prod(np.meshgrid(*[weights / weights.sum()] * n, indexing="ij")).ravel()
    return (z if n > 1 else z[0]), lambda values: np.sum(weights * values)


def gradient(f, x, h=1e-5):
    """∂f/∂x for each number of an array, by central differences"""
    slopes = np.zeros_like(x)
    for place in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[place] = h
        slopes[place] = (f(x + step) - f(x - step)) / (2 * h)
    return slopes


def tools():
    """What every `where` may use"""
    return {"np": np, "math": math, "rng": np.random.default_rng(0), "kernels": reference, "Depends": Depends,
            "standard_normal": standard_normal, "gradient": gradient}


def display(line, equation, names):
    exact = names.pop("tolerance", 1e-9), names.pop("roughly", 0.05)
    return Display(line, equation, dict(names), *exact)


def displays(chapter):
    """All equations of a chapter, in their order"""
    text, names = chapter.read_text(encoding="utf-8"), tools()
    for part in PART.finditer(text):
        line = text.count("\n", 0, part.start()) + 1
        if part["where"] is not None:
            exec(compile("\n" * line + part["where"], str(chapter), "exec"), names)
        else:
            yield display(line, Equation(part["equation"]), names)


def of_docstring(bound):
    """The same for a row of docstring_equations.py, if its text still stands in the file"""
    assert bound.text in (ROOT / bound.file).read_text(encoding="utf-8"), f"{bound.file} has no longer: {bound.text}"
    names = tools()
    exec(bound.where, names)
    equation = re.split(r", with| over the", bound.text)[0]
    return display(0, Equation(latex(f"{bound.left} = {equation}" if bound.left else equation)), names)


def answers(chapter):
    """(line, code) of each answer to an exercise"""
    text = chapter.read_text(encoding="utf-8")
    return [(text.count("\n", 0, match.start()) + 1, match[1]) for match in ANSWER.finditer(text)]


def printed(code):
    """What a program prints, and what its lines say that it prints: print(...)    # this"""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(code, {"__name__": "__main__"})
    said = [line.partition("#")[2].strip() for line in code.splitlines() if line.startswith("print(")]
    return out.getvalue().splitlines(), said


def defined(path):
    """Names of the functions and classes of a file, and of the methods as Class.method"""
    def members(node, prefix=""):
        for each in node.body:
            if isinstance(each, (ast.FunctionDef, ast.ClassDef)):
                yield prefix + each.name
                if isinstance(each, ast.ClassDef):
                    yield from members(each, f"{each.name}.")
    return {*members(ast.parse(path.read_text(encoding="utf-8")))}


def docstrings(path, symbol):
    """The docstrings of a file, of what `symbol` ("Class.method") names in it, and of its class, as one text"""
    node = ast.parse(path.read_text(encoding="utf-8"))
    found = [ast.get_docstring(node) or ""]
    for name in symbol.split("."):
        node = next(each for each in node.body if getattr(each, "name", None) == name)
        found.append(ast.get_docstring(node) or "")
    return "\n".join(found)
