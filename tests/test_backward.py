"""MultiTaskBackward against ``torch.autograd.grad``, task by task."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch
from by_autograd import check_grads, expected_grads, flat, grads_of, per_task
from models import FEATURE_METHODS, GRADIENT_METHODS, method, task_losses
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from mtl_plugins import MultiTaskBackward
from mtl_plugins.aggregation import Aggregator, build_aggregator

every_method = pytest.mark.parametrize("name", GRADIENT_METHODS)


@every_method
def test_agrees_with_autograd(name, trunk, x):
    """Shared by all, shared by two of four, reached by one, reached by none: all as they should."""
    params = list(trunk.parameters())
    expected = expected_grads(build_aggregator(method(name)), trunk(x), params)
    MultiTaskBackward(params, method(name))(trunk(x))
    check_grads(params, expected)
    assert trunk.unused.weight.grad is None


@pytest.mark.parametrize("name", ["PCGrad", "CAGrad"])
def test_agrees_with_autograd_on_a_detector(name, detector):
    """The RPN belongs to one task, the trunk to both, and nobody reaches a frozen stage."""
    model = copy.deepcopy(detector)
    for p in model.backbone.layer1.parameters():
        p.requires_grad_(False)
    params = list(model.parameters())
    trained = [p for p in params if p.requires_grad]
    expected = expected_grads(build_aggregator(method(name)), task_losses(model), trained)
    MultiTaskBackward(params, method(name))(task_losses(model))
    check_grads(trained, expected, rtol=1e-6, atol=1e-9)
    assert all(p.grad is None for p in params if not p.requires_grad)
    assert model.roi_head.mask_head.conv_logits.weight.grad.any()


@pytest.mark.parametrize("name", ["Sum", "Mean"])
def test_methods_without_gradients_are_one_backward(name, trunk, x):
    twin = copy.deepcopy(trunk)
    (sum(twin(x).values()) / (4 if name == "Mean" else 1)).backward()
    backward = MultiTaskBackward(trunk.parameters(), name)
    backward(trunk(x))
    for p, q in zip(trunk.parameters(), twin.parameters(), strict=True):
        assert (p.grad is None and q.grad is None) or torch.equal(p.grad, q.grad)
    assert backward.last.gramian is None


@pytest.mark.parametrize("level", ["parameter", "feature"])
def test_monitoring_gives_the_gramian_and_changes_no_grad(trunk, x, level):
    twin = copy.deepcopy(trunk)
    options = {"level": level}
    plain = MultiTaskBackward(
        trunk.parameters(),
        **options,
        representation=trunk.trunk if level == "feature" else None,
    )
    watched = MultiTaskBackward(
        twin.parameters(), **options, representation=twin.trunk if level == "feature" else None
    )
    plain(trunk(x))
    watched.monitor = True
    watched(twin(x))
    for p, q in zip(trunk.parameters(), twin.parameters(), strict=True):
        assert (p.grad is None and q.grad is None) or torch.equal(p.grad, q.grad)
    if level == "parameter":
        shared = [*trunk.trunk.parameters(), *trunk.heads_ab.parameters()]
        rows = torch.stack([flat(row, shared) for row in per_task(trunk(x), shared)])
        assert_close(watched.last.gramian, rows @ rows.T)
    assert not watched.monitor


@pytest.mark.parametrize("name", FEATURE_METHODS)
def test_feature_level(name, trunk, x):
    """Heads get the sum of their tasks' gradients, the trunk one backward of the aggregate."""
    losses = trunk.losses(z := trunk.trunk(x))
    rows = [
        torch.autograd.grad(loss, z, retain_graph=True)[0].flatten()
        for loss in (losses["a"], losses["b"], losses["c"])
    ]
    update = build_aggregator(method(name)).on_features(torch.stack(rows), [z]).view_as(z)
    expected = torch.autograd.grad(z, list(trunk.trunk.parameters()), update, retain_graph=True)
    heads = [*trunk.heads.parameters(), *trunk.heads_ab.parameters()]
    expected_heads = torch.autograd.grad(sum(losses.values()), heads)

    backward = MultiTaskBackward(
        trunk.parameters(), method(name), level="feature", representation=trunk.trunk
    )
    backward(trunk(x))
    check_grads(trunk.trunk.parameters(), expected)
    check_grads(heads, expected_heads)


@pytest.mark.parametrize("container", ["tuple", "list", "dict"])
def test_feature_level_of_containers(container, trunk, x):
    """A neck returns levels: the representation is all of them together."""

    class Levels(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            z = self.inner(x)
            levels = (z[:, :3], z[:, 3:] * 2.0)
            if container == "dict":
                return {"p2": levels[0], "rest": [levels[1]]}
            return levels if container == "tuple" else list(levels)

    neck = Levels(trunk.trunk)
    head = nn.ModuleList([nn.Linear(3, 1).double(), nn.Linear(5, 1).double()])

    def losses():
        out = neck(x)
        first, second = (out["p2"], out["rest"][0]) if container == "dict" else out
        return {
            "a": head[0](first).square().mean() + head[1](second).mean(),
            "b": second.exp().mean(),
        }

    backward = MultiTaskBackward(
        [*neck.parameters(), *head.parameters()],
        "MGDA",
        level="feature",
        representation=neck,
    )
    backward(losses())
    gramian = backward.last.gramian
    z = trunk.trunk(x).detach().requires_grad_()
    a = head[0](z[:, :3]).square().mean() + head[1](z[:, 3:] * 2.0).mean()
    b = (z[:, 3:] * 2.0).exp().mean()
    scale = torch.tensor([1.0] * 3 + [0.5] * 5, dtype=torch.float64)  # ∂L/∂levels from ∂L/∂z
    rows = torch.stack([(torch.autograd.grad(loss, z)[0] * scale).flatten() for loss in (a, b)])
    assert_close(gramian, rows @ rows.T)


@pytest.mark.parametrize("name", ["MGDA", "CAGrad", "AlignedMTL", "IMTLG"])
def test_absent_task_has_no_say(name, trunk, x):
    """A batch without task c after one with it: as if there were only the others."""
    backward = MultiTaskBackward(trunk.parameters(), name)
    backward(trunk(x))
    trunk.zero_grad()
    backward({k: v for k, v in trunk(x).items() if k != "c"})
    assert backward.last.tasks == ("a", "b", "d")
    assert trunk.heads["c"].weight.grad is None
    # What was shared stays shared: now by two tasks only.
    shared = [*trunk.trunk.parameters(), *trunk.heads_ab.parameters()]
    rows = per_task({k: v for k, v in trunk(x).items() if k in "ab"}, shared)
    jacobian = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])
    actual = torch.cat([p.grad.flatten() for p in shared])
    assert_close(actual, build_aggregator(name)(jacobian))


def test_task_without_a_gradient_does_not_stop_mgda(trunk, x):
    """An empty mask gives a loss of 0 · Σ: the shortest vector in the hull would be 0."""
    losses = trunk(x)
    losses["c"] = 0.0 * losses["c"]
    backward = MultiTaskBackward(trunk.parameters(), "MGDA")
    backward(losses)
    assert trunk.trunk[0].weight.grad.any()
    assert backward.last.weights[backward.last.tasks.index("c")] == 0.0


def test_constant_loss_is_an_absent_task(trunk, x):
    backward = MultiTaskBackward(trunk.parameters(), "PCGrad")
    backward(trunk(x) | {"c": torch.zeros((), dtype=torch.float64)})
    assert backward.last.tasks == ("a", "b", "d")


@every_method
@pytest.mark.parametrize("order", ["abcd first", "abcd last"])
def test_micro_batches_aggregate_once(name, order, trunk, x):
    """Rows add up over micro-batches, also when a task (and what it shares) is missing in one."""
    params = list(trunk.parameters())
    part = lambda x: {k: v for k, v in trunk(x).items() if k in "ad"}  # noqa: E731
    calls = [trunk, part] if order == "abcd first" else [part, trunk]
    both = [call(inputs) for call, inputs in zip(calls, (x[:3], x[3:]), strict=True)]
    total = {k: sum(losses[k] for losses in both if k in losses) for k in "abcd"}
    if order == "abcd last":  # tasks are numbered as they appear
        total = {k: total[k] for k in "adbc"}
    expected = expected_grads(build_aggregator(method(name)), total, params)
    backward = MultiTaskBackward(params, method(name))
    backward(calls[0](x[:3]), aggregate=False)
    backward(calls[1](x[3:]))
    check_grads(params, expected)
    assert_close(
        backward.last.losses.double(), torch.stack(list(total.values())), rtol=1e-6, atol=0
    )


@pytest.mark.parametrize(
    "options",
    [
        dict(aggregator="MGDA", low_memory=True),
        dict(aggregator="MGDA", gramian="sketch"),
        dict(aggregator="MGDA", weights_every=2),
        dict(aggregator="MGDA", level="feature"),
        dict(aggregator="Sum"),
        dict(aggregator="Sum", level="feature"),
    ],
)
def test_task_absent_from_the_last_micro_batch(options, trunk, x):
    """Where the last one is aggregated, or monitored, by itself."""
    if options.get("level") == "feature":
        options = options | {"representation": trunk.trunk}
    backward = MultiTaskBackward(trunk.parameters(), **options)
    for _ in range(2):
        backward(trunk(x[:3]), aggregate=False)
        backward.monitor = True
        backward({k: v for k, v in trunk(x[3:]).items() if k in "ab"})
        step = backward.last
        assert step.gramian.shape == (len(step.tasks), len(step.tasks))
        assert len(step.weights) == len(step.losses) == len(step.tasks)
        assert trunk.trunk[0].weight.grad.any()
        trunk.zero_grad()


@pytest.mark.parametrize("level", ["parameter", "feature"])
@pytest.mark.parametrize("name", ["GradDrop", "Trimmed mean"])
def test_later_batch_without_any_loss_for_methods_of_the_jacobian(name, level, trunk, x):
    cfg = {
        "GradDrop": "GradDrop",
        "Trimmed mean": dict(type="TorchJD", name="TrimmedMean", trim_number=0),
    }
    representation = trunk.trunk if level == "feature" else None
    backward = MultiTaskBackward(
        trunk.parameters(), cfg[name], level=level, representation=representation
    )
    for losses in ({"a", "b"}, set()):
        backward({k: v for k, v in trunk(x).items() if k in losses})
    assert backward.last.tasks == ()


def test_later_batch_without_any_loss(trunk, x):
    for name in ("Sum", "MGDA"):
        backward = MultiTaskBackward(trunk.parameters(), name)
        backward(trunk(x))
        trunk.zero_grad()
        backward({})
        assert backward.last.tasks == ()
        assert all(p.grad is None or not p.grad.any() for p in trunk.parameters())


def test_adds_to_grad_like_backward(trunk, x):
    backward = MultiTaskBackward(trunk.parameters(), "AlignedMTL")
    backward(trunk(x))
    once = [None if p.grad is None else p.grad.clone() for p in trunk.parameters()]
    backward(trunk(x))
    for p, g in zip(trunk.parameters(), once, strict=True):
        assert (p.grad is None and g is None) or torch.allclose(p.grad, 2 * g)


@every_method
def test_loss_scale_reaches_grad_but_not_the_method(name, trunk, x):
    twin = copy.deepcopy(trunk)
    plain = MultiTaskBackward(trunk.parameters(), method(name))
    scaled = MultiTaskBackward(twin.parameters(), method(name))
    plain(trunk(x))
    scaled(twin(x), scale=torch.tensor(1024.0))
    assert_close(scaled.last.weights, plain.last.weights)
    for p, q in zip(trunk.parameters(), twin.parameters(), strict=True):
        if p.grad is not None:
            assert_close(q.grad, 1024.0 * p.grad)


def test_gramian_beyond_single_precision():
    """Norms of 1e25 fit into single precision, their squares do not."""
    p = nn.Parameter(torch.ones(3))
    backward = MultiTaskBackward([p], "MGDA")
    a, b = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 1.0, 0.0])
    backward({"a": (p * a * 1e25).sum(), "b": (p * b * 1e25).sum()})
    assert_close(p.grad, (a + b) * 0.5e25)


@pytest.mark.parametrize("name", ["MGDA", "Sum"])
@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing(name, reentrant, trunk, x):
    plain = MultiTaskBackward(trunk.parameters(), name)
    plain(trunk(x))
    twin = copy.deepcopy(trunk)
    twin.zero_grad()
    inner = twin.trunk.forward
    twin.trunk.forward = lambda x: checkpoint(inner, x, use_reentrant=reentrant)
    checkpointed = MultiTaskBackward(twin.parameters(), name)
    checkpointed.monitor = True
    checkpointed(twin(x.clone().requires_grad_()))
    for p, q in zip(trunk.trunk.parameters(), twin.trunk.parameters(), strict=True):
        assert_close(q.grad, p.grad)


def newcomer(trunk):
    """A layer of the trunk that is frozen at first, and an optimizer of all other parameters."""
    layer = trunk.trunk[2].requires_grad_(False)
    new = set(layer.parameters())
    return layer, torch.optim.SGD([p for p in trunk.parameters() if p not in new], lr=1.0)


@pytest.mark.parametrize("name", ["MGDA", "GradDrop", "Sum", "Mean", "CosReg"])
def test_parameters_that_join_between_two_micro_batches(name, trunk, x):
    """They are aggregated like those that were there, with a gradient of the second alone."""
    options = {"regularizer": name} if name == "CosReg" else {"aggregator": method(name)}
    layer, optimizer = newcomer(trunk)
    backward = MultiTaskBackward(optimizer, **options)
    backward(trunk(x), aggregate=False, share=0.5)
    layer.requires_grad_(True)
    optimizer.add_param_group({"params": list(layer.parameters())})
    backward(trunk(2.0 * x), share=0.5)
    found = grads_of(trunk)
    trunk.zero_grad()
    layer.requires_grad_(False)
    known = MultiTaskBackward(list(backward.params), **options)  # in one order, for the draws
    known(trunk(x), aggregate=False, share=0.5)
    layer.requires_grad_(True)
    known(trunk(2.0 * x), share=0.5)
    check_grads(trunk.parameters(), found)
    assert layer.weight.grad.any()


def test_gradient_of_what_joins_between_two_micro_batches(trunk, x, caplog):
    """Some of it was there before, summed over the tasks: it stays, and a warning says so."""
    layer, optimizer = newcomer(trunk)
    backward = MultiTaskBackward(optimizer, "MGDA")
    layer.requires_grad_(True)
    backward(trunk(x), aggregate=False)
    summed = layer.weight.grad.clone()
    optimizer.add_param_group({"params": list(layer.parameters())})
    backward({name: 0.0 * loss for name, loss in trunk(x).items()})
    assert_close(layer.weight.grad, summed)
    assert "2 parameters joined the optimizer between two micro-batches" in caplog.text


class Hidden(nn.Module):
    """Reentrant checkpointing of the whole: the graph of the losses shows no parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.detour, self.unused = (nn.Linear(6, 6) for _ in range(3))
        self.heads = nn.ModuleList(nn.Linear(6, 1) for _ in range(2))
        self.dead = nn.Parameter(torch.ones(6))
        self.detours = False

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        losses = checkpoint(self.losses, x.clone().requires_grad_(), use_reentrant=True)
        return dict(zip("ab", losses, strict=True))

    def losses(self, x: Tensor) -> tuple[Tensor, ...]:
        z = self.trunk(x).tanh() + 0.0 * self.dead
        z = z + self.detour(z) if self.detours else z
        return tuple(head(z).square().mean() for head in self.heads)


@pytest.mark.parametrize(
    ("name", "options"),
    [("Sum", {}), ("PCGrad", {}), ("GradDrop", {}), ("PCGrad", {"weights_every": 2})],
)
def test_no_gradient_where_checkpointing_hides_that_a_step_leaves_it_out(name, options, x):
    """As after plain ``backward()``; a zero would be decayed and moved by momentum."""
    model = Hidden().double()
    backward = MultiTaskBackward(model.parameters(), method(name), **options)
    for model.detours in (False, True, False, False):
        model.zero_grad()
        sum(model(x).values()).backward()
        plain = {key: p.grad is None for key, p in model.named_parameters()}
        assert plain["detour.bias"] is not model.detours
        assert plain["unused.bias"] and not plain["dead"]
        model.zero_grad()
        backward(model(x))
        assert {key: p.grad is None for key, p in model.named_parameters()} == plain
        assert not model.dead.grad.any()


def test_no_grad_is_left_behind_when_backward_fails(trunk, x):
    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx, z):
            return z.clone()

        @staticmethod
        def backward(ctx, grad):
            raise RuntimeError("broken op")

    losses = trunk(x)
    losses["c"] = Fails.apply(losses["c"])
    backward = MultiTaskBackward(trunk.parameters(), "PCGrad")
    with pytest.raises(RuntimeError, match="broken op"):
        backward(losses)
    assert trunk.trunk[0].weight.grad is None


def test_memory_format_of_the_gradient_is_that_of_the_parameter():
    """Fused optimizers walk both flat."""
    conv = nn.Conv2d(4, 4, 3).to(memory_format=torch.channels_last)
    x = torch.randn(2, 4, 5, 5)
    losses = lambda: {"a": conv(x).square().mean(), "b": conv(x).exp().mean()}  # noqa: E731
    expected = expected_grads(build_aggregator("MGDA"), losses(), list(conv.parameters()))
    MultiTaskBackward(conv.parameters(), "MGDA")(losses())
    check_grads(conv.parameters(), expected)
    assert conv.weight.grad.stride() == conv.weight.stride()


def test_no_gradient_where_no_loss_reaches(trunk, x):
    """What was shared in an earlier batch has no gradient in one that does not reach it."""
    backward = MultiTaskBackward(trunk.parameters(), "PCGrad")
    backward(trunk(x))
    trunk.zero_grad()
    trunk.trunk[0].requires_grad_(False)
    backward({k: v for k, v in trunk(x).items() if k in "cd"})
    assert trunk.heads_ab.weight.grad is None
    assert trunk.trunk[0].weight.grad is None
    assert trunk.trunk[2].weight.grad.any()


def test_parameters_unfrozen_later_are_aggregated(trunk, x):
    trunk.trunk.requires_grad_(False)
    backward = MultiTaskBackward(trunk.parameters(), "MGDA")
    backward(trunk(x))
    assert trunk.trunk[0].weight.grad is None
    trunk.zero_grad()
    trunk.trunk.requires_grad_(True)
    expected = expected_grads(build_aggregator("MGDA"), trunk(x), list(trunk.parameters()))
    backward(trunk(x))
    check_grads(trunk.parameters(), expected)


def test_loss_of_one_element_is_a_scalar(trunk, x):
    MultiTaskBackward(trunk.parameters(), "MGDA")(trunk(x))
    expected = grads_of(trunk)
    losses = trunk(x)
    losses["b"] = losses["b"].reshape(1)
    MultiTaskBackward(trunk.parameters(), "MGDA")(losses)
    check_grads(trunk.parameters(), expected)


def test_loss_around_the_representation_is_an_error(trunk, x):
    backward = MultiTaskBackward(
        trunk.parameters(), "MGDA", level="feature", representation=trunk.trunk
    )
    losses = trunk(x)
    losses["b"] = losses["b"] + trunk.trunk[0](x).mean()
    with pytest.raises(ValueError, match="task 'b' reaches parameters before the module"):
        backward(losses)


def test_fixed_weighting_scales_losses_first(trunk, x):
    weights = {"a": 2.0, "b": 0.5, "c": 1.0, "d": 3.0}
    params = list(trunk.parameters())
    scaled = {k: weights[k] * v for k, v in trunk(x).items()}
    expected = expected_grads(build_aggregator("MGDA"), scaled, params)
    backward = MultiTaskBackward(params, "MGDA", weighting={"type": "Fixed", "weights": weights})
    backward(trunk(x))
    check_grads(params, expected)
    unscaled = MultiTaskBackward(params, "MGDA").aggregator.weights(backward.last.gramian[:3, :3])
    assert_close(backward.last.weights[:3], unscaled * torch.tensor([2.0, 0.5, 1.0]).double())


def test_state_roundtrip(trunk, x):
    first = MultiTaskBackward(trunk.parameters(), "GradVac")
    first(trunk(x))
    second = MultiTaskBackward(trunk.parameters(), "GradVac")
    second.load_state_dict(first.state_dict())
    without_b = {k: v for k, v in trunk(x).items() if k != "b"}  # heads_ab was shared once
    trunk.zero_grad()
    first(without_b)
    expected = [None if p.grad is None else p.grad.clone() for p in trunk.parameters()]
    trunk.zero_grad()
    second({k: v for k, v in trunk(x).items() if k != "b"})
    check_grads(trunk.parameters(), expected)


class Signs(Aggregator):
    """Not of the form ``Jᵀ w``."""

    scale = "sum"

    def __call__(self, jacobian: Tensor, tasks: Sequence[int] | None = None) -> Tensor:
        return jacobian.sum(dim=0).sign()


def test_aggregator_of_the_whole_jacobian(trunk, x):
    params = list(trunk.parameters())
    expected = expected_grads(Signs(), trunk(x), params)
    backward = MultiTaskBackward(params, Signs())
    backward(trunk(x))
    check_grads(params, expected)
    assert backward.last.weights is None


def test_losses_that_are_plain_numbers_are_constants(trunk, x):
    """A sum over no heads is the number 0, as ``sum([])`` is."""
    expected = {k: v for k, v in trunk(x).items() if k in "ab"}
    MultiTaskBackward(trunk.parameters(), "PCGrad")(expected)
    grads = grads_of(trunk)
    backward = MultiTaskBackward(trunk.parameters(), "PCGrad")
    losses = {k: v for k, v in trunk(x).items() if k in "ab"}
    backward(losses | {"c": 0, "d": 0.0, "e": sum([])})
    check_grads(trunk.parameters(), grads)
    assert backward.last.tasks == ("a", "b")


def test_one_task_alone_has_the_weight_one(trunk, x):
    for name in ("Sum", "Mean", "MGDA", "NashMTL", "MCLGS"):
        backward = MultiTaskBackward(trunk.parameters(), method(name))
        losses = trunk(x)
        backward({"a": losses["a"]})
        assert backward.last.weights.tolist() == [1.0]
        expected = torch.autograd.grad(trunk(x)["a"], [trunk.trunk[0].weight])
        check_grads([trunk.trunk[0].weight], expected)
        trunk.zero_grad()


@pytest.mark.parametrize("name", ["PCGrad", "MCLGS", "Mean"])
def test_grad_from_before_is_no_gradient_of_a_task(name, trunk, x):
    """Micro-batches carry different tasks, so that sharing is discovered within the step."""
    parts = [{k: v for k, v in trunk(x).items() if k in names} for names in ("a", "b")]
    MultiTaskBackward(trunk.parameters(), method(name))(parts[0] | parts[1])
    expected = grads_of(trunk)
    before = [torch.randn_like(p) for p in trunk.parameters()]
    for p, grad in zip(trunk.parameters(), before, strict=True):
        p.grad = grad.clone()
    backward = MultiTaskBackward(trunk.parameters(), method(name))
    backward({"a": trunk(x)["a"]}, aggregate=False)
    backward({"b": trunk(x)["b"]})
    for p, grad, e in zip(trunk.parameters(), before, expected, strict=True):
        assert_close(p.grad, grad if e is None else grad + e)


@pytest.mark.parametrize(
    "options", [{}, {"low_memory": True}, {"gramian": "sketch"}, {"weights_every": 2}]
)
def test_parameters_that_join_the_optimizer_are_aggregated(options, trunk, x):
    """A layer that thaws, as hooks do it."""
    thawed = list(trunk.trunk[0].parameters())
    rest = [p for p in trunk.parameters() if all(p is not q for q in thawed)]
    trunk.trunk[0].requires_grad_(False)
    optimizer = torch.optim.SGD(rest, lr=0.1)
    backward = MultiTaskBackward(optimizer, "MGDA", **options)
    backward(trunk(x))
    backward(trunk(x))
    trunk.zero_grad()
    trunk.trunk[0].requires_grad_(True)
    optimizer.add_param_group({"params": thawed})
    params = [*rest, *thawed]
    expected = expected_grads(build_aggregator("MGDA"), trunk(x), params)
    backward(trunk(x))
    check_grads(params, expected)


@pytest.mark.parametrize("weighting", [None, "GradNorm"])
@pytest.mark.parametrize("name", ["Sum", "MGDA", "GradDrop"])
def test_frozen_for_some_iterations(name, weighting, trunk, x):
    """Where nothing is shared, every task trains what it has alone."""
    parts = [trunk.trunk, trunk.heads_ab]
    for part in parts:
        part.requires_grad_(False)
    backward = MultiTaskBackward(trunk.parameters(), method(name), weighting)
    for _ in range(2):
        backward(trunk(x))
        heads = list(trunk.heads.parameters())
        check_grads(heads, torch.autograd.grad(sum(trunk(x).values()), heads))
        assert backward.last.weights.tolist() == [1.0] * 4
        trunk.zero_grad()
    for part in parts:
        part.requires_grad_(True)
    backward(trunk(x))
    assert trunk.trunk[0].weight.grad.any()


@pytest.mark.parametrize("micro_batches", ["ab", "a b", "b ab"])
def test_mean_is_of_the_tasks_that_take_part(micro_batches, trunk, x):
    """As MCLGS at the end of its pacing, also where the tasks come one after another."""
    names = micro_batches.split()
    losses = trunk(x)
    total = sum(losses[name] for part in names for name in part) / 2
    params = list(trunk.parameters())
    expected = torch.autograd.grad(total, params, allow_unused=True)
    for cfg in ("Mean", {"type": "MCLGS", "a0": 0.0, "total_steps": 1}):
        backward = MultiTaskBackward(params, cfg)
        for i, part in enumerate(names):
            losses = trunk(x)
            backward({name: losses[name] for name in part}, aggregate=i + 1 == len(names))
        check_grads(params, expected)
        assert backward.last.weights.tolist() == pytest.approx([0.5, 0.5])
        trunk.zero_grad()


def test_hook_that_would_see_the_gradient_of_one_task(trunk, x):
    """An optimizer in the backward pass."""
    trunk.trunk[0].weight.register_post_accumulate_grad_hook(lambda p: None)
    MultiTaskBackward(trunk.parameters())(trunk(x))
    with pytest.raises(ValueError, match="params: 1 parameters have a hook"):
        MultiTaskBackward(trunk.parameters(), "MGDA")(trunk(x))


def reshaped(params: Sequence[Tensor]) -> dict[str, Tensor]:
    """Losses whose gradients on pairs of parameters are views of one tensor."""
    a, b, c, d, e, f = (p.view(4) for p in params)
    return {
        "one": ((a + b) * (c - d)).sin().sum(),
        "two": ((a + b) * (e + f)).cos().sum(),
    }


@pytest.mark.parametrize(
    "options",
    [
        {"aggregator": "Mean"},
        {"aggregator": "MGDA"},
        {"aggregator": "MGDA", "heads": "weighted"},
        {"aggregator": "MGDA", "low_memory": True},
        {"aggregator": "MGDA", "gramian": "sketch"},
    ],
)
def test_gradients_in_one_tensor_are_weighed_once(options):
    torch.manual_seed(0)
    params = [nn.Parameter(torch.randn(2, 2).double()) for _ in range(6)]
    backward = MultiTaskBackward(params, **options)
    backward(reshaped(params))
    weights = dict.fromkeys(("one", "two"), 0.5)
    if options["aggregator"] != "Mean":
        weights = dict(zip(("one", "two"), backward.last.weights.tolist(), strict=True))
    alone = weights if options["aggregator"] == "Mean" or "heads" in options else {}
    for k, p in enumerate(params):
        found = [g[k] for g in per_task(reshaped(params), params)]
        factors = weights if k < 2 else alone
        wanted = sum(
            factors.get(name, 1.0) * grad
            for name, grad in zip(weights, found, strict=True)
            if grad is not None
        )
        assert_close(p.grad, wanted)


@pytest.mark.parametrize("options", [{}, {"gramian": "sketch"}, {"low_memory": True}])
def test_parameter_without_elements(options, trunk, x):
    """As an adapter of rank 0 has it."""
    params = [nn.Parameter(torch.zeros(0, 80).double()), *trunk.parameters()]

    def losses() -> dict[str, Tensor]:
        return {name: loss + params[0].sum() for name, loss in trunk(x).items() if name != "d"}

    expected = expected_grads(build_aggregator("MGDA"), losses(), params)
    MultiTaskBackward(params, "MGDA", **options)(losses())
    check_grads(params, expected)


@pytest.mark.parametrize("options", [{}, {"gramian": "sketch"}, {"low_memory": True}])
def test_parameter_given_twice_counts_once(options, trunk, x):
    params = list(trunk.parameters())
    expected = expected_grads(build_aggregator("MGDA"), trunk(x), params)
    MultiTaskBackward([*params, trunk.trunk[0].weight], "MGDA", **options)(trunk(x))
    check_grads(params, expected)


def test_complex_parameters_are_refused():
    weight = nn.Parameter(torch.ones(3, dtype=torch.complex64))
    losses = {"a": weight.abs().sum(), "b": weight.real.sum()}
    with pytest.raises(ValueError, match="params: 1 parameters are complex"):
        MultiTaskBackward([weight], "MGDA")(losses)
    MultiTaskBackward([weight])(losses)
    assert weight.grad is not None


def test_grads_are_as_before_when_backward_fails(trunk, x):
    before = [torch.randn_like(p) for p in trunk.parameters()]
    for p, grad in zip(trunk.parameters(), before, strict=True):
        p.grad = grad
    losses = trunk(x)
    losses["c"].backward()  # whose graph is used up
    for p, grad in zip(trunk.parameters(), before, strict=True):
        p.grad = grad
    with pytest.raises(RuntimeError, match="a second time"):
        MultiTaskBackward(trunk.parameters(), "PCGrad")(losses)
    check_grads(trunk.parameters(), before)


class TestErrors:
    def test_checkpoint_of_another_method(self, trunk, x):
        state = MultiTaskBackward(trunk.parameters(), "PCGrad").state_dict()
        with pytest.raises(ValueError, match="written with PCGrad, this run uses MGDA"):
            MultiTaskBackward(trunk.parameters(), "MGDA").load_state_dict(state)

    def test_checkpoint_of_other_tasks(self, trunk, x):
        there = MultiTaskBackward(trunk.parameters(), "Sum")
        there(trunk(x))
        here = MultiTaskBackward(trunk.parameters(), "Sum")
        here({"box": trunk(x)["a"]})
        with pytest.raises(ValueError, match=r"checkpoint has \['a', 'b', 'c', 'd'\]"):
            here.load_state_dict(there.state_dict())

    def test_feature_level_needs_a_module(self, trunk):
        with pytest.raises(ValueError, match="level='feature' needs the module"):
            MultiTaskBackward(trunk.parameters(), level="feature")

    def test_representation_is_a_module(self, trunk):
        with pytest.raises(TypeError, match="expected a module, got str"):
            MultiTaskBackward(trunk.parameters(), level="feature", representation="neck")

    def test_parameter_level_takes_no_module(self, trunk):
        with pytest.raises(ValueError, match="takes no module"):
            MultiTaskBackward(trunk.parameters(), representation=trunk.trunk)

    def test_unknown_level(self, trunk):
        with pytest.raises(ValueError, match="level: expected one of"):
            MultiTaskBackward(trunk.parameters(), level="layer")

    @pytest.mark.parametrize(
        ("option", "message"),
        [
            (dict(sync="exakt"), "sync: expected one of"),
            (dict(on_nonfinite="ignore"), "on_nonfinite: expected one of"),
            (dict(weights_every=0), "weights_every: expected an integer of at least 1, got 0"),
            (dict(weights_every=2.5), "weights_every: expected an integer of at least 1, got 2.5"),
            (dict(max_skips="20"), "max_skips: expected an integer of at least 1, got '20'"),
            (dict(gramian="skech"), "gramian: expected one of"),
            (
                dict(gramian="sketch", sketch_rows=1),
                "sketch_rows: expected an integer of at least 2",
            ),
            (dict(sketch_rows=16), "sketch_rows: 16 is for gramian='sketch'"),
            (dict(sync="sketch"), "sync: 'sketch' is for gramian='sketch'"),
            (dict(gramian="sketch", low_memory=True), "low_memory: .* use one of the two"),
            (dict(gramian="sketch", level="feature"), "gramian='sketch' is for level='parameter'"),
            (dict(gramian="sketch", aggregator=Signs()), "gramian='sketch' needs an aggregator"),
            (dict(low_memory=True, level="feature"), "low_memory is for level='parameter'"),
            (dict(weights_every=2, level="feature"), "weights_every is for level='parameter'"),
            (dict(low_memory=True, aggregator=Signs()), "low_memory needs an aggregator that"),
            (dict(weights_every=2, aggregator=Signs()), "weights_every needs an aggregator that"),
            (dict(sync="gramian", aggregator=Signs()), "sync='gramian' needs an aggregator that"),
        ],
    )
    def test_options(self, option, message, trunk):
        if option.get("level") == "feature":
            option = option | {"representation": trunk.trunk}
        with pytest.raises(ValueError, match=message):
            MultiTaskBackward(trunk.parameters(), **{"aggregator": "MGDA"} | option)

    def test_representation_that_was_not_called(self, trunk, x):
        backward = MultiTaskBackward(
            trunk.parameters(), level="feature", representation=trunk.unused
        )
        with pytest.raises(ValueError, match="was not called"):
            backward(trunk(x))

    def test_everything_frozen(self, trunk):
        with pytest.raises(ValueError, match="no parameter requires a gradient"):
            MultiTaskBackward(trunk.requires_grad_(False).parameters())

    def test_loss_that_is_no_scalar(self, trunk, x):
        with pytest.raises(ValueError, match="'a' has the shape"):
            MultiTaskBackward(trunk.parameters())({"a": trunk.trunk(x)})

    def test_loss_that_is_no_number(self, trunk, x):
        with pytest.raises(TypeError, match="losses: 'c' is a list, expected a scalar tensor"):
            MultiTaskBackward(trunk.parameters())(trunk(x) | {"c": []})

    def test_no_loss_with_a_gradient(self, trunk):
        with pytest.raises(ValueError, match="none of .* requires a gradient"):
            MultiTaskBackward(trunk.parameters())({"a": torch.zeros(())})

    def test_checkpoint_of_another_model(self, trunk, x):
        state = MultiTaskBackward(trunk.parameters(), "MGDA").state_dict()
        with pytest.raises(ValueError, match="params: the checkpoint has 16, this run has 4"):
            MultiTaskBackward(trunk.trunk.parameters(), "MGDA").load_state_dict(state)

    def test_mixed_dtypes_among_shared_parameters(self, trunk, x):
        trunk.trunk[2].float()
        with pytest.raises(TypeError, match="one dtype"):
            z = trunk.trunk[0](x).float()
            z = trunk.trunk[2](z)
            MultiTaskBackward(trunk.parameters(), "MGDA")({"a": z.sum(), "b": z.exp().sum()})

    def test_missing_weight(self, trunk, x):
        backward = MultiTaskBackward(
            trunk.parameters(), weighting={"type": "Fixed", "weights": {"a": 1.0, "bb": 1.0}}
        )
        with pytest.raises(KeyError, match="no weight for the task 'b'; did you mean 'bb'"):
            backward(trunk(x))
