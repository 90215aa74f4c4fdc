import math
from types import ModuleType

import pytest
import torch
from torch import Tensor

Box = list[float]


def random_boxes(count: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    corner, size = torch.rand(2, count, 2, generator=generator).unbind()
    boxes = torch.cat([20 * corner, 20 * corner + 12 * size], dim=1)
    return boxes, torch.rand(count, generator=generator)


def iou(a: Box, b: Box, offset: int) -> float:
    def area(x1: float, y1: float, x2: float, y2: float) -> float:
        return max(x2 - x1 + offset, 0) * max(y2 - y1 + offset, 0)

    both = area(max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3]))
    return both / (area(*a) + area(*b) - both)


def loop_nms(boxes: Tensor, scores: Tensor, threshold: float, offset: int) -> list[int]:
    rows, keep = boxes.tolist(), []
    for i in sorted(range(len(rows)), key=lambda i: -float(scores[i])):
        if all(iou(rows[i], rows[k], offset) <= threshold for k in keep):
            keep.append(i)
    return keep


def loop_soft_nms(
    boxes: Tensor, scores: Tensor, threshold: float, method: str, offset: int
) -> dict[int, float]:
    rows, left, taken = boxes.tolist(), dict(enumerate(scores.tolist())), {}
    while left:
        best = max(left, key=lambda i: left[i])
        taken[best] = left.pop(best)
        for i in list(left):
            overlap = iou(rows[i], rows[best], offset)
            if method == "gaussian":
                left[i] *= math.exp(-(overlap**2) / 0.5)
            elif overlap >= threshold:
                left[i] *= 1 - overlap if method == "linear" else 0
            if left[i] < 0.05:
                del left[i]
    return taken


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("threshold", [0.1, 0.5])
def test_nms(mmcv_ops: ModuleType, threshold: float, offset: int, seed: int) -> None:
    boxes, scores = random_boxes(60, seed)
    dets, keep = mmcv_ops.nms(boxes, scores, threshold, offset)
    assert keep.tolist() == loop_nms(boxes, scores, threshold, offset)
    assert torch.equal(dets, torch.cat([boxes, scores[:, None]], dim=1)[keep])


def test_nms_options(mmcv_ops: ModuleType) -> None:
    boxes, scores = random_boxes(60, 9)
    expected = [i for i in loop_nms(boxes, scores, 0.3, 0) if scores[i] > 0.5]
    _, keep = mmcv_ops.nms(boxes, scores, 0.3, score_threshold=0.5, max_num=4)
    assert keep.tolist() == expected[:4]


def test_offset_counts_the_last_pixel(mmcv_ops: ModuleType) -> None:
    # 2 x 2 pixels in 4 x 2 pixels: IoU 1/2 with the offset, 1/3 without; equality keeps.
    boxes, scores = torch.tensor([[0.0, 0, 1, 1], [0, 0, 3, 1]]), torch.tensor([0.9, 0.8])
    kept = [len(mmcv_ops.nms(boxes, scores, t, o)[1]) for o in (0, 1) for t in (0.3, 0.4, 0.5)]
    assert kept == [1, 2, 2, 1, 1, 2]


@pytest.mark.parametrize("tenths", [1, 3, 7])
def test_overlap_equal_to_the_threshold_is_kept(mmcv_ops: ModuleType, tenths: int) -> None:
    boxes = torch.tensor([[0.0, 0, 10, 1], [0, 0, tenths, 1]])
    _, keep = mmcv_ops.nms(boxes, torch.tensor([0.9, 0.8]), tenths / 10)
    assert len(keep) == 2


@pytest.mark.parametrize("offset", [0, 1])
def test_batched_nms(mmcv_ops: ModuleType, offset: int) -> None:
    boxes, scores = random_boxes(80, 5)
    classes = torch.arange(80) % 3
    dets, keep = mmcv_ops.batched_nms(
        boxes, scores, classes, {"type": "nms", "iou_threshold": 0.3, "offset": offset}
    )
    expected: list[int] = []
    for c in range(3):
        rows = (classes == c).nonzero()[:, 0]
        expected += rows[loop_nms(boxes[rows], scores[rows], 0.3, offset)].tolist()
    assert keep.tolist() == sorted(expected, key=lambda i: -float(scores[i]))
    assert torch.equal(dets[:, 4], scores[keep])


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("method", ["naive", "linear", "gaussian"])
def test_soft_nms(mmcv_ops: ModuleType, method: str, offset: int, seed: int) -> None:
    boxes, scores = random_boxes(50, seed)
    dets, keep = mmcv_ops.soft_nms(
        boxes, scores, 0.3, sigma=0.5, min_score=0.05, method=method, offset=offset
    )
    taken = loop_soft_nms(boxes, scores, 0.3, method, offset)
    assert keep.tolist() == list(taken)
    assert torch.equal(dets[:, :4], boxes[keep])
    torch.testing.assert_close(dets[:, 4], torch.tensor(list(taken.values())))


def test_soft_nms_of_empty_boxes(mmcv_ops: ModuleType) -> None:
    boxes = torch.tensor([[3.0, 1, 3, 1], [3, 1, 3, 1]])
    dets, keep = mmcv_ops.soft_nms(boxes, torch.tensor([0.4, 0.5]), method="gaussian")
    assert keep.tolist() == [1, 0]
    assert dets[:, 4].tolist() == pytest.approx([0.5, 0.4])


@pytest.mark.parametrize("name", ["nms", "soft_nms"])
def test_no_boxes(mmcv_ops: ModuleType, name: str) -> None:
    dets, keep = getattr(mmcv_ops, name)(torch.zeros(0, 4), torch.zeros(0), 0.5)
    assert dets.shape == (0, 5) and keep.shape == (0,) and keep.dtype == torch.long


def test_half_precision_boxes(mmcv_ops: ModuleType) -> None:
    boxes, scores = (t.half() for t in random_boxes(30, 3))
    dets, keep = mmcv_ops.nms(boxes, scores, 0.4)
    assert keep.tolist() == loop_nms(boxes, scores, 0.4, 0) and dets.dtype == torch.half


def loop_match(boxes: Tensor, scores: Tensor, threshold: float) -> list[list[int]]:
    rows, groups = boxes.tolist(), []
    left = sorted(range(len(rows)), key=lambda i: -float(scores[i]))
    while left:
        group = left[:1] + [i for i in left[1:] if iou(rows[left[0]], rows[i], 0) >= threshold]
        groups.append(group)
        left = [i for i in left if i not in group]
    return groups


@pytest.mark.parametrize("threshold", [0.1, 0.5])
def test_match(mmcv_ops: ModuleType, threshold: float) -> None:
    boxes, scores = random_boxes(60, 3)
    dets = torch.cat([boxes, scores[:, None]], dim=1)
    found = [group.tolist() for group in mmcv_ops.nms_match(dets, threshold)]
    assert found == loop_match(boxes, scores, threshold)
    assert max(map(len, found)) > 1
    same = [group.tolist() for group in mmcv_ops.nms_match(dets.numpy(), threshold)]
    assert same == found


def test_match_takes_equality_and_empty_boxes(mmcv_ops: ModuleType) -> None:
    dets = torch.tensor([[0.0, 0, 10, 1, 0.9], [0, 0, 7, 1, 0.8], [3, 3, 3, 3, 0.7]])
    groups = mmcv_ops.nms_match(torch.cat([dets, dets[2:]]), 0.7)
    assert [group.tolist() for group in groups] == [[0, 1], [2], [3]]
    assert mmcv_ops.nms_match(dets[:0], 0.7) == []


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("mode", ["iou", "iof"])
def test_overlaps(mmcv_ops: ModuleType, mode: str, offset: int) -> None:
    a, b = random_boxes(8, 1)[0], random_boxes(8, 2)[0]

    def overlap(one: Box, other: Box) -> float:
        u = iou(one, other, offset)
        if mode == "iou":
            return u
        area, others = ((x2 - x1 + offset) * (y2 - y1 + offset) for x1, y1, x2, y2 in (one, other))
        return u / (1 + u) * (area + others) / area

    expected = torch.tensor([[overlap(p, q) for q in b.tolist()] for p in a.tolist()])
    found = mmcv_ops.bbox_overlaps(a, b, mode=mode, offset=offset)
    torch.testing.assert_close(found, expected)
    aligned = mmcv_ops.bbox_overlaps(a, b, mode=mode, aligned=True, offset=offset)
    torch.testing.assert_close(aligned, expected.diagonal())
