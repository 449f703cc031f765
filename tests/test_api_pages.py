"""The pages in docs/api say what the docstrings say."""
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
