"""Loss weightings inside the pipeline."""

from __future__ import annotations

import copy

import pytest
import torch
from by_autograd import check_grads, expected_grads, per_task
from models import task_losses
from torch import nn
from torch.testing import assert_close

from mtl_plugins import MultiTaskBackward
from mtl_plugins.aggregation import build_aggregator
from mtl_plugins.graph import LossGraph
from mtl_plugins.weighting import WEIGHTINGS, build_weighting

OPTIONS = {
    "Fixed": {"weights": {"a": 2.0, "b": 0.5, "c": 1.5, "d": 3.0}},
    "DWA": {"window": 1},
    "RLW": {"seed": 0},
    "FAMO": {"min_losses": -2.0},
    "GLS": {"min_losses": -2.0},
    "Log": {"min_losses": -2.0},
    "Achievement": {"min_losses": -2.0, "potential": dict.fromkeys("abcd", 0.5)},
}


@pytest.mark.parametrize(
    "aggregator, low_memory", [("Sum", False), ("CAGrad", False), ("CAGrad", True)]
)
@pytest.mark.parametrize("name", WEIGHTINGS)
def test_the_weighted_losses_are_aggregated(name, aggregator, low_memory, trunk, x):
    """Over five steps, with a twin of the weighting that is told everything by hand."""
    cfg = {"type": name, **OPTIONS.get(name, {})}
    by_hand = build_weighting(cfg)
    params = list(trunk.parameters())
    backward = MultiTaskBackward(
        params, aggregator, weighting=cfg, low_memory=low_memory, tasks="abcd"
    )
    optimizer = torch.optim.SGD(params, lr=0.3)
    for _ in range(5):
        losses = trunk(x)
        values = {k: v.float().item() for k, v in losses.items()}
        factors = by_hand.weights("abcd", values)
        weighted = {k: factors[k] * v for k, v in losses.items()}
        expected = expected_grads(build_aggregator(aggregator), weighted, params)
        # d reaches nothing that is shared.
        last = [trunk.trunk[2].weight]
        rows = per_task({k: losses[k] for k in "abc"}, last)
        norms = {k: g.norm().item() for k, (g,) in zip("abc", rows, strict=True)}
        backward(trunk(x))
        check_grads(params, expected, rtol=1e-5, atol=1e-8)
        if name != "GradNorm":
            by_hand.update(values)
        else:
            by_hand.update(values, norms | {"d": 0.0})
        optimizer.step()
        optimizer.zero_grad()
        if by_hand.needs_new_losses:
            new = trunk(x)
            backward.after_step(new)
            by_hand.update_after(values, {k: v.float().item() for k, v in new.items()})


def test_famo_must_be_told(trunk, x):
    backward = MultiTaskBackward(trunk.parameters(), weighting=dict(type="FAMO", min_losses=-2.0))
    backward(trunk(x))
    with pytest.raises(RuntimeError, match="FAMO .*call after_step"):
        backward(trunk(x))


def test_last_layer_is_where_the_tasks_part(trunk, x):
    losses = {k: v for k, v in trunk(x).items() if k != "d"}
    params = list(trunk.parameters())
    found = LossGraph(list(losses.values())).last_common(params)
    assert [params[i] is trunk.trunk[2].weight for i in found] == [True]


def test_last_layer_of_mask_rcnn(detector):
    """The convolutions at the end of FPN, not what the terms of one task share."""
    model = copy.deepcopy(detector)
    params, names = zip(*((p, n) for n, p in model.named_parameters()), strict=True)
    found = LossGraph(list(task_losses(model).values())).last_common(params)
    assert {names[i] for i in found} == {f"neck.fpn_convs.{i}.conv.weight" for i in range(4)}


def test_no_layer_in_common():
    layers = nn.ModuleList([nn.Linear(2, 1), nn.Linear(2, 1)])
    backward = MultiTaskBackward(layers.parameters(), weighting="GradNorm")
    with pytest.raises(ValueError, match="weighting: .*a layer that all tasks share"):
        backward({str(i): layer(torch.ones(2)).sum() for i, layer in enumerate(layers)})


def test_gradnorm_of_scaled_losses(trunk, x):
    """A loss scaler does not change the lengths that are compared."""
    twin = copy.deepcopy(trunk)
    found = []
    for model, scale in ((trunk, None), (twin, torch.tensor(1024.0, dtype=torch.float64))):
        backward = MultiTaskBackward(model.parameters(), weighting="GradNorm")
        for _ in range(3):
            backward(model(x), scale)
        found.append(backward.last.weights)
    assert_close(found[0], found[1])
    assert not torch.equal(found[0], torch.ones(4))


def test_gradnorm_at_the_feature_level(trunk, x):
    losses = trunk.losses(z := trunk.trunk(x))
    losses = {k: losses[k] for k in "abc"}
    norms = {k: g.norm().item() for k, (g,) in zip("abc", per_task(losses, [z]), strict=True)}
    by_hand = build_weighting("GradNorm")
    by_hand.update({k: v.item() for k, v in losses.items()}, norms)
    backward = MultiTaskBackward(
        trunk.parameters(), weighting="GradNorm", level="feature", representation=trunk.trunk
    )
    for _ in range(2):
        backward({k: v for k, v in trunk(x).items() if k in losses})
    assert backward.last.weights.tolist() == pytest.approx(list(by_hand.weights("abc").values()))


def test_state_of_the_last_layer_survives(trunk, x):
    """The first batch after a restart may lack a task."""
    first = MultiTaskBackward(trunk.parameters(), weighting="GradNorm", tasks="abcd")
    losses = trunk(x)
    first({k: losses[k] for k in "abc"})
    second = MultiTaskBackward(trunk.parameters(), weighting="GradNorm", tasks="abcd")
    second.load_state_dict(first.state_dict())
    for backward in (first, second):
        losses = trunk(x)
        backward({"a": losses["a"], "b": losses["b"]})
    assert first.state_dict()["weighting"] == second.state_dict()["weighting"]


def test_last_layer_grows_with_the_tasks_seen(trunk, x):
    """A batch of one task shares nothing, one of a and b less than all."""
    backward = MultiTaskBackward(trunk.parameters(), weighting="GradNorm", tasks="abcd")
    for names in ("a", "ab", "abc", "ab"):
        losses = trunk(x)
        backward({k: losses[k] for k in names})
    found = backward.state_dict()["last_layer"]
    params = list(trunk.parameters())
    assert [params[i] is trunk.trunk[2].weight for i in found["indices"]] == [True]
    assert found["tasks"] == ["a", "b", "c"]
    trunk.trunk[2].weight.requires_grad_(False)
    backward(trunk(x))
    (i,) = backward.state_dict()["last_layer"]["indices"]
    assert params[i] is trunk.trunk[0].weight


@pytest.mark.parametrize("aggregator", ["Sum", "PCGrad"])
def test_famo_over_micro_batches(aggregator, trunk, x):
    """Its bound is that of a loss, not of its share; the last micro-batch lacks a task."""
    low = min(loss.item() for loss in trunk(x).values()) - 0.1
    cfg = {"type": "FAMO", "min_losses": low}
    backward = MultiTaskBackward(trunk.parameters(), aggregator, weighting=cfg, tasks="abcd")
    losses = trunk(x)
    backward(losses, aggregate=False, share=0.25)
    backward(trunk(x), aggregate=False, share=0.25)
    backward({k: v for k, v in trunk(x).items() if k != "c"}, share=0.5)
    assert backward.last.tasks == tuple("abcd")
    values = [losses[k].item() * (0.5 if k == "c" else 1.0) for k in "abcd"]
    assert backward.last.losses.tolist() == pytest.approx(values)


def test_loss_normalisation_sees_weighted_losses(trunk, x):
    """MGDA with normalization='loss' of 10 L_a is that of a loss ten times as large."""
    cfg = {"type": "MGDA", "normalization": "loss"}
    weights = {"a": 10.0, "b": 1.0, "c": 1.0}
    backward = MultiTaskBackward(
        trunk.parameters(), cfg, weighting={"type": "Fixed", "weights": weights}
    )
    losses = {k: v for k, v in trunk(x).items() if k in weights}
    backward(losses)
    actual = [p.grad for p in trunk.parameters()]
    trunk.zero_grad()
    larger = {k: weights[k] * v for k, v in trunk(x).items() if k in weights}
    MultiTaskBackward(trunk.parameters(), cfg)(larger)
    check_grads(trunk.parameters(), actual)
