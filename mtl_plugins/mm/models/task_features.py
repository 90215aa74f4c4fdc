"""Features that differ from task to task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor
from torch.utils._pytree import register_pytree_node


@dataclass
class TaskFeatures:
    """Outputs of a backbone or neck that has features of its own for each task.

    Attributes:
        features: Features for the head of each task, a tuple of ``[N, C_l, H_l, W_l]``.
        auxiliary: Predictions of each task, before the head and in any resolution, that are to be
            supervised as well: ``[N, C, H_l, W_l]`` with the channels of the head's output. A task
            without such predictions may be missing.
    """

    features: Mapping[str, tuple[Tensor, ...]]
    auxiliary: Mapping[str, tuple[Tensor, ...]] = field(default_factory=dict)


# For level='feature', which looks for the tensors in the output of a module.
register_pytree_node(
    TaskFeatures,
    lambda x: ([dict(x.features), dict(x.auxiliary)], None),
    lambda values, _: TaskFeatures(*values),
)
