import pytest
import torch
import torchjd.aggregation
from hypothesis import given, settings
from strategies import make_jacobian, seeds, tasks
from torch.testing import assert_close

from mtl_plugins import MultiTaskBackward
from mtl_plugins.aggregation import GradVac, GradVacByParameter


def vaccinate(jacobian, orders, target, beta):
    """Algorithm 1 of the paper on the gradients themselves; updates ``target`` in place."""
    total = torch.zeros_like(jacobian[0])
    for i, order in enumerate(orders):
        v = jacobian[i].clone()
        for j in order:
            g = jacobian[j]
            phi, wanted = v @ g / (v.norm() * g.norm()), target[i, j].clone()
            if phi < wanted:
                above = v.norm() * (wanted * (1 - phi**2).sqrt() - phi * (1 - wanted**2).sqrt())
                v = v + above / (g.norm() * (1 - wanted**2).sqrt()) * g
            target[i, j] = (1 - beta) * wanted + beta * phi
        total += v
    return total


@given(count=tasks, seed=seeds)
@settings(max_examples=40)
def test_agrees_with_the_algorithm_over_several_steps(count, seed):
    aggregator, twin = GradVac(beta=0.3, seed=seed), GradVac(beta=0.3, seed=seed)
    target = torch.zeros(count, count, dtype=torch.float64)
    for step in range(4):
        jacobian = make_jacobian("random", count, seed + step)
        expected = vaccinate(jacobian, twin.orders(count), target, 0.3)
        assert_close(aggregator(jacobian), expected, rtol=1e-6, atol=1e-9)
    assert_close(aggregator.state_dict()["target"], target)


@given(seed=seeds)
@settings(max_examples=20)
def test_agrees_with_torchjd_where_there_is_one_order(seed):
    ours, theirs = GradVac(beta=0.5), torchjd.aggregation.GradVac(beta=0.5, eps=0.0)
    for step in range(5):
        jacobian = make_jacobian("random", 2, seed + step)
        assert_close(ours(jacobian), theirs(jacobian))


def test_reaches_the_target_cosine():
    """The vaccinated gradient has exactly the cosine that was wanted."""
    aggregator = GradVac(beta=1.0)
    similar = torch.tensor([[1.0, 0.0], [0.8, 0.6]], dtype=torch.float64)
    aggregator(similar)  # targets become 0.8
    orthogonal = torch.eye(2, dtype=torch.float64)
    weights = aggregator.weights(orthogonal @ orthogonal.T)
    # v_1 = (1, x) with cosine 0.8 to (0, 1), and the same with the roles swapped
    x = 0.8 / 0.6
    assert_close(weights, torch.tensor([1 + x, 1 + x], dtype=torch.float64))


def test_targets_belong_to_tasks_not_to_rows():
    """When task 1 is absent from a batch, the target of the pair (0, 2) goes on."""
    jacobian = make_jacobian("random", 3, 0)
    gramian = jacobian @ jacobian.T
    aggregator = GradVac(beta=0.5)
    pair = torch.tensor([0, 2])
    aggregator.weights(gramian[pair][:, pair], tasks=[0, 2])
    target = aggregator.state_dict()["target"]
    cosine = gramian[0, 2] / (gramian[0, 0] * gramian[2, 2]).sqrt()
    assert_close(target[0, 2], 0.5 * cosine)
    assert target[0, 1] == target[1, 2] == 0.0


WIDTHS = [5, 1, 7]
PARTS = [torch.empty(width) for width in WIDTHS]


def test_by_parameter_is_gradvac_of_each():
    """With the same draws, and targets that go their own ways."""
    jacobians = [make_jacobian("conflicting", 4, seed) for seed in range(6)]
    ours = GradVacByParameter(beta=0.5, seed=1)
    parts = [GradVac(beta=0.5, seed=1) for _ in WIDTHS]
    for jacobian in jacobians:
        split = jacobian.split(WIDTHS, dim=1)
        expected = torch.cat([one(part) for one, part in zip(parts, split, strict=True)])
        assert_close(ours.on_parameters(jacobian, PARTS), expected)


def test_by_parameter_continues_from_a_checkpoint(caplog):
    jacobians = [make_jacobian("conflicting", 4, seed) for seed in range(6)]
    straight = GradVacByParameter(beta=0.5, seed=1)
    expected = [straight.on_parameters(jacobian, PARTS) for jacobian in jacobians]
    first = GradVacByParameter(beta=0.5, seed=1)
    for jacobian in jacobians[:3]:
        first.on_parameters(jacobian, PARTS)
    resumed = GradVacByParameter(beta=0.5, seed=2)
    resumed.load_state_dict(first.state_dict())
    for jacobian, update in zip(jacobians[3:], expected[3:], strict=True):
        assert torch.equal(resumed.on_parameters(jacobian, PARTS), update)
    assert not caplog.text
    resumed.on_parameters(jacobians[0], [torch.empty(6), torch.empty(7)])
    assert "GradVac's targets are dropped" in caplog.text


def test_by_parameter_gets_the_widths_of_the_shared_parameters():
    torch.manual_seed(0)
    trunk, heads = torch.nn.Linear(3, 4), torch.nn.ModuleList(torch.nn.Linear(4, 1) for _ in "ab")
    model = torch.nn.ModuleList([trunk, heads])
    backward = MultiTaskBackward(model.parameters(), {"type": "GradVacByParameter", "seed": 0})
    x = torch.randn(5, 3)
    losses = [(head(trunk(x)) - 3 * i).square().mean() for i, head in enumerate(heads)]
    params = list(trunk.parameters())
    grads = [torch.autograd.grad(loss, params, retain_graph=True) for loss in losses]
    backward(dict(zip("ab", losses, strict=True)))
    for i, p in enumerate(params):
        rows = torch.stack([row[i].flatten() for row in grads])
        assert_close(p.grad.flatten(), GradVac(seed=0)(rows))
    with pytest.raises(ValueError, match="level: GradVacByParameter is about parameters"):
        MultiTaskBackward(
            model.parameters(), "GradVacByParameter", level="feature", representation=trunk
        )
