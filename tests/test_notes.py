"""The notes of the mathematics: every displayed equation is computed, and would be missed if it were wrong.

How equations are read: equations.py; how chapters are: notes.py; equations in docstrings: docstring_equations.py
"""
import math
import re
import runpy

import pytest

from npdiffusion import kernels
from tests import notes
from tests.differences import agree
from tests.docstring_equations import BOUND
from tests.equations import Equation, latex
from tests.further_equations import FURTHER
from tests.github_math import mistakes
from tests.notes import ROOT

NUMBER = 134                 # of displays in the notes: it may only grow
OF_DOCSTRINGS = 109          # and of those in docstrings
BOUND = [*BOUND, *FURTHER]
PAGES = [*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md"), *(ROOT / "weights").rglob("*.md"), *(ROOT / "bench").glob("*.md")]


@pytest.fixture(autouse=True)
def plain_numpy():
    """Layers in the notes run the readable definitions: nothing is compiled for them"""
    backend = kernels.backend()
    kernels.use_backend("numpy")
    yield
    kernels.use_backend(backend)


def name(chapter):
    return chapter.stem


def missed(equation, check):
    """The planted mistakes that nobody would notice"""
    found = []
    for what, wrong in equation.mutants():
        try:
            check(wrong)
        except Exception:                                   # noqa: BLE001 (a mistake may be noticed in any way)
            continue
        found.append(what)
    return found


@pytest.mark.parametrize("chapter", notes.CHAPTERS, ids=name)
def test_both_sides_of_every_equation_are_equal(chapter):
    for display in notes.displays(chapter):
        try:
            agree("equations of the notes", f"{chapter.stem}, line {display.line}", display.check(), 0, display.tolerance)
        except Exception as error:
            raise AssertionError(f"{chapter.name}, line {display.line}: {error}\n{display.equation.source}") from error


@pytest.mark.parametrize("chapter", notes.CHAPTERS, ids=name)
def test_every_planted_mistake_is_noticed(chapter):
    """A sign, a root, ᾱ_t for ᾱ_{t−1}, …: each in turn, in each equation"""
    for display in notes.displays(chapter):
        assert list(display.equation.mutants()), f"line {display.line}: nothing in it could be wrong"
        assert missed(display.equation, display.check) == [], f"line {display.line}: {display.equation.source}"


def test_there_are_as_many_planted_mistakes_as_the_introduction_says():
    said = re.search(r"more than ([\d,]+) of them", (notes.FOLDER / "README.md").read_text(encoding="utf-8"))[1]
    equations = [display.equation for chapter in notes.CHAPTERS for display in notes.displays(chapter)]
    assert int(said.replace(",", "")) <= sum(len(list(equation.mutants())) for equation in equations)


def test_there_are_ever_more_equations():
    count = sum(len(list(notes.displays(chapter))) for chapter in notes.CHAPTERS)
    assert count >= NUMBER


@pytest.mark.parametrize("bound", BOUND, ids=lambda bound: f"{bound.file.rpartition('/')[2]}: {bound.text}")
def test_an_equation_of_a_docstring_is_what_the_code_does(bound):
    display = notes.of_docstring(bound)
    agree("equations of docstrings", f"{bound.file}: {bound.text}", display.check(), 0, display.tolerance)
    assert list(display.equation.mutants())
    assert missed(display.equation, display.check) == []


def test_ever_more_docstrings_are_bound():
    assert len({(bound.file, bound.text) for bound in BOUND}) == len(BOUND) >= OF_DOCSTRINGS


@pytest.mark.parametrize("chapter", notes.CHAPTERS, ids=name)
def test_no_dollar_is_left_over(chapter):
    """Whatever is displayed stands on lines of its own, so that it is found"""
    text = notes.PART.sub("", chapter.read_text(encoding="utf-8"))
    assert "$$" not in text and "<!--" not in text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_formulas_survive_githubs_markdown(page):
    pytest.importorskip("markdown_it")
    assert mistakes(page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("text", [
    "an $x_1$2", "a$x$", "$ x$ b", "costs $5 and", r"$\bar{a}_*b*_c$", r"$\{a\}$", "$a<b>c$", "$a < b$",
    "$$\n- a\n$$", "$$\n+ a\n$$", "$$\na\n===\n$$", r"$\operatorname{x}$", "| a | b |\n|---|---|\n| $x \\\\ y$ | $c$ |",
    "| a | b |\n|---|---|\n| $p(x|y)$ | c |"])
def test_a_formula_that_github_would_spoil_is_noticed(text):
    pytest.importorskip("markdown_it")
    assert mistakes(text)
    assert mistakes("$x_0$, ($y_{t-1}$) and `$HOME`: $\\mathbb{E}[x] \\lt \\bar\\alpha_t$\n\n$$\na_1 = b_2 * c\n$$\n") == []


@pytest.mark.parametrize("chapter", notes.CHAPTERS, ids=name)
def test_three_exercises_have_answers_that_print_what_they_say(chapter):
    text, answers = chapter.read_text(encoding="utf-8"), notes.answers(chapter)
    assert len(re.findall(r"^\*\*Exercise \d\.\*\*", text, re.MULTILINE)) == text.count("<details>") == len(answers) == 3
    for line, code in answers:
        printed, said = notes.printed(code)
        assert said and printed == said, f"line {line}"


@pytest.mark.parametrize("chapter", notes.CHAPTERS, ids=name)
def test_code_that_a_chapter_names_is_there(chapter):
    links = notes.CODE.findall(chapter.read_text(encoding="utf-8"))
    assert links
    for symbol, file in links:
        assert symbol in notes.defined(chapter.parent / file), f"{symbol} isn't in {file}"


@pytest.mark.parametrize("chapter", notes.CHAPTERS, ids=name)
def test_a_chapter_is_at_most_three_screens(chapter):
    """Of 60 lines, without answers and what is hidden"""
    text = re.sub(r"<details>.*?</details>", "", notes.PART.sub("$", chapter.read_text(encoding="utf-8")), flags=re.DOTALL)
    assert sum(1 for line in text.splitlines() if line.strip()) <= 150


def test_every_picture_is_drawn_by_a_command_and_shown():
    """Each has its function in docs/notes/pictures*.py, under its name"""
    shown = {picture for chapter in notes.CHAPTERS for picture in notes.PICTURE.findall(chapter.read_text(encoding="utf-8"))}
    made = {symbol for file in notes.FOLDER.glob("pictures*.py") for symbol in notes.defined(file)}
    files = [*(notes.FOLDER / "pictures").iterdir()]
    assert shown == {file.stem for file in files} and shown <= made
    assert max(file.stat().st_size for file in files) < 60_000


def test_all_chapters_become_one_pdf(tmp_path):
    pytest.importorskip("typst")
    pytest.importorskip("markdown_it")
    runpy.run_path(str(notes.FOLDER / "book.py"))["main"](str(tmp_path / "notes.pdf"))
    assert (tmp_path / "notes.pdf").read_bytes().startswith(b"%PDF")
    assert not list(notes.FOLDER.glob(".book*"))


def test_every_chapter_is_in_the_list_and_leads_to_the_next():
    index = (notes.FOLDER / "README.md").read_text(encoding="utf-8")
    for chapter, following in zip(notes.CHAPTERS, [*notes.CHAPTERS[1:], None]):
        assert f"]({chapter.name})" in index
        assert following is None or f"]({following.name})" in chapter.read_text(encoding="utf-8")


@pytest.mark.parametrize("chapter", notes.CHAPTERS, ids=name)
def test_code_that_a_chapter_names_leads_back_to_it(chapter):
    """In its docstring, or in that of its class or file: links both ways"""
    for symbol, file in notes.CODE.findall(chapter.read_text(encoding="utf-8")):
        assert f"docs/notes/{chapter.name}" in notes.docstrings((chapter.parent / file).resolve(), symbol), f"{symbol}: {file}"


def test_docstrings_name_chapters_that_exist():
    files = [file for room in ("kernels", "npdiffusion", "weights") for file in (notes.ROOT / room).rglob("*.py")]
    named = {match for file in files for match in re.findall(r"docs/notes/(\d[\w-]+\.md)", file.read_text(encoding="utf-8"))}
    assert named == {chapter.name for chapter in notes.CHAPTERS}


@pytest.mark.parametrize("text, wanted", [
    ("√ᾱ_t x₀ + √(1 − ᾱ_t) ε̂", r"\sqrt \bar{\alpha}_t x_0 + \sqrt(1 - \bar{\alpha}_t) \hat{\epsilon}"),
    ("σ_next √(1 − e^{−2h}) z", r"\sigma_{\mathrm{next}} \sqrt(1 - e^{-{2 h}}) z"),
])
def test_docstrings_notation_is_read_like_latex(text, wanted):
    assert Equation(latex(text)).tokens == Equation(wanted).tokens


def test_a_mistake_is_a_mistake():
    """The machine that looks for mistakes, on one equation: each kind is made, and each is noticed"""
    equation = Equation(r"\frac{1}{2} \bar x_{t-1} = -\sqrt{y^2 + \log(3 + z_t)} \cos(p(t \mid y))")
    whats = [what.partition(",")[0] for what, _ in equation.mutants()]
    assert {"sign flipped", "root dropped", "power dropped", "function dropped", "fraction turned over", "accent dropped",
            "number changed", "t for t − 1", "t − 1 for t", "factor dropped", "sine for cosine",
            "given the other way round"} == {*whats}
    names = {"x_bar": {4: -2 * (2.25 + 0.405465) ** 0.5}, "y": 1.5, "z": {5: -1.5}, "t": 5, "p": {"t|y": 2 * math.pi}}
    equation.check(names, tolerance=1e-5)
    assert missed(equation, lambda wrong: wrong.check(names, tolerance=1e-5)) == []
