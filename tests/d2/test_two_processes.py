"""The adapter in two real processes, started by Detectron2's ``launch`` without CUDA.

As for the other adapter: two ranks with half a batch each equal one process that accumulates the
same two halves, if nothing is drawn.
"""

from __future__ import annotations

import mtl_plugins.d2  # noqa: F401  # isort: skip  (before Detectron2, for the processes)
import sys
from functools import cache
from typing import Any

import pytest
import torch
from detectron2.engine.defaults import create_ddp_model
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from models import ORDINARY, method
from small import (
    config,
    detector,
    images,
    keys_of,
    parameters,
    toy,
    toy_batches,
    toy_config,
    trainer_for,
)
from torch.testing import assert_close
from torchvision.ops import boxes as box_ops
from two_processes import output_of

from mtl_plugins.d2 import launch

STEPS = 3
DETECTOR = ["Sum", "PCGrad", "MGDA"]
CASES = {name: keys_of("MTL.AGGREGATOR", method(name)) for name in ORDINARY}
ALONE = {  # what has no accumulated counterpart: the ranks agree
    "PCGrad, feature": [*CASES["PCGrad"], "MTL.LEVEL", "feature"],
    "PCGrad, gramian": [*CASES["PCGrad"], "MTL.SYNC", "gramian"],
    "FAMO": ["MTL.WEIGHTING.NAME", "FAMO"],
    "Uncertainty, bfloat16": ["MTL.WEIGHTING.NAME", "Uncertainty", "SOLVER.AMP.ENABLED", True],
}


def double_detector(cfg: Any) -> torch.nn.Module:
    """In single precision the order of the sums alone would be seen after some steps."""
    return detector(cfg).double()


def single_scores(nms: Any) -> Any:
    """Detectron2 hands boxes over in single precision, and torchvision wants scores likewise."""
    return lambda boxes, scores, *rest: nms(boxes, scores.to(boxes.dtype), *rest)


def detector_config(*options: Any) -> Any:
    cfg = config(*options, "SOLVER.CLIP_GRADIENTS.ENABLED", False)
    # The samplers take everything.
    cfg.MODEL.RPN.BATCH_SIZE_PER_IMAGE = cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 10**6
    return cfg


@cache
def halves() -> tuple[list[Any], list[Any]]:
    batch = images(4)
    return batch[:2], batch[2:]


def accumulated(trainer: Any, batches: list[Any]) -> dict[str, Any]:
    """``STEPS`` steps, each of all these micro-batches, without the trainer's own."""
    losses = []
    with EventStorage():
        for _ in range(STEPS):
            trainer.optimizer.zero_grad()
            for i, batch in enumerate(batches):
                last = i + 1 == len(batches)
                terms = trainer.groups(trainer.model(batch))
                trainer.multitask(terms, aggregate=last, share=1 / len(batches))
            trainer.optimizer.step()
            losses.append(trainer.multitask.last.losses)
    return {"losses": losses, "parameters": parameters(trainer.model)}


def trained(trainer: Any) -> dict[str, Any]:
    losses = []
    with EventStorage():
        for _ in range(STEPS):
            trainer.run_step()
            losses.append(trainer.multitask.last.losses)
    return {"losses": losses, "parameters": parameters(trainer.model)}


def in_ddp(cfg: Any, model: Any, batches: list[Any]) -> Any:
    ddp = create_ddp_model(model, broadcast_buffers=False, device_ids=None)
    return trainer_for(cfg, ddp, batches)


def work(out: str) -> None:
    """What one of the two processes does."""
    rank, found = comm.get_rank(), {}
    box_ops.batched_nms = single_scores(box_ops.batched_nms)
    for name in DETECTOR:
        cfg = detector_config(*CASES[name])
        trainer = in_ddp(cfg, double_detector(cfg), [halves()[rank]] * STEPS)
        found[f"detector, {name}"] = trained(trainer)
    for name, options in (CASES | ALONE).items():
        trainer = in_ddp(toy_config(*options), toy().double(), [toy_half(rank)] * STEPS)
        found[name] = trained(trainer)
    found["local"] = (comm.get_local_rank(), comm.get_local_size(), comm.all_gather(rank))
    torch.save(found, f"{out}.{rank}")


def toy_half(rank: int) -> torch.Tensor:
    return toy_batches(2)[rank].double()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What the two ranks found."""
    out = tmp_path_factory.mktemp("two") / "results"
    output_of(__file__, str(out), log=out.with_suffix(".log"))
    return [torch.load(f"{out}.{rank}", weights_only=False) for rank in range(2)]


def test_launch_tells_each_process_its_place(found):
    assert [rank["local"] for rank in found] == [(0, 2, [0, 1]), (1, 2, [0, 1])]


@pytest.mark.parametrize("name", DETECTOR)
def test_two_ranks_are_one_that_accumulates_on_mask_rcnn(name, found, monkeypatch):
    monkeypatch.setattr(box_ops, "batched_nms", single_scores(box_ops.batched_nms))
    cfg = detector_config(*CASES[name])
    expected = accumulated(trainer_for(cfg, double_detector(cfg), []), list(halves()))
    before = parameters(double_detector(cfg))
    for rank in found:
        actual = rank[f"detector, {name}"]
        assert_close(actual["losses"], expected["losses"], rtol=1e-6, atol=1e-6)
        assert_close(actual["parameters"], expected["parameters"], rtol=1e-6, atol=1e-6)
    assert (before[-1] - expected["parameters"][-1]).abs().max() > 1e-4


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_are_one_that_accumulates(name, found):
    cfg = toy_config(*CASES[name])
    trainer = trainer_for(cfg, toy().double(), [])
    expected = accumulated(trainer, [toy_half(0), toy_half(1)])
    for rank in found:
        assert_close(rank[name]["losses"], expected["losses"])
        assert_close(rank[name]["parameters"], expected["parameters"])


@pytest.mark.parametrize("name", ALONE)
def test_ranks_agree(name, found):
    assert_close(found[0][name]["parameters"], found[1][name]["parameters"], rtol=0, atol=0)
    assert_close(found[0][name]["losses"], found[1][name]["losses"], rtol=0, atol=0)
    moved = zip(found[0][name]["parameters"], parameters(toy().double()), strict=True)
    assert not any(torch.equal(p, q) for p, q in moved)


if __name__ == "__main__":
    launch(work, 2, dist_url="auto", args=(sys.argv[1],))
