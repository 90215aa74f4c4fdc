"""Partial labels in two processes: whichever images a rank has, the step is that of them all."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mmengine.dataset import DefaultSampler
from mmengine.model import MMDistributedDataParallel
from mmengine.structures import PixelData
from test_semantic_detector import HEIGHT, SEG_CLASSES, WIDTH, boxes, build, sample
from torch.testing import assert_close
from two_processes import work

from mtl_plugins.mm.evaluation import PartialCocoMetric, PartialSemSegMetric
from mtl_plugins.mm.optim import MTLOptimWrapper

TASKS = {"det": "loss_*_det_*", "seg": "loss_*_seg_*"}
METHODS = ["Sum", "PCGrad", "MGDA"]
# For each step the labels of four images, two on each rank: b(oxes), m(aps), B and M of a teacher.
STEPS = ["b bM mB m", "b b m m", "b b b bB", "mB m M b", "b m b m"]
LABELS = {"b": "gt_instances", "m": "gt_sem_seg", "B": "pseudo_instances", "M": "pseudo_sem_seg"}


def batch(step: int) -> dict[str, list[Any]]:
    torch.manual_seed(step)
    samples = []
    for letters in STEPS[step].split():
        # Without holes, so that the mean over pixels is the mean over images.
        make = {"b": boxes, "B": boxes, "m": whole_map, "M": whole_map}
        samples.append(sample(**{LABELS[letter]: make[letter]() for letter in letters}))
    return {"inputs": list(torch.randn(4, 3, HEIGHT, WIDTH)), "data_samples": samples}


def whole_map() -> PixelData:
    return PixelData(sem_seg=torch.randint(0, SEG_CLASSES, (1, HEIGHT, WIDTH), dtype=torch.uint8))


def train(name: str, rank: int | None) -> dict[str, Any]:
    torch.manual_seed(0)
    detector = build().double()
    detector.data_preprocessor.register_forward_hook(
        lambda _, args, data: data | {"inputs": data["inputs"].double()}
    )
    # Without momentum, which goes on where a gradient is 0 and stops where there is none.
    optimizer = torch.optim.SGD(detector.parameters(), lr=0.01)
    wrapper = MTLOptimWrapper(optimizer, tasks=TASKS, aggregator=name)
    model = detector if rank is None else MMDistributedDataParallel(detector)
    mine = slice(None) if rank is None else slice(2 * rank, 2 * rank + 2)
    losses = []
    for step in range(len(STEPS)):
        data = {key: values[mine] for key, values in batch(step).items()}
        model.train_step(data, wrapper)
        losses.append(wrapper.multitask.last.losses)
    return {"losses": losses, "parameters": [p.detach() for p in model.parameters()]}


@pytest.mark.parametrize("name", METHODS)
def test_two_ranks_equal_one_process(name: str, ranks: list[dict[str, Any]]) -> None:
    alone = train(name, None)
    for of_rank in ranks:
        assert_close(of_rank[name]["parameters"], alone["parameters"], rtol=1e-7, atol=1e-9)


def measured() -> dict[str, float]:
    """Metrics of five images, three with boxes and two with maps; two ranks see one twice."""
    draw = torch.Generator().manual_seed(0)
    samples: list[dict[str, Any]] = []
    for number, labels in enumerate(["gt_instances", "gt_sem_seg"] * 2 + ["gt_instances"]):
        corners = torch.tensor([[2.0, 3.0, 20.0, 22.0]])
        shifts = 3 * torch.randn(4, 4, generator=draw)
        maps = torch.randint(3, (2, 1, HEIGHT, WIDTH), generator=draw)
        found = {"bboxes": corners + shifts, "scores": torch.rand(4, generator=draw)}
        truth = {"bbox": corners[0].tolist(), "bbox_label": 0, "ignore_flag": 0}
        samples.append(
            {
                "img_id": number,
                "ori_shape": (HEIGHT, WIDTH),
                labels: {"sem_seg": maps[0]},
                "instances": [truth],
                "pred_instances": found | {"labels": torch.zeros(4, dtype=torch.int64)},
                "pred_sem_seg": {"sem_seg": maps[1]},
            }
        )
    values: dict[str, float] = {}
    for metric in (PartialCocoMetric(metric="bbox"), PartialSemSegMetric()):
        metric.dataset_meta = {"classes": ("a",), "seg_classes": ("a", "b", "c")}
        for i in DefaultSampler(samples, shuffle=False):
            metric.process({}, [samples[i]])
        values |= metric.evaluate(len(samples))
    return values


def test_an_image_that_the_sampler_repeats_counts_once(ranks: list[dict[str, Any]]) -> None:
    alone = measured()
    assert 0.0 < alone["coco/bbox_mAP"] < 1.0 and 0.0 < alone["mIoU"] < 100.0
    assert [of_rank["metrics"] for of_rank in ranks] == [alone, alone]


if __name__ == "__main__":
    work(
        lambda rank: {name: train(name, rank) for name in METHODS} | {"metrics": measured()},
    )
