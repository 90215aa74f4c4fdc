"""Plain descent of a batch's losses, which is taken back: the losses at its end, nothing more."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mtl_plugins.aggregation import Aggregator
from mtl_plugins.distributed import average_some
from mtl_plugins.gradients import grads_set_aside
from mtl_plugins.losses import scalars
from mtl_plugins.report import Again, Report
from mtl_plugins.weighting import Weighting
from mtl_plugins.window import Window


def check_weighting(aggregator: Aggregator, weighting: Weighting | None) -> None:
    """Refuse a weighting that learns what the method that looks ahead learns.

    Raises:
        ValueError: The weighting runs the model once more, too.
    """
    if weighting is not None and weighting.needs_new_losses:
        raise ValueError(
            f"weighting: {type(weighting).__name__} learns weights of the losses from further "
            f"forward passes, as {type(aggregator).__name__} does; use one of the two"
        )


def check_again(aggregator: Aggregator, again: Again | None, model: nn.Module | None) -> None:
    """Check that a method can look ahead.

    Raises:
        ValueError: There is no way to compute the losses once more, or the model is not known.
    """
    name = type(aggregator).__name__
    if again is None:
        raise ValueError(
            f"again: {name} computes the losses of each batch some more times, at other "
            "parameters; call backward(losses, again=function), where function() runs the model "
            "on the batch and returns the losses"
        )
    if model is None:
        raise ValueError(
            f"again: {name} runs the model more often than the step, which must not move buffers "
            "such as the running statistics of batch norms; call protect(model) before the first "
            "step"
        )


@dataclass(frozen=True)
class Descent:
    """Descent of a weighted sum of the losses from the present parameters.

    Parameters, buffers, ``.grad`` and the random numbers of PyTorch are afterwards as they were;
    graphs of earlier passes can still be run back. Every rank descends along the mean gradient.

    Attributes:
        model: Whole model, without the wrapper of a data-parallel run.
        params: Parameters to move.
        tasks: Names of all tasks.
        window: Step, whose factors weigh the losses.
        reports: Calls that make up the batch.
        scale: Factor of a loss scaler.
    """

    model: nn.Module
    params: Sequence[nn.Parameter]
    tasks: Sequence[str]
    window: Window
    reports: Sequence[Report]
    scale: Tensor | None = None

    def losses_after(
        self, tasks: Sequence[str], weights: Sequence[float], lr: float, steps: int
    ) -> list[float]:
        """Compute the losses after plain gradient descent of their weighted sum.

        Args:
            tasks: Names of ``n`` tasks that take part.
            weights: Weight of each one's loss.
            lr: Factor of the gradient in a step.
            steps: Number of steps.

        Returns:
            The losses ``[n]``, times the factors of the step; the mean over the ranks.
        """
        factors = {n: self.window.factors[n] for n in tasks}
        weighed = {n: w * factors[n] for n, w in zip(tasks, weights, strict=True)}
        with self._taken_back():
            for _ in range(steps):
                self._step(weighed, lr)
            ends = [
                Report(losses, self.tasks, self.params[0].device, changed=False, share=share)
                for losses, share in self._losses()
            ]
        # A loss without a gradient there, as of a head without a region, counts as unchanged.
        found = self.window.totals(self.reports) | self.window.totals(ends)
        return [factors[n] * found[n] for n in tasks]

    def _losses(self) -> Iterator[tuple[dict[str, Tensor], float]]:
        """Yield the losses of each call that carry a gradient, and the share of the call."""
        for report in self.reports:
            assert report.again is not None
            losses = scalars(report.again())
            present = [n for n in self.tasks if n in losses and losses[n].requires_grad]
            yield {n: losses[n] for n in present}, report.share

    def _step(self, weights: Mapping[str, float], lr: float) -> None:
        for losses, share in self._losses():
            terms = [share * weights[n] * losses[n] for n in losses if n in weights]
            if terms:
                total = torch.stack([x.reshape(()) for x in terms]).sum()
                (total if self.scale is None else total * self.scale).backward()
        grads = average_some([p.grad for p in self.params], self.params)
        moved = [(p.data, g) for p, g in zip(self.params, grads, strict=True) if g is not None]
        for data, grad in moved:
            data.sub_(grad if self.scale is None else grad / self.scale, alpha=lr)
        for p in self.params:
            p.grad = None
        torch.clear_autocast_cache()  # an outer context would keep what was cast from before

    @contextmanager
    def _taken_back(self) -> Iterator[None]:
        device = self.params[0].device
        buffers = [
            (module._buffers, name, buffer)
            for module in self.model.modules()
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]
        copies = {id(buffer): buffer.clone() for _, _, buffer in buffers}
        with ExitStack() as stack:
            stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
            stack.enter_context(grads_set_aside(self.params))
            before = [p.detach().clone() for p in self.params]
            try:
                for where, name, buffer in buffers:
                    where[name] = copies[id(buffer)]
                yield
            finally:
                for where, name, buffer in buffers:
                    where[name] = buffer
                for p, value in zip(self.params, before, strict=True):
                    p.data.copy_(value)  # unlike p.copy_(), unseen by the graphs of earlier passes
                torch.clear_autocast_cache()
