"""FORUM: its problem by another solver, its steps by a loop over the paper's formulas."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable

import cvxpy
import pytest
import torch
from by_autograd import flat, per_task
from hypothesis import given, settings
from hypothesis import strategies as st
from models import Trunk
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector
from torch.testing import assert_close

from mtl_plugins import MultiTaskBackward
from mtl_plugins.aggregation import FORUM, build_aggregator
from mtl_plugins.aggregation.solvers import simplex_qp

TASKS = ["a", "b", "c"]


class Shared(nn.Module):
    """Two layers, and three losses without a head; draws and counts, if asked to."""

    def __init__(self, noisy: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        norms = [nn.BatchNorm1d(8), nn.Dropout(0.3)] if noisy else []
        self.layers = nn.Sequential(nn.Linear(6, 8), *norms, nn.Tanh(), nn.Linear(8, 6))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        z = self.layers(x).tanh()
        return {
            "a": 5.0 * (z[:, :3] - 1.0).square().mean(),
            "b": (z[:, 2:4] - z[:, :2]).exp().mean(),
            "c": 0.3 * (z[:, 3:] * z[:, :3] + 2.0).square().mean(),
        }


def setting(
    model: nn.Module | None = None, /, *, method: dict[str, object] | None = None, **options: object
) -> tuple[nn.Module, torch.optim.Optimizer, MultiTaskBackward]:
    model = model or Shared().double()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    cfg = {"type": "FORUM", "rho": 2.0} | (method or {})
    backward = MultiTaskBackward(optimizer, cfg, tasks=TASKS, **options)
    backward.protect(model)
    return model, optimizer, backward


def batches(count: int) -> list[Tensor]:
    rng = torch.Generator().manual_seed(1)
    return list(torch.randn(count, 16, 6, generator=rng, dtype=torch.float64))


def take(
    model: nn.Module, optimizer: torch.optim.Optimizer, backward: MultiTaskBackward, x: Tensor
) -> list[Tensor]:
    """One step; the gradients that it was made with."""
    optimizer.zero_grad()
    backward(model(x), again=lambda: model(x))
    optimizer.step()
    return [p.grad for p in model.parameters() if p.grad is not None]


def by_solver(rows: Tensor, q: Tensor, rho: float) -> tuple[Tensor, Tensor]:
    """The problem of the authors' code, whole vectors and all; its shares, and each pi."""
    square = q @ q
    lacks = rho - rows @ q / square
    shares, nu = cvxpy.Variable(len(rows), nonneg=True), cvxpy.Variable(nonneg=True)
    length = cvxpy.sum_squares(rows.T.numpy() @ shares + q.numpy() * nu)
    problem = cvxpy.Problem(
        cvxpy.Minimize(length - nu * rho * square.item()),
        [cvxpy.sum(shares) == 1, nu >= lacks.numpy() @ shares],
    )
    problem.solve(solver="CLARABEL")
    return torch.tensor(shares.value), lacks


class ByAutograd:
    """The algorithm with whole gradients, of the model and of the logits."""

    def __init__(self, model: nn.Module, rho: float, eta: float, epoch: int) -> None:
        self.model, self.rho, self.eta, self.epoch = model, rho, eta, epoch
        self.logits = torch.zeros(3, dtype=torch.float64, requires_grad=True)
        self.adam = torch.optim.Adam([self.logits], 1e-3)
        self.mean = torch.zeros(3, dtype=torch.float64)
        self.steps = 0

    def weighted(self, model: nn.Module, x: Tensor) -> Tensor:
        return self.logits.softmax(0) @ torch.stack(list(model(x).values()))

    def update(self, x: Tensor) -> Tensor:
        params = list(self.model.parameters())
        rows = torch.stack([flat(g, params) for g in per_task(self.model(x), params)])
        rows = torch.cat([torch.zeros(3, 3), rows / rows.norm(dim=1, keepdim=True)], dim=1)
        moved = copy.deepcopy(self.model)
        sgd = torch.optim.SGD(moved.parameters(), self.eta)
        for _ in range(5):
            sgd.zero_grad()
            self.weighted(moved, x).backward()
            sgd.step()
        here = torch.autograd.grad(self.weighted(self.model, x), [self.logits, *params])
        (there,) = torch.autograd.grad(self.weighted(moved, x), [self.logits])
        q = torch.cat([here[0] - there, *(g.flatten() for g in here[1:])])
        shares, lacks = by_solver(rows, q, self.rho)
        beta = (self.steps // self.epoch + 1) ** -0.75
        self.steps += 1
        self.mean += beta * (shares - self.mean)
        d = self.mean @ rows + (self.mean @ lacks).clamp(min=0.0) * q
        self.logits.grad = d[:3].clone()
        self.adam.step()
        return d[3:]


@pytest.mark.parametrize(("rho", "eta"), [(0.1, 0.1), (2.0, 0.05)])
def test_five_steps_are_those_of_the_formulas(rho: float, eta: float) -> None:
    model, optimizer, backward = setting(method={"rho": rho, "eta": eta}, steps_per_epoch=2)
    expected = ByAutograd(model, rho, eta, epoch=2)
    for x in batches(5):
        wanted = expected.update(x)
        found = torch.cat([g.flatten() for g in take(model, optimizer, backward, x)])
        assert (found - wanted).norm() / wanted.norm() < 1e-5
    logits = torch.tensor(list(backward.aggregator.state_dict()["logits"].values()))
    # While the constraint is met without it, nothing is learned.
    assert (expected.logits.abs().max().item() > 1e-3) == (rho > 1.0)
    assert_close(logits.double(), expected.logits.detach(), rtol=0.0, atol=1e-7)


@given(
    seed=st.integers(0, 1000), tasks=st.integers(1, 7), rho=st.sampled_from([0.0, 0.1, 1.0, 9.0])
)
@settings(max_examples=40)
def test_update_is_that_of_the_solver(seed: int, tasks: int, rho: float) -> None:
    """For given gradients, duplicates among them, of which no length is known to the solver."""
    rng = torch.Generator().manual_seed(seed)
    rows = torch.randn(tasks, tasks + 3, generator=rng, dtype=torch.float64)
    rows[tasks // 2 :] *= 10.0
    if seed % 3 == 0:
        rows[-1] = 0.5 * rows[0]
    units, q = rows / rows.norm(dim=1, keepdim=True), rows.mean(dim=0)
    shares, lacks = by_solver(units, q, rho)
    expected = shares @ units + (shares @ lacks).clamp(min=0.0) * q
    assert_close(FORUM(rho=rho)(rows), expected, rtol=1e-4, atol=1e-4)


def test_update_where_corners_cancel() -> None:
    """Of the problem with two coordinates: nearly opposite, with a constraint of almost nothing."""
    for shorter in (1e-3, 1e-7, 1e-12, 1e-15):
        rows = torch.tensor([[1.0, 0.0], [-1.0 + shorter, shorter]], dtype=torch.float64)
        update = FORUM()(rows)
        assert update.isfinite().all() and update.norm() <= 0.1 + shorter


@given(seed=st.integers(0, 1000), size=st.integers(1, 9), rank=st.integers(1, 9))
@settings(max_examples=60)
def test_simplex_qp_meets_the_conditions_of_optimality(seed: int, size: int, rank: int) -> None:
    """Whatever has a share has the least slope; of a matrix without an inverse, too."""
    rng = torch.Generator().manual_seed(seed)
    factors = torch.randn(size, rank, generator=rng, dtype=torch.float64)
    a, b = factors @ factors.T, torch.randn(size, generator=rng, dtype=torch.float64)
    lengths = factors.norm(dim=1).tolist()
    x = torch.tensor(simplex_qp(a.tolist(), b.tolist(), lengths, 2e-16), dtype=torch.float64)
    assert x.min() >= 0.0 and abs(x.sum() - 1.0) < 1e-9
    slopes = 2.0 * a @ x - b
    assert (x * (slopes - slopes.min())).max() < 1e-6


def test_heads_have_the_weights_of_their_tasks() -> None:
    model, _, backward = setting(Trunk().double())
    x = batches(1)[0]
    names = dict(zip(TASKS, itertools.count(), strict=False))
    losses = lambda: {t: loss for t, loss in model(x).items() if t in names}  # noqa: E731
    backward(losses(), again=losses)
    weights = backward.last.weights.tolist()
    assert len(set(weights)) == 3
    for task, weight in zip(TASKS, weights, strict=True):
        (grad,) = torch.autograd.grad(model(x)[task], [model.heads[task].weight])
        assert_close(model.heads[task].weight.grad, weight * grad)
    (grad,) = torch.autograd.grad(
        sum(w * losses()[t] for t, w in zip(TASKS, weights, strict=True)), [model.trunk[0].weight]
    )
    assert_close(model.trunk[0].weight.grad, grad)


def test_the_steps_ahead_are_plain_descent_and_leave_no_trace() -> None:
    """Beside a copy of the model; with batch norm, dropout and a graph that is still needed."""
    model, _, backward = setting(Shared(noisy=True).double(), low_memory=True)
    model.register_buffer("unused", torch.zeros(3))
    twin, x = copy.deepcopy(model), batches(1)[0]
    losses = model(x)
    before = copy.deepcopy(model.state_dict())
    state, ahead = torch.get_rng_state(), []
    learn = backward.aggregator.solve
    backward.aggregator.solve = lambda *args, **kwargs: (
        ahead.extend(backward.aggregator._ahead) or learn(*args, **kwargs)
    )
    backward(losses, again=lambda: model(x))
    assert torch.equal(torch.get_rng_state(), state)
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(after[k], before[k]) for k in before)
    assert all(p.grad is not None for p in model.parameters())
    for _ in range(5):
        sum(twin(x).values()).div(3.0).backward()
        for p in twin.parameters():
            p.data -= 0.1 * p.grad
            p.grad = None
    assert ahead == pytest.approx([loss.item() for loss in twin(x).values()])


def test_under_autocast_each_pass_casts_the_moved_parameters() -> None:
    """An outer context keeps the cast of a weight, whatever happens to the weight (Flow-Factory
    186): all of the steps ahead would be taken at the same parameters."""
    found = []
    for outer in (False, True):
        model, _, backward = setting(Shared(), method={"eta": 0.5})
        x = batches(1)[0].float()

        def losses(model: nn.Module = model, x: Tensor = x) -> dict[str, Tensor]:
            with torch.autocast("cpu", torch.bfloat16):
                return model(x)

        twin_losses = losses(copy.deepcopy(model))
        with torch.autocast("cpu", torch.bfloat16, enabled=outer):
            backward(losses(), again=losses)
            assert all(torch.equal(loss, twin_losses[t]) for t, loss in losses().items())
            moments = backward.aggregator.state_dict()["moments"]
        found.append([mean for mean, _, _ in moments.values()])
        assert max(map(abs, found[-1])) > 1e-3
    assert found[0] == found[1]


@pytest.mark.parametrize("options", [{}, {"sync": "gramian"}, {"low_memory": True}])
@pytest.mark.parametrize("scaled", [False, True])
def test_micro_batches_and_a_loss_scale_change_nothing(
    options: dict[str, object], scaled: bool
) -> None:
    model, _, backward = setting(**options)
    parts = batches(2)
    scale = torch.tensor(1024.0, dtype=torch.float64) if scaled else None
    whole, _, other = setting()
    x = torch.cat(parts)
    for _ in range(3):
        model.zero_grad()
        whole.zero_grad()
        other(whole(x), again=lambda: whole(x))
        if options.get("low_memory"):  # aggregates each micro-batch by itself
            backward(model(x), scale, again=lambda: model(x))
        else:
            backward(model(parts[0]), scale, False, 0.5, lambda: model(parts[0]))
            backward(model(parts[1]), scale, True, 0.5, lambda: model(parts[1]))
        for p, q in zip(model.parameters(), whole.parameters(), strict=True):
            assert_close(p.grad / (scale if scaled else 1.0), q.grad)
        for net in (model, whole):
            for p in net.parameters():
                p.data -= 0.1 * (p.grad / (1024.0 if scaled and net is model else 1.0))
    states = [one.aggregator.state_dict() for one in (backward, other)]
    assert list(states[0]["logits"].values()) == pytest.approx(list(states[1]["logits"].values()))


def test_weights_of_the_losses_count_as_factors_of_them() -> None:
    factors = {"a": 0.1, "b": 2.0, "c": 4.0}
    model, optimizer, backward = setting(weighting={"type": "Fixed", "weights": factors})
    twin, other_optimizer, other = setting()
    for x in batches(3):
        take(model, optimizer, backward, x)
        scaled = lambda x=x: {t: factors[t] * loss for t, loss in twin(x).items()}  # noqa: E731
        other_optimizer.zero_grad()
        other(scaled(), again=scaled)
        other_optimizer.step()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert_close(p, q)


def test_a_run_continues_from_its_state() -> None:
    data = batches(6)
    straight = setting(steps_per_epoch=2)
    for x in data:
        take(*straight, x)
    first = setting(steps_per_epoch=2)
    for x in data[:3]:
        take(*first, x)
    second = setting(steps_per_epoch=2)
    second[0].load_state_dict(first[0].state_dict())
    second[2].load_state_dict(first[2].state_dict())
    for x in data[3:]:
        take(*second, x)
    ends = [parameters_to_vector(s[0].parameters()) for s in (straight, second)]
    assert torch.equal(*ends)
    assert straight[2].state_dict() == second[2].state_dict()


def test_tasks_that_are_absent_or_not_finite() -> None:
    """Without a task the others learn; after a loss that is NaN, nobody does."""
    model, optimizer, backward = setting()
    x = batches(1)[0]
    two = lambda: {t: loss for t, loss in model(x).items() if t != "b"}  # noqa: E731
    backward(two(), again=two)
    state = copy.deepcopy(backward.aggregator.state_dict())
    assert state["logits"].keys() == {0, 2}
    passes = []
    broken = lambda: {t: loss * torch.nan for t, loss in model(x).items()}  # noqa: E731
    backward(broken(), again=lambda: passes.append(1) or broken())
    assert backward.last.nonfinite == tuple(TASKS) and not passes
    assert backward.aggregator.state_dict() == state


def test_a_loss_that_ends_without_a_gradient_counts_as_unchanged() -> None:
    """A head may find no region at the moved parameters."""
    model, _, backward = setting()
    x, calls = batches(1)[0], []
    real = backward.aggregator.look_ahead

    def again() -> dict[str, Tensor]:
        calls.append(1)
        losses = model(x)
        return losses | {"b": losses["b"].detach()} if len(calls) > 5 else losses

    def spy(*args: object) -> None:
        real(*args)
        assert backward.aggregator._ahead[1] == pytest.approx(model(x)["b"].item())
        calls.append(2)

    backward.aggregator.look_ahead = spy
    backward(model(x), again=again)
    assert calls == [1] * 6 + [2]


def test_plain_steps_that_climb_are_named_once(caplog: pytest.LogCaptureFixture) -> None:
    """Also where they end in NaN, of which nothing is learned."""
    for eta, learned in ((3.0, True), (1e200, False)):
        caplog.clear()
        model, _, backward = setting(nn.Linear(6, 3).double(), method={"eta": eta})
        start = parameters_to_vector(model.parameters()).detach()
        for x in batches(2):

            def losses(model: nn.Module = model, x: Tensor = x) -> dict[str, Tensor]:
                return dict(zip(TASKS, (model(x) - 1.0).square().mean(dim=0), strict=True))

            backward(losses(), again=losses)
        assert ["eta is too large" in r.message for r in caplog.records] == [True]
        assert any(backward.aggregator.state_dict()["logits"].values()) == learned
        assert torch.equal(parameters_to_vector(model.parameters()), start)


def test_an_error_in_a_pass_ahead_leaves_the_model_as_it_was() -> None:
    model, _, backward = setting()
    x, calls = batches(1)[0], []
    before = parameters_to_vector(model.parameters()).detach().clone()

    def again() -> dict[str, Tensor]:
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("no more memory")
        return model(x)

    with pytest.raises(RuntimeError, match="no more memory"):
        backward(model(x), again=again)
    assert torch.equal(parameters_to_vector(model.parameters()), before)
    backward(model(x), again=lambda: model(x))


def refused(**options: object) -> Callable[[], MultiTaskBackward]:
    model = Trunk()
    return lambda: MultiTaskBackward(model.parameters(), "FORUM", tasks=TASKS, **options)


def test_errors_name_the_key() -> None:
    model = Shared()
    backward = MultiTaskBackward(model.parameters(), "FORUM")
    x = batches(1)[0].float()
    with pytest.raises(ValueError, match=r"^again: FORUM .* backward\(losses, again=function\)"):
        backward(model(x))
    with pytest.raises(ValueError, match=r"^again: FORUM .* protect\(model\)"):
        backward(model(x), again=lambda: model(x))
    with pytest.raises(ValueError, match="^weighting: FAMO .* FORUM"):
        refused(weighting="FAMO")()
    with pytest.raises(ValueError, match="^level: FORUM .* level='parameter'"):
        refused(level="feature", representation=model.layers)()
    for key, value in (("rho", -1.0), ("eta", 0.0), ("lr", 0.0), ("steps", 0), ("steps", 2.5)):
        with pytest.raises(ValueError, match=f"^aggregator: FORUM: .*{key}"):
            build_aggregator({"type": "FORUM", key: value})
