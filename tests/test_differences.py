"""The table of differences itself."""
import numpy as np
import pytest

from tests import differences


@pytest.fixture
def rows(monkeypatch):
    monkeypatch.setattr(differences, "ROWS", [])
    return differences.ROWS


def test_a_difference_above_the_limit_fails_and_is_noted(rows):
    with pytest.raises(AssertionError, match="differs by 0.5"):
        differences.agree("samplers", "euler", np.zeros(3), np.array([0, 0.5, 0]), 0.1)
    assert rows == [("samplers", "euler", 0.5, 0.1)]


def test_nan_does_not_agree(rows):
    with pytest.raises(AssertionError):
        differences.agree("samplers", "euler", np.array([np.nan]), np.array([0.0]), 1)


def test_table_shows_the_comparison_nearest_to_its_limit(rows):
    differences.agree("vae", "decode", np.array([1.0]), np.array([1.25]), 1)
    differences.agree("vae", "encode", np.array([4.0]), np.array([5.0]), 0.25, relative=True)
    _, line = differences.table()
    assert line.split()[:2] == ["vae", "2"] and line.endswith("encode")
