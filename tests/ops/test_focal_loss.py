from types import ModuleType

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import log_softmax, one_hot

from mtl_plugins.ops import focal_loss

CLASSES = 5


def textbook_sigmoid(
    logits: Tensor, target: Tensor, gamma: float, alpha: float, row_weight: Tensor
) -> Tensor:
    truth = one_hot(target, CLASSES + 1)[:, :CLASSES].to(logits)
    p = logits.sigmoid()
    positive = alpha * (1 - p) ** gamma * p.log()
    negative = (1 - alpha) * p**gamma * (1 - p).log()
    return -(truth * positive + (1 - truth) * negative) * row_weight[:, None]


def textbook_softmax(
    logits: Tensor, target: Tensor, gamma: float, alpha: float, row_weight: Tensor
) -> Tensor:
    rows = []
    for logit, t, w in zip(logits, target, row_weight, strict=True):
        log_p = torch.cat([log_softmax(logit, 0), logit.new_zeros(1)])[t]
        rows.append(-w * alpha * (1 - log_p.exp()) ** gamma * log_p)
    return torch.stack(rows)


def problem(seed: int) -> tuple[Tensor, Tensor]:
    """Logits (12, C) and targets that include the background C."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(12, CLASSES, generator=generator, dtype=torch.double)
    target = torch.arange(12) % (CLASSES + 1)
    return logits.requires_grad_(), target


@pytest.mark.parametrize("kind", ["sigmoid", "softmax"])
@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
def test_value_and_gradient(
    mmcv_ops: ModuleType, kind: str, gamma: float, weighted: bool, reduction: str
) -> None:
    logits, target = problem(seed=int(10 * gamma))
    weight = torch.linspace(0.5, 2, CLASSES, dtype=torch.double) if weighted else None
    table = torch.ones(CLASSES + 1, dtype=torch.double)
    if weight is not None:
        table[:CLASSES] = weight

    textbook = {"sigmoid": textbook_sigmoid, "softmax": textbook_softmax}[kind]
    expected = textbook(logits, target, gamma, 0.3, table[target])
    expected = {
        "sum": expected.sum(),
        "mean": expected.sum() / len(target),
        "none": expected,
    }[reduction]
    operator = getattr(mmcv_ops, f"{kind}_focal_loss")
    actual = operator(logits, target, gamma, 0.3, weight, reduction)
    torch.testing.assert_close(actual, expected)

    # mmcv's softmax backward multiplies (N, C) by the incoming (N,), so only scalars work there.
    if reduction == "none" and kind == "softmax":
        return
    upstream = torch.rand_like(expected)
    (expected_grad,) = torch.autograd.grad(expected, logits, upstream)
    (actual_grad,) = torch.autograd.grad(actual, logits, upstream)
    torch.testing.assert_close(actual_grad, expected_grad)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_saturated_logits(mmcv_ops: ModuleType, gamma: float) -> None:
    logits = torch.tensor([[90.0, -90.0], [-90.0, 90.0]], requires_grad=True)
    target = torch.tensor([0, 0])
    loss = mmcv_ops.sigmoid_focal_loss(logits, target, gamma, 0.25, None, "none")
    torch.testing.assert_close(loss, torch.tensor([[0.0, 0.0], [0.25 * 90, 0.75 * 90]]))
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    torch.testing.assert_close(grad, torch.tensor([[0.0, 0.0], [-0.25, 0.75]]))

    loss = mmcv_ops.softmax_focal_loss(logits, target, gamma, 0.25, None, "sum")
    (grad,) = torch.autograd.grad(loss, logits)
    assert loss.isfinite()
    torch.testing.assert_close(grad, torch.tensor([[0.0, 0.0], [-0.25, 0.25]]))


@pytest.mark.parametrize("name", ["sigmoid_loss", "sigmoid_grad", "softmax_loss", "softmax_grad"])
@pytest.mark.parametrize("weighted", [False, True])
def test_gpu_is_never_waited_for(name: str, weighted: bool) -> None:
    # Fake tensors hold no values: reading one on the host raises.
    with FakeTensorMode():
        rows = torch.rand(6, CLASSES, device="cuda")
        target = torch.zeros(6, dtype=torch.long, device="cuda")
        weight = torch.ones(CLASSES if weighted else 0, device="cuda")
        assert getattr(focal_loss, name)(rows, target, weight, 2.0, 0.25).is_cuda
