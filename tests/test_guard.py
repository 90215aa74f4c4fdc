"""A skipped step leaves the model as it was, buffers included."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from mtl_plugins import MultiTaskBackward


class Normed(nn.Module):
    """Batch norm, a buffer that is replaced rather than changed, and two heads."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        self.heads = nn.ModuleDict({name: nn.Linear(4, 1) for name in "ab"})
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.seen = self.seen + x.detach().sum()
        z = self.trunk(x)
        return {name: head(z).float().square().mean() for name, head in self.heads.items()}


def snapshot(model: nn.Module) -> dict[str, torch.Tensor]:
    return copy.deepcopy(model.state_dict())


def assert_same(model: nn.Module, before: dict[str, torch.Tensor]) -> None:
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["Sum", "MGDA"])
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_skipped_step_changes_nothing(name, dtype, micro_batches):
    """A NaN in an image of the first micro-batch; before and after, steps are made."""
    model, twin = Normed().to(dtype), Normed().to(dtype)
    x = torch.randn(6, 3, dtype=dtype, generator=torch.Generator().manual_seed(1))
    trained = {}
    for net, batches in ((model, (x, x * torch.nan, 2.0 * x)), (twin, (x, 2.0 * x))):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
        backward = MultiTaskBackward(net.parameters(), name)
        backward.protect(net)
        for batch in batches:
            before = snapshot(net)
            for k in range(micro_batches):
                inputs = batch if k == 0 else x
                backward(net(inputs), aggregate=k + 1 == micro_batches)
            optimizer.step()
            optimizer.zero_grad()
            if batch.isnan().any():
                assert backward.last.nonfinite == ("a", "b")
                assert_same(net, before)
        trained[net] = snapshot(net)
    assert_same(model, trained[twin])
    assert model.seen.isfinite()


@pytest.mark.parametrize("name", ["Sum", "MGDA", "Sequential"])
def test_a_loop_that_calls_the_parts_of_the_model(name, caplog):
    """Nothing tells of a forward pass; the buffers are kept from the step before."""
    model = Normed()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    backward = MultiTaskBackward(optimizer, name, tasks=["a", "b"])
    backward.protect(model)
    x = torch.randn(6, 3)
    for batch in (x, x, x * torch.nan, x):
        before = snapshot(model)

        def loss(task, batch=batch):
            return model.heads[task](model.trunk(batch)).square().mean()

        if backward.in_turn:
            backward.take_in_turn(loss, optimizer.step)
        else:
            optimizer.zero_grad()
            backward({task: loss(task) for task in "ab"})
            optimizer.step()
        if batch.isnan().any():
            assert_same(model, before)
    assert "stay as they are" not in caplog.text
    assert model.trunk[1].num_batches_tracked == 6


def test_buffers_that_cannot_be_brought_back_are_told_of(caplog):
    model = Normed()
    backward = MultiTaskBackward(model.parameters(), "Sum")
    backward.protect(model)
    backward({"a": model.trunk(torch.full((6, 3), torch.nan)).sum()})
    assert "buffers, such as the running statistics of batch norms, stay as they are" in caplog.text


def test_buffers_change_in_steps_that_are_made():
    model, plain = Normed(), Normed()
    x = torch.randn(6, 3)
    backward = MultiTaskBackward(model.parameters(), "MGDA")
    backward.protect(model)
    for _ in range(3):
        backward(model(x))
        plain(x)
    assert torch.equal(model.trunk[1].running_mean, plain.trunk[1].running_mean)
    assert model.trunk[1].num_batches_tracked == 3


def test_passes_without_gradients_are_not_undone():
    """Evaluation, or a forward pass that precise batch norm makes, between two steps."""
    model = Normed()
    x = torch.randn(6, 3)
    backward = MultiTaskBackward(model.parameters())
    backward.protect(model)
    backward(model(x))
    with torch.no_grad():
        model(x)
    before = snapshot(model)
    backward(model(x * torch.nan))
    assert_same(model, before)


def test_static_graph_is_refused():
    model = Normed()
    model.static_graph = True  # as DistributedDataParallel has it
    MultiTaskBackward(model.parameters()).protect(model)
    with pytest.raises(ValueError, match="static_graph: .*MGDA takes several; set it to False"):
        MultiTaskBackward(model.parameters(), "MGDA").protect(model)
