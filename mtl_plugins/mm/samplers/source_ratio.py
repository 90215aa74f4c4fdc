"""Batches with a fixed number of examples of each source."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from typing import Any

from mmengine.registry import DATA_SAMPLERS
from torch.utils.data import BatchSampler


@DATA_SAMPLERS.register_module()
class SourceRatioBatchSampler(BatchSampler):
    """Mix the data sets of a ``ConcatDataset`` in every batch.

    Each source is gone through in the order of the sampler, and a source that is used up is
    repeated from the start. An epoch has as many batches as without mixing, incomplete batches left
    out; from a source with more examples than needed, each epoch takes another part.

    Args:
        sampler: Any sampler of a ``ConcatDataset``, finite or infinite.
        batch_size: Number of examples a step on this rank.
        ratio: Number of examples of each source in a batch, up to a factor: with a batch size of 4,
            ``[1, 1]`` and ``[2, 2]`` both mean two of each.

    Raises:
        ValueError: The ratio does not fit the batch size or the sources, or this rank's share of
            the data makes no batch or lacks a source.

    Examples:
        >>> # In a config:
        >>> train_dataloader = dict(
        ...     batch_sampler=dict(type='SourceRatioBatchSampler', ratio=[3, 1]))
    """

    def __init__(self, sampler: Any, batch_size: int, ratio: Sequence[int]) -> None:
        key = "train_dataloader.batch_sampler.ratio"
        ends = getattr(sampler.dataset, "cumulative_sizes", None)
        if ends is None:
            raise ValueError(f"{key}: the data set is no ConcatDataset, and has one source only")
        self._ends: Sequence[int] = ends
        whole = all(isinstance(part, int) and part >= 0 for part in ratio)
        if len(ratio) != len(self._ends) or not whole or not sum(ratio):
            raise ValueError(
                f"{key}: {list(ratio)} is not one whole number for each of the "
                f"{len(self._ends)} sources"
            )
        if batch_size % sum(ratio):
            raise ValueError(
                f"{key}: a batch of {batch_size} (train_dataloader.batch_size) cannot be divided "
                f"as {list(ratio)}; a multiple of {sum(ratio)} can"
            )
        if len(sampler) < batch_size:
            raise ValueError(
                f"train_dataloader.batch_size: {batch_size} is more than the {len(sampler)} images "
                "of this rank, and incomplete batches are left out"
            )
        super().__init__(sampler, batch_size, drop_last=True)
        self.counts = [part * batch_size // sum(ratio) for part in ratio]

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the batches of one epoch, or of an infinite sampler without end."""
        sampler: Any = self.sampler
        indices = iter(sampler)
        while epoch := list(islice(indices, len(sampler))):
            sources: list[list[int]] = [[] for _ in self.counts]
            for index in epoch:
                sources[bisect_right(self._ends, index)].append(index)
            for number, (source, count) in enumerate(zip(sources, self.counts, strict=True)):
                if count and not source:
                    raise ValueError(
                        f"train_dataloader.batch_sampler.ratio: source {number} has no image among "
                        f"the {len(epoch)} of this rank"
                    )
            endless = [cycle(source) for source in sources]
            for _ in range(len(epoch) // self.batch_size):
                parts = zip(endless, self.counts, strict=True)
                yield [index for stream, count in parts for index in islice(stream, count)]
