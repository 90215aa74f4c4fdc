"""Claims of the papers that need no training."""

from __future__ import annotations

import pytest
from fidelity.delta_m import rows_of
from fidelity.mclgs import COSINES, STEPS, standstill, weight
from fidelity.published import TABLES

from mtl_plugins.aggregation import MCLGS

# Rows whose printed Δm does not follow from the printed metrics, in docs/fidelity.md.
WRONG_IN_PRINT = {
    ("B Table 4, Mask R-CNN on Cityscapes", "STA"),
    ("B Table 4, Mask R-CNN on Cityscapes", "ISTA"),
    ("D Table 1, NYUD-v2", "Phase 2 (Table 4)"),
    ("D Table 1, NYUD-v2", "Mix (Table 4)"),
    ("D Table 3, Cityscapes", "GD + Recon"),
    ("D Table 3, Cityscapes", "Connection strength"),
}
ROWS = [(table.name, row) for table in TABLES for row in rows_of(table)]


@pytest.mark.parametrize(("table", "row"), ROWS, ids=[f"{t}-{row.name}" for t, row in ROWS])
def test_published_delta_m(table, row):
    assert row.holds == ((table, row.name) not in WRONG_IN_PRINT)
    assert row.lowest < row.computed < row.highest
    if table != "D Table 3, Cityscapes":  # its errors have three digits
        assert row.highest - row.lowest < 0.2


@pytest.mark.parametrize("a0", [20.0, 120.0])
@pytest.mark.parametrize("r_t", [0.5, 1.0, 2.0])
def test_mclgs_waits_for_conflicts_and_ends_as_the_mean(a0, r_t):
    """The closed form of the standstill against the method's own weights, step by step."""
    method = MCLGS(a0=a0, r_t=r_t, total_steps=STEPS)
    for cosine in COSINES:
        below = [weight(cosine, method, step / STEPS) < 0.5 for step in range(0, STEPS, 5)]
        assert sum(below) / len(below) == pytest.approx(standstill(cosine, a0, r_t), abs=0.006)
        assert below == sorted(below, reverse=True)
        if r_t <= 1.0:
            assert weight(cosine, method, 1.0) == 1.0
