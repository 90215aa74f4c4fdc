"""STA and ISTA as batch samplers, and the way of the tasks from there to the model."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import islice
from typing import Any

from mmengine.dist import get_dist_info, sync_random_seed
from mmengine.logging import print_log
from mmengine.registry import DATA_SAMPLERS
from torch.utils.data import BatchSampler, Dataset, Sampler

from mtl_plugins.allocation import TaskAllocation

KEY = "train_dataloader.batch_sampler"


@DATA_SAMPLERS.register_module()
class ISTABatchSampler(BatchSampler):
    """Trains every example for some tasks at a time, until it has trained all (paper B, ISTA).

    A batch comes back for its next turn ``gap`` steps later. An epoch is therefore as many times
    longer as a batch has turns, in steps of the optimizer; ``len()`` counts those.

    The tasks travel with the index of the example to the worker that loads it, and from there as
    ``metainfo['tasks']`` of its data sample.

    Args:
        sampler: Any sampler with a ``dataset``.
        batch_size: Examples a step on this rank.
        tasks: Names of all tasks, those of ``optim_wrapper.tasks``; ``tools/train.py`` takes them
            from there.
        tasks_per_sample: How many an example trains at a time.
        gap: Steps between two turns of a batch.
        same_steps: Whether an epoch has as many steps as without allocation, and so goes over fewer
            of the batches; schedules then stay as they are.
        batch_sampler: The one that makes the batches, such as
            ``dict(type='AspectRatioBatchSampler')``; by default PyTorch's.
        drop_last: For the default one, whether an incomplete last batch is dropped.
        seed: Of the allocation; by default that of the sampler.

    Examples:
        >>> # In a config:
        >>> train_dataloader = dict(
        ...     batch_sampler=dict(
        ...         type='ISTABatchSampler',
        ...         batch_sampler=dict(type='AspectRatioBatchSampler')))
    """

    def __init__(
        self,
        sampler: Sampler,
        batch_size: int,
        tasks: Sequence[str] | None = None,
        tasks_per_sample: int = 1,
        gap: int | None = 1,
        same_steps: bool = False,
        batch_sampler: Mapping[str, Any] | None = None,
        drop_last: bool = False,
        seed: int | None = None,
    ) -> None:
        self.batches = (
            BatchSampler(sampler, batch_size, drop_last)
            if batch_sampler is None
            else DATA_SAMPLERS.build(
                dict(batch_sampler), default_args={"sampler": sampler, "batch_size": batch_size}
            )
        )
        # Where MMEngine looks for it, to tell it the epoch.
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
            self.allocation = TaskAllocation(tasks, tasks_per_sample, gap, seed)
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
    """Trains every example for some tasks, drawn at random (paper B, STA).

    Args:
        *args: As for :class:`ISTABatchSampler`.
        **kwargs: Likewise, without ``gap``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if "gap" in kwargs:
            raise ValueError(
                f"{KEY}.gap: a STABatchSampler draws anew at each step and has no turns; "
                "ISTABatchSampler has"
            )
        super().__init__(*args, gap=None, **kwargs)


class AllocatedIndex(int):
    """Index of an example, with the tasks that it is to train.

    Attributes:
        tasks: Their names.
    """

    tasks: tuple[str, ...]

    def __new__(cls, index: int, tasks: tuple[str, ...]) -> AllocatedIndex:
        self = super().__new__(cls, index)
        self.tasks = tasks
        return self

    def __reduce__(self) -> tuple[Any, ...]:  # on its way to a worker
        return AllocatedIndex, (int(self), self.tasks)


def carry_tasks(dataset: Dataset) -> None:
    """Has a dataset put the tasks of an :class:`AllocatedIndex` into the data sample.

    It becomes an instance of a subclass of its class, since it is the data loader, and no config of
    ours, that asks it for examples.
    """
    if not hasattr(dataset, "_without_tasks"):
        dataset.__class__ = _carrying(type(dataset))


@cache
def _carrying(cls: type) -> type:
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

    # PyTorch asks a data set that has it for a batch at once.
    def get_batch(self: Any, indices: Sequence[int]) -> list[Any]:
        return [carry(*each) for each in zip(indices, cls.__getitems__(self, indices), strict=True)]

    def reduce(self: Any) -> tuple[Any, ...]:  # on its way to a worker
        return _restored, (cls,), self.__dict__

    members = {"__getitem__": get, "__reduce__": reduce, "__module__": cls.__module__}
    if hasattr(cls, "__getitems__"):
        members["__getitems__"] = get_batch
    return type(cls.__name__, (cls,), members | {"_without_tasks": cls})


def _restored(cls: type) -> Any:
    carrying = _carrying(cls)
    return carrying.__new__(carrying)
