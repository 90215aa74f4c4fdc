import math
from types import ModuleType

import pytest
import torch
import torchvision
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import gradcheck, gradgradcheck

from mtl_plugins.ops.roi_align import Sampling, adjoint, pool, roi_align

ROIS = torch.tensor(
    [
        [0, 1.3, 2.1, 9.7, 8.2],
        [1, 0, 0, 5.5, 12.4],
        [1, -3.2, 4.4, 16.9, 19.1],
        [0, 3, 3, 3.4, 3.1],
    ],
    dtype=torch.double,
)
SIZE, SCALE = (2, 3), 0.5

ratios = pytest.mark.parametrize("ratio", [0, 1, 2])
alignments = pytest.mark.parametrize("aligned", [True, False])


def feature_map() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(2, 2, 6, 7, generator=generator, dtype=torch.double)
    return image.requires_grad_()


def bilinear(plane: Tensor, y: float, x: float) -> Tensor:
    height, width = plane.shape
    if not (-1 <= y <= height and -1 <= x <= width):
        return plane.new_zeros(())
    y, x = min(max(y, 0.0), height - 1), min(max(x, 0.0), width - 1)
    total = plane.new_zeros(())
    for row in {math.floor(y), math.ceil(y)}:
        for column in {math.floor(x), math.ceil(x)}:
            total = total + (1 - abs(y - row)) * (1 - abs(x - column)) * plane[row, column]
    return total


def loop_roi_align(image: Tensor, rois: Tensor, ratio: int, aligned: bool) -> Tensor:
    output = image.new_zeros(len(rois), image.shape[1], *SIZE)
    for k, (index, *corners) in enumerate(rois.tolist()):
        x1, y1, x2, y2 = (SCALE * c - (0.5 if aligned else 0) for c in corners)
        extent = (y2 - y1, x2 - x1) if aligned else (max(y2 - y1, 1), max(x2 - x1, 1))
        step = [e / s for e, s in zip(extent, SIZE, strict=True)]
        counts = [ratio or math.ceil(s) for s in step]
        for c in range(image.shape[1]):
            for i in range(SIZE[0]):
                for j in range(SIZE[1]):
                    samples = [
                        bilinear(
                            image[int(index), c],
                            y1 + step[0] * (i + (a + 0.5) / counts[0]),
                            x1 + step[1] * (j + (b + 0.5) / counts[1]),
                        )
                        for a in range(counts[0])
                        for b in range(counts[1])
                    ]
                    output[k, c, i, j] = sum(samples) / len(samples)
    return output


@ratios
@alignments
def test_value_and_gradient(mmcv_ops: ModuleType, ratio: int, aligned: bool) -> None:
    image = feature_map()
    expected = loop_roi_align(image, ROIS, ratio, aligned)
    (expected_grad,) = torch.autograd.grad(expected, image, torch.cos(expected).detach())
    for actual in (
        roi_align(image, ROIS, SIZE, SCALE, ratio, aligned),
        mmcv_ops.roi_align(image, ROIS, SIZE, SCALE, ratio, "avg", aligned),
    ):
        torch.testing.assert_close(actual, expected)
        (grad,) = torch.autograd.grad(actual, image, torch.cos(expected).detach())
        torch.testing.assert_close(grad, expected_grad)
    assert torch.equal(
        torchvision.ops.roi_align(image, ROIS, SIZE, SCALE, ratio, aligned),
        roi_align(image, ROIS, SIZE, SCALE, ratio, aligned),
    )


@ratios
@alignments
def test_derivatives_against_finite_differences(ratio: int, aligned: bool) -> None:
    def pooled(image: Tensor) -> Tensor:
        return roi_align(image, ROIS, SIZE, SCALE, ratio, aligned)

    assert gradcheck(pooled, feature_map())
    assert gradgradcheck(pooled, feature_map())


def test_gradient_penalty_is_differentiable() -> None:
    def penalty(image: Tensor) -> Tensor:
        energy = roi_align(image, ROIS, SIZE, SCALE).pow(3).sum()
        (grad,) = torch.autograd.grad(energy, image, create_graph=True)
        return grad.square().sum()

    assert gradcheck(penalty, feature_map())
    assert gradgradcheck(penalty, feature_map())


@pytest.mark.parametrize("dtype", [torch.half, torch.bfloat16])
def test_low_precision_keeps_its_type(dtype: torch.dtype) -> None:
    image = feature_map().detach().to(dtype).requires_grad_()
    actual = roi_align(image, ROIS.float(), SIZE, SCALE)
    assert actual.dtype == dtype
    torch.testing.assert_close(
        actual, roi_align(image.float(), ROIS.float(), SIZE, SCALE).to(dtype)
    )
    actual.sum().backward()
    assert image.grad is not None and image.grad.dtype == dtype


def test_no_regions() -> None:
    image = feature_map()
    output = roi_align(image, ROIS[:0], 3)
    assert output.shape == (0, 2, 3, 3)
    output.sum().backward()
    assert image.grad is not None and not image.grad.any()


def test_malformed_regions_raise() -> None:
    with pytest.raises(RuntimeError):
        roi_align(feature_map(), ROIS[:, 1:], SIZE)


def test_gpu_is_never_waited_for() -> None:
    # Fake tensors hold no values: reading one on the host raises.
    with FakeTensorMode():
        image = torch.rand(2, 2, 6, 7, device="cuda")
        rois = torch.zeros(4, 5, device="cuda")
        sampling = Sampling(SCALE, *SIZE, ratio=0, aligned=True)
        output = pool(image, rois, sampling)
        assert output.is_cuda and adjoint(output, rois, image.shape, sampling).is_cuda
