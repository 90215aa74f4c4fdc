"""Base classes of the aggregators."""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from mtl_plugins.aggregation.solvers import Matrix, NotConverged, Vector
from mtl_plugins.draws import RandomMethod
from mtl_plugins.gradients import combine, gramian_of
from mtl_plugins.registry import Method

logger = logging.getLogger(__name__)


class Aggregator(Method, ABC):
    """Turns the task gradients ``J`` of shape ``[T, D]`` into one update ``d`` of shape ``[D]``.

    Attributes:
        scale: Scale of the update: equal rows ``g`` give ``T · g`` (``"sum"``) or, up to the
            method's own factor, ``g`` (``"mean"``). A learning rate tuned for the plain sum of
            losses carries over to a sum-scaled method; a mean-scaled one wants up to ``T`` times as
            much.
        needs_gradients: Whether the weights depend on the gradients; if not, one backward pass of
            the weighted loss is enough.
        of_features: Whether the method works at ``level="feature"``, too.
        takes_turns: Whether :meth:`begin` may return True.
        looks_ahead: Whether the method needs :meth:`look_ahead`.
        scales_own: Whether the method weighs what each task has alone, too.
        needs_losses: Whether :meth:`on_parameters` needs the losses.
        remembers_rows: Whether the method keeps gradients from one step to the next.
        own_factors: Factors ``[T]`` of the gradients of what each task has alone, found with the
            last update, if the method :attr:`scales_own`; if not, the factors with
            ``heads="weighted"``, where those are not the weights.
    """

    scale: ClassVar[Literal["sum", "mean"]]
    needs_gradients: ClassVar[bool] = True
    scales_own: ClassVar[bool] = False
    of_features: ClassVar[bool] = True
    needs_losses: ClassVar[bool] = False
    remembers_rows: ClassVar[bool] = False
    takes_turns: bool = False
    looks_ahead: ClassVar[bool] = False
    own_factors: Vector | None = None

    def meet(self, model: nn.Module, tasks: Sequence[str]) -> None:
        """Get to know the model before the first step; most methods need not.

        Args:
            model: The whole model.
            tasks: Names of all tasks; empty, or fewer, where they are not known yet.

        Raises:
            ValueError: The model is none for this method.
        """

    def begin(self) -> bool:
        """Begin a step.

        Returns:
            Whether the optimizer takes a step for each task in turn, rather than one for the update
            of all tasks.
        """
        return False

    def look_ahead(
        self, tasks: Sequence[int], losses_after: Callable[[Vector, float, int], Vector]
    ) -> None:
        """Try out plain steps on the batch, before the gradients are aggregated.

        Args:
            tasks: Number of each of ``n`` tasks, those of the coming aggregation.
            losses_after: Function that returns the losses ``[n]`` after plain steps down the
                weighted sum of the losses, given the weights ``[n]``, the length of a step and the
                number of steps. The model is afterwards as it was.
        """

    @abstractmethod
    def __call__(self, jacobian: Tensor, tasks: Sequence[int] | None = None) -> Tensor:
        """Aggregate the gradients of the tasks.

        Args:
            jacobian: Gradients ``[T, D]``, any floating dtype and device.
            tasks: Number of each row's task, for methods that know tasks apart. Defaults to
                ``0 … T - 1``.

        Returns:
            The update ``[D]``, same dtype and device.
        """

    def on_parameters(
        self,
        jacobian: Tensor,
        parameters: Sequence[Tensor],
        tasks: Sequence[int] | None = None,
        losses: Tensor | None = None,
    ) -> Tensor:
        """Aggregate gradients of parameters, by default like any others.

        Args:
            jacobian: Gradients ``[T, D]`` of all elements of ``parameters`` one after another, each
                parameter in the order of :func:`~mtl_plugins.gradients.dense_strides`.
            parameters: Parameters that several tasks share.
            tasks: Number of each row's task. Defaults to ``0 … T - 1``.
            losses: Loss ``[T]`` of each row's task, if the method :attr:`needs_losses`.

        Returns:
            The update ``[D]``, same dtype and device as the jacobian.
        """
        return self(jacobian, tasks)

    def on_features(
        self,
        jacobian: Tensor,
        features: Sequence[Tensor],
        tasks: Sequence[int] | None = None,
    ) -> Tensor:
        """Aggregate gradients of features, by default like any others.

        Args:
            jacobian: Gradients ``[T, D]`` of all elements of ``features`` one after another.
            features: Tensors ``[N, ...]`` with one entry an example.
            tasks: Number of each row's task. Defaults to ``0 … T - 1``.

        Returns:
            The update ``[D]``, same dtype and device as the jacobian.
        """
        return self(jacobian, tasks)

    @property
    def of_parameters(self) -> bool:
        """Whether the method works at ``level="parameter"``, too."""
        return True

    def learn(
        self, rows: Mapping[str, Tensor], lengths: Mapping[str, float], features: Sequence[Tensor]
    ) -> None:
        """Learn from the gradients of the features of a micro-batch, after they were aggregated.

        Args:
            rows: Gradient ``[D]`` of each task that has one, of all features one after another;
                that of this rank's loss.
            lengths: Length of each task's gradient, that of the mean loss of all ranks.
            features: Features that the gradients are of.
        """

    def finish(self, skipped: bool) -> None:
        """End a step.

        Args:
            skipped: Whether the step is skipped, for a gradient that is not finite.
        """


class GramianAggregator(Aggregator):
    """An aggregator of the form ``d = Jᵀ w`` with weights ``w = f(G)``, ``G = J Jᵀ``.

    A subclass implements :meth:`solve`, in double precision on the CPU: ``G`` is tiny, and fetching
    it is the only time a step waits for the GPU.

    Attributes:
        fallbacks: Number of times that :meth:`solve` did not converge, and :meth:`fallback` stood
            in.
    """

    _fallbacks = 0

    @property
    def fallbacks(self) -> int:
        return self._fallbacks

    def __call__(self, jacobian: Tensor, tasks: Sequence[int] | None = None) -> Tensor:
        return combine(self.weights(gramian_of(jacobian), tasks=tasks), jacobian)

    def weights(
        self,
        gramian: Tensor,
        losses: Tensor | None = None,
        tasks: Sequence[int] | None = None,
    ) -> Tensor:
        """Return the weight of each task gradient in the update.

        Args:
            gramian: Gramian ``[T, T]``, whose dtype says how far to trust it: what is below the
                dtype's rounding counts as zero.
            losses: Loss values ``[T]``; only a method that normalises by them fetches them.
            tasks: Number of each row's task, for methods with a memory per task. Defaults to
                ``0 … T - 1``.

        Returns:
            The weights ``[T]``, finite, same dtype and device.

        Raises:
            ValueError: The Gramian is not square or not finite.
        """
        if gramian.ndim != 2 or gramian.shape[0] != gramian.shape[1]:
            raise ValueError(f"a Gramian is square, got the shape {tuple(gramian.shape)}")
        matrix: Matrix = gramian.tolist()
        if not all(map(math.isfinite, chain.from_iterable(matrix))):
            raise ValueError("the Gramian has an entry that is not finite")
        dtype = torch.finfo(gramian.dtype)
        # The products of a shorter gradient are denormal numbers, which have no accuracy.
        floor = dtype.tiny / dtype.eps
        for t in [t for t, row in enumerate(matrix) if row[t] < floor]:
            matrix[t] = [0.0] * len(matrix)
            for row in matrix:
                row[t] = 0.0
        try:
            weights = self.solve(
                matrix,
                eps=dtype.eps,
                losses=losses,
                tasks=range(len(matrix)) if tasks is None else tasks,
            )
        except NotConverged as error:
            self._fallbacks += 1
            logger.warning("%s; this step takes the plain %s", error, self.scale)
            weights = self.fallback(matrix)
        low, high = dtype.min, dtype.max
        clamped = [max(low, min(high, w)) for w in weights]
        return torch.tensor(clamped, dtype=gramian.dtype, device=gramian.device)

    @abstractmethod
    def solve(
        self, gramian: Matrix, *, eps: float, losses: Tensor | None, tasks: Sequence[int]
    ) -> Vector:
        """Find the weights of :meth:`weights`, on lists of floats.

        Args:
            gramian: Gramian ``[T, T]``.
            eps: Relative rounding of the Gramian's entries.
            losses: Loss values ``[T]``, if known.
            tasks: Number of each row's task.
        """

    def fallback(self, gramian: Matrix) -> Vector:
        """Return the weights of the plain sum or mean, for where :meth:`solve` did not converge.

        Args:
            gramian: Gramian ``[T, T]``.
        """
        return [1.0 if self.scale == "sum" else 1.0 / len(gramian)] * len(gramian)


class RandomAggregator(RandomMethod, GramianAggregator):
    """A Gramian aggregator that draws random numbers."""
