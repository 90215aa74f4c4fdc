"""Sequential updates: one step of the optimizer for each task in turn, on the same batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext

from torch import Tensor
from torch.optim import Optimizer

from mtl_plugins.task_norm import TaskNorm


def update_in_turn(
    loss_of: Callable[[str], Tensor | None],
    tasks: Sequence[str],
    optimizer: Optimizer,
    norm: TaskNorm | None = None,
) -> dict[str, Tensor]:
    """Update the parameters once for each task, each on its loss at the weights moved so far.

    Before each step, all gradients are None: the optimizer skips what the task does not reach, such
    as the heads and norms of the other tasks, with no weight decay, momentum or step count. The
    gradients of the last task remain.

    Args:
        loss_of: Function that runs the model on the batch and returns the scalar loss of the task.
        tasks: Names of the tasks, in the order of their updates.
        optimizer: Optimizer of all parameters of the model.
        norm: Task-specific norms of the model, which are chosen for each task. None leaves the
            model as it is.

    Returns:
        Loss of each task, detached, from before the task's own step.

    Raises:
        ValueError: A task has no loss, or one without a gradient or with more than one element.
    """
    losses = {}
    for task in tasks:
        optimizer.zero_grad(set_to_none=True)
        # Checkpointed activations are computed again in the backward pass.
        with nullcontext() if norm is None else norm.of(task):
            loss = loss_of(task)
            if loss is None:
                raise ValueError(f"the task {task!r} has no loss")
            if loss.numel() != 1 or not loss.requires_grad:
                raise ValueError(
                    f"the loss of the task {task!r} must be one number that depends on a "
                    f"parameter, got the shape {tuple(loss.shape)} and "
                    f"requires_grad={loss.requires_grad}"
                )
            loss.backward()
        optimizer.step()
        losses[task] = loss.detach()
    return losses
