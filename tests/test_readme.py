"""The README's Python examples run as they stand."""
import pathlib
import re

import pytest
from PIL import Image

from npdiffusion import kernels

README = pathlib.Path(__file__).resolve().parent.parent / "README.md"
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


def test_files_named_in_the_table_exist():
    links = re.findall(r"\]\(([\w./]+\.(?:py|png|md))\)", README.read_text(encoding="utf-8"))
    assert len(links) > 15
    assert [link for link in links if not (README.parent / link).is_file()] == []
