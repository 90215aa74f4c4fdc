"""Heads stay their task's own, also where all losses pass one node of the graph."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from by_autograd import check_grads, expected_grads, flat, grads_of, per_task
from models import Trunk
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint
from two_processes import results_of_two, work

from mtl_plugins import MultiTaskBackward
from mtl_plugins.aggregation import GramianAggregator, build_aggregator

NAMES = "abc"


class Model(nn.Module):
    """A trunk and three heads, whose losses come as a tuple."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = Trunk().double()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        losses = self.inner(x)
        return tuple(losses[name] for name in NAMES)


def stacked(model: Model, x: Tensor) -> list[Tensor]:
    together = torch.stack(model(x))
    return [together[i] for i in range(len(NAMES))]


def unbound(model: Model, x: Tensor) -> list[Tensor]:
    return list(torch.cat([loss.reshape(1) for loss in model(x)]).unbind())


def hooked(model: Model, x: Tensor) -> list[Tensor]:
    handle = model.register_full_backward_hook(lambda *args: None)
    losses = model(x.requires_grad_())
    handle.remove()
    return list(losses)


def checkpointed(model: Model, x: Tensor) -> list[Tensor]:
    return list(checkpoint(model, x.requires_grad_(), use_reentrant=True))


def compiled(model: Model, x: Tensor) -> list[Tensor]:
    if not hasattr(model, "compiled"):
        object.__setattr__(model, "compiled", torch.compile(model, backend="aot_eager"))
    return list(model.compiled(x))


every_funnel = pytest.mark.parametrize(
    "funnel", [stacked, unbound, hooked, checkpointed, compiled], ids=lambda f: f.__name__
)


@pytest.fixture
def model() -> Model:
    return Model()


def through(funnel, model: Model, x: Tensor, names: str = NAMES) -> dict[str, Tensor]:
    losses = dict(zip(NAMES, funnel(model, x.detach().clone()), strict=True))
    return {name: losses[name] for name in names}


def plain(model: Model, x: Tensor, names: str = NAMES) -> dict[str, Tensor]:
    losses = dict(zip(NAMES, model(x), strict=True))
    return {name: losses[name] for name in names}


@every_funnel
@pytest.mark.parametrize("name", ["MGDA", "GradDrop"])
def test_heads_get_their_own_gradient(funnel, name, model, x):
    """Twice: with the evidence of the batch itself, and with that of the batch before."""
    cfg = {"type": name, "seed": 3} if name == "GradDrop" else name
    params = list(model.parameters())
    method = build_aggregator(cfg)
    backward = MultiTaskBackward(params, cfg)
    for batch in (x, 2.0 * x):
        expected = expected_grads(method, plain(model, batch), params)
        backward(through(funnel, model, batch))
        check_zeros_or(params, expected)
        model.zero_grad()


class Constant(GramianAggregator):
    """The first task has no say, but a head."""

    scale = "sum"

    def solve(self, gramian, **_):
        return [float(i) for i in range(len(gramian))]


@pytest.mark.parametrize("funnel", [stacked, compiled], ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    "options", [{"low_memory": True}, {"gramian": "sketch"}, {"weights_every": 2}]
)
def test_saving_routes(funnel, options, model, x):
    params = list(model.inner.parameters())
    backward = MultiTaskBackward(params, Constant(), **options)
    for batch in (x, 2.0 * x, -x):
        backward(through(funnel, model, batch))
        check_zeros_or(params, weighted(model, batch, (0.0, 1.0, 2.0)))
        model.zero_grad()


def shared_params(model: Model) -> list[Tensor]:
    return [*model.inner.trunk.parameters(), *model.inner.heads_ab.parameters()]


def backward_gramian(model: Model, x: Tensor) -> Tensor:
    shared = shared_params(model)
    jacobian = torch.stack([flat(row, shared) for row in per_task(plain(model, x), shared)])
    return jacobian @ jacobian.T


def weighted(model: Model, x: Tensor, weights: Sequence[float]) -> list[Tensor | None]:
    """What is shared by the weighted sum, heads by the plain one."""
    params = list(model.inner.parameters())
    losses = model(x)
    alone = torch.autograd.grad(sum(losses), params, retain_graph=True, allow_unused=True)
    total = sum(w * loss for w, loss in zip(weights, losses, strict=True))
    mixed = torch.autograd.grad(total, params, allow_unused=True)
    shared = set(map(id, shared_params(model)))
    return [m if id(p) in shared else a for p, m, a in zip(params, mixed, alone, strict=True)]


def zero_if_none(p: Tensor, grad: Tensor | None) -> Tensor:
    return torch.zeros_like(p) if grad is None else grad


def check_zeros_or(params, expected) -> None:
    """A node that returns all losses hands zeros to what no loss reaches."""
    for p, e in zip(params, expected, strict=True):
        assert_close(zero_if_none(p, p.grad), zero_if_none(p, e))


@pytest.mark.parametrize(
    "funnel, name", [(stacked, "CAGrad"), (unbound, "MCLGS"), (compiled, "CAGrad")]
)
def test_micro_batches_with_different_tasks(funnel, name, model, x):
    cfg = {"type": name} | ({"a0": 1.0, "total_steps": 10} if name == "MCLGS" else {})
    params = list(model.parameters())
    total = {k: v for k, v in plain(model, x[:3], "ab").items()}
    for k, v in plain(model, x[3:], "bc").items():
        total[k] = total[k] + v if k in total else v
    MultiTaskBackward(params, cfg)(total)
    expected = grads_of(model)
    backward = MultiTaskBackward(params, cfg)
    backward(through(funnel, model, x[:3], "ab"), aggregate=False)
    backward(through(funnel, model, x[3:], "bc"))
    check_zeros_or(params, expected)


def test_evidence_survives_a_restart(model, x):
    """In a batch where a head's gradient is zero, the state still knows whose it is."""
    params = list(model.parameters())
    first = MultiTaskBackward(params, "MGDA", weights_every=2)
    first(through(stacked, model, x))
    model.zero_grad()
    second = MultiTaskBackward(params, "MGDA", weights_every=2)
    second.load_state_dict(first.state_dict())
    first(through(stacked, model, x))
    expected = grads_of(model)
    second(through(stacked, model, x))
    check_grads(params, expected)
    assert model.inner.heads["a"].weight.grad.any()


@pytest.mark.parametrize(
    "options", [{}, {"low_memory": True}, {"gramian": "sketch"}, {"weights_every": 3}]
)
@pytest.mark.parametrize("batches", [("abc", "ab", "bc", "c", "abc"), ("ab", "abc", "abc")])
def test_heads_where_tasks_come_and_go(options, batches, model, x):
    """Also with a head whose first gradient comes while weights that were found before hold."""
    backward = MultiTaskBackward(model.parameters(), "MGDA", **options)
    for names in batches:
        backward(through(stacked, model, x, names))
        total = sum(plain(model, x, names).values())
        heads = [p for name in NAMES for p in model.inner.heads[name].parameters()]
        expected = torch.autograd.grad(total, heads, allow_unused=True)
        check_zeros_or(heads, expected)
        model.zero_grad()


@pytest.mark.parametrize("options", [{}, {"low_memory": True}, {"gramian": "sketch"}])
def test_a_batch_that_is_not_finite_is_no_evidence(options, model, x):
    """Zero times NaN is NaN: every task seems to reach every head."""
    params = list(model.parameters())
    backward = MultiTaskBackward(params, "MGDA", **options)
    backward(through(stacked, model, torch.full_like(x, torch.nan)))
    assert backward.last.nonfinite
    backward(through(stacked, model, x))
    check_zeros_or(params, expected_grads(build_aggregator("MGDA"), plain(model, x), params))


@pytest.mark.parametrize(
    "options", [{}, {"low_memory": True}, {"gramian": "sketch"}, {"sync": "gramian"}]
)
def test_a_gradient_that_is_not_finite_is_noticed_before_there_is_evidence(options, model, x):
    """The loss is 0, its gradient 0 · inf; the other task would own the trunk."""
    losses = plain(model, x, "ac")
    losses["a"] = (losses["a"] * 0.0).sqrt()
    both = torch.stack(list(losses.values()))
    backward = MultiTaskBackward(model.parameters(), "MGDA", **options)
    backward({"a": both[0], "c": both[1]})
    assert "a" in backward.last.nonfinite
    assert all(p.grad is None for p in model.parameters())


class Predictions(nn.Module):
    """Two heads behind one node, whose losses are weighed by learned factors outside of it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Linear(6, 64)
        self.heads = nn.ModuleList([nn.Linear(64, 40), nn.Linear(64, 40)])
        self.variances = nn.ParameterList([torch.zeros(()), torch.zeros(())])

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        z = torch.tanh(self.trunk(x))
        return tuple(head(z) for head in self.heads)

    def losses(self, predictions: Sequence[Tensor]) -> dict[str, Tensor]:
        a, b = (
            (prediction - i).square().mean() * torch.exp(-variance) + variance
            for i, (prediction, variance) in enumerate(
                zip(predictions, self.variances, strict=True)
            )
        )
        return {"a": a, "b": b}


@pytest.mark.parametrize("funnel", [hooked, compiled], ids=lambda f: f.__name__)
def test_large_predictions_of_one_node(funnel, x):
    model = Predictions().double()
    params = list(model.parameters())
    MultiTaskBackward(params, "MGDA")(model.losses(funnel(model, x.clone())))
    expected = expected_grads(build_aggregator("MGDA"), model.losses(model(x)), params)
    check_grads(params, expected)


def test_resume_with_parameters_that_joined(model, x):
    def begin() -> tuple[torch.optim.Optimizer, MultiTaskBackward]:
        optimizer = torch.optim.SGD(model.inner.trunk.parameters(), lr=0.1)
        backward = MultiTaskBackward(optimizer, "MGDA")
        optimizer.add_param_group({"params": list(model.inner.heads_ab.parameters())})
        return optimizer, backward

    _, first = begin()
    first(plain(model, x))
    optimizer, second = begin()
    second.load_state_dict(first.state_dict())
    model.zero_grad()
    second(plain(model, x))
    params = [p for group in optimizer.param_groups for p in group["params"]]
    check_grads(params, expected_grads(build_aggregator("MGDA"), plain(model, x), params))


def test_gradnorm_takes_the_trunk_for_the_last_layer(model, x):
    found = []
    for losses in (plain, lambda model, x: through(stacked, model, x)):
        backward = MultiTaskBackward(model.parameters(), weighting="GradNorm")
        for _ in range(2):
            backward(losses(model, x))
        found.append(backward.last.weights)
        model.zero_grad()
    assert_close(found[0], found[1])
    assert not torch.equal(found[0], torch.ones(3))


@pytest.mark.parametrize("aggregator", ["Sum", "MGDA"])
def test_cosreg_is_about_the_trunk(aggregator, model, x):
    cfg = {"type": "CosReg", "weight": 10.0}
    MultiTaskBackward(model.parameters(), aggregator, regularizer=cfg)(plain(model, x))
    expected = grads_of(model)
    MultiTaskBackward(model.parameters(), aggregator, regularizer=cfg)(through(stacked, model, x))
    check_zeros_or(list(model.parameters()), expected)


def test_monitored_gramian_is_about_the_trunk(model, x):
    backward = MultiTaskBackward(model.parameters())
    backward.monitor = True
    backward(through(stacked, model, x))
    assert_close(backward.last.gramian, backward_gramian(model, x))


CASES = {"exact": {}, "gramian": {"sync": "gramian"}}
CASES["low memory"] = {"sync": "gramian", "low_memory": True}
CASES["sketches"] = {"sync": "sketch", "gramian": "sketch"}
TASKS_OF_RANK = ("ab", "bc")


def rows_of_rank(rank: int) -> Tensor:
    x = torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return x[rank::2]


def find(rank: int) -> dict[str, list[Tensor | None]]:
    """Each rank lacks a task; the losses are stacked."""
    found = {}
    for case, options in CASES.items():
        model = Model()
        wrapped = DistributedDataParallel(model)
        backward = MultiTaskBackward(model.parameters(), "MGDA", tasks=NAMES, **options)
        with wrapped.no_sync():
            losses = dict(
                zip(NAMES, torch.stack(wrapped(rows_of_rank(rank))).unbind(), strict=True)
            )
            backward({name: losses[name] for name in TASKS_OF_RANK[rank]})
        found[case] = [p.grad for p in model.parameters()]
    found["joined later"] = joined_later(rows_of_rank(rank))
    return found


def joined_later(x: Tensor) -> list[Tensor | None]:
    """A frozen layer of the trunk thaws, and its parameters join the optimizer."""
    model = Model()
    layer = model.inner.trunk[0].requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    backward = MultiTaskBackward(optimizer, "MGDA", tasks=NAMES)
    backward(plain(model, x))
    model.zero_grad()
    layer.requires_grad_(True)
    optimizer.add_param_group({"params": list(layer.parameters())})
    backward(plain(model, x))
    return [p.grad for p in model.parameters()]


def test_two_ranks_aggregate_what_joins_later(ranks, model):
    here, there = (rank["joined later"] for rank in ranks)
    halves = [plain(model, rows_of_rank(rank)) for rank in range(2)]
    total = {k: sum(half[k] for half in halves) / 2 for k in NAMES}
    params = list(model.parameters())
    expected = expected_grads(build_aggregator("MGDA"), total, params)
    for p, one, other, e in zip(params, here, there, expected, strict=True):
        assert_close(zero_if_none(p, one), zero_if_none(p, e))
        assert_close(zero_if_none(p, other), zero_if_none(p, e))


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return results_of_two(__file__, tmp_path_factory.mktemp("ranks") / "out")


@pytest.mark.parametrize("case", CASES)
def test_two_ranks(case, ranks, model):
    """Heads get the mean over the ranks of their own gradient, and both ranks the same."""
    here, there = (rank[case] for rank in ranks)
    for one, other in zip(here, there, strict=True):
        assert_close(one, other)
    parts = [plain(model, rows_of_rank(rank), TASKS_OF_RANK[rank]) for rank in range(2)]
    total = {k: sum(part[k] for part in parts if k in part) / 2 for k in NAMES}
    params = list(model.parameters())
    expected = expected_grads(build_aggregator("MGDA"), total, params)
    shared = set(map(id, shared_params(model)))
    for p, grad, e in zip(params, here, expected, strict=True):
        if case == "exact" or id(p) not in shared:
            assert_close(zero_if_none(p, grad), zero_if_none(p, e))


if __name__ == "__main__":
    work(find)
