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


class Net(torch.nn.Module):
    """A trunk of two blocks with convolutions and norms, a scale that no block has, and heads."""

    def __init__(self) -> None:
        super().__init__()
        layers = [torch.nn.Conv1d(2, 4, 3), torch.nn.GroupNorm(2, 4), torch.nn.Conv1d(4, 3, 1)]
        self.backbone = torch.nn.Sequential(*layers[:2])
        self.neck = torch.nn.Sequential(layers[2])
        self.scale = torch.nn.Parameter(torch.ones(3, 1))
        self.heads = torch.nn.ModuleList(torch.nn.Linear(3, 2) for _ in "abc")

    def forward(self, x):
        z = (self.scale * self.neck(torch.tanh(self.backbone(x)))).mean(-1)
        outs = (head(z) for head in self.heads)
        return {
            t: (out - k).square().mean() for k, (t, out) in enumerate(zip("abc", outs, strict=True))
        }


PARTS_OF = {
    "parameter": lambda name: name,
    "module": lambda name: name.rpartition(".")[0],
    ("neck", "backbone"): lambda name: name.partition(".")[0],
    ("backbone.0",): lambda name: name.startswith("backbone.0"),
    ("backbone.1", "backbone"): lambda name: (
        name.startswith("backbone"),
        name.startswith("backbone.1"),
    ),
}


@pytest.mark.parametrize("by", PARTS_OF)
@pytest.mark.parametrize("mixed", [False, True])
def test_each_part_is_vaccinated_by_itself(by, mixed):
    """Against the algorithm, in a loop over the parts; ``mixed``: in another order."""
    torch.manual_seed(0)
    model = Net().double()
    named = dict(model.named_parameters())
    shared = [name for name in named if not name.startswith("heads")]
    if mixed:
        shared = shared[::2] + shared[1::2]
    own = [p for name, p in named.items() if name.startswith("heads")]
    backward = MultiTaskBackward(
        [named[name] for name in shared] + own,
        {"type": "GradVacByParameter", "by": by, "beta": 0.5, "seed": 1},
        tasks="abc",
    )
    backward.protect(model)
    parts = {}
    for name in shared:
        parts.setdefault(str(PARTS_OF[by](name)), []).append(name)
    assert len(parts) == {"parameter": 7, "module": 4}.get(by, 3 if len(by) == 2 else 2)
    targets = {part: torch.zeros(3, 3, dtype=torch.float64) for part in parts}
    twin = GradVac(seed=1)
    for _ in range(4):
        x = torch.randn(5, 2, 6, dtype=torch.float64)
        losses = model(x)
        rows = {
            name: torch.stack(
                [
                    torch.autograd.grad(loss, named[name], retain_graph=True)[0].flatten()
                    for loss in losses.values()
                ]
            )
            for name in shared
        }
        model.zero_grad()
        backward(losses)
        orders = twin.orders(3)
        for part, names in parts.items():
            whole = torch.cat([rows[name] for name in names], dim=1)
            expected = vaccinate(whole, orders, targets[part], 0.5)
            found = torch.cat([named[name].grad.flatten() for name in names])
            assert_close(found, expected, rtol=1e-5, atol=1e-7)
    assert any(target.abs().max() > 0.01 for target in targets.values())


def test_parts_that_are_none():
    for by in ("layer", [], ["neck", 1], 3):
        with pytest.raises(ValueError, match="by: expected 'parameter', 'module' or a list of"):
            GradVacByParameter(by=by)
    model = Net()
    backward = MultiTaskBackward(
        model.parameters(), {"type": "GradVacByParameter", "by": ["backbon"]}, tasks="abc"
    )
    with pytest.raises(ValueError, match=r"aggregator.by: .*'backbon'; did you mean 'backbone'"):
        backward.protect(model)
    backward = MultiTaskBackward(
        model.parameters(), {"type": "GradVacByParameter", "by": "module"}, tasks="abc"
    )
    with pytest.raises(RuntimeError, match=r"has to know the model; call .*protect\(model\)"):
        backward(model(torch.randn(2, 2, 6)))
