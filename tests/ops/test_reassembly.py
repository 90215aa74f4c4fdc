"""Operators that move or weigh cells of a map: CARAFE, PSA masks, masked convolution, attention."""

from itertools import product
from types import ModuleType

import pytest
import torch
from torch import Tensor


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.double).requires_grad_()


def carafe_loop(features: Tensor, masks: Tensor, size: int, groups: int, scale: int) -> Tensor:
    """Wang et al. (2019), eq. 4: each output cell sums its neighbours by its kernel."""
    n, channels, height, width = features.shape
    output = features.new_zeros(n, channels, scale * height, scale * width)
    for b, c, y, x in product(
        range(n), range(channels), range(scale * height), range(scale * width)
    ):
        group = c // (channels // groups)
        total = features.new_zeros(())
        for i, j in product(range(size), range(size)):
            row, column = y // scale + i - size // 2, x // scale + j - size // 2
            if 0 <= row < height and 0 <= column < width:
                kernel = masks[b, (group * size + i) * size + j, y, x]
                total = total + kernel * features[b, c, row, column]
        output[b, c, y, x] = total
    return output


@pytest.mark.parametrize(("size", "groups", "scale"), [(3, 1, 2), (5, 2, 1), (3, 2, 3)])
def test_carafe(mmcv_ops: ModuleType, size: int, groups: int, scale: int) -> None:
    features = draw(2, 4, 3, 2)
    masks = draw(2, groups * size * size, 3 * scale, 2 * scale, seed=1)
    expected = carafe_loop(features, masks, size, groups, scale)
    actual = mmcv_ops.carafe(features, masks, size, groups, scale)
    torch.testing.assert_close(actual, expected)

    upstream = torch.randn_like(expected)
    right = torch.autograd.grad(expected, (features, masks), upstream)
    found = torch.autograd.grad(actual, (features, masks), upstream)
    torch.testing.assert_close(found, right)


def psa_loop(relative: Tensor, size: tuple[int, int], distribute: bool) -> Tensor:
    """Zhao et al. (2018), sec. 3.2: the mask of each cell, laid over the map around it."""
    n, _, height, width = relative.shape
    pairs = relative.new_zeros(n, height, width, height, width)  # own cell, other cell
    for y, x, i, j in product(range(height), range(width), range(size[0]), range(size[1])):
        row, column = y + i - (size[0] - 1) // 2, x + j - (size[1] - 1) // 2
        if 0 <= row < height and 0 <= column < width:
            pairs[:, y, x, row, column] = relative[:, i * size[1] + j, y, x]
    pairs = pairs if distribute else pairs.permute(0, 3, 4, 1, 2)
    return pairs.reshape(n, height * width, height, width)


@pytest.mark.parametrize("kind", ["collect", "distribute"])
@pytest.mark.parametrize("size", [(5, 7), (3, 3), (2, 4)])
def test_psa_mask(mmcv_ops: ModuleType, kind: str, size: tuple[int, int]) -> None:
    relative = draw(2, size[0] * size[1], 3, 4)
    expected = psa_loop(relative, size, kind == "distribute")
    actual = mmcv_ops.PSAMask(kind, size)(relative)
    assert torch.equal(actual, expected)

    upstream = torch.randn_like(expected)
    right = torch.autograd.grad(expected, relative, upstream)
    torch.testing.assert_close(torch.autograd.grad(actual, relative, upstream), right)


def test_masked_convolution(mmcv_ops: ModuleType) -> None:
    layer = mmcv_ops.MaskedConv2d(3, 4, (3, 5), padding=(1, 2))
    image = torch.randn(1, 3, 6, 7)
    mask = torch.rand(1, 6, 7) > 0.6
    with torch.no_grad():
        expected = layer(image) * mask
        torch.testing.assert_close(layer(image, mask), expected)
        assert not layer(image, torch.zeros_like(mask)).any()


def attention_loop(
    value: Tensor, shapes: list[tuple[int, int]], places: Tensor, weights: Tensor
) -> Tensor:
    """Zhu et al. (2021), eq. 3, sample by sample."""
    n, queries, heads, _, points, _ = places.shape
    output = value.new_zeros(n, queries, heads, value.shape[-1])
    for b, q, h in product(range(n), range(queries), range(heads)):
        first = 0
        for level, (height, width) in enumerate(shapes):
            cells = value[b, first : first + height * width, h].view(height, width, -1)
            first += height * width
            for point in range(points):
                # Cell centres lie at half-integers.
                x, y = places[b, q, h, level, point] * places.new_tensor([width, height]) - 0.5
                for i, j in product(range(height), range(width)):
                    near = (1 - (y - i).abs()).clamp_min(0) * (1 - (x - j).abs()).clamp_min(0)
                    share = weights[b, q, h, level, point] * near
                    output[b, q, h] = output[b, q, h] + share * cells[i, j]
    return output.flatten(2)


def test_deformable_attention(mmcv_ops: ModuleType) -> None:
    # mmcv calls the operator on GPUs only; it works on any device.
    shapes = [(3, 4), (2, 2)]
    value = draw(2, 16, 2, 3)
    places = (draw(2, 3, 2, 2, 2, 2, seed=1) / 2 + 0.5).detach().requires_grad_()
    weights = draw(2, 3, 2, 2, 2, seed=2)
    expected = attention_loop(value, shapes, places, weights)
    attend = mmcv_ops.multi_scale_deform_attn.MultiScaleDeformableAttnFunction.apply
    levels, starts = torch.tensor(shapes), torch.tensor([0, 12])
    actual = attend(value, levels, starts, places, weights, 64)
    torch.testing.assert_close(actual, expected)

    leaves, upstream = (value, places, weights), torch.randn_like(expected)
    right = torch.autograd.grad(expected, leaves, upstream)
    torch.testing.assert_close(torch.autograd.grad(actual, leaves, upstream), right)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("operator", ["carafe", "attention"])
def test_mixed_precision(mmcv_ops: ModuleType, operator: str, dtype: torch.dtype) -> None:
    # The backward pass runs outside autocast.
    if operator == "carafe":
        leaves = [draw(1, 4, 3, 2), draw(1, 9, 6, 4, seed=1)]
    else:
        leaves = [draw(1, 6, 1, 2), draw(1, 2, 1, 1, 2, 2, seed=1), draw(1, 2, 1, 1, 2, seed=2)]

    def compute(*tensors: Tensor) -> Tensor:
        if operator == "carafe":
            found: Tensor = mmcv_ops.carafe(*tensors, 3, 1, 2)
            return found
        attend = mmcv_ops.multi_scale_deform_attn.MultiScaleDeformableAttnFunction.apply
        value, places, weights = tensors
        return attend(value, torch.tensor([[2, 3]]), torch.tensor([0]), places, weights, 64)

    # Attention's places and weights stay in single precision under autocast.
    dtypes = [dtype, dtype if operator == "carafe" else torch.float32, torch.float32]
    low = [x.detach().to(d).requires_grad_() for x, d in zip(leaves, dtypes, strict=False)]
    # mmcv takes places and weights in the type of the value.
    same = [x.detach().to(dtype).double().requires_grad_() for x in low]
    with torch.autocast("cpu", dtype=dtype):
        actual = compute(*low)
    expected = compute(*same)
    assert actual.dtype == dtype
    tolerance = {"rtol": 3e-2, "atol": 3e-2}
    torch.testing.assert_close(actual.double(), expected, **tolerance)
    found = torch.autograd.grad(actual.sum(), low)
    right = torch.autograd.grad(expected.sum(), same)
    for one, other in zip(found, right, strict=True):
        torch.testing.assert_close(one.double(), other, **tolerance)


def test_gradients_by_differences(mmcv_ops: ModuleType) -> None:
    def upsample(features: Tensor, masks: Tensor) -> Tensor:
        found: Tensor = mmcv_ops.carafe(features, masks, 3, 1, 2)
        return found

    def attend(value: Tensor, places: Tensor, weights: Tensor) -> Tensor:
        function = mmcv_ops.multi_scale_deform_attn.MultiScaleDeformableAttnFunction
        levels, starts = torch.tensor([[2, 3]]), torch.tensor([0])
        found: Tensor = function.apply(value, levels, starts, places, weights, 64)
        return found

    check = torch.autograd.gradcheck
    assert check(upsample, (draw(1, 2, 2, 2), draw(1, 9, 4, 4)), fast_mode=True)
    assert check(mmcv_ops.PSAMask("collect", (3, 3)), draw(1, 9, 2, 3), fast_mode=True)
    operands = (draw(1, 6, 1, 2), draw(1, 2, 1, 1, 2, 2), draw(1, 2, 1, 1, 2))
    assert check(attend, operands, fast_mode=True)
