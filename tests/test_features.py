"""Where the graph is cut at the feature level."""

from __future__ import annotations

import copy
import gc
from itertools import product

import pytest
import torch
from by_autograd import check_grads, grads_of
from torch import nn
from torch.nn import functional
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from mtl_plugins import MultiTaskBackward
from mtl_plugins.features import FeatureWatch


class Layers(nn.Module):
    """A backbone that checkpoints its activations, a neck, and heads that begin in place."""

    def __init__(self, how: str = "") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.how = how
        self.stem, self.block = nn.Linear(3, 4), nn.Linear(4, 4)
        self.neck = nn.Linear(4, 4)
        self.heads = nn.ModuleDict({name: nn.Linear(4, 1) for name in "ab"})

    def trunk(self, x):
        block = lambda z: self.block(z).tanh()  # noqa: E731
        z = self.stem(x)
        if self.how.startswith("backbone"):
            z = checkpoint(block, z, use_reentrant=self.how.endswith("reentrant"))
        else:
            z = block(z)
        if self.how == "neck":
            return checkpoint(self.neck, z, use_reentrant=False)
        return self.neck(z)

    def forward(self, x):
        z = self.trunk(x)
        if self.how == "in place":
            z = functional.relu_(z)
        elif self.how != "":
            z = z.relu()
        return {name: head(z).exp().mean() for name, head in self.heads.items()}


X = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))


def grads(model: nn.Module, representation: nn.Module, name: str = "MGDA"):
    backward = MultiTaskBackward(
        model.parameters(), name, level="feature", representation=representation
    )
    for _ in range(2):
        model.zero_grad()
        backward(model(X))
    return grads_of(model), backward.last.gramian


@pytest.mark.parametrize("how", ["backbone reentrant", "backbone", "neck", "in place"])
@pytest.mark.parametrize("name", ["MGDA", "GradDrop", "Sum"])
def test_as_without(how, name):
    """Checkpointing and in-place operations give what the plain layers give."""
    cfg = {"type": name, "seed": 3} if name == "GradDrop" else name
    reference = Layers("out of place")
    expected, gramian = grads(reference, reference.neck, cfg)
    model = Layers(how)
    found, other = grads(model, model.neck, cfg)
    for a, b in zip(found, expected, strict=True):
        assert_close(a, b)
    if name == "MGDA":
        assert_close(other, gramian)


def test_sum_in_place_equals_plain():
    model, plain = Layers("in place"), Layers("in place")
    sum(plain(X).values()).backward()
    found, _ = grads(model, model.neck, "Sum")
    check_grads(plain.parameters(), found)


def test_change_in_place_that_the_trunk_needs_is_an_error_as_in_pytorch():
    trunk = nn.Sequential(nn.Linear(3, 4), nn.Tanh())  # whose derivative is made of its output
    heads = nn.ModuleList([nn.Linear(4, 1), nn.Linear(4, 1)])
    backward = MultiTaskBackward(
        [*trunk.parameters(), *heads.parameters()], level="feature", representation=trunk
    )
    z = functional.relu_(trunk(X))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        backward({str(i): head(z).sum() for i, head in enumerate(heads)})


def test_tensor_that_is_returned_twice_counts_once():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(3, 4)

        def forward(self, x):
            z = self.inner(x)
            return z, z

    torch.manual_seed(0)
    neck, heads = Twice(), nn.ModuleList([nn.Linear(4, 1), nn.Linear(4, 1)])
    once = copy.deepcopy(neck.inner)
    z = once(X).detach().requires_grad_()
    rows = torch.stack(
        [torch.autograd.grad(head(z).exp().mean(), z)[0].flatten() for head in heads]
    )
    backward = MultiTaskBackward(
        [*neck.parameters(), *heads.parameters()], "MGDA", level="feature", representation=neck
    )
    levels = neck(X)
    backward({str(i): heads[i](levels[i]).exp().mean() for i in range(2)})
    assert_close(backward.last.gramian, rows @ rows.T)


@pytest.mark.parametrize("weighting", [None, "GradNorm"])
def test_frozen_trunk_leaves_each_head_its_own_gradient(weighting):
    """From the start, and then it thaws."""
    model = Layers()
    for part in (model.stem, model.block, model.neck):
        part.requires_grad_(False)
    backward = MultiTaskBackward(
        model.parameters(), "MGDA", weighting, level="feature", representation=model.neck
    )
    expected = torch.autograd.grad(sum(model(X).values()), list(model.heads.parameters()))
    backward(model(X))
    check_grads(model.heads.parameters(), expected)
    assert backward.last.weights.tolist() == [1.0, 1.0]
    model.requires_grad_(True)
    model.zero_grad()
    backward(model(X))
    assert model.stem.weight.grad.any()


def test_task_that_comes_later_and_goes_around_is_an_error():
    model = Layers()
    backward = MultiTaskBackward(
        model.parameters(), "MGDA", level="feature", representation=model.neck
    )
    backward(model(X))
    late = {"late": model.stem(X).square().mean()}
    with pytest.raises(ValueError, match="representation: the loss of task 'late' reaches"):
        backward(model(X) | late)


@pytest.mark.parametrize("name", ["Sum", "PCGrad"])
def test_nothing_that_was_measured_for_hooks_is_kept(name):
    def tensors():
        return [o for o in gc.get_objects() if type(o) is torch.Tensor]

    before = tensors()  # of other tests
    known = {id(o) for o in before}
    model = Layers()
    trunk = (model.stem, model.block, model.neck)
    width = sum(p.numel() for part in trunk for p in part.parameters())
    backward = MultiTaskBackward(model.parameters(), name)
    backward.watch(model.neck)
    for _ in range(2):
        backward.monitor = backward.monitor_features = True
        backward(model(X))
    assert backward.last.gramian.shape == (2, 2)
    assert backward.last.disentanglement is not None
    alive = [o for o in tensors() if id(o) not in known]
    assert (5, 4) not in [o.shape for o in alive]  # features, or their gradients
    grads = [p.grad for p in model.parameters()]
    others = sum(o.numel() for o in alive if not any(o is grad for grad in grads))
    assert others < width  # not the gradient of a task either


def test_losses_after_the_step_leave_no_features():
    model = Layers()
    backward = MultiTaskBackward(
        model.parameters(), "MGDA", "FAMO", level="feature", representation=model.neck
    )
    calls = []
    model.block.register_full_backward_hook(lambda *_: calls.append(1))
    for _ in range(2):
        backward(model(X))
        backward.after_step(model(X))
    assert len(calls) == 2  # the trunk is run back once a step


def test_module_inside_of_reentrant_checkpointing_is_an_error():
    model = Layers()
    backward = MultiTaskBackward(
        model.parameters(), "MGDA", level="feature", representation=model.block
    )
    model.how = "backbone reentrant"
    with pytest.raises(ValueError, match="representation: .*was not called .*checkpointing"):
        backward(model(X))


class Pyramid(nn.Module):
    """A neck with a level that no head uses."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Linear(3, 4)
        self.levels = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x):
        return [level(self.stem(x)) for level in self.levels]


@pytest.mark.parametrize("name", ["MGDA", "GradDrop", "Sum"])
def test_output_without_a_head_has_no_gradient(name):
    neck = Pyramid()
    backward = MultiTaskBackward(neck.parameters(), name, level="feature", representation=neck)
    first, second, _ = neck(X)
    backward({"a": first.square().mean(), "b": (first * second).exp().mean()})
    grads = [p.grad for p in neck.levels.parameters()]
    assert [grad is None for grad in grads] == [False] * 4 + [True] * 2


ERRORS = ("refused losses", "no losses", "failed pass")


@pytest.mark.parametrize(
    ("name", "caught"),
    # GradDrop draws for the features of a pass without losses too.
    [*product(("MGDA", "Sum"), ERRORS), *product(("GradDrop",), ERRORS[::2])],
)
def test_step_after_an_error_that_was_caught(name, caught):
    """It is the step of a model that has seen no error, and has nothing of the one before."""
    cfg = {"type": name, "seed": 3} if name == "GradDrop" else name
    model, other = Layers(), Layers()
    expected, _ = grads(other, other.neck, cfg)
    backward = MultiTaskBackward(
        model.parameters(), cfg, level="feature", representation=model.neck
    )
    backward.watch(model.neck)
    backward(model(X))
    losses = model(2.0 * X)  # whose features must not count
    if caught == "refused losses":
        with pytest.raises(ValueError, match="scalar"):
            backward(losses | {"a": losses["a"].expand(2)})
        assert not backward._cut.tensors
    elif caught == "failed pass":
        sum(losses.values()).backward()  # the graph of the heads is gone
        with pytest.raises(RuntimeError):
            backward(losses)
    model.zero_grad()
    backward(model(X))
    check_grads(model.parameters(), expected)


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_refused_micro_batch_drops_those_before(share, trunk, x):
    """As an error in any pass of a step does: the next call begins a step of its own."""
    backward = MultiTaskBackward(trunk.parameters(), "MGDA")
    backward(trunk(x), aggregate=False, share=share)
    with pytest.raises(TypeError):
        backward(trunk(x) | {"a": "text"}, share=share)
    trunk.zero_grad()
    backward(trunk(x))
    found = grads_of(trunk)
    trunk.zero_grad()
    MultiTaskBackward(trunk.parameters(), "MGDA")(trunk(x))
    check_grads(trunk.parameters(), found)


def test_watched_module_changed_in_place():
    model, watched = Layers("in place"), Layers("out of place")
    found = []
    for net in (model, watched):
        backward = MultiTaskBackward(net.parameters(), "MGDA")
        backward.watch(net.neck)
        backward.monitor_features = True
        backward(net(X))
        found.append(backward.last.disentanglement)
    assert_close(*found)


def test_watch_that_is_removed_sees_nothing():
    layer = nn.Linear(3, 4)
    watch = FeatureWatch(layer)
    layer(X)
    assert len(watch.tensors) == 1 and watch.was_called
    watch.remove()
    layer(X)
    assert watch.tensors == []
