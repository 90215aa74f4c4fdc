"""Sequential updates against loops over the tasks written by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
from models import update_in_turn
from torch import Tensor, nn

from mtl_plugins.task_norm import convert_task_norm, task_norm

TASKS = ["seg", "depth"]

OPTIMIZERS = {
    "adam": partial(torch.optim.Adam, lr=0.01, weight_decay=0.1),
    "sgd": partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.1),
}


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        convert_task_norm(self.trunk, TASKS, lambda net: net(torch.zeros(1, 3, 4, 4)))
        self.heads = nn.ModuleDict({task: nn.Conv2d(4, 1, 1) for task in TASKS})

    def loss(self, task: str, images: Tensor) -> Tensor:
        norm = self.trunk[1].norms[task]
        features = self.trunk[0](images)
        # By hand, the choice of the norm does without the one that is tested.
        chosen = norm if self.trunk[1].task is None else self.trunk[1]
        features = chosen(features)
        return (self.heads[task](features.relu()) - (1 if task == "seg" else -2)).square().mean()


def by_hand(model: Model, optimizer: torch.optim.Optimizer, images: Tensor) -> list[float]:
    values = []
    for task in TASKS:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None
        loss = model.loss(task, images)
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    return values


@pytest.mark.parametrize("build", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_steps_are_those_of_a_loop_by_hand(build: Callable[..., torch.optim.Optimizer]) -> None:
    expected = Model()
    model = copy.deepcopy(expected)
    optimizers = [build(one.parameters()) for one in (model, expected)]
    norm = task_norm(model)
    for _ in range(4):
        images = torch.randn(2, 3, 5, 5)
        losses = update_in_turn(
            lambda task, x=images: model.loss(task, x), TASKS, optimizers[0], norm
        )
        assert list(losses) == TASKS
        assert list(losses.values()) == by_hand(expected, optimizers[1], images)
    ours, theirs = model.state_dict(), expected.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    for a, b in zip(*(o.state_dict()["state"].values() for o in optimizers), strict=True):
        assert all(torch.equal(torch.as_tensor(a[k]), torch.as_tensor(b[k])) for k in a)


@pytest.mark.parametrize("build", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_task_leaves_heads_and_norms_of_the_others_alone(
    build: Callable[..., torch.optim.Optimizer],
) -> None:
    model = Model()
    optimizer = build(model.parameters())
    images, norm = torch.randn(2, 3, 5, 5), task_norm(model)
    step = partial(update_in_turn, lambda task: model.loss(task, images), optimizer=optimizer)
    # With momentum and step counts to apply, a gradient of zero would move the parameters.
    step(tasks=TASKS, norm=norm)
    others = {k: v.clone() for k, v in model.state_dict().items() if "depth" in k}
    shared = model.trunk[0].weight.clone()
    step(tasks=["seg"], norm=norm)
    assert len(others) == 7
    assert all(torch.equal(model.state_dict()[key], value) for key, value in others.items())
    assert not torch.equal(model.trunk[0].weight, shared)
    if isinstance(optimizer, torch.optim.Adam):
        steps = [
            int(optimizer.state[p]["step"])
            for p in (model.trunk[0].weight, model.heads["seg"].weight, model.heads["depth"].weight)
        ]
        assert steps == [3, 2, 1]


def test_gradients_of_before_count_nothing_and_plain_models_need_no_norm() -> None:
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(1.0)
    model.weight.grad = torch.full((1, 1), 100.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.25)
    # w = 1 - 0.25 · 2 · 1 = 0.5 for w², then 0.5 - 0.25 · 3 for 3 w.
    losses = {"a": lambda: model.weight.square().sum(), "b": lambda: 3 * model.weight.sum()}
    found = update_in_turn(lambda task: losses[task](), ["a", "b"], optimizer)
    assert found == {"a": 1.0, "b": 1.5}
    assert model.weight.item() == -0.25
