"""CosReg against its definition, and its gradient against finite differences."""

from __future__ import annotations

import copy
import weakref

import pytest
import torch
from by_autograd import check_grads
from models import task_losses
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from mtl_plugins import MultiTaskBackward
from mtl_plugins.mm.optim.model import differentiate_twice
from mtl_plugins.regularization import CosReg, Regularizer, build_regularizer

# Small: gradients jump where a ReLU switches, and so does what is made of them.
STEP = 1e-8


def test_by_hand():
    jacobian = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, -2.0]])
    assert_close(CosReg(weight=3.0)(jacobian), torch.tensor(3.0 * (0.5 + 0.0 + 0.5)))


@pytest.mark.parametrize("factor", [1e-25, 1e25])
def test_length_does_not_count(factor):
    jacobian = torch.tensor([[1.0, 2.0, 3.0], [-1.0, 0.5, 1.0]], requires_grad=True)
    (grad,) = torch.autograd.grad(CosReg()(jacobian * factor), jacobian)
    (expected,) = torch.autograd.grad(CosReg()(jacobian), jacobian)
    assert_close(grad, expected)


class Watched(Regularizer):
    """Notes whether the Jacobian is held by more than the graph while the term is run back."""

    def __init__(self) -> None:
        self.held: list[bool] = []

    def __call__(self, jacobian: Tensor) -> Tensor:
        rows = weakref.ref(jacobian)
        term = jacobian.sum()
        term.register_hook(lambda grad: self.held.append(rows() is not None))
        return term


def test_the_graph_alone_holds_the_jacobian(trunk, x):
    watched = Watched()
    MultiTaskBackward(trunk.parameters(), regularizer=watched)(trunk(x))
    assert watched.held == [False]


def test_zero_gradient_is_orthogonal():
    jacobian = torch.tensor([[1.0, 2.0], [0.0, 0.0]], requires_grad=True)
    penalty = CosReg()(jacobian)
    penalty.backward()
    assert penalty == 0.0 and jacobian.grad.isfinite().all()


def penalty_of(losses: dict[str, Tensor], wrt: list[Tensor]) -> Tensor:
    """The definition: two loops over the pairs."""
    rows = [
        torch.cat(
            [
                (torch.zeros_like(p) if g is None else g).flatten()
                for p, g in zip(
                    wrt,
                    torch.autograd.grad(loss, wrt, create_graph=True, allow_unused=True),
                    strict=True,
                )
            ]
        )
        for loss in losses.values()
    ]
    total = torch.zeros((), dtype=rows[0].dtype)
    for i in range(len(rows)):
        for j in range(i):
            if rows[i].any() and rows[j].any():
                total = total + (rows[i] @ rows[j] / (rows[i].norm() * rows[j].norm())) ** 2
    return total


@pytest.mark.parametrize(
    "aggregator, level",
    [
        ("Sum", "parameter"),
        ("PCGrad", "parameter"),
        ("MCLGS", "parameter"),
        ("Sum", "feature"),
        ("PCGrad", "feature"),
    ],
)
def test_is_added_to_what_the_aggregator_does(aggregator, level, trunk, x):
    options = {"type": "MCLGS", "total_steps": 9} if aggregator == "MCLGS" else {"type": aggregator}
    twin = copy.deepcopy(trunk)
    z = twin.trunk(x)
    shared = [*twin.trunk.parameters(), *twin.heads_ab.parameters()]
    penalty = penalty_of(twin.losses(z), [z] if level == "feature" else shared)
    extra = torch.autograd.grad(0.7 * penalty, list(twin.parameters()), allow_unused=True)

    def grads(regularizer):
        model = copy.deepcopy(trunk)
        representation = model.trunk if level == "feature" else None
        backward = MultiTaskBackward(
            model.parameters(),
            options | ({"seed": 0} if aggregator == "PCGrad" else {}),
            regularizer=regularizer,
            level=level,
            representation=representation,
        )
        backward(model(x))
        return [p.grad for p in model.parameters()], backward.last

    plain, _ = grads(None)
    regularised, last = grads({"type": "CosReg", "weight": 0.7})
    assert_close(last.penalty, 0.7 * penalty.detach())
    for p, q, e in zip(regularised, plain, extra, strict=True):
        expected = sum(g for g in (q, e) if g is not None)
        assert (p is None and q is None and e is None) or p is not None
        if p is not None:
            assert_close(p, expected)


@pytest.mark.parametrize("level", ["parameter", "feature"])
def test_micro_batches_count_by_their_share(level, trunk, x):
    """The last one lacks a task, whose head keeps what the first has given it."""
    parts, absent = (x[:2], x[2:]), ("", "c")
    plain = copy.deepcopy(trunk)
    objective = torch.zeros((), dtype=x.dtype)
    penalties = []
    for part, without in zip(parts, absent, strict=True):
        z = plain.trunk(part)
        losses = {k: v for k, v in plain.losses(z).items() if k not in without}
        shared = [*plain.trunk.parameters(), *plain.heads_ab.parameters()]
        penalties.append(penalty_of(losses, [z] if level == "feature" else shared))
        objective = objective + 0.5 * (sum(losses.values()) + penalties[-1])
    objective.backward()

    representation = trunk.trunk if level == "feature" else None
    backward = MultiTaskBackward(
        trunk.parameters(), regularizer="CosReg", level=level, representation=representation
    )
    for part, without, last in zip(parts, absent, (False, True), strict=True):
        losses = {k: v for k, v in trunk(part).items() if k not in without}
        backward(losses, aggregate=last, share=0.5)
    check_grads(trunk.parameters(), [p.grad for p in plain.parameters()])
    assert_close(backward.last.penalty, sum(p.detach() for p in penalties) / 2.0)


@pytest.mark.parametrize("frozen", [False, True])
def test_nothing_to_make_orthogonal(frozen, trunk, x):
    """A batch of one task, or whose tasks share nothing that is trained."""
    backward = MultiTaskBackward(trunk.parameters(), regularizer="CosReg")
    backward(trunk(x))
    trunk.zero_grad()
    if frozen:
        for p in [*trunk.trunk.parameters(), *trunk.heads_ab.parameters()]:
            p.requires_grad_(False)
    names = "abc" if frozen else "a"
    backward({k: v for k, v in trunk(x).items() if k in names})
    assert backward.last.penalty == 0.0
    assert trunk.heads["a"].weight.grad.any()


def test_gradient_that_is_not_finite_skips_the_step(trunk, x, caplog):
    """The second derivative of |z| ** 1.5 at 0."""

    def losses():
        z = trunk.trunk(x * 0.0)
        return {"a": (z - z.detach()).abs().pow(1.5).sum() + z.sum(), "b": z.square().sum()}

    backward = MultiTaskBackward(trunk.parameters(), "PCGrad", regularizer="CosReg")
    backward(losses())
    assert backward.last.nonfinite == ("the regularizer",)
    assert all(p.grad is None for p in trunk.parameters())
    assert "the gradient of the regularizer is not finite" in caplog.text


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(reentrant, trunk, x):
    def losses():
        return trunk.losses(checkpoint(trunk.trunk, x, use_reentrant=reentrant))

    backward = MultiTaskBackward(trunk.parameters(), regularizer="CosReg")
    x = x.requires_grad_()
    if reentrant:
        with pytest.raises(RuntimeError, match="regularizer: .*use use_reentrant=False"):
            backward(losses())
        return
    backward(losses())
    penalty = backward.last.penalty
    backward(trunk(x))
    assert_close(backward.last.penalty, penalty)


class Once(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return 3.0 * ctx.saved_tensors[0] ** 2 * grad


class Direct(Once):
    """Its backward pass gets a constant, and uses what was saved."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return (x**3).sum()

    @staticmethod
    def backward(ctx, grad):
        return (3.0 * ctx.saved_tensors[0] ** 2 * grad).detach()


class Silent(Once):
    """Its backward pass computes something that autograd does not see, and does not say so."""

    @staticmethod
    def backward(ctx, grad):
        return (3.0 * ctx.saved_tensors[0] ** 2 * grad).detach()


@pytest.mark.parametrize("operation", [Once, Silent, Direct])
@pytest.mark.parametrize("level", ["parameter", "feature"])
def test_operation_without_second_derivative_is_named(operation, level, trunk, x):
    class Head(nn.Module):
        def forward(self, z):
            value = operation.apply(z).sum()
            return {"a": value if operation is Direct else value.square(), "b": z.square().sum()}

    backward = MultiTaskBackward(
        trunk.parameters(),
        regularizer="CosReg",
        level=level,
        representation=trunk.trunk if level == "feature" else None,
    )
    with pytest.raises(
        RuntimeError, match=f"regularizer: .*second derivative of {operation.__name__}"
    ):
        backward(Head()(trunk.trunk(x)))


def frozen_proposals(model: nn.Module, kept: list[object]) -> nn.Module:
    """They depend on the parameters, but no gradient goes through them."""
    propose = model.rpn_head.predict_by_feat

    def once(*args, **kwargs):
        if not kept:
            kept.append(propose(*args, **kwargs))
        return copy.deepcopy(kept[0])

    model.rpn_head.predict_by_feat = once
    return model


@pytest.mark.parametrize("level", ["parameter", "feature"])
def test_mask_rcnn_against_finite_differences(level, detector):
    """Through RoIAlign, both heads and the RPN, along the direction of the gradient."""
    kept: list[object] = []
    moved = copy.deepcopy(detector)
    rng = torch.Generator().manual_seed(0)
    for p in moved.parameters():  # away from biases of 0, behind which a ReLU may be at its kink
        p.data += 0.05 * torch.randn(p.shape, generator=rng, dtype=p.dtype)
    model = frozen_proposals(copy.deepcopy(moved), kept)
    plain = frozen_proposals(copy.deepcopy(moved), kept)
    features: list[Tensor] = []
    plain.neck.register_forward_hook(lambda module, inputs, output: features.extend(output))
    params = [p for p in plain.parameters() if p.requires_grad]
    trunk = [*plain.backbone.parameters(), *plain.neck.parameters()]
    trunk = [p for p in trunk if p.requires_grad]

    def objective() -> float:
        features.clear()
        losses = task_losses(plain)
        return penalty_of(losses, features if level == "feature" else trunk).item()

    differentiate_twice(model)
    representation = model.neck if level == "feature" else None
    backward = MultiTaskBackward(
        model.parameters(), regularizer="CosReg", level=level, representation=representation
    )
    backward(task_losses(model))
    assert backward.last.penalty.item() == pytest.approx(objective())
    grads = torch.autograd.grad(sum(task_losses(plain).values()), params)
    trained = [p.grad for p in model.parameters() if p.requires_grad]
    direction = [p - g for p, g in zip(trained, grads, strict=True)]
    slope = sum(d.square().sum() for d in direction).sqrt()
    values = []
    with torch.no_grad():
        for step in (STEP, -2.0 * STEP):
            for p, d in zip(params, direction, strict=True):
                p += step * d / slope
            with torch.enable_grad():
                values.append(objective())
    assert slope > 1e-3
    assert (values[0] - values[1]) / (2.0 * STEP) == pytest.approx(slope.item(), rel=1e-3)


def test_mmcv_roi_align_is_refused_unless_exchanged(detector):
    backward = MultiTaskBackward(detector.parameters(), regularizer="CosReg")
    with pytest.raises(RuntimeError, match="second derivative of RoIAlignFunction"):
        backward(task_losses(detector))


def test_unknown_name():
    with pytest.raises(KeyError, match="regularizer.type: no method is called 'CosRg'"):
        build_regularizer("CosRg")
