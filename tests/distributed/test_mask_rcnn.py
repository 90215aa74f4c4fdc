"""The adapter in two real processes: MMEngine's DDP wrapper around Mask R-CNN, and around less.

A detector normalises and samples its losses by the batch. So two ranks with half a batch each equal
one process that accumulates the same two halves, if nothing is drawn: the normalisation is per
example, and the samplers are large enough to take everything.
"""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import torch
from mmengine.model import MMDistributedDataParallel
from models import DETECTION_MASK, ORDINARY, build_detector, mask_rcnn_config, method
from torch import Tensor, nn
from torch.testing import assert_close
from toy import TASKS, TwoTasks
from two_processes import results_of_two, work

from mtl_plugins.mm.optim import MTLOptimWrapper

STEPS = 2
CASES = [f"{name}, parameter" for name in ORDINARY] + ["PCGrad, feature", "MGDA, feature"]


def new_detector() -> nn.Module:
    cfg = mask_rcnn_config(narrow=True)
    cfg.train_cfg.rpn.sampler.num = cfg.train_cfg.rcnn.sampler.num = 10**6
    torch.manual_seed(6)  # with these weights the tasks are in conflict from the first step on
    # In single precision, the order of a sum alone (that of its threads) makes up 3e-5 in 5 steps.
    return build_detector(cfg).double()


@cache
def detector_halves() -> list[dict[str, list]]:
    from mmdet.testing import demo_mm_inputs

    batch = demo_mm_inputs(
        4, [[3, 64, 64]] * 4, num_items=[2, 3, 1, 2], num_classes=3, with_mask=True
    )
    return [{k: v[i : i + 2] for k, v in batch.items()} for i in (0, 2)]


def wrapper_for(model: nn.Module, name: str, level: str, **options: Any) -> MTLOptimWrapper:
    if level == "feature":
        options |= {"level": "feature", "representation": "neck"}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    return MTLOptimWrapper(optimizer, tasks=DETECTION_MASK, aggregator=method(name), **options)


def trained(model: nn.Module, wrapper: MTLOptimWrapper, batches: list[dict]) -> dict[str, Any]:
    """Losses and weights of some steps over these batches, and the parameters after them."""
    steps = []
    for _ in range(STEPS):
        for batch in batches:
            model.train_step(batch, wrapper)
        steps.append((wrapper.multitask.last.losses, wrapper.multitask.last.weights))
    parameters = {n.removeprefix("module."): p.detach() for n, p in model.named_parameters()}
    return {"steps": steps, "parameters": parameters}


def train_in_one_process(name: str, level: str) -> dict[str, Any]:
    model = new_detector()
    wrapper = wrapper_for(model, name, level, accumulative_counts=2)
    return trained(model, wrapper, detector_halves())


class SomeTasks(TwoTasks):
    """Some layers are used by nobody, and an example with a negative mean has no mask."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Linear(3, 3)

    def forward(self, inputs: list[Tensor], mode: str = "tensor") -> dict[str, Any]:
        losses = super().forward(inputs, mode)
        if torch.stack(inputs).mean() < 0.0:
            del losses["loss_mask"]
        return losses


def some_batches(rank: int | None) -> list[dict[str, list[Tensor]]]:
    """Four micro-batches of a rank, or all in turn; the last of rank 1 has no mask."""
    torch.manual_seed(5)
    batches = [{"inputs": list(torch.randn(3, 4).abs())} for _ in range(8)]
    batches[7] = {"inputs": [-x for x in batches[7]["inputs"]]}
    return batches if rank is None else batches[rank::2]


def train_with_accumulation(name: str, rank: int | None) -> dict[str, Any]:
    """Two steps of two micro-batches on each rank, the second one monitored."""
    torch.manual_seed(0)
    model: nn.Module = SomeTasks()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    counts = 2 if rank is not None else 4
    wrapper = MTLOptimWrapper(optimizer, tasks=TASKS, aggregator=name, accumulative_counts=counts)
    if rank is not None:
        # What Sum leaves to the wrapper needs this, as without us.
        model = MMDistributedDataParallel(model, find_unused_parameters=name == "Sum")
    losses = []
    for i, batch in enumerate(some_batches(rank)):
        model.train()
        if wrapper.multitask is not None:
            wrapper.multitask.monitor = i >= counts
        model.train_step(batch, wrapper)
        if (i + 1) % counts == 0:
            losses.append(wrapper.multitask.last.losses)
    return {"losses": losses, "parameters": [p.detach() for p in model.parameters()]}


# The tasks of four images at each step: mixed, none for masks, none for masks on one rank.
ALLOCATED = ["dm mm dm d", "d d d d", "d d m dm"]
LETTERS = {"d": "detection", "m": "mask"}


def allocated(step: int, half: int) -> dict[str, list]:
    batch = copy.deepcopy(detector_halves()[half])
    for sample, letters in zip(
        batch["data_samples"], ALLOCATED[step].split()[2 * half : 2 * half + 2], strict=True
    ):
        sample.set_metainfo({"tasks": tuple(LETTERS[letter] for letter in letters)})
    return batch


def train_allocated(name: str, rank: int | None) -> dict[str, Any]:
    """Three steps, on a rank or with both halves accumulated."""
    detector = new_detector()
    halves = (0, 1) if rank is None else (rank,)
    wrapper = wrapper_for(detector, name, "parameter", accumulative_counts=len(halves))
    model = detector if rank is None else MMDistributedDataParallel(detector)
    losses = []
    for step in range(len(ALLOCATED)):
        for half in halves:
            model.train_step(allocated(step, half), wrapper)
        losses.append(wrapper.multitask.last.losses)
    return {"losses": losses, "parameters": [p.detach() for p in model.parameters()]}


def find(rank: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in ("Sum", "PCGrad"):
        found[f"allocated, {name}"] = train_allocated(name, rank)
    for case in CASES:
        name, level = case.split(", ")
        detector = new_detector()
        model = MMDistributedDataParallel(detector, broadcast_buffers=False)
        wrapper = wrapper_for(detector, name, level)
        found[case] = trained(model, wrapper, [detector_halves()[rank]])
    for name in ("Sum", "MGDA"):
        found[f"accumulation, {name}"] = train_with_accumulation(name, rank)
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What the two ranks found."""
    return results_of_two(__file__, tmp_path_factory.mktemp("two") / "results")


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_are_one_that_accumulates(case, found):
    name, level = case.split(", ")
    if level == "feature":
        # Every micro-batch is aggregated by itself: the ranks know of each other, they do not.
        assert_close(found[0][case]["parameters"], found[1][case]["parameters"])
        return
    expected = train_in_one_process(name, level)
    for rank in range(2):
        actual = found[rank][case]
        for got, want in zip(actual["steps"], expected["steps"], strict=True):
            for g, w in zip(got, want, strict=True):
                assert_close(g, w, rtol=1e-5, atol=1e-5, check_dtype=False)
        for key, parameter in expected["parameters"].items():
            assert_close(actual["parameters"][key], parameter, rtol=1e-5, atol=1e-5)


def test_the_tasks_are_in_conflict(found):
    """Otherwise PCGrad and methods like it would be the plain sum here."""
    assert all((weights > 1.0).all() for _, weights in found[0]["PCGrad, parameter"]["steps"])


@pytest.mark.parametrize("name", ["Sum", "MGDA"])
def test_accumulation_unused_parameters_and_an_absent_task(name, found):
    expected = train_with_accumulation(name, None)
    for rank in range(2):
        actual = found[rank][f"accumulation, {name}"]
        # What is monitored of Sum is the last micro-batch, and not the same one.
        count = 1 if name == "Sum" else 2
        assert_close(actual["losses"][:count], expected["losses"][:count])
        assert_close(actual["parameters"], expected["parameters"])


@pytest.mark.parametrize("name", ["Sum", "PCGrad"])
def test_allocated_tasks(name, found):
    """Nobody waits for a rank without masks, and where nobody has any their loss is 0."""
    expected = train_allocated(name, None)
    assert all(loss.isfinite().all() for loss in expected["losses"])
    assert expected["losses"][1][1] == 0.0 < expected["losses"][2][1]
    for rank in range(2):
        actual = found[rank][f"allocated, {name}"]
        assert_close(actual["losses"], expected["losses"], rtol=1e-5, atol=1e-5)
        assert_close(actual["parameters"], expected["parameters"], rtol=1e-5, atol=1e-5)


if __name__ == "__main__":
    work(find)
