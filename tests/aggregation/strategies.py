"""Task gradients of every awkward kind."""

import torch
from hypothesis import strategies as st
from torch import Tensor

KINDS = ["random", "conflicting", "duplicate", "rank-deficient", "badly scaled", "short"]


def make_jacobian(kind: str, tasks: int, seed: int) -> Tensor:
    """``[T, D]`` in double precision, with ``D > T``."""
    rng = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=rng, dtype=torch.float64)  # noqa: E731
    rows = normal(tasks, tasks + 9)
    if kind == "conflicting":
        # All cosines near -1 / T: as hostile as T vectors can be without a vanishing sum.
        rows = torch.linalg.qr(rows.T).Q.T
        rows = rows - rows.mean(dim=0) * 0.9
    elif kind == "duplicate":
        rows[tasks // 2 :] = rows[0]
    elif kind == "rank-deficient":
        # Nonnegative mixtures of few vectors in one half-space: no convex combination vanishes.
        basis = torch.linalg.qr(normal(tasks + 9, max(1, tasks // 2))).Q.T
        mix = torch.rand(tasks, len(basis), generator=rng, dtype=torch.float64) + 0.05
        rows = mix @ basis
    elif kind == "badly scaled":
        rows = rows * torch.logspace(-10, 10, tasks, dtype=torch.float64)[:, None]
    elif kind == "short":
        rows = rows * 1e-10
    return rows


tasks = st.integers(2, 16)
seeds = st.integers(0, 2**31)
kinds = st.sampled_from(KINDS)


@st.composite
def jacobians(draw: st.DrawFn, kinds: st.SearchStrategy[str] = kinds) -> Tensor:
    """Any kind, any number of tasks from 2 to 16."""
    return make_jacobian(draw(kinds), draw(tasks), draw(seeds))


well_scaled = jacobians(st.sampled_from(["random", "conflicting", "duplicate", "rank-deficient"]))
full_rank = jacobians(st.sampled_from(["random", "conflicting"]))
