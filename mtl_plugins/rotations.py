"""Rotations of shared features, one a task, which their own optimizer learns (RotoGrad)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mtl_plugins.distributed import average, world_size
from mtl_plugins.gradients import dense_strides
from mtl_plugins.state import check_keys


class Rotations(nn.Module):
    r"""A rotation of each task between the features that tasks share and the task's head.

    A rotation is :math:`R = \exp(A - A^\top)` of a matrix :math:`A` below the diagonal, at first
    zero, so that nothing is rotated. The parameters require no gradient: the optimizer of the model
    leaves them alone, and :class:`~mtl_plugins.aggregation.rotograd.RotoGrad` moves them.

    Args:
        tasks: Names of the tasks.
        channels: Number of channels of each feature map; None for a map that is left as it is.
        size: Number of values that are rotated. None rotates the channels, alike at every location;
            a number rotates the first ``size`` values of an image's map, written as one row.

    Attributes:
        skew: Matrices ``A`` of each task, by the number of the feature map.
        learned: Whether a method learns the rotations.
    """

    learned = False

    def __init__(
        self, tasks: Sequence[str], channels: Sequence[int | None], size: int | None = None
    ) -> None:
        super().__init__()
        self.channels, self.size = list(channels), size
        self.skew = nn.ModuleDict(
            {
                task: nn.ParameterDict(
                    {
                        str(number): nn.Parameter(
                            torch.zeros(size or c, size or c), requires_grad=False
                        )
                        for number, c in enumerate(channels)
                        if c is not None
                    }
                )
                for task in tasks
            }
        )
        self._kept: dict[tuple[str, int], tuple[Any, Tensor]] = {}
        # Number of the map that each tensor was, by its id, in the forward passes since the last
        # gradients: the tensors are alive until then.
        self._numbers: dict[int, int] = {}

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks."""
        return list(self.skew)

    def train(self, mode: bool = True) -> Rotations:
        # EMAHook exchanges weights through .data before a validation, unseen by versions.
        self._kept.clear()
        return super().train(mode)

    def matrix(self, task: str, number: int) -> Tensor:
        """Return the rotation ``[n, n]`` of a task and a feature map, without a graph."""
        a = self._parameter(task, number)
        key = (a._version, a.data_ptr() if a.device.type != "meta" else 0, a.device, a.dtype)
        known, rotation = self._kept.get((task, number), (None, a))
        if known != key:
            with torch.inference_mode(False), torch.no_grad():
                rotation = _rotation(a)
            self._kept[task, number] = key, rotation
        return rotation

    def forward(self, features: Sequence[Tensor]) -> dict[str, tuple[Tensor, ...]]:
        """Return the rotated feature maps ``[N, C, ...]`` of each task.

        Raises:
            ValueError: The maps are not those of the constructor; or, in training, no method learns
                the rotations.
        """
        if self.training and torch.is_grad_enabled():
            if not self.learned:
                raise ValueError(
                    "rotations: nothing learns them; take the aggregator RotoGrad at "
                    "level='feature' (--mtl rotograd), or leave the rotations out"
                )
            for number, z in enumerate(features):
                self._numbers[id(z)] = number
        self._check(features)
        return {
            task: tuple(
                z if c is None else self._rotate(self.matrix(task, number), z)
                for number, (z, c) in enumerate(zip(features, self.channels, strict=True))
            )
            for task in self.skew
        }

    def take_numbers(self, features: Sequence[Tensor]) -> list[int]:
        """Return which map each tensor of the last forward passes was, and forget the passes.

        Raises:
            ValueError: A tensor was not rotated.
        """
        numbers = [self._numbers.get(id(z)) for z in features]
        self._numbers = {}
        found = [number for number in numbers if number is not None]
        if len(found) < len(numbers):
            raise ValueError(
                "representation: RotoGrad needs the module whose output is rotated, got one with "
                "another output"
            )
        return found

    def rotated(self, x: Tensor) -> Tensor:
        """View what is rotated of a map ``[N, C, ...]``, as points ``[N, n, P]``."""
        if self.size is None:
            return x.reshape(len(x), x.shape[1], -1)
        return x.flatten(1)[:, : self.size, None]

    def gradient(self, task: str, number: int, inner: Tensor) -> Tensor:
        r"""Return the gradient on ``A`` of :math:`-\sum_n \langle R v_n, \tilde g_n \rangle`.

        Args:
            task: Name of the task.
            number: Number of the feature map.
            inner: Sum :math:`\sum_n g_n v_n^\top`, ``[n, n]``, of the gradients :math:`g_n = R^\top
                \tilde g_n` that arrive behind the rotation.
        """
        a = self._parameter(task, number).detach().requires_grad_()
        with torch.enable_grad():
            rotation = _rotation(a)
        (found,) = torch.autograd.grad(rotation, a, -rotation.detach() @ inner.to(a))
        return found

    def _parameter(self, task: str, number: int) -> nn.Parameter:
        matrices: Any = self.skew[task]  # nn.ModuleDict has no type for its values
        return matrices[str(number)]

    def _rotate(self, matrix: Tensor, z: Tensor) -> Tensor:
        turned = torch.einsum("ij,bjp->bip", matrix.to(z.dtype), self.rotated(z))
        if self.size is None:
            return turned.reshape(z.shape)
        rest = z.flatten(1)[:, self.size :]
        return torch.cat([turned.flatten(1).to(rest.dtype), rest], 1).reshape(z.shape)

    def _check(self, features: Sequence[Tensor]) -> None:
        found = [z.shape[1] for z in features]
        if len(found) != len(self.channels) or any(
            c not in (None, n) for c, n in zip(self.channels, found, strict=True)
        ):
            raise ValueError(f"rotations: made for maps of {self.channels} channels, got {found}")
        for z, c in zip(features, self.channels, strict=True):
            if self.size is not None and c is not None and self.size > z[0].numel():
                raise ValueError(
                    f"rotations.size: {self.size} is more than the {z[0].numel()} values of a map "
                    f"{tuple(z.shape[1:])}"
                )


def _rotation(a: Tensor) -> Tensor:
    below = a.tril(-1)
    with torch.autocast(a.device.type, enabled=False):  # half precision is no rotation
        return torch.linalg.matrix_exp(below - below.T)


class RotationOptimizer:
    """Adam on the rotations, with a learning rate of its own that decays at every step.

    Args:
        rotations: Rotations to learn.
        lr: Learning rate of the first step.
        decay: Factor of the learning rate from step to step.
    """

    def __init__(self, rotations: Rotations, lr: float, decay: float) -> None:
        self.rotations = rotations
        self._params = list(rotations.parameters())
        self._adam = torch.optim.Adam(self._params, lr=lr)
        self._lr, self._decay, self._steps = lr, decay, 0
        self._sums: dict[tuple[str, int], Tensor] = {}

    def add(
        self, rows: Mapping[str, Tensor], lengths: Mapping[str, float], features: Sequence[Tensor]
    ) -> None:
        """Add the gradients on the rotations that the features of a micro-batch give.

        Args:
            rows: Gradient ``[D]`` of each task that has one, of all features one after another.
            lengths: Length of each task's gradient, that of all ranks together.
            features: Features that the gradients are of.

        Raises:
            ValueError: The features are not what is rotated.
        """
        target = torch.stack([row / lengths[task] for task, row in rows.items()]).mean(0)
        start = 0
        for z, number in zip(features, self.rotations.take_numbers(features), strict=True):
            part = slice(start, start := start + z.numel())
            if self.rotations.channels[number] is None:
                continue
            v = self.rotations.rotated(_as(target, part, z))
            for task, row in rows.items():
                g = self.rotations.rotated(_as(row, part, z))
                found = torch.einsum("bip,bjp->ij", g, v)
                before = self._sums.get((task, number))
                self._sums[task, number] = found if before is None else before + found

    def step(self) -> None:
        """Average over the ranks, and move the rotations of the tasks that had a gradient."""
        names = list(self._sums)
        if names:
            flat = torch.cat([self._sums[name].flatten() for name in names])
            # A rank's gradients are world_size() times what they are in the whole batch's mean.
            flat = average(flat) / world_size()
            sizes = [self._sums[name].numel() for name in names]
            for name, part in zip(names, flat.split(sizes), strict=True):
                parameter = self.rotations._parameter(*name)
                inner = part.view(parameter.shape)
                parameter.grad = self.rotations.gradient(*name, inner)
        for group in self._adam.param_groups:
            group["lr"] = self._lr * self._decay**self._steps
        self._adam.step()
        for parameter in self._params:  # the model's optimizer may hold them, and leaves None alone
            parameter.grad = None
        self._steps += 1
        self.forget()

    def forget(self) -> None:
        """Drop what was added since the last step."""
        self._sums = {}

    def state_dict(self) -> dict[str, Any]:
        """Return the state of Adam, and the number of steps."""
        return {"adam": self._adam.state_dict(), "steps": self._steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        check_keys("the rotations", state, ("adam", "steps"))
        self._adam.load_state_dict(state["adam"])
        self._steps = state["steps"]


def _as(flat: Tensor, part: slice, z: Tensor) -> Tensor:
    """View a part of a row in the shape and the memory format of a feature map."""
    return flat[part].as_strided(z.shape, dense_strides(z))
