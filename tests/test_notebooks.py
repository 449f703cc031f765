"""The notebooks of docs/ run, and what they show is what is kept in them."""
import pytest

from tests import notebooks, pages

NOTEBOOKS = sorted((pages.ROOT / "docs").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_runs_and_keeps_what_its_cells_show(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    cells = notebooks.code(notebooks.read(path))
    assert cells
    for cell in cells:
        found = notebooks.outputs(cell, names)
        assert [output["output_type"] for output in found] == [output["output_type"] for output in cell["outputs"]]
        for output, kept in zip(found, cell["outputs"]):
            assert output.get("text") == kept.get("text")
            assert output.get("data", {}).keys() == kept.get("data", {}).keys()
            assert output.get("data", {}).get("text/plain") == kept.get("data", {}).get("text/plain")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_is_small(path):
    assert path.stat().st_size < 200_000
