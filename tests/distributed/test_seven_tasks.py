"""UOAIS-Net in two processes, one of which sees no object: seven tasks, as in one process."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from mmengine.model import MMDistributedDataParallel
from models import build_detector
from test_uoais import SIZE, SMALL, TWO, sample
from torch.testing import assert_close
from two_processes import work

from mtl_plugins.mm.optim import MTLOptimWrapper

METHODS = ["Sum", "MGDA", "PCGrad"]
STEPS = 2


def halves() -> list[dict[str, list[Any]]]:
    """The images of each rank."""
    torch.manual_seed(1)
    images = [list(torch.rand(2, 4, *SIZE) * 255) for _ in range(2)]
    samples = [[sample(*TWO, occluded=[1, 0]), sample(TWO[0])], [sample(), sample()]]
    return [{"inputs": i, "data_samples": s} for i, s in zip(images, samples, strict=True)]


def train(name: str, rank: int | None) -> dict[str, Any]:
    cfg = deepcopy(SMALL.model)
    # Normalised by the batch of a rank; so nothing may be drawn, see test_mask_rcnn.py.
    cfg.train_cfg.rpn.sampler.num = cfg.train_cfg.rcnn.sampler.num = 10**6
    torch.manual_seed(0)
    detector = build_detector(cfg).double()
    detector.data_preprocessor.register_forward_hook(
        lambda _, args, data: data | {"inputs": data["inputs"].double()}
    )
    optimizer = torch.optim.SGD(detector.parameters(), lr=0.01)
    options = {"tasks": SMALL.optim_wrapper.tasks, "aggregator": name}
    wrapper = MTLOptimWrapper(optimizer, accumulative_counts=2 - (rank is not None), **options)
    model = detector if rank is None else MMDistributedDataParallel(detector)
    losses = []
    for _ in range(STEPS):
        for half in halves() if rank is None else halves()[rank : rank + 1]:
            model.train_step(half, wrapper)
        losses.append(wrapper.multitask.last.losses)
    return {"losses": losses, "parameters": [p.detach() for p in detector.parameters()]}


@pytest.mark.parametrize("name", METHODS)
def test_two_ranks_equal_one_process(name: str, ranks: list[dict[str, Any]]) -> None:
    alone = train(name, None)
    for of_rank in ranks:
        for found, expected in zip(of_rank[name]["losses"], alone["losses"], strict=True):
            assert len(found) == 7
            assert_close(found, expected, rtol=1e-5, atol=1e-6)
        assert_close(of_rank[name]["parameters"], alone["parameters"], rtol=1e-5, atol=1e-7)


if __name__ == "__main__":
    work(lambda rank: {name: train(name, rank) for name in METHODS})
