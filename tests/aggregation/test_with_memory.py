"""Methods that remember shares or gradients, each against a plain loop over the gradients.

They are MoDo, SDMGrad, MoCo, DBMTL, ExcessMTL and GCond.
"""

import math

import pytest
import torch
import torchjd.aggregation as torchjd
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import make_jacobian
from torch.testing import assert_close

from mtl_plugins import MultiTaskBackward
from mtl_plugins.aggregation import (
    AGGREGATORS,
    DBMTL,
    ExcessMTL,
    GCond,
    MoCo,
    MoDo,
    SDMGrad,
    build_aggregator,
)
from mtl_plugins.aggregation.solvers import on_simplex

NAMES = ("MoDo", "SDMGrad", "MoCo", "DBMTL", "ExcessMTL", "GCond")
REMEMBER_ROWS = [name for name in NAMES if AGGREGATORS[name].remembers_rows]
LOSSES = torch.tensor([0.5, 2.0, 1.0, 4.0], dtype=torch.float64)
cases = {
    "kind": st.sampled_from(["random", "conflicting"]),
    "seed": st.integers(0, 1000),
}


def steps(kind, seed, tasks=4, count=5):
    """Gradients of some steps, similar to each other as those of a run."""
    base = make_jacobian(kind, tasks, seed)
    return [base + 0.3 * make_jacobian("random", tasks, seed + k + 1) for k in range(count)]


def nearest_on_simplex(v):
    """By bisection of the shift that makes the positive parts sum to 1."""
    low, high = v.min() - 1.0, v.max()
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if (v - middle).clamp(min=0).sum() > 1 else (low, middle)
    return (v - low).clamp(min=0)


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=9))
def test_projection_onto_the_simplex(v):
    found = torch.tensor(on_simplex(v), dtype=torch.float64)
    assert_close(found, nearest_on_simplex(torch.tensor(v, dtype=torch.float64)))


@given(**cases)
@settings(max_examples=15)
def test_modo(kind, seed):
    ours, theirs = MoDo(0.05, 0.1), torchjd.MoDoWeighting(0.05, 0.1)
    shares = torch.full((4,), 0.25, dtype=torch.float64)
    for jacobian in steps(kind, seed):
        shares = nearest_on_simplex(
            shares - 0.05 * (jacobian @ (jacobian.T @ shares) + 0.1 * shares)
        )
        update = ours(jacobian)
        assert_close(update, shares @ jacobian)
        assert_close(update, theirs(jacobian @ jacobian.T) @ jacobian)


@given(**cases)
@settings(max_examples=15)
def test_sdmgrad_as_torchjd_has_it(kind, seed):
    ours, theirs = SDMGrad(0.3, 20, lr=0.5), torchjd.SDMGradWeighting(lr=0.5)
    for jacobian in steps(kind, seed):
        expected = theirs(jacobian @ jacobian.T) @ jacobian
        assert_close(ours(jacobian), expected, rtol=1e-5, atol=1e-6)  # it adds 1e-8 to the scale


@given(**cases)
@settings(max_examples=10)
def test_sdmgrad_with_many_short_steps_is_the_optimum(kind, seed):
    """No other point of the simplex has a shorter ``g_w + λ g_0``: the slopes say so."""
    jacobian = make_jacobian(kind, 4, seed)
    update = 1.3 * SDMGrad(0.3, steps=3000, lr=0.1)(jacobian)
    w = SDMGrad(0.3, steps=3000, lr=0.1).weights(jacobian @ jacobian.T) * 1.3 - 0.3 / 4
    slopes = jacobian @ update
    assert (slopes[w > 1e-6] - slopes.min()).abs().max() < 1e-5 * slopes.abs().max()


@given(**cases)
@settings(max_examples=15)
def test_moco(kind, seed):
    ours = MoCo()
    y, shares = torch.zeros(4, 13, dtype=torch.float64), torch.full((4,), 0.25).double()
    for k, jacobian in enumerate(steps(kind, seed), start=1):
        for t in range(4):
            g = jacobian[t] / jacobian[t].norm() * LOSSES[t]
            y[t] -= 0.5 / math.sqrt(k) * (y[t] - g)
        shares = (shares - 0.1 / math.sqrt(k) * (y @ y.T) @ shares).softmax(dim=0)
        assert_close(ours(jacobian, losses=LOSSES), shares @ y)


def test_moco_with_a_negative_loss_descends():
    jacobian = make_jacobian("random", 4, 0)
    assert_close(MoCo()(jacobian, losses=-LOSSES), MoCo()(jacobian, losses=LOSSES))


@pytest.mark.parametrize("sigma", [0.0, 0.5])
@given(**cases)
@settings(max_examples=10)
def test_dbmtl(sigma, kind, seed):
    ours, means = DBMTL(0.9, sigma), torch.zeros(4, 13, dtype=torch.float64)
    for k, jacobian in enumerate(steps(kind, seed), start=1):
        means = jacobian + 0.9 / k**sigma * (means - jacobian)
        longest = max(row.norm() for row in means)
        assert_close(ours(jacobian), sum(longest / row.norm() * row for row in means))


@given(**cases)
@settings(max_examples=15)
def test_excess_mtl(kind, seed):
    ours = ExcessMTL(eta=0.5)
    squares, weights, first = torch.zeros(4, 13, dtype=torch.float64), torch.ones(4).double(), None
    for k, jacobian in enumerate(steps(kind, seed)):
        squares += jacobian**2
        risk = torch.stack(
            [
                g @ torch.diag(1 / (s + 1e-7).sqrt()) @ g
                for g, s in zip(jacobian, squares, strict=True)
            ]
        )
        if k == 0:
            first = risk
        else:
            weights = weights * torch.exp(0.5 * risk / first)
            weights = 4 * weights / weights.sum()
        assert_close(ours(jacobian), weights @ jacobian)
        assert ours.own_factors == pytest.approx(weights.tolist())


@given(**cases)
@settings(max_examples=20)
def test_gcond(kind, seed):
    """On the gradients themselves, pair by pair."""
    ours = GCond()
    before, usual = torch.zeros(4, 13, dtype=torch.float64), [1.0] * 4
    winners: list[int] = []
    for jacobian in steps(kind, seed):
        v = jacobian.clone()
        usual = [0.95 * u + 0.05 * g.norm().item() for u, g in zip(usual, jacobian, strict=True)]
        for _ in range(8):
            pairs = [(i, j) for i in range(4) for j in range(i + 1, 4)]
            cosine = lambda a, b: (a @ b / a.norm() / b.norm()).item()  # noqa: E731
            c, (i, j) = min((cosine(v[i], v[j]), (i, j)) for i, j in pairs)
            if c >= -1e-12:
                break
            steady = [max(cosine(v[t], before[t]), 0) if before.any() else 0.0 for t in (i, j)]
            strong = [v[t].norm().item() / usual[t] for t in (i, j)]
            first, second = (
                0.8 * s + 0.2 * r / sum(strong) for s, r in zip(steady, strong, strict=True)
            )
            winner = j if second > first else i
            if winners[-3:] in ([i] * 3, [j] * 3):
                winner = j if winners[-1] == i else i
            loser = i + j - winner
            winners.append(winner)
            if c >= -0.5:
                angle = math.pi / 2 * (-c / 0.5)
            else:
                angle = math.pi / 2 * (1 + min((-0.5 - c) / 0.3, 1) ** 2)
            w, x = v[winner].clone(), v[loser].clone()
            v[winner] = w - math.sin(angle) * (w @ x) / (x @ x) * x
            v[loser] = x - math.sin(min(angle, math.pi / 2)) * (w @ x) / (w @ w) * w
        before = v
        assert_close(ours(jacobian), v.sum(dim=0), rtol=1e-6, atol=1e-7)


def test_gcond_without_a_conflict_is_the_sum():
    jacobian = make_jacobian("rank-deficient", 5, 0)
    assert (jacobian @ jacobian.T).min() > 0
    assert_close(GCond()(jacobian), jacobian.sum(dim=0))


@pytest.mark.parametrize("name", NAMES)
def test_state_continues(name):
    """Through a checkpoint's file, with some tasks absent in between."""
    present = [[0, 1, 2, 3], [0, 2, 3], [0, 1, 2, 3], [1, 3], [0, 1, 2, 3]]
    sequence = list(zip(steps("conflicting", 0), present, strict=True))

    def run(aggregator, part):
        losses = (lambda t: {"losses": LOSSES[t]}) if aggregator.needs_losses else lambda t: {}
        return [aggregator(j[t], t, **losses(t)) for j, t in part]

    straight = run(build_aggregator(name), sequence)
    first = build_aggregator(name)
    run(first, sequence[:2])
    state = first.state_dict()
    run(first, sequence[2:])  # must not change the state that was given out
    resumed = build_aggregator(name)
    resumed.load_state_dict(state)
    for found, expected in zip(run(resumed, sequence[2:]), straight[2:], strict=True):
        assert torch.equal(found, expected)
    fresh = run(build_aggregator(name), sequence[2:])
    pairs = zip(fresh, straight[2:], strict=True)
    assert any(not torch.allclose(a, b) for a, b in pairs)  # the state matters


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.trunk = torch.nn.Linear(5, 4)
        self.heads = torch.nn.ModuleDict({n: torch.nn.Linear(4, 2) for n in "ab"})

    def forward(self, x):
        z = torch.tanh(self.trunk(x))
        return {n: (head(z) - 1).square().mean() for n, head in self.heads.items()}


def batches():
    return torch.randn(4, 6, 5, generator=torch.Generator().manual_seed(1)).unbind()


@pytest.mark.parametrize("name", REMEMBER_ROWS)
def test_memory_does_not_know_the_loss_scale(name):
    """A scaler that changes its scale leaves the updates as they are."""
    model = Model()
    plain, scaled = (MultiTaskBackward(model.parameters(), name) for _ in range(2))
    for x, scale in zip(batches(), (1024.0, 512.0, 2048.0, 256.0), strict=True):
        model.zero_grad()
        plain(model(x))
        expected = model.trunk.weight.grad
        model.zero_grad()
        scaled(model(x), scale=torch.tensor(scale))
        assert_close(model.trunk.weight.grad / scale, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", REMEMBER_ROWS)
def test_features_are_refused(name):
    model = Model()
    with pytest.raises(ValueError, match=f"level: {name} keeps gradients"):
        MultiTaskBackward(model.parameters(), name, level="feature", representation=model.trunk)


def test_heads_of_excess_mtl_are_weighted():
    model, weights = Model(), ExcessMTL(eta=0.5)
    backward = MultiTaskBackward(model.parameters(), weights)
    for x in batches():
        losses = model(x)
        expected = torch.autograd.grad(losses["b"], model.heads["b"].weight, retain_graph=True)[0]
        model.zero_grad()
        backward(losses)
        assert_close(model.heads["b"].weight.grad, weights.own_factors[1] * expected)
    assert abs(weights.own_factors[1] - 1.0) > 0.01


@pytest.mark.parametrize("name", REMEMBER_ROWS)
def test_parameters_that_come_later(name, caplog):
    """What was remembered of other columns is dropped, and the run is told."""
    model = Model()
    model.trunk.bias.requires_grad_(False)
    backward = MultiTaskBackward(model.parameters(), name)
    first, second, *_ = batches()
    backward(model(first))
    model.trunk.bias.requires_grad_(True)
    model.zero_grad()
    backward(model(second))
    assert "what the tasks share has changed" in caplog.text or name == "DBMTL"
    assert model.trunk.bias.grad.isfinite().all()


def test_db_mtl_is_both_halves():
    """Loss logarithms, heads included, and gradients of one length."""
    model = Model()
    backward = MultiTaskBackward(model.parameters(), DBMTL(0.0), weighting="Log")
    losses = model(batches()[0])
    shared = list(model.trunk.parameters())
    rows = [
        torch.cat([g.flatten() for g in torch.autograd.grad(x.log(), shared, retain_graph=True)])
        for x in losses.values()
    ]
    head = torch.autograd.grad(losses["a"].log(), model.heads["a"].weight, retain_graph=True)[0]
    backward(losses)
    longest = max(row.norm() for row in rows)
    expected = sum(row * longest / row.norm() for row in rows)
    found = torch.cat([p.grad.flatten() for p in shared])
    assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert_close(model.heads["a"].weight.grad, head, rtol=1e-5, atol=1e-6)
