"""What is trained is the loss that ``update_params`` gets: as by MMEngine's ``OptimWrapper``."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import MODELS
from torch import nn
from torch.testing import assert_close
from toy import TASKS, TwoTasks, make_runner, parameters

from mtl_plugins.aggregation import build_aggregator
from mtl_plugins.mm.optim import MTLOptimWrapper
from mtl_plugins.terms import make_up


class Own(TwoTasks):
    """A model with a training step of its own."""

    def train_step(self, data, optim_wrapper):
        with optim_wrapper.optim_context(self):
            losses = self(**self.data_preprocessor(data, True), mode="loss")
        loss, log_vars = self.parse_losses(losses)
        self.update(optim_wrapper, loss, log_vars, losses)
        return log_vars

    def update(self, optim_wrapper, loss, log_vars, losses):
        raise NotImplementedError

    def again(self, optim_wrapper):
        """The losses on another batch."""
        rng = torch.Generator().manual_seed(optim_wrapper.inner_count)
        with optim_wrapper.optim_context(self):
            losses = self([torch.randn(4, generator=rng)], mode="loss")
        return self.parse_losses(losses)


class TwoBatches(Own):
    def update(self, optim_wrapper, loss, log_vars, losses):
        optim_wrapper.update_params(loss + self.again(optim_wrapper)[0])


class MoreOfATerm(Own):
    def update(self, optim_wrapper, loss, log_vars, losses):
        optim_wrapper.update_params(loss + 0.5 * log_vars["loss_reg"])


class MoreOfARawTerm(Own):
    def update(self, optim_wrapper, loss, log_vars, losses):
        optim_wrapper.update_params(loss + 0.5 * losses["loss_mask"].max())


class Half(Own):
    def update(self, optim_wrapper, loss, log_vars, losses):
        optim_wrapper.update_params(0.5 * loss)


class InPlace(Own):
    def update(self, optim_wrapper, loss, log_vars, losses):
        loss *= 0.25
        optim_wrapper.update_params(loss)


class OneTerm(Own):
    def update(self, optim_wrapper, loss, log_vars, losses):
        optim_wrapper.update_params(log_vars["loss_mask"])


class GeometricMean(Own):
    def update(self, optim_wrapper, loss, log_vars, losses):
        optim_wrapper.update_params((log_vars["loss_reg"] * log_vars["loss_mask"]).sqrt())


class LogOnlyAfter(Own):
    def update(self, optim_wrapper, loss, log_vars, losses):
        self.again(optim_wrapper)
        optim_wrapper.update_params(loss)


class LogOnlyBefore(Own):
    def train_step(self, data, optim_wrapper):
        self.again(optim_wrapper)
        return super().train_step(data, optim_wrapper)

    def update(self, optim_wrapper, loss, log_vars, losses):
        optim_wrapper.update_params(loss)


class TwoUpdates(Own):
    """As in MMEngine's migration guide."""

    def update(self, optim_wrapper, loss, log_vars, losses):
        optim_wrapper.update_params(loss)
        optim_wrapper.update_params(self.again(optim_wrapper)[0])


class ByHand(Own):
    def update(self, optim_wrapper, loss, log_vars, losses):
        optim_wrapper.backward(optim_wrapper.scale_loss(0.5 * loss))
        if optim_wrapper.should_update():
            optim_wrapper.step()
            optim_wrapper.zero_grad()


class NothingThere(TwoTasks):
    """A list without a level, which MMEngine sums to the number 0."""

    def forward(self, inputs, mode="tensor"):
        return super().forward(inputs, mode) | {"loss_reg": []}


class OwnSum(TwoTasks):
    """A weighted sum, of logged values that carry no gradient."""

    def parse_losses(self, losses):
        _, log_vars = super().parse_losses(losses)
        loss = 2.0 * sum(losses["loss_cls"]) + losses["loss_mask"].square().sum()
        return loss, {name: float(value) for name, value in log_vars.items()}


class LearnedWeights(TwoTasks):
    """Log variances of the losses, a parameter of one number each: so is the loss."""

    def __init__(self):
        super().__init__()
        self.s = nn.ParameterDict(
            {k: nn.Parameter(torch.zeros(())) for k in ("cls", "reg", "mask")}
        )

    def weights(self):
        return self.s

    def parse_losses(self, losses):
        _, log_vars = super().parse_losses(losses)
        s = self.weights()
        loss = sum((-s[k]).exp() * log_vars[f"loss_{k}"] + s[k] for k in ("cls", "reg", "mask"))
        return loss, log_vars


class LearnedVector(LearnedWeights):
    """The same in one parameter."""

    def __init__(self):
        super().__init__()
        self.s = nn.Parameter(torch.zeros(3))

    def weights(self):
        return dict(zip(("cls", "reg", "mask"), self.s, strict=True))


class Penalised(Own):
    def update(self, optim_wrapper, loss, log_vars, losses):
        optim_wrapper.update_params(loss + 1e-3 * self.trunk[0].weight.square().sum())


class ChangedTerm(Own):
    def update(self, optim_wrapper, loss, log_vars, losses):
        log_vars["loss_mask"] *= 2.0
        optim_wrapper.update_params(loss)


CASES = [
    TwoBatches,
    MoreOfATerm,
    MoreOfARawTerm,
    Half,
    InPlace,
    OneTerm,
    GeometricMean,
    LogOnlyAfter,
    LogOnlyBefore,
    TwoUpdates,
    ByHand,
    NothingThere,
    OwnSum,
    LearnedWeights,
    LearnedVector,
]
for case in (*CASES, Penalised, ChangedTerm):
    MODELS.register_module(module=case, force=True)


def train(tmp_path, model, optim_wrapper, iters=4):
    runner = make_runner(tmp_path, optim_wrapper, model=dict(type=model.__name__), iters=iters)
    start = parameters(runner)
    runner.train()
    return start, parameters(runner), runner


def moved(start, end):
    return [not torch.equal(p, q) for p, q in zip(start, end, strict=True)]


@pytest.mark.parametrize(
    ("model", "accumulate"),
    # Two updates a batch are more than MMEngine counts on where it accumulates.
    [(model, k) for model in CASES for k in (1, 2) if (model, k) != (TwoUpdates, 2)],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_sum_trains_what_the_plain_wrapper_does(model, accumulate, tmp_path):
    options = dict(accumulative_counts=accumulate)
    start, plain, _ = train(tmp_path / "a", model, dict(type="OptimWrapper", **options))
    ours = dict(type="MTLOptimWrapper", tasks=TASKS, aggregator="Sum", **options)
    _, end, _ = train(tmp_path / "b", model, ours)
    assert_close(end, plain, rtol=1e-6, atol=1e-7)
    assert moved(start, end) == moved(start, plain)
    assert any(moved(start, plain))


@pytest.mark.parametrize("aggregator", ["PCGrad", "MGDA", dict(type="CAGrad", c=0.4)])
def test_a_method_sees_the_losses_as_they_are_weighted(aggregator):
    """One step against ``torch.autograd.grad`` of each task, where weights are learned."""
    model = LearnedWeights()
    with torch.no_grad():
        model.s["mask"].fill_(-0.7)
    inputs = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    terms = TwoTasks.parse_losses(model, model(inputs))[1]
    s = model.s
    box = sum((-s[k]).exp() * terms[f"loss_{k}"] + s[k] for k in ("cls", "reg"))
    mask = (-s["mask"]).exp() * terms["loss_mask"] + s["mask"]
    trunk = list(model.trunk.parameters())
    rows = [
        torch.cat([g.flatten() for g in torch.autograd.grad(loss, trunk, retain_graph=True)])
        for loss in (box, mask)
    ]
    shared = build_aggregator(aggregator)(torch.stack(rows))
    alone = [*model.box.parameters(), *model.mask.parameters(), *model.s.parameters()]
    expected = torch.autograd.grad(box + mask, alone)

    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    wrapper = MTLOptimWrapper(optimizer, tasks=TASKS, aggregator=aggregator)
    before = [p.detach().clone() for p in (*trunk, *alone)]
    model.train_step(dict(inputs=list(inputs)), wrapper)
    steps = [b - p for b, p in zip(before, (*trunk, *alone), strict=True)]
    assert_close(torch.cat([step.flatten() for step in steps[: len(trunk)]]), shared)
    assert_close(steps[len(trunk) :], list(expected), rtol=1e-4, atol=1e-5)


def test_logged_losses_are_those_that_are_trained(tmp_path):
    _, _, runner = train(tmp_path, Half, dict(type="MTLOptimWrapper", tasks=TASKS), iters=1)
    step = runner.optim_wrapper.multitask.last
    _, _, whole = train(tmp_path, TwoTasks, dict(type="MTLOptimWrapper", tasks=TASKS), iters=1)
    assert_close(step.losses, 0.5 * whole.optim_wrapper.multitask.last.losses)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Penalised, "reaches trunk.0.weight by none of the losses .*loss_cls.*optim_wrapper.tasks"),
        (ChangedTerm, "changed in place"),
    ],
)
def test_what_no_task_can_train_is_an_error(model, message, tmp_path):
    with pytest.raises(RuntimeError, match=message):
        train(tmp_path, model, dict(type="MTLOptimWrapper", tasks=TASKS))


def test_a_loss_from_elsewhere_is_an_error():
    model = TwoTasks()
    wrapper = MTLOptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1), tasks=TASKS)
    with wrapper.optim_context(model):
        losses = model([torch.ones(4)])
        model.parse_losses(model([torch.zeros(4)]))
    with pytest.raises(RuntimeError, match="by none of the losses"):
        wrapper.update_params(losses["loss_reg"])


def test_a_backward_past_the_wrapper_is_an_error():
    model = TwoTasks()
    wrapper = MTLOptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1), tasks=TASKS)
    with wrapper.optim_context(model):
        loss, _ = model.parse_losses(model([torch.ones(4)]))
    loss.backward()
    with pytest.raises(RuntimeError, match=r"loss.backward\(\) takes no gradients of tasks"):
        wrapper.step()


@pytest.mark.parametrize("weighting", ["FAMO"])
def test_losses_that_are_computed_again_must_be_the_sum(weighting, tmp_path):
    cfg = dict(type="MTLOptimWrapper", tasks=TASKS, weighting=weighting)
    with pytest.raises(ValueError, match="optim_wrapper.weighting: FAMO .*parse_losses"):
        train(tmp_path, LearnedWeights, cfg)
    with pytest.raises(ValueError, match="optim_wrapper.weighting: FAMO .*parse_losses"):
        train(tmp_path, Half, cfg)


class TestTwoWrappers:
    """An ``OptimWrapperDict``, as for a generator and a discriminator."""

    @staticmethod
    def wrappers(model, cls, **options):
        parts = dict(
            a=[*model.trunk.parameters(), *model.box.parameters()], b=model.mask.parameters()
        )
        return OptimWrapperDict(
            **{k: cls(torch.optim.SGD(p, lr=0.1), **options) for k, p in parts.items()}
        )

    @staticmethod
    def run(model, wrappers):
        for step in range(4):
            x = torch.full((4,), 0.3 * step)
            for name, wrapper in wrappers.items():
                if name == "b" and step % 2:  # it learns at every second step only
                    continue
                with wrapper.optim_context(model):
                    losses = model([x])
                wrapper.update_params(model.parse_losses(losses)[0])

    def test_train_as_plain_ones(self):
        torch.manual_seed(0)
        models = [TwoTasks()]
        models.append(copy.deepcopy(models[0]))
        plain = self.wrappers(models[0], OptimWrapper)
        ours = self.wrappers(models[1], MTLOptimWrapper, tasks=TASKS, aggregator="Sum")
        for model, wrappers in zip(models, (plain, ours), strict=True):
            self.run(model, wrappers)
        for p, q in zip(*(model.parameters() for model in models), strict=True):
            assert torch.equal(p, q)

    def test_state(self):
        model = TwoTasks()
        wrappers = self.wrappers(model, MTLOptimWrapper, tasks=TASKS)
        self.run(model, wrappers)
        again = self.wrappers(model, MTLOptimWrapper, tasks=TASKS)
        again.load_state_dict(wrappers.state_dict())
        self.run(model, again)
        assert again["a"].multitask.tasks == ["box", "mask"]

    def test_a_part_of_the_model_has_no_losses(self):
        model = TwoTasks()
        wrapper = self.wrappers(model, MTLOptimWrapper)["a"]
        with (
            pytest.raises(TypeError, match=r"Sequential has no parse_losses\(\)"),
            wrapper.optim_context(model.trunk),
        ):
            pass


def attached(model):
    wrapper = MTLOptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1), tasks=TASKS)
    wrapper.attach(model)
    return wrapper


@pytest.mark.parametrize("how", ["save", "pickle", "deepcopy"])
def test_a_model_that_met_the_wrapper_can_be_copied(how):
    model = LearnedWeights()
    attached(model)
    if how == "deepcopy":
        twin = copy.deepcopy(model)
    elif how == "pickle":
        twin = pickle.loads(pickle.dumps(model))
    else:
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        twin = torch.load(file, weights_only=False)
    # The copy is a model of its own: it trains with another wrapper, and the first hears nothing.
    assert_close(list(twin.parameters()), list(model.parameters()))
    plain = OptimWrapper(torch.optim.SGD(twin.parameters(), lr=0.1))
    before = [p.detach().clone() for p in model.parameters()]
    twin.train_step(dict(inputs=[torch.ones(4)]), plain)
    assert any(not torch.equal(p, q) for p, q in zip(twin.parameters(), before, strict=True))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    assert twin.parse_losses.__self__ is twin


def test_make_up_stops_at_each_term():
    """``∂loss/∂term``, where one term is a part of another."""
    w = torch.tensor(3.0, requires_grad=True)
    v = torch.tensor(0.5, requires_grad=True)
    a, b = 2.0 * w, w.square()
    both = a + b
    found = make_up(v * both + 0.25 * a + v.square(), [a, b, both])
    assert [float(f) for f in found.factors] == [0.25, 0.0, 0.5]
    ((leaf, gradient, weighs),) = found.besides
    assert leaf is v
    assert gradient.item() == (both + 2.0 * v).item()
    assert weighs == (2,)
    assert w.grad is None
