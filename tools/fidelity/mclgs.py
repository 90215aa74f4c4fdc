"""Show how MCLGS weighs pairs of tasks, and how long two conflicting tasks stand still (paper A).

    python tools/fidelity/mclgs.py

With two tasks, the update is the mean of the gradients times ``w = tanh(cos p(t)) + 1`` (eq. 4, 5):
where they conflict, the whole model waits until the pacing p has come down.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from mtl_plugins.aggregation import MCLGS

COSINES = (-1.0, -0.3, -0.1, -0.03, -0.01, 0.0, 0.01, 0.03, 0.1, 0.3, 1.0)
STEPS = 1000


def weight(cosine: float, method: MCLGS, share: float) -> float:
    """Return the factor of the mean gradient that the method has after a share of the run."""
    method.load_state_dict({"step": round(share * STEPS), "base": method.base.state_dict()})
    gramian = torch.tensor([[1.0, cosine], [cosine, 1.0]], dtype=torch.float64)
    return 2.0 * float(method.weights(gramian)[0])


def standstill(cosine: float, a0: float, r_t: float) -> float:
    """Return the share of a run in which w is below 0.5, for a cosine that stays as it is."""
    if cosine >= 0.0:
        return 0.0
    return min(max(r_t * (1.0 - math.atanh(0.5) / -cosine / a0), 0.0), 1.0)


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table in Markdown."""
    print("| " + " | ".join(head) + " |")
    print("|" + "---|" * len(head))
    for row in rows:
        print("| " + " | ".join(row) + " |")


def main() -> None:
    print("w over the cosine (fig. 2), a0 = 40 and r_t = 1:\n")
    method = MCLGS(a0=40.0, r_t=1.0, total_steps=STEPS)
    shares = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)
    rows = [[f"{c:g}", *(f"{weight(c, method, share):.3f}" for share in shares)] for c in COSINES]
    print_table(["cosine", *(f"{share:.0%} of the run" for share in shares)], rows)
    print("\nShare of the run in which w < 0.5, by cosine, for the grid of Tables 1 and 2:\n")
    grid = [(a0, r_t) for a0 in (20.0, 60.0, 120.0) for r_t in (0.5, 1.0, 2.0)]
    conflicts = [c for c in COSINES if c < 0.0]
    rows = [
        [f"{a0:g}", f"{r_t:g}", *(f"{standstill(c, a0, r_t):.0%}" for c in conflicts)]
        for a0, r_t in grid
    ]
    print_table(["a0", "r_t", *(f"{c:g}" for c in conflicts)], rows)


if __name__ == "__main__":
    main()
