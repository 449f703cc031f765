"""The README's Python examples run as they stand, and links of all pages lead somewhere."""
import pathlib
import re

import pytest
from PIL import Image

from npdiffusion import kernels

README = pathlib.Path(__file__).resolve().parent.parent / "README.md"
PAGES = [README, *sorted(path for folder in ("docs", "weights", "bench") for path in (README.parent / folder).rglob("*.md"))]
EXAMPLES = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture
def backend_restored():
    before = kernels.backend()
    yield
    kernels.use_backend(before)


def test_there_are_examples():
    assert len(EXAMPLES) >= 2


@pytest.mark.parametrize("example", EXAMPLES)
def test_example_runs(example, tmp_path, monkeypatch, capsys, backend_restored):
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), {})
    pictures = list(tmp_path.glob("*.png"))
    assert pictures or capsys.readouterr().out.startswith("(1, 256, 64)\n")
    for picture in pictures:
        assert Image.open(picture).size == (128, 128)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(README.parent)))
def test_files_that_a_page_links_to_exist(page):
    links = re.findall(r"\]\(([^()#:\s]+)\)", page.read_text(encoding="utf-8"))
    assert links
    assert [link for link in links if not (page.parent / link).exists()] == []
