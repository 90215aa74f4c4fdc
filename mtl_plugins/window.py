"""The time from one aggregation to the next: one call, or several micro-batches."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

from torch import Tensor, nn

from mtl_plugins.report import Report

logger = logging.getLogger(__name__)

REGULARIZER = "the regularizer"
"""Name of the regulariser where its term is not finite."""


class Window:
    """State of one step, made for the step and dropped after it.

    Args:
        params: Parameters that are trained.
        tasks: Names of all tasks; the list grows.
        hold: Whether gradients from before are kept apart from the gradients of the step.

    Attributes:
        reports: Losses of the calls so far.
        factors: Factors of the losses, from the weighting.
        nonfinite: Names of the tasks, or of the regulariser, that are not finite.
    """

    def __init__(self, params: Sequence[nn.Parameter], tasks: Sequence[str], hold: bool) -> None:
        self.reports: list[Report] = []
        self.factors: dict[str, float] = {}
        self.nonfinite: set[str] = set()
        self._tasks = tasks
        self._hold = hold
        self._held: list[tuple[nn.Parameter, Tensor | None]] = []
        self._keep_apart(params)

    def join(self, params: Sequence[nn.Parameter]) -> None:
        """Let parameters join in the middle of the step.

        The losses of earlier calls may have left the plain sum of their gradients in ``.grad``.
        """
        before = sum(p.grad is not None for p in params)
        if self._hold and before:
            logger.warning(
                "%d parameters joined the optimizer between two micro-batches with a gradient; it "
                "is added to the step as it is, without the method",
                before,
            )
        self._keep_apart(params)

    def _keep_apart(self, params: Sequence[nn.Parameter]) -> None:
        if self._hold:
            self._held += [(p, p.grad) for p in params]
            for p in params:
                p.grad = None

    def totals(self, reports: Sequence[Report] | None = None) -> dict[str, float]:
        """Sum the losses of the tasks that take part, on any rank, by their share.

        Args:
            reports: Losses of some calls; by default of all.
        """
        reports = self.reports if reports is None else reports
        return {
            name: sum(report.share * report.losses.get(name, 0.0) for report in reports)
            for name in self._tasks
            if any(name in report.losses for report in reports)
        }

    def note_nonfinite(self, gramian: Tensor | None, reports: Sequence[Report]) -> bool:
        """Note the tasks whose loss or gradient is NaN or infinite.

        Args:
            gramian: Gramian ``[n, n]`` of the tasks of ``reports``.
            reports: Losses of the calls.

        Returns:
            Whether there are any.
        """
        losses = self.totals(reports)
        lengths = [0.0] * len(losses) if gramian is None else gramian.diagonal().tolist()
        found = {
            name
            for (name, loss), length in zip(losses.items(), lengths, strict=True)
            if not math.isfinite(loss + length)
        }
        self.nonfinite |= found
        return bool(self.nonfinite)

    def release(self) -> None:
        """Add the gradients from before to the gradients of the step."""
        for p, grad in self._held:
            if grad is not None:
                p.grad = grad if p.grad is None else grad.add_(p.grad)

    def undo(self) -> None:
        """Bring back the gradients from before, after an error."""
        for p, grad in self._held:
            p.grad = grad
