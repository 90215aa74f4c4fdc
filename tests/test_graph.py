"""Passes through the graph that take fewer of something: memory, or backward passes."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from by_autograd import check_grads, flat, grads_of, mclgs_factors, per_task
from models import GRAMIAN_METHODS, method, task_losses
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from mtl_plugins import MultiTaskBackward
from mtl_plugins.graph import LossGraph


class Embedded(nn.Module):
    """Two tables, one of which is the last layer's weight as well, and a layer of its own dtype."""

    def __init__(self, sparse: bool, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(7, 4, sparse=sparse)
        self.tied = nn.Embedding(6, 4, sparse=sparse)
        self.inner = nn.Linear(4, 4, dtype=dtype)
        self.heads = nn.ModuleList(nn.Linear(6, 1) for _ in range(3))

    def forward(self) -> dict[str, Tensor]:
        words = torch.tensor([[1, 1, 2], [3, 4, 1]])
        z = (self.table(words) + self.tied(words)).mean(dim=1)
        z = self.inner(z.to(self.inner.weight.dtype)).float().tanh() @ self.tied.weight.T
        return {str(i): head(z).square().mean() for i, head in enumerate(self.heads)}


class TestLowMemory:
    @pytest.mark.parametrize("name", GRAMIAN_METHODS)
    def test_same_as_with_rows(self, name, trunk, x):
        """Shared by all, by two, owned by one, reached by none, scaled, and with an absent task."""
        plain = MultiTaskBackward(trunk.parameters(), method(name))
        frugal = MultiTaskBackward(trunk.parameters(), method(name), low_memory=True)
        weight, bound = trunk.trunk[0].weight, []
        weight.register_hook(lambda grad: bound.append(weight.grad is not None))
        for names, scale in (("abcd", None), ("acd", torch.tensor(64.0)), ("abd", None)):
            plain({k: v for k, v in trunk(x).items() if k in names}, scale)
            expected = grads_of(trunk)
            bound.clear()
            frugal({k: v for k, v in trunk(x).items() if k in names}, scale)
            assert not any(bound)
            assert_close(frugal.last.gramian, plain.last.gramian)
            assert_close(frugal.last.weights, plain.last.weights)
            check_grads(trunk.parameters(), expected)
            trunk.zero_grad()

    def test_the_same_to_the_last_bit_each_time(self, trunk, x):
        """Also where nodes lie elsewhere in memory, as after a restart."""
        found, kept = set(), []
        for _ in range(20):
            losses = trunk(x)
            kept.append(losses)
            gramian = LossGraph(list(losses.values())).gramian(list(trunk.parameters()))
            found.add(tuple(gramian.flatten().tolist()))
        assert len(found) == 1

    def test_same_as_with_rows_on_a_detector(self, detector):
        model = copy.deepcopy(detector)
        plain = MultiTaskBackward(model.parameters(), "PCGrad")
        plain(task_losses(model))
        expected = grads_of(model)
        frugal = MultiTaskBackward(model.parameters(), "PCGrad", low_memory=True)
        frugal(task_losses(model))
        assert_close(frugal.last.gramian, plain.last.gramian)
        check_grads(model.parameters(), expected)

    def test_losses_of_losses_and_reused_parameters(self):
        """One loss contains another, and a layer is used twice."""
        torch.manual_seed(0)
        layer = nn.Linear(3, 3).double()
        scale = nn.Parameter(torch.ones((), dtype=torch.float64))
        params = [*layer.parameters(), scale]

        def losses() -> dict[str, Tensor]:
            z = layer(layer(torch.ones(2, 3, dtype=torch.float64)).tanh())
            a = (scale * z).square().mean()
            return {"a": a, "b": a.exp() + z.sin().sum(), "c": a}

        plain = MultiTaskBackward(params, "CAGrad")
        plain(losses())
        expected = [p.grad for p in params]
        for p in params:
            p.grad = None
        frugal = MultiTaskBackward(params, "CAGrad", low_memory=True)
        frugal(losses())
        assert_close(frugal.last.gramian, plain.last.gramian)
        check_grads(params, expected)

    def test_losses_from_one_node(self):
        """Two nodes with two losses each, one behind the other."""
        torch.manual_seed(0)
        layer = nn.Linear(2, 2).double()
        params = list(layer.parameters())

        def losses() -> dict[str, Tensor]:
            v = layer(torch.ones(2, dtype=torch.float64)).tanh()
            deep = v.sin() * v.sum()
            c, d = deep.unbind()
            a, b = v.unbind()
            return {"c": c, "d": d, "a": a, "b": b}

        rows = torch.stack([flat(row, params) for row in per_task(losses(), params)])
        assert_close(LossGraph(list(losses().values())).gramian(params), rows @ rows.T)

    def test_scaled_in_half_precision(self):
        """A gradient below the smallest number of half precision, but for the scale."""
        half = nn.Parameter(torch.ones(4, dtype=torch.float16))
        losses = {"a": (half * 1e-4).sum() * 1e-4, "b": (half * half).sum()}
        backward = MultiTaskBackward([half], "IMTLG", low_memory=True)
        backward({k: v.float() for k, v in losses.items()}, torch.tensor(1024.0))
        assert backward.last.gramian[0, 0] == pytest.approx(4e-16, rel=0.01)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
    @pytest.mark.parametrize("weights_every", [1, 2])
    def test_sparse_embeddings_and_a_layer_of_another_dtype(self, dtype, weights_every):
        """As dense ones; the exact level refuses a second dtype."""
        tables, found = [Embedded(sparse, dtype) for sparse in (True, False)], []
        for model in tables:
            params = list(model.parameters())
            backward = MultiTaskBackward(
                params, "MGDA", low_memory=True, weights_every=weights_every
            )
            rows = [
                torch.cat(
                    [
                        (torch.zeros_like(p) if g is None else g.to_dense()).flatten().double()
                        for g, p in zip(grads, params, strict=True)
                        if len(p) > 1
                    ]
                )
                for grads in per_task(model(), params)
            ]
            backward(model())
            rows = torch.stack(rows)
            assert_close(backward.last.gramian.double(), rows @ rows.T, atol=1e-9, rtol=1e-5)
            model.zero_grad()
            backward(model())
            found.append([p.grad.to_dense() for p in params])
        assert tables[0].table.weight.grad.is_sparse
        for sparse, dense in zip(*found, strict=True):
            assert_close(sparse, dense)
        exact = MultiTaskBackward(params, "MGDA")
        if dtype == torch.float32:
            model.zero_grad()
            exact(model())
            check_grads(params, found[1])
        else:
            with pytest.raises(TypeError, match="must have one dtype"):
                exact(model())

    def test_gramian_beyond_single_precision(self):
        p = nn.Parameter(torch.ones(3))
        backward = MultiTaskBackward([p], "MGDA", low_memory=True)
        a, b = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 1.0, 0.0])
        backward({"a": (p * a * 1e25).sum(), "b": (p * b * 1e25).sum()})
        assert_close(p.grad, (a + b) * 0.5e25)

    def test_holds_no_row(self):
        """Of ten equal layers, one at a time: saved tensors aside, far less than T x D."""
        torch.manual_seed(0)
        layers = nn.Sequential(*[nn.Linear(64, 64) for _ in range(10)])
        heads = nn.Linear(64, 4)
        z = layers(torch.randn(2, 64))
        graph = LossGraph(list(heads(z).square().mean(dim=0)))
        held: list[int] = []
        multiply = torch.Tensor.__matmul__
        alive: list[weakref.ref] = []

        def spy(rows: Tensor, other: Tensor) -> Tensor:
            alive.append(weakref.ref(rows))
            held.append(sum(r().numel() for r in alive if r() is not None))
            return multiply(rows, other)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.Tensor, "__matmul__", spy)
            graph.gramian(list(layers.parameters()))
        assert len(held) == 20
        assert max(held) <= 4 * 64 * 64 < 4 * sum(p.numel() for p in layers.parameters()) / 9

    @pytest.mark.parametrize("reentrant", [True, False])
    def test_activation_checkpointing(self, reentrant, trunk, x):
        plain = MultiTaskBackward(trunk.parameters(), "MGDA")
        plain(trunk(x))
        expected = grads_of(trunk)
        inner = trunk.trunk.forward
        trunk.trunk.forward = lambda x: checkpoint(inner, x, use_reentrant=reentrant)
        frugal = MultiTaskBackward(trunk.parameters(), "MGDA", low_memory=True)
        losses = trunk(x.clone().requires_grad_())
        if reentrant:
            with pytest.raises(RuntimeError, match="low_memory: it does not go with activation"):
                frugal(losses)
        else:
            frugal(losses)
            check_grads(trunk.parameters(), expected)


class TestWeightsEvery:
    @pytest.mark.parametrize("low_memory", [False, True])
    def test_weights_hold_for_plain_steps(self, low_memory, trunk, x):
        """One backward pass then, with the weights found before, for what is shared alone."""
        params = list(trunk.parameters())
        backward = MultiTaskBackward(params, "CAGrad", weights_every=3, low_memory=low_memory)
        batches = torch.randn(7, 5, 6, dtype=torch.float64)
        for step, batch in enumerate(batches):
            losses = trunk(batch)
            grads = per_task(losses, params)
            if step % 3 == 0:
                fresh = MultiTaskBackward(params, "CAGrad")
                fresh(trunk(batch))
                grads_of(trunk)
                weights = dict(zip("abcd", fresh.last.weights.tolist(), strict=True))
            backward(losses)
            assert (backward.last.gramian is None) == (step % 3 > 0)
            # d reaches nothing that is shared, so it got the weight 0, which means nothing
            shared = weights["a"], weights["b"], weights["c"], 0.0
            for p, row in zip(params, zip(*grads, strict=True), strict=True):
                found = [(w, g) for w, g in zip(shared, row, strict=True) if g is not None]
                if len(found) > 1:
                    assert_close(p.grad, sum(w * g for w, g in found))
                elif found:
                    assert_close(p.grad, found[0][1])
            grads_of(trunk)

    def test_rows_are_not_kept_while_weights_hold(self, trunk, x):
        width = sum(p.numel() for part in (trunk.trunk, trunk.heads_ab) for p in part.parameters())
        backward = MultiTaskBackward(trunk.parameters(), "CAGrad", weights_every=2)
        backward(trunk(x))
        assert backward.last.gramian is not None
        gc.collect()
        assert (4, width) not in [o.shape for o in gc.get_objects() if type(o) is Tensor]

    @pytest.mark.parametrize("restart", [False, True])
    def test_own_factors_hold_too(self, restart, trunk, x):
        """MCLGS weighs heads; between two of its steps by the factors that it found last."""
        cfg = {"type": "MCLGS", "a0": 1.0, "total_steps": 10}
        params = list(trunk.parameters())
        losses = {k: v for k, v in trunk(x).items() if k in "abc"}
        shared = [*trunk.trunk.parameters(), *trunk.heads_ab.parameters()]
        rows = torch.stack([flat(row, shared) for row in per_task(losses, shared)])
        factors = dict(zip("abc", mclgs_factors(rows, 1.0).tolist(), strict=True))
        backward = MultiTaskBackward(params, cfg, weights_every=2)
        backward(losses)
        trunk.zero_grad()
        if restart:
            state = backward.state_dict()
            backward = MultiTaskBackward(params, cfg, weights_every=2)
            backward.load_state_dict(state)
        later = {k: v for k, v in trunk(2.0 * x).items() if k in "abc"}
        weighted = sum(factors[k] * v for k, v in later.items())
        expected = torch.autograd.grad(weighted, params, retain_graph=True, allow_unused=True)
        backward(later)
        check_grads(params, expected)

    def test_task_that_was_absent_takes_the_mean(self, trunk, x):
        backward = MultiTaskBackward(trunk.parameters(), "CAGrad", weights_every=2)
        backward({k: v for k, v in trunk(x).items() if k in "ab"})
        backward(trunk(x))
        weights = dict(zip(backward.last.tasks, backward.last.weights.tolist(), strict=True))
        assert weights["c"] == pytest.approx((weights["a"] + weights["b"]) / 2)

    def test_survives_a_restart(self, trunk, x):
        first = MultiTaskBackward(trunk.parameters(), "CAGrad", weights_every=3)
        first(trunk(x))
        second = MultiTaskBackward(trunk.parameters(), "CAGrad", weights_every=3)
        second.load_state_dict(first.state_dict())
        for gramian in (False, False, True):
            second(trunk(x))
            assert (second.last.gramian is not None) == gramian

    def test_micro_batches(self, trunk, x):
        """All micro-batches of a step are of one kind."""
        backward = MultiTaskBackward(trunk.parameters(), "CAGrad", weights_every=2)
        for step in range(4):
            trunk.zero_grad()
            backward(trunk(x[:3]), aggregate=False)
            backward(trunk(x[3:]))
            assert (backward.last.gramian is None) == bool(step % 2)
            losses = torch.stack([*trunk(x[:3]).values()]) + torch.stack([*trunk(x[3:]).values()])
            assert_close(backward.last.losses, losses.detach().float())

    def test_monitored_in_between(self, trunk, x):
        backward = MultiTaskBackward(trunk.parameters(), "CAGrad", weights_every=2)
        backward(trunk(x))
        expected = backward.last.gramian
        backward.monitor = True
        backward(trunk(x))
        assert_close(backward.last.gramian, expected)
