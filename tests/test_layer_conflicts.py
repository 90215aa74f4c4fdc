"""Conflicts by layer, against gradients of each layer by torch.autograd."""

from __future__ import annotations

import itertools
import json

import pytest
import torch
from torch import nn

from mtl_plugins import MultiTaskBackward
from mtl_plugins.layer_conflicts import FILE, LayerConflicts, read_record

SHARED = ("first", "norm", "second")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.second = nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 5)
        self.heads = nn.ModuleDict({t: nn.Linear(5, 2) for t in "abc"})

    def forward(self, x, tasks="abc"):
        z = self.second(self.norm(self.first(x)).tanh()).tanh()
        return {t: self.heads[t](z).square().mean() for t in tasks}


def batches(count: int = 6) -> list[torch.Tensor]:
    return list(torch.randn(count, 3, 4, generator=torch.Generator().manual_seed(2)))


def by_hand(net: Net, x: torch.Tensor, threshold: float, tasks: str = "abc") -> dict[str, int]:
    """Pairs of tasks with a cosine below the threshold, weight and bias together."""
    losses, found = net(x, tasks), {}
    for name in SHARED:
        params = list(net.get_submodule(name).parameters())
        grads = [
            torch.cat([g.flatten() for g in torch.autograd.grad(loss, params, retain_graph=True)])
            for loss in losses.values()
        ]
        cosines = (torch.cosine_similarity(a, b, 0) for a, b in itertools.combinations(grads, 2))
        found[name] = sum(int(cosine < threshold) for cosine in cosines)
    return found


def train(conflicts_of, aggregator="Sum", tasks="abc", **options):
    net = Net()
    backward = MultiTaskBackward(net.parameters(), aggregator, tasks="abc", **options)
    conflicts = conflicts_of(net)
    backward.watch_layers(conflicts)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.3)
    expected = dict.fromkeys(SHARED, 0)
    for x in batches():
        for name, count in by_hand(net, x, conflicts.threshold, tasks).items():
            expected[name] += count
        backward.monitor_layers = True
        optimizer.zero_grad()
        backward(net(x, tasks))
        optimizer.step()
    return conflicts, expected, net


@pytest.mark.parametrize("aggregator", ["Sum", "PCGrad", "MGDA"])
@pytest.mark.parametrize("threshold", [0.0, -0.3, 0.5])
def test_counts(aggregator, threshold):
    conflicts, expected, _ = train(lambda net: LayerConflicts(net, threshold), aggregator)
    assert conflicts.scores() == expected
    assert list(conflicts.scores().values()) == sorted(expected.values(), reverse=True)
    assert any(expected.values()) and conflicts.steps == len(batches())


@pytest.mark.parametrize("options", [{"sync": "gramian"}, {"weights_every": 3}])
def test_counts_with_other_options(options):
    conflicts, expected, _ = train(LayerConflicts, "MGDA", **options)
    assert conflicts.scores() == expected


def test_absent_task_conflicts_with_nobody():
    conflicts, expected, _ = train(lambda net: LayerConflicts(net, 0.9), tasks="ab")
    assert conflicts.scores() == expected and max(expected.values()) <= len(batches())


def test_training_is_the_same_without():
    *_, watched = train(LayerConflicts)
    plain = Net()
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.3)
    for x in batches():
        optimizer.zero_grad()
        sum(plain(x).values()).backward()
        optimizer.step()
    for p, q in zip(watched.parameters(), plain.parameters(), strict=True):
        assert torch.equal(p, q)


def test_only_when_asked():
    net = Net()
    backward = MultiTaskBackward(net.parameters(), "PCGrad")
    conflicts = LayerConflicts(net)
    backward.watch_layers(conflicts)
    for x in batches(3):
        backward.monitor_layers = conflicts.steps == 0
        backward(net(x))
    assert conflicts.steps == 1


def test_micro_batches_count_once():
    """At the parameter level, the gradients of a step are those of all its micro-batches."""
    net, (x, y) = Net(), batches(2)
    backward = MultiTaskBackward(net.parameters(), "PCGrad")
    conflicts = LayerConflicts(net)
    backward.watch_layers(conflicts)
    backward.monitor_layers = True
    backward(net(x), aggregate=False, share=0.5)
    backward.monitor_layers = True
    backward(net(y), share=0.5)
    assert conflicts.steps == 1
    assert conflicts.scores() == by_hand(net, torch.cat([x, y]), 0.0)


def test_state_continues_and_is_what_is_written(tmp_path):
    conflicts, expected, net = train(LayerConflicts)
    again = LayerConflicts(net)
    again.load_state_dict(json.loads(json.dumps(conflicts.state_dict())))
    assert (again.scores(), again.steps) == (conflicts.scores(), conflicts.steps)
    path = again.write(tmp_path, ["a", "b", "c"])
    assert path.name == FILE
    record = read_record(path)
    assert record == {"tasks": ["a", "b", "c"], "threshold": 0.0, "steps": 6, "scores": expected}
    with pytest.raises(ValueError, match="counted with 0.0, this run has 0.5"):
        LayerConflicts(net, 0.5).load_state_dict(conflicts.state_dict())


@pytest.mark.parametrize("text", ["", "[1]", "{}", '{"tasks": [], "scores": {}}'])
def test_file_that_is_no_record(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"x\.json: (no|the) record"):
        read_record(path)


def test_threshold_is_a_cosine():
    with pytest.raises(ValueError, match="threshold: expected a cosine"):
        LayerConflicts(Net(), 1.5)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"low_memory": True}, "low_memory"),
        ({"gramian": "sketch"}, "gramian"),
        ({"level": "feature"}, "level"),
        ({"aggregator": "Sequential"}, "aggregator"),
    ],
)
def test_gradients_that_are_not_kept(options, key):
    net = Net()
    if "level" in options:
        options = {**options, "representation": net.second}
    backward = MultiTaskBackward(net.parameters(), **{"aggregator": "MGDA", **options})
    with pytest.raises(ValueError, match=f"^{key}: .*conflict"):
        backward.watch_layers(LayerConflicts(net))
