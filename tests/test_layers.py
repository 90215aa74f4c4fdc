"""The level of chosen layers, and the switches of heads and scale, against ``autograd.grad``."""

import pytest
import torch
from by_autograd import per_task
from models import GRAMIAN_METHODS, Trunk, method
from torch import nn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from mtl_plugins import MultiTaskBackward
from mtl_plugins.aggregation import NashMTL, build_aggregator

NAMES = "abc"


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Trunk().double()


@pytest.fixture
def x():
    return torch.randn(8, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def losses_of(model, x):
    return {name: loss for name, loss in model(x).items() if name in NAMES}


def rows_by_autograd(model, x, module):
    params = list(module.parameters())
    grads = per_task(losses_of(model, x), params)
    return torch.stack([torch.cat([g.flatten() for g in row]) for row in grads])


def expected(model, x, weights, heads):
    """Weighted sums of the definition's gradients: shared by weights, own by heads."""
    params = list(model.parameters())
    grads = per_task(losses_of(model, x), params)
    result = []
    for i in range(len(params)):
        found = [(t, row[i]) for t, row in enumerate(grads) if row[i] is not None]
        factors = weights if len(found) > 1 else heads
        result.append(sum(factors[t] * g for t, g in found) if found else None)
    return result


def check(model, wanted):
    for p, grad in zip(model.parameters(), wanted, strict=True):
        if grad is None:
            assert p.grad is None
        else:
            assert_close(p.grad, grad)


@pytest.mark.parametrize("name", [name for name in GRAMIAN_METHODS if name != "MCLGS"])
def test_weights_are_those_of_the_layer(name, model, x):
    """Of the gradients at the last layer, for all that is shared, heads that two share too."""
    rows = rows_by_autograd(model, x, model.trunk[2])
    weights = build_aggregator(method(name)).weights(rows @ rows.T).tolist()
    backward = MultiTaskBackward(
        model.parameters(), method(name), level="layers", layers=model.trunk[2]
    )
    backward(losses_of(model, x))
    check(model, expected(model, x, weights, [1.0] * 3))
    assert_close(backward.last.gramian, (rows @ rows.T))
    assert_close(backward.last.weights, torch.tensor(weights).to(backward.last.weights))


def test_all_shared_layers_are_the_parameter_level(model, x):
    whole = nn.ModuleList([model.trunk, model.heads_ab])
    results = []
    for options in ({}, {"level": "layers", "layers": whole}):
        model.zero_grad()
        MultiTaskBackward(model.parameters(), "MGDA", **options)(losses_of(model, x))
        results.append([p.grad for p in model.parameters()])
    for one, other in zip(*results, strict=True):
        assert one is None if other is None else torch.allclose(one, other)


def test_mclgs_weighs_heads_too(model, x):
    rows = rows_by_autograd(model, x, model.trunk[2])
    curriculum = build_aggregator(method("MCLGS"))
    weights = curriculum.weights(rows @ rows.T).tolist()
    MultiTaskBackward(model.parameters(), method("MCLGS"), level="layers", layers=model.trunk[2])(
        losses_of(model, x)
    )
    check(model, expected(model, x, weights, curriculum.own_factors))


def test_the_trunk_is_run_back_once(model, x):
    """And the heads once a task before that, and once with the trunk."""
    backward = MultiTaskBackward(
        model.parameters(), "PCGrad", level="layers", layers=model.trunk[2]
    )
    backward(losses_of(model, x))  # the first step finds out who owns what
    trunk, head = [], []
    model.trunk[0].weight.register_hook(trunk.append)
    z = model.trunk(x)
    z.register_hook(head.append)
    backward({name: loss for name, loss in model.losses(z).items() if name in NAMES})
    assert len(trunk) == 1
    assert len(head) == 4


def test_micro_batches_are_aggregated_each(model, x):
    backward = MultiTaskBackward(model.parameters(), "MGDA", level="layers", layers=model.trunk[2])
    total = None
    for half in x.split(4):
        rows = rows_by_autograd(model, half, model.trunk[2])
        weights = build_aggregator("MGDA").weights(rows @ rows.T).tolist()
        grads = expected(model, half, [w / 2 for w in weights], [0.5] * 3)
        pairs = zip(total or grads, grads, strict=True)
        total = grads if total is None else [a if a is None else a + b for a, b in pairs]
    first, second = x.split(4)
    backward(losses_of(model, first), aggregate=False, share=0.5)
    backward(losses_of(model, second), share=0.5)
    check(model, total)


def test_a_part_that_is_frozen_for_some_steps(model, x):
    backward = MultiTaskBackward(model.parameters(), "MGDA", level="layers", layers=model.trunk)
    for frozen in (False, True, False):
        model.trunk[0].requires_grad_(not frozen)
        rows = rows_by_autograd(model, x, model.trunk[2] if frozen else model.trunk)
        backward(losses_of(model, x))
        assert_close(backward.last.gramian, rows @ rows.T)


class TestBadInput:
    def test_no_module(self, model):
        with pytest.raises(ValueError, match="layers: level='layers' needs the module whose"):
            MultiTaskBackward(model.parameters(), "MGDA", level="layers")

    def test_module_without_the_level(self, model):
        with pytest.raises(ValueError, match="layers: level='parameter' takes no module"):
            MultiTaskBackward(model.parameters(), "MGDA", layers=model.trunk)

    def test_path_in_place_of_the_module(self, model):
        with pytest.raises(TypeError, match="layers: expected a module, got str"):
            MultiTaskBackward(model.parameters(), "MGDA", level="layers", layers="trunk")

    @pytest.mark.parametrize("part", ["heads", "unused"])
    def test_nothing_shared(self, part, model, x):
        backward = MultiTaskBackward(
            model.parameters(), "MGDA", level="layers", layers=getattr(model, part)
        )
        with pytest.raises(ValueError, match="layers: the tasks share no parameter of the module"):
            backward(losses_of(model, x))

    def test_a_loss_that_goes_past(self, model, x):
        """Of c, which would have the weight 0 in every step."""
        backward = MultiTaskBackward(
            model.parameters(), "MGDA", level="layers", layers=model.heads_ab
        )
        with pytest.raises(ValueError, match="layers: the loss of task 'c' does not go through"):
            backward(losses_of(model, x))

    def test_module_inside_of_reentrant_checkpointing(self, model, x):
        backward = MultiTaskBackward(
            model.parameters(), "MGDA", level="layers", layers=model.trunk[2]
        )
        features = checkpoint(model.trunk, x.requires_grad_(), use_reentrant=True)
        losses = {name: loss for name, loss in model.losses(features).items() if name in NAMES}
        with pytest.raises(ValueError, match="layers: reentrant activation checkpointing hides"):
            backward(losses)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"aggregator": "GradDrop"}, "level='layers' needs an aggregator that weighs"),
            ({"low_memory": True}, "low_memory is for level='parameter'"),
            ({"gramian": "sketch"}, "gramian='sketch' is for level='parameter'"),
        ],
    )
    def test_options_that_exclude_each_other(self, options, message, model):
        options = {"aggregator": "MGDA"} | options
        with pytest.raises(ValueError, match=message):
            MultiTaskBackward(model.parameters(), level="layers", layers=model.trunk, **options)


class TestSwitches:
    @pytest.mark.parametrize("options", [{}, {"low_memory": True}, {"weights_every": 2}])
    @pytest.mark.parametrize("name", ["MGDA", "IMTLG", "PCGrad", "CAGrad"])
    def test_heads_are_weighted(self, name, options, model, x):
        """As where the weighted sum of the losses is run back."""
        whole = nn.ModuleList([model.trunk, model.heads_ab])
        params = list(whole.parameters())
        grads = per_task(losses_of(model, x), params)
        filled = [
            [torch.zeros_like(p) if g is None else g for g, p in zip(row, params, strict=True)]
            for row in grads
        ]
        rows = torch.stack([torch.cat([g.flatten() for g in row]) for row in filled])
        weights = build_aggregator(method(name)).weights(rows @ rows.T).tolist()
        backward = MultiTaskBackward(model.parameters(), method(name), heads="weighted", **options)
        for _ in range(2 if "weights_every" in options else 1):
            model.zero_grad()
            backward(losses_of(model, x))
        check(model, expected(model, x, weights, weights))

    def test_heads_of_nash_mtl(self, model, x):
        """Not clipped, as in the authors' code."""
        whole = nn.ModuleList([model.trunk, model.heads_ab])
        clipped = NashMTL(max_norm=0.1)
        backward = MultiTaskBackward(model.parameters(), clipped, heads="weighted")
        backward(losses_of(model, x))
        alpha = NashMTL(max_norm=0.0).weights(backward.last.gramian.double())
        shared = torch.cat([p.grad.flatten() for p in whole.parameters()])
        assert_close(shared.norm(), torch.tensor(0.1).double(), rtol=1e-5, atol=0)
        check(model, expected(model, x, backward.last.weights.tolist(), alpha.tolist()))

    @pytest.mark.parametrize(
        ("name", "scale", "factor"),
        [
            ("CAGrad", "sum", 3.0),
            ("CAGrad", "mean", 1.0),
            ("PCGrad", "mean", 1 / 3),
            ("PCGrad", "sum", 1.0),
            ("GradDrop", "mean", 1 / 3),
            ("MCLGS", "sum", 3.0),
        ],
    )
    def test_scale(self, name, scale, factor, model, x):
        """Of what is shared alone: heads are as they were."""
        grads = []
        for options in ({}, {"scale": scale}):
            model.zero_grad()
            MultiTaskBackward(model.parameters(), method(name), **options)(losses_of(model, x))
            grads.append({n: p.grad for n, p in model.named_parameters()})
        own, scaled = grads
        for n, grad in own.items():
            if grad is not None:
                shared = n.startswith(("trunk", "heads_ab"))
                assert_close(scaled[n], grad * (factor if shared else 1.0))

    def test_scale_at_the_feature_level(self, x):
        grads = []
        for options in ({}, {"scale": "sum"}):
            torch.manual_seed(0)
            model = Trunk().double()
            MultiTaskBackward(
                model.parameters(), "MGDA", level="feature", representation=model.trunk, **options
            )(losses_of(model, x))
            grads.append(model.trunk[0].weight.grad)
        assert_close(grads[1], 3.0 * grads[0])

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"aggregator": "GradDrop", "heads": "weighted"}, "heads='weighted' needs an agg"),
            ({"heads": "weighed"}, "heads: expected one of"),
            ({"scale": "both"}, "scale: expected one of"),
            ({"aggregator": "Mean", "scale": "sum"}, "scale: is for methods that take the grad"),
            ({"aggregator": "Sum", "heads": "weighted"}, "needs an aggregator|heads: is for"),
        ],
    )
    def test_bad_values(self, options, message, model):
        options = {"aggregator": "MGDA"} | options
        with pytest.raises(ValueError, match=message):
            MultiTaskBackward(model.parameters(), **options)

    def test_weighted_heads_at_the_feature_level(self, model):
        with pytest.raises(ValueError, match="heads: level='feature' leaves what a task has alone"):
            MultiTaskBackward(
                model.parameters(),
                "MGDA",
                level="feature",
                representation=model.trunk,
                heads="weighted",
            )
