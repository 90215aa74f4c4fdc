from itertools import product
from math import floor
from types import ModuleType

import pytest
import torch
from torch import Tensor

HEIGHT, WIDTH, CHANNELS, OUT = 5, 6, 4, 4


def bilinear(image: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Value of each channel at a place; 0 outside the cells' centres."""
    total = image.new_zeros(len(image))
    top, left = floor(y), floor(x)
    for i, j in product((top, top + 1), (left, left + 1)):
        if 0 <= i < image.shape[1] and 0 <= j < image.shape[2]:
            total = total + image[:, i, j] * (1 - (y - i).abs()) * (1 - (x - j).abs())
    return total


def by_definition(
    image: Tensor,
    offset: Tensor,
    mask: Tensor,
    weight: Tensor,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    offset_groups: int,
) -> Tensor:
    """Dai et al. (2017), eq. 2, and Zhu et al. (2019), eq. 1, cell by cell: (N, C', H', W')."""
    n, _, out_height, out_width = offset.shape
    height, width = weight.shape[2:]
    taps = height * width
    output = image.new_zeros(n, len(weight), out_height, out_width)
    for b, row, column in product(range(n), range(out_height), range(out_width)):
        samples = []
        for k, (i, j) in enumerate(product(range(height), range(width))):
            parts = []
            for g, part in enumerate(image[b].chunk(offset_groups)):
                at = offset[b, 2 * (g * taps + k) :, row, column]
                y = row * stride[0] - padding[0] + i * dilation[0] + at[0]
                x = column * stride[1] - padding[1] + j * dilation[1] + at[1]
                parts.append(bilinear(part, y, x) * mask[b, g * taps + k, row, column])
            samples.append(torch.cat(parts))
        for g, part in enumerate(torch.stack(samples, 1).chunk(groups)):
            kernels = weight.chunk(groups)[g].flatten(2)
            found = torch.einsum("oct,ct->o", kernels, part)
            output[b, g * len(kernels) : (g + 1) * len(kernels), row, column] = found
    return output


CASES = [
    ((1, 1), (1, 1), (1, 1), 1, 1),
    ((2, 1), (0, 2), (1, 2), 2, 1),
    ((1, 2), (2, 0), (2, 1), 1, 2),
    ((2, 2), (1, 1), (1, 1), 4, 4),
]


def problem(
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    offset_groups: int,
    kernel: tuple[int, int] = (3, 2),
) -> tuple[Tensor, ...]:
    """Images, offsets that reach outside, masks and weights in double precision."""
    generator = torch.Generator().manual_seed(groups)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.double).requires_grad_()

    height, width = (
        (size + 2 * p - d * (k - 1) - 1) // s + 1
        for size, p, d, k, s in zip((HEIGHT, WIDTH), padding, dilation, kernel, stride, strict=True)
    )
    taps = offset_groups * kernel[0] * kernel[1]
    return (
        draw(2, CHANNELS, HEIGHT, WIDTH),
        draw(2, 2 * taps, height, width),
        draw(2, taps, height, width),
        draw(OUT, CHANNELS // groups, *kernel),
        draw(OUT),
    )


@pytest.mark.parametrize("geometry", CASES)
def test_plain_value_and_gradients(mmcv_ops: ModuleType, geometry: tuple[object, ...]) -> None:
    image, offset, mask, weight, _ = problem(*geometry)  # type: ignore[arg-type]
    expected = by_definition(image, offset, torch.ones_like(mask), weight, *geometry)  # type: ignore[arg-type]
    actual = mmcv_ops.deform_conv2d(image, offset, weight, *geometry)
    torch.testing.assert_close(actual, expected)

    leaves, upstream = (image, offset, weight), torch.randn_like(expected)
    right = torch.autograd.grad(expected, leaves, upstream)
    torch.testing.assert_close(torch.autograd.grad(actual, leaves, upstream), right)


@pytest.mark.parametrize("geometry", CASES)
@pytest.mark.parametrize("with_bias", [False, True])
def test_modulated_value_and_gradients(
    mmcv_ops: ModuleType, geometry: tuple[object, ...], with_bias: bool
) -> None:
    image, offset, mask, weight, bias = problem(*geometry)  # type: ignore[arg-type]
    expected = by_definition(image, offset, mask, weight, *geometry)  # type: ignore[arg-type]
    expected = expected + bias[:, None, None] if with_bias else expected
    operator = mmcv_ops.modulated_deform_conv2d
    actual = operator(image, offset, mask, weight, bias if with_bias else None, *geometry)
    torch.testing.assert_close(actual, expected)

    leaves = (image, offset, mask, weight, *([bias] if with_bias else []))
    upstream = torch.randn_like(expected)
    right = torch.autograd.grad(expected, leaves, upstream)
    torch.testing.assert_close(torch.autograd.grad(actual, leaves, upstream), right)


def test_offsets_of_a_larger_level_are_read_as_mmcv_does(mmcv_ops: ModuleType) -> None:
    # mmcv's kernel indexes them by the size of the output; MMDetection's DyHead relies on that.
    geometry = CASES[0]
    image, offset, mask, weight, _ = problem(*geometry)
    height, width = offset.shape[2:]
    large = [
        torch.randn(2, len(x[0]), 2 * height, 2 * width, dtype=x.dtype) for x in (offset, mask)
    ]
    large = [x.requires_grad_() for x in large]

    def as_read(values: Tensor) -> Tensor:
        planes = torch.zeros(*values.shape[:2], height, width, dtype=values.dtype)
        for c, h, w in product(range(len(values[0])), range(height), range(width)):
            planes[:, c, h, w] = values.flatten(1)[:, (c * height + h) * width + w]
        return planes

    expected = by_definition(image, *map(as_read, large), weight, *geometry)
    actual = mmcv_ops.modulated_deform_conv2d(image, *large, weight, None, *geometry)
    torch.testing.assert_close(actual, expected)
    leaves, upstream = (image, *large, weight), torch.randn_like(expected)
    right = torch.autograd.grad(expected, leaves, upstream)
    torch.testing.assert_close(torch.autograd.grad(actual, leaves, upstream), right)

    small = [x.detach()[..., :2] for x in (offset, mask)]
    with pytest.raises(RuntimeError, match="offset output dims"):
        mmcv_ops.modulated_deform_conv2d(image, *small, weight, None, *geometry)


def test_gradients_by_differences(mmcv_ops: ModuleType) -> None:
    geometry = CASES[1]
    image, offset, mask, weight, bias = problem(*geometry)

    def plain(image: Tensor, offset: Tensor, weight: Tensor) -> Tensor:
        found: Tensor = mmcv_ops.deform_conv2d(image, offset, weight, *geometry)
        return found

    def modulated(*tensors: Tensor) -> Tensor:
        found: Tensor = mmcv_ops.modulated_deform_conv2d(*tensors, *geometry)
        return found

    one = [x[:1].detach().requires_grad_() for x in (image, offset, mask)]
    assert torch.autograd.gradcheck(plain, (*one[:2], weight), fast_mode=True)
    assert torch.autograd.gradcheck(modulated, (*one, weight, bias), fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_computes_in_single(mmcv_ops: ModuleType, dtype: torch.dtype) -> None:
    geometry = CASES[0]
    low = [x.detach().to(dtype).requires_grad_() for x in problem(*geometry)]
    single = [x.detach().float().requires_grad_() for x in low]
    actual = mmcv_ops.modulated_deform_conv2d(*low, *geometry)
    expected = mmcv_ops.modulated_deform_conv2d(*single, *geometry)
    assert actual.dtype == dtype
    torch.testing.assert_close(actual, expected.to(dtype))
    for found, right in zip(
        torch.autograd.grad(actual.sum(), low),
        torch.autograd.grad(expected.sum(), single),
        strict=True,
    ):
        torch.testing.assert_close(found, right.to(dtype))


@pytest.mark.parametrize("kind", ["DCN", "DCNv2"])
def test_layer_without_offsets_is_a_convolution(mmcv_ops: ModuleType, kind: str) -> None:
    # Offsets begin at 0, and masks at 1/2.
    from mmengine.registry import MODELS

    options = {"kernel_size": 3, "padding": 1, "bias": False, "deform_groups": 2}
    layer = MODELS.build({"type": kind, "in_channels": 4, "out_channels": 6, **options})
    image = torch.randn(2, 4, 7, 5)
    expected = torch.conv2d(image, layer.weight, padding=1)
    torch.testing.assert_close(layer(image), expected / (2 if kind == "DCNv2" else 1))
