"""Batch samplers for STA and ISTA, and the transport of the tasks to the data samples."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import islice
from typing import Any

from mmengine.dist import get_dist_info, sync_random_seed
from mmengine.logging import print_log
from mmengine.registry import DATA_SAMPLERS
from torch.utils.data import BatchSampler, Dataset

from mtl_plugins.allocation import TaskAllocation

KEY = "train_dataloader.batch_sampler"


@DATA_SAMPLERS.register_module()
class ISTABatchSampler(BatchSampler):
    """Train every example for some tasks at a time, until all are trained (paper B, ISTA).

    A batch comes back for the next turn ``gap`` steps later. With ``n`` turns a batch, an epoch
    therefore has ``n`` times as many steps of the optimizer; ``len()`` counts these steps.

    The tasks travel with the index of the example to the worker that loads the example, and then as
    ``metainfo['tasks']`` of the data sample.

    Args:
        sampler: Any sampler with a ``dataset``.
        batch_size: Number of examples a step on this rank.
        tasks: Names of all tasks in ``optim_wrapper.tasks``, from where ``tools/train.py`` takes
            them.
        tasks_per_sample: Number of tasks that an example trains at a time.
        gap: Number of steps between two turns of a batch.
        same_steps: Whether an epoch has as many steps as without allocation, and thus goes over
            fewer of the batches; schedules then need no change.
        batch_sampler: Config of the sampler that makes the batches, such as
            ``dict(type='AspectRatioBatchSampler')``; by default PyTorch's.
        drop_last: Whether the default ``batch_sampler`` drops an incomplete last batch.
        seed: Random seed of the allocation; by default the sampler's seed.
        only: Name of the one task that every example trains, for a single-task baseline.

    Examples:
        >>> # In a config:
        >>> train_dataloader = dict(
        ...     batch_sampler=dict(
        ...         type='ISTABatchSampler',
        ...         batch_sampler=dict(type='AspectRatioBatchSampler')))
    """

    def __init__(
        self,
        sampler: Any,
        batch_size: int,
        tasks: Sequence[str] | None = None,
        tasks_per_sample: int = 1,
        gap: int | None = 1,
        same_steps: bool = False,
        batch_sampler: Mapping[str, Any] | None = None,
        drop_last: bool = False,
        seed: int | None = None,
        only: str | None = None,
    ) -> None:
        self.batches = (
            BatchSampler(sampler, batch_size, drop_last)
            if batch_sampler is None
            else DATA_SAMPLERS.build(
                dict(batch_sampler), default_args={"sampler": sampler, "batch_size": batch_size}
            )
        )
        # Kept under this name, by which MMEngine finds the sampler to set the epoch.
        self.sampler = sampler
        self.batch_size = batch_size
        self.drop_last = drop_last
        self.same_steps = same_steps
        if seed is None:
            seed = getattr(sampler, "seed", None)
        if not tasks:
            raise ValueError(
                f"{KEY}.tasks: name the tasks, those of optim_wrapper.tasks. (tools/train.py takes "
                "them from there.)"
            )
        seed = sync_random_seed() if seed is None else seed
        try:
            self.allocation = TaskAllocation(tasks, tasks_per_sample, gap, seed, only)
        except ValueError as error:
            raise ValueError(f"{KEY}.{error}") from error
        if self.allocation.remark:
            print_log(f"{KEY}.{self.allocation.remark}", "current", logging.WARNING)
        carry_tasks(sampler.dataset)

    def __iter__(self) -> Iterator[list[int]]:
        rank, _ = get_dist_info()
        epoch = getattr(self.sampler, "epoch", 0)
        first = rank * self.batch_size
        schedule = self.allocation.schedule(self.batches, epoch)
        steps = len(self) if self.same_steps else None
        for batch, number, turn in islice(schedule, steps):
            yield [
                AllocatedIndex(index, self.allocation.tasks_of(first + i, number, turn, epoch))
                for i, index in enumerate(batch)
            ]

    def __len__(self) -> int:
        return len(self.batches) * (1 if self.same_steps else self.allocation.turns)


@DATA_SAMPLERS.register_module()
class STABatchSampler(ISTABatchSampler):
    """Train every example for some tasks, drawn at random (paper B, STA).

    Args:
        *args: Positional arguments of :class:`ISTABatchSampler`.
        **kwargs: Keyword arguments of :class:`ISTABatchSampler`, without ``gap``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if "gap" in kwargs:
            raise ValueError(
                f"{KEY}.gap: a STABatchSampler draws anew at each step and has no turns; "
                "ISTABatchSampler has"
            )
        super().__init__(*args, **kwargs | {"gap": None})


class AllocatedIndex(int):
    """Index of an example, with the tasks that the example is to train.

    Attributes:
        tasks: Names of the tasks.
    """

    tasks: tuple[str, ...]

    def __new__(cls, index: int, tasks: tuple[str, ...]) -> AllocatedIndex:
        self = super().__new__(cls, index)
        self.tasks = tasks
        return self

    def __reduce__(self) -> tuple[Any, ...]:  # pickled for a worker
        return AllocatedIndex, (int(self), self.tasks)


def carry_tasks(dataset: Dataset) -> None:
    """Make a dataset put the tasks of an :class:`AllocatedIndex` into the data sample.

    The dataset becomes an instance of a subclass, since the data loader, and no config of ours,
    asks the dataset for examples.
    """
    if not hasattr(dataset, "_without_tasks"):
        cls: Any = type(dataset)
        dataset.__class__ = _carrying(cls)


@cache
def _carrying(cls: Any) -> Any:
    def carry(index: int, example: Any) -> Any:
        if isinstance(index, AllocatedIndex):
            if not isinstance(example, dict) or "data_samples" not in example:
                raise TypeError(
                    f"{KEY}: the examples have no 'data_samples' to carry their tasks; "
                    f"{cls.__name__} returned {type(example).__name__}"
                )
            example["data_samples"].set_metainfo({"tasks": index.tasks})
        return example

    def get(self: Any, index: int) -> Any:
        return carry(index, cls.__getitem__(self, index))

    # PyTorch asks a data set with ``__getitems__`` for a batch at once.
    def get_batch(self: Any, indices: Sequence[int]) -> list[Any]:
        return [carry(*each) for each in zip(indices, cls.__getitems__(self, indices), strict=True)]

    def reduce(self: Any) -> tuple[Any, ...]:  # pickled for a worker
        return _restored, (cls,), self.__dict__

    members = {"__getitem__": get, "__reduce__": reduce, "__module__": cls.__module__}
    if hasattr(cls, "__getitems__"):
        members["__getitems__"] = get_batch
    return type(cls.__name__, (cls,), members | {"_without_tasks": cls})


def _restored(cls: type) -> Any:
    carrying = _carrying(cls)
    return carrying.__new__(carrying)
