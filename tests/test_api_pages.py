"""The pages in docs/api say what the docstrings say."""
import ast
import importlib.util
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def api():
    spec = importlib.util.spec_from_file_location("api", ROOT / "docs" / "api.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pages_are_those_that_the_docstrings_make_now(api):
    written = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "api").glob("*.md")}
    assert written == api.pages(), "make them again: python docs/api.py"


def test_a_page_shows_signatures_and_docstrings_of_what_is_public(api, tmp_path, monkeypatch):
    monkeypatch.setattr(api, "ROOT", tmp_path)
    (tmp_path / "a.py").write_text('"""What it is."""\nclass B:\n    """A thing"""\n    def __init__(self, x=1):\n'
                                   '        pass\n\n'
                                   '    def c(self, y: int) -> str:\n        """Does it"""\n\ndef _hidden():\n    """No"""\n')
    text = api.page("a", tmp_path / "a.py")
    for part in "What it is.", "## class `B(x=1)`", "## `B.c(y: int) → str`":
        assert part in text
    assert "hidden" not in text


def untyped(node, prefix=""):
    """Names of the public functions and methods of a module that lack the type of an argument or of their result."""
    for each in node.body:
        if isinstance(each, ast.ClassDef) and not each.name.startswith("_"):
            yield from untyped(each, f"{prefix}{each.name}.")
        elif isinstance(each, ast.FunctionDef) and (each.name in ("__init__", "__call__") or not each.name.startswith("_")):
            given = each.args
            arguments = [*given.posonlyargs, *given.args, *given.kwonlyargs, *filter(None, (given.vararg, given.kwarg))]
            if each.returns is None or any(a.annotation is None and a.arg not in ("self", "cls") for a in arguments):
                yield prefix + each.name


def test_what_has_a_page_has_types(api):
    """That they agree with the code is checked by mypy, see .ci/run."""
    missing = {path: names for path in api.MODULES.values()
               if (names := [*untyped(ast.parse((ROOT / path).read_text(encoding="utf-8")))])}
    assert missing == {}


@pytest.mark.parametrize("source", ["def f(x: int, y) -> int: ...", "def f(x: int): ...", "def f(*x) -> int: ...",
                                    "class C:\n def __call__(self, x) -> int: ..."])
def test_a_missing_type_is_seen(source):
    assert len([*untyped(ast.parse(source))]) == 1
