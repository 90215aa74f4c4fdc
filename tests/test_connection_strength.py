"""Connection strength against loops over layers, channel groups and tasks, from algorithm 1."""

from __future__ import annotations

import math

import pytest
import torch
from algorithm_1 import algorithm_1, per_channel
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mtl_plugins import MultiTaskBackward
from mtl_plugins.connection_strength import (
    connection_strength,
    normalise,
    project_groups,
    shares,
    top_tasks,
)
from mtl_plugins.task_norm import convert_task_norm, task_norm

TASKS = ["seg", "depth", "normals"]


def strength_by_loops(conv: nn.Module, norms: nn.ModuleDict, transposed: bool) -> list[list[float]]:
    """Follow the equations 4, 6 and 7."""
    result = []
    for norm in norms.values():
        row = []
        for p in range(norm.num_features):
            kernel = (conv.weight[:, p] if transposed else conv.weight[p]).detach()
            s = sum(float(w) ** 2 for w in kernel.flatten()) / kernel[0].numel()
            gamma = 1.0 if norm.weight is None else norm.weight[p].item()
            row.append(gamma**2 / (float(norm.running_var[p]) + 1e-5) * s)
        result.append([value / sum(row) for value in row])
    return result


def layers(*modules: nn.Module, size: int = 6) -> nn.Sequential:
    """Convert a network, and give the norms of each task other scales and variances."""
    module = nn.Sequential(*modules)
    convert_task_norm(module, TASKS, lambda net: net(torch.zeros(1, 3, size, size)))
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_var.uniform_(0.5, 2)
            if part.weight is not None:
                nn.init.normal_(part.weight)
    return module


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**31), st.integers(1, 4), st.integers(1, 6))
def test_projection_is_algorithm_1(seed: int, tasks: int, channels: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    gradients = torch.randn(tasks, channels, 2, 3, 3, generator=generator)
    top = torch.randint(tasks, (channels,), generator=generator)
    before = gradients.clone()
    expected = algorithm_1(list(gradients), top.tolist())
    torch.testing.assert_close(project_groups(gradients, top), expected.float())
    assert torch.equal(gradients, before)
    exact = project_groups(gradients.double(), top)
    torch.testing.assert_close(exact, expected, rtol=1e-10, atol=1e-10)


def test_a_dot_product_for_each_channel_is_another_method() -> None:
    torch.manual_seed(0)
    gradients, top = torch.randn(2, 4, 3, 3, 3), torch.tensor([0, 0, 1, 1])
    update = project_groups(gradients, top).double()
    difference = update - per_channel(list(gradients), top.tolist())
    assert difference.abs().max() > 0.01


def test_projection_in_closed_form() -> None:
    # The first channel is of task 0, the second of task 1, and each task conflicts in both.
    gradients = torch.tensor([[[1.0, 0.0], [-1.0, 1.0]], [[-1.0, 1.0], [2.0, 0.0]]])
    update = project_groups(gradients, torch.tensor([0, 1]))
    assert update.tolist() == [[1.0, 1.0], [2.0, 1.0]]
    # One group: the conflict in one channel is outweighed by the agreement in the other.
    gradients = torch.tensor([[[1.0], [2.0]], [[-1.0], [1.0]]])
    assert project_groups(gradients, torch.tensor([0, 0])).tolist() == [[0.0], [3.0]]


def test_one_task_agreement_and_one_top_task() -> None:
    torch.manual_seed(0)
    gradient = torch.randn(1, 5, 3, 3, 3)
    assert torch.equal(project_groups(gradient, torch.zeros(5, dtype=torch.long)), gradient[0])
    opposed = torch.cat([gradient, -3 * gradient])
    one, two = torch.zeros(5, dtype=torch.long), torch.tensor([0, 0, 0, 1, 1])
    torch.testing.assert_close(project_groups(opposed, one), gradient[0])
    torch.testing.assert_close(project_groups(opposed, one, "sum"), -2 * gradient[0])
    torch.testing.assert_close(
        project_groups(opposed, two, "sum"), torch.cat([gradient[0, :3], -3 * gradient[0, 3:]])
    )
    with pytest.raises(ValueError, match="one_top must be 'project' or 'sum', got 'skip'"):
        project_groups(opposed, one, "skip")


@pytest.mark.parametrize("size", [1e-30, 1e18])
def test_gradients_of_any_size_stay_finite(size: float) -> None:
    gradients = torch.tensor([[[1.0], [1.0]], [[-1.0], [-3.0]], [[0.0], [0.0]]]) * size
    update = project_groups(gradients, torch.tensor([0, 2]))
    torch.testing.assert_close(update / size, torch.tensor([[1.0], [-2.0]]))


def test_a_reference_whose_square_is_zero_projects_nothing() -> None:
    gradients = torch.tensor([[[1e-200]], [[-1.0]]], dtype=torch.double)
    assert project_groups(gradients, torch.tensor([0])).tolist() == [[-1.0]]


@pytest.mark.parametrize(
    ("conv", "transposed"),
    [
        (nn.Conv2d(3, 5, 3), False),
        (nn.Conv2d(3, 6, 3, groups=3, bias=False), False),
        (nn.ConvTranspose2d(3, 5, (3, 2)), True),
    ],
    ids=["plain", "groups", "transposed"],
)
@pytest.mark.parametrize("affine", [True, False])
def test_strength_is_that_of_the_equations(conv: nn.Module, transposed: bool, affine: bool) -> None:
    torch.manual_seed(0)
    module = layers(conv, nn.BatchNorm2d(conv.out_channels, affine=affine, eps=0.1))
    found = shares(module[1])
    expected = strength_by_loops(module[0], module[1].norms, transposed)
    torch.testing.assert_close(found, torch.tensor(expected).double())
    torch.testing.assert_close(found.sum(1), torch.ones(3).double())
    best = [max(range(3), key=lambda t, p=p: expected[t][p]) for p in range(conv.out_channels)]
    assert top_tasks(found).tolist() == best


def test_strength_is_of_the_running_variance_of_the_norm() -> None:
    weight = torch.tensor([[[[1.0]], [[2.0]]], [[[0.0]], [[1.0]]]])
    scale = torch.tensor([[1.0, 3.0], [2.0, -2.0]])
    found = connection_strength(weight, scale, torch.tensor([[1.0, 3.0], [0.0, 1.0]]))
    expected = [[5 / 1.00001, 9 / 3.00001], [20 / 1e-5, 4 / 1.00001]]
    torch.testing.assert_close(found, torch.tensor(expected).double(), rtol=1e-7, atol=0)


def test_norms_that_start_at_zero_prefer_no_channel() -> None:
    share = normalise(torch.tensor([[0.0, 0.0, 0.0, 0.0], [3.0, 1.0, 0.0, 0.0]]))
    assert share.tolist() == [[0.25] * 4, [0.75, 0.25, 0.0, 0.0]]
    assert top_tasks(share).tolist() == [1, 0, 0, 0]
    assert math.isfinite(float(share.sum()))


def test_norms_without_running_variance_have_no_strength() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False))
    convert_task_norm(module, TASKS, lambda net: net(torch.zeros(1, 3, 2, 2)))
    with pytest.raises(ValueError, match="track_running_stats=False"):
        shares(module[1])


@pytest.mark.parametrize("owner", [[0, 0, 1, 1], [1, 0, 1, 0]])
def test_both_phases_give_separable_channels_to_their_task(owner: list[int]) -> None:
    torch.manual_seed(0)
    # Each channel of the convolution sees the one signal that one task needs, and no other.
    conv = nn.Conv2d(2, 4, 1, bias=False)
    conv.weight.data = torch.eye(2)[owner].reshape(4, 2, 1, 1)
    trunk = nn.Sequential(conv, nn.BatchNorm2d(4))
    convert_task_norm(trunk, ["a", "b"], lambda net: net(torch.zeros(1, 2, 2, 2)))
    net = nn.ModuleDict({"trunk": trunk, "a": nn.Conv2d(4, 1, 1), "b": nn.Conv2d(4, 1, 1)})
    for task in ("a", "b"):
        # At first, no channel is before another for any task.
        nn.init.constant_(net[task].weight, 0.5)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    method = {"type": "ConnectionStrength", "phase": "alternate", "draw": "step"}
    backward = MultiTaskBackward(optimizer, method, tasks=["a", "b"], total_steps=121)
    backward.protect(net)

    def loss_of(task: str, x: Tensor) -> Tensor:
        with task_norm(trunk).of(task):
            return (net[task](trunk(x)) - x[:, "ab".index(task), None]).square().mean()

    turns = []
    for _ in range(120):
        batch = torch.randn(8, 2, 4, 4)
        turns.append(backward.in_turn)
        if backward.in_turn:
            backward.take_in_turn(lambda task, x=batch: loss_of(task, x), optimizer.step)
        else:
            optimizer.zero_grad()
            backward({task: loss_of(task, batch) for task in ("a", "b")})
            optimizer.step()
        share = shares(trunk[1])
        torch.testing.assert_close(share.sum(1), torch.ones(2).double())
    assert turns == [True, False] * 60
    assert top_tasks(share).tolist() == owner
    mine = torch.tensor(owner) == torch.arange(2)[:, None]
    assert (share[mine] > 1 / 4).all() and (share[~mine] < 1 / 4).all()  # of four channels
