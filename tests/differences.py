"""Comparisons with the programs that define a result, kept for the table that ends the tests' output.

    part              compared                                              largest difference    limit
    samplers          dpm++2m, 25 steps                                     2.4e-06               1e-04
"""
import numpy as np

ROWS = []             # (part, what, difference, limit) of each comparison


def agree(part, what, found, expected, limit, relative=False):
    """Assert that two arrays agree within `limit`, and note the largest difference for the table.

    part: what the table calls the capability, e.g. "samplers"; what: the single comparison
    relative: divide the largest difference by the largest expected value
    """
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape, (found.shape, expected.shape)
    difference = float(np.abs(found.astype(np.float64) - expected.astype(np.float64)).max(initial=0))
    if relative:
        difference /= float(np.abs(expected).max())
    ROWS.append((part, what, difference, float(limit)))
    assert difference <= limit, f"{part}, {what}: differs by {difference:.3g}, allowed are {limit:g}"


def table():
    """Lines: for each part how many comparisons there were, and the one that comes nearest to its limit."""
    worst, counts = {}, {}
    for part, what, difference, limit in ROWS:
        counts[part] = counts.get(part, 0) + 1
        share = difference / limit if limit else difference
        if part not in worst or share > worst[part][0]:
            worst[part] = share, what, difference, limit
    yield f"{'part':<24}{'comparisons':>12}  {'difference':>12}{'limit':>10}  nearest to its limit"
    for part, (_, what, difference, limit) in sorted(worst.items()):
        yield f"{part:<24}{counts[part]:>12}  {difference:>12.2g}{limit:>10.2g}  {what}"
