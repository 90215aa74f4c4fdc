"""RotoGrad against the paper's rule by torch.autograd, sample by sample."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from mtl_plugins import MultiTaskBackward
from mtl_plugins.aggregation import build_aggregator
from mtl_plugins.rotations import RotationOptimizer, Rotations

TASKS = ["a", "b"]


class Model(nn.Module):
    """A trunk of two feature maps, rotated for a head a task."""

    def __init__(self, size: int | None = None, tasks: list[str] = TASKS) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.ModuleList([nn.Conv2d(2, 3, 1), nn.Conv2d(2, 4, 1)])
        self.both = Both(self.trunk)
        self.rotations = Rotations(tasks, [3, 4], size)
        self.heads = nn.ModuleDict({t: nn.Conv2d(7, 1, 1) for t in tasks})
        self.double()

    def forward(self, x):
        rotated = self.rotations(self.both(x))
        return {
            t: (head(torch.cat(rotated[t], 1)) - i).square().mean() * (1 + 9 * i)
            for i, (t, head) in enumerate(self.heads.items())
        }


class Both(nn.Module):
    def __init__(self, convs):
        super().__init__()
        self.convs = convs

    def forward(self, x):
        return [conv(x).tanh() for conv in self.convs]


X = torch.randn(3, 2, 4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def multitask(model: Model, **options) -> MultiTaskBackward:
    backward = MultiTaskBackward(
        model.parameters(),
        {"type": "RotoGrad", **options},
        level="feature",
        representation=model.both,
        tasks=list(model.heads),
    )
    backward.protect(model)
    return backward


def rotation(a):
    below = a.tril(-1)
    return torch.matrix_exp(below - below.T)


class Plain:
    """The rule of the paper, with nothing of ours: rotations and Adam by hand."""

    def __init__(self, model: Model, lr: float, decay: float, burn_in: int) -> None:
        self.model, self.burn_in = copy.deepcopy(model), burn_in
        self.size = model.rotations.size
        self.skew = {
            (t, i): torch.zeros(self.size or c, self.size or c).double().requires_grad_()
            for t in self.model.heads
            for i, c in enumerate((3, 4))
        }
        self.adam = torch.optim.Adam(self.skew.values(), lr=lr)
        self.schedule = torch.optim.lr_scheduler.ExponentialLR(self.adam, decay)
        self.first, self.step_number = None, 0

    def points(self, z, n):
        """Vectors that are rotated, one example (and location) after another."""
        if self.size is None:
            return z[n].flatten(1).T  # [P, C]
        return z[n].flatten()[None, : self.size]

    def turn(self, matrix, z):
        out = []
        for n in range(len(z)):
            turned = (matrix @ self.points(z, n).T).T
            if self.size is None:
                out.append(turned.T.reshape(z[n].shape))
            else:
                rest = z[n].flatten()[self.size :]
                out.append(torch.cat([turned[0], rest]).view(z[n].shape))
        return torch.stack(out)

    def step(self, x):
        z = self.model.both(x)
        rotated = {(t, i): self.turn(rotation(a).detach(), z[i]) for (t, i), a in self.skew.items()}
        losses = {
            t: (head(torch.cat([rotated[t, 0], rotated[t, 1]], 1)) - i).square().mean()
            * (1 + 9 * i)
            for i, (t, head) in enumerate(self.model.heads.items())
        }
        g = {
            t: torch.autograd.grad(loss, z, retain_graph=True, allow_unused=True)
            for t, loss in losses.items()
        }
        behind = {
            key: torch.autograd.grad(losses[key[0]], r, retain_graph=True)[0]
            for key, r in rotated.items()
        }
        norm = {t: torch.cat([x.flatten() for x in gs]).norm() for t, gs in g.items()}
        if self.first is None or self.step_number == self.burn_in:
            self.first = dict(norm)
        self.step_number += 1
        ratio = {t: n / self.first[t] for t, n in norm.items()}
        c = sum(ratio[t] / sum(ratio.values()) * norm[t] for t in norm)
        update = [sum(c * g[t][i] / norm[t] for t in g) for i in range(2)]
        v = [sum(g[t][i] / norm[t] for t in g) / len(g) for i in range(2)]
        self.adam.zero_grad()
        for (t, i), a in self.skew.items():
            for n in range(len(x)):
                r = rotation(a)
                pairs = zip(self.points(behind[t, i], n), self.points(v[i], n), strict=True)
                loss = -sum((r.T @ grad) @ towards for grad, towards in pairs)
                loss.backward()
        for t, loss in losses.items():
            params = list(self.model.heads[t].parameters())
            for p, grad in zip(
                params, torch.autograd.grad(loss, params, retain_graph=True), strict=True
            ):
                p.grad = grad
        torch.autograd.backward(z, update)
        self.adam.step()
        self.schedule.step()


@pytest.mark.parametrize("size", [None, 7])
def test_steps_are_the_paper_s(size):
    model = Model(size)
    plain = Plain(model, lr=0.05, decay=0.9, burn_in=2)
    backward = multitask(model, lr=0.05, decay=0.9, burn_in=2)
    ours, theirs = (
        torch.optim.SGD([*m.both.parameters(), *m.heads.parameters()], lr=0.1)
        for m in (model, plain.model)
    )
    for _ in range(5):
        ours.zero_grad()
        theirs.zero_grad()
        backward(model(X))
        plain.step(X)
        for p, q in zip(model.parameters(), plain.model.parameters(), strict=True):
            if p.requires_grad:
                assert_close(p.grad, q.grad)
        ours.step()
        theirs.step()
    for (t, i), a in plain.skew.items():
        assert a.abs().max() > 0.05
        assert_close(model.rotations.matrix(t, i), rotation(a).detach())


def test_rotations_bring_gradients_together():
    """Fixed gradients behind two rotations, at right angles: the gradients before align."""
    rotations = Rotations(TASKS, [4]).double()
    optimizer = RotationOptimizer(rotations, lr=0.02, decay=1.0)
    z = torch.zeros(6, 4, dtype=torch.float64)
    rotations.learned = True
    eye = torch.eye(4, dtype=torch.float64)
    behind = {"a": eye[0].expand(6, 4), "b": 3.0 * eye[1].expand(6, 4)}

    def before():
        return {t: behind[t] @ rotations.matrix(t, 0) for t in TASKS}

    def cosine():
        return torch.cosine_similarity(*(g.flatten() for g in before().values()), dim=0)

    assert cosine() == 0.0
    for _ in range(200):
        rotations([z])
        rows = {t: g.flatten() for t, g in before().items()}
        optimizer.add(rows, {t: row.norm().item() for t, row in rows.items()}, [z])
        optimizer.step()
    assert cosine() > 0.999
    for t in TASKS:
        r = rotations.matrix(t, 0)
        assert_close(r @ r.T, eye)
        assert_close(torch.det(r), torch.ones((), dtype=torch.float64))


def test_lengths():
    """Of two gradients of length 1 and 3, each gets the mean, at first."""
    jacobian = torch.tensor([[1.0, 0.0], [0.0, 3.0]])
    roto = build_aggregator({"type": "RotoGrad", "rotate": False, "burn_in": 2})
    assert_close(roto(jacobian), torch.tensor([2.0, 2.0]))
    # a has not become shorter, b to a third: alpha is 3/4 and 1/4.
    assert_close(roto(jacobian / torch.tensor([[1.0], [3.0]])), torch.tensor([1.0, 1.0]))
    assert_close(roto(torch.tensor([[2.0, 0.0], [0.0, 1.0]])), torch.tensor([1.5, 1.5]))  # burnt in
    # a: 2 -> 1, b: 1 -> 1, so that alpha is 1/3 and 2/3
    assert_close(roto(torch.tensor([[1.0, 0.0], [0.0, 1.0]])), torch.tensor([1.0, 1.0]))
    assert_close(roto(torch.tensor([[1.0, 0.0], [0.0, 4.0]])), torch.tensor([1.0, 1.0]) * 33.0 / 9)


def test_resumed_run_continues():
    """Rotations, Adam, the first lengths and the decay: all of it is in the checkpoints."""
    straight = Model()
    backward = multitask(straight, lr=0.05, decay=0.9, burn_in=1)
    optimizer = torch.optim.SGD(straight.parameters(), lr=0.1, weight_decay=0.1)
    for step in range(4):
        if step == 2:
            saved = copy.deepcopy((straight.state_dict(), backward.state_dict()))
        optimizer.zero_grad()
        backward(straight(X))
        optimizer.step()
    resumed = Model()
    resumed.load_state_dict(saved[0])
    again = multitask(resumed, lr=0.05, decay=0.9, burn_in=1)
    again.load_state_dict(saved[1])
    optimizer = torch.optim.SGD(resumed.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        again(resumed(X))
        optimizer.step()
    for p, q in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(p, q)


def test_the_optimizer_of_the_model_leaves_the_rotations_alone():
    model = Model()
    backward = multitask(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    model.rotations.skew["a"]["0"].fill_(0.3)
    backward(model(X))
    before = [p.clone() for p in model.rotations.parameters()]
    optimizer.step()
    assert all(map(torch.equal, before, model.rotations.parameters()))


def test_loss_scale_and_micro_batches():
    """Two halves with shares, scaled, move the rotations as the whole does."""
    whole, halves = Model(), Model()
    one, two = multitask(whole, lr=0.05), multitask(halves, lr=0.05)
    for _ in range(2):
        one(whole(X[:2]))
    for _ in range(2):
        two(halves(X[:2]), scale=torch.tensor(1024.0).double())
    for p, q in zip(whole.rotations.parameters(), halves.rotations.parameters(), strict=True):
        assert_close(p, q)
        assert p.abs().max() > 0
    before = [p.clone() for p in whole.rotations.parameters()]
    one(whole(X[:1]), aggregate=False, share=0.5)
    assert all(map(torch.equal, before, whole.rotations.parameters()))
    one(whole(X[1:2]), share=0.5)
    assert not any(map(torch.equal, before, whole.rotations.parameters()))


def test_features_in_half_precision():
    """Gradients that are 0 there without the loss scale turn the rotations all the same."""
    found = []
    for dtype in (torch.float64, torch.float16):
        model = Model()
        trunk = model.both
        trunk.register_forward_hook(lambda _, args, out, dtype=dtype: [z.to(dtype) for z in out])
        for head in model.heads.values():
            head.register_forward_pre_hook(lambda _, args: (args[0].double(),))
        backward = multitask(model, lr=0.05)
        scale = torch.tensor(2.0**20).double()
        losses = {task: 1e-6 * loss for task, loss in model(X).items()}
        backward(losses, scale=scale)
        found.append([p.clone() for p in model.rotations.parameters()])
    for exact, half in zip(*found, strict=True):
        assert_close(half, exact, rtol=0.01, atol=1e-4)
        assert exact.abs().max() > 0.02


def test_skipped_step_moves_no_rotation():
    model = Model()
    backward = multitask(model)
    losses = model(X)
    backward({"a": losses["a"], "b": losses["b"] * float("nan")})
    assert backward.last.nonfinite and not any(p.any() for p in model.rotations.parameters())


def test_absent_task_keeps_its_rotation():
    model = Model()
    backward = multitask(model)
    for _ in range(2):
        backward({"a": model(X)["a"]})
    skew = model.rotations.skew
    # Alone, a task's gradient is its own target: there is nothing to turn.
    assert not any(p.any() for p in skew["b"].values())


class TestRefused:
    def test_no_rotations(self):
        model = Model()
        bare = MultiTaskBackward(
            model.parameters(), "RotoGrad", level="feature", representation=model.both
        )
        with pytest.raises(ValueError, match="^aggregator: RotoGrad .* ModuleDict has none"):
            bare.protect(model.heads)
        with pytest.raises(ValueError, match="^rotations: nothing learns them"):
            model(X)

    def test_level(self):
        model = Model()
        with pytest.raises(ValueError, match="^level: RotoGrad .*use level='feature'"):
            MultiTaskBackward(model.parameters(), "RotoGrad")

    def test_another_method(self):
        model = Model()
        MultiTaskBackward(model.parameters(), "PCGrad").protect(model)
        with pytest.raises(ValueError, match="take the aggregator RotoGrad"):
            model(X)
        assert model.eval()(X).keys() == {"a", "b"}

    def test_another_representation(self):
        model = Model()
        backward = MultiTaskBackward(
            model.parameters(), "RotoGrad", level="feature", representation=model.trunk[0]
        )
        backward.protect(model)
        with pytest.raises(ValueError, match="representation: "):
            backward(model(X))

    @pytest.mark.parametrize("option", [{"lr": 0.0}, {"decay": 1.5}, {"burn_in": -1}])
    def test_option(self, option):
        with pytest.raises(ValueError, match=f"RotoGrad: {next(iter(option))} "):
            build_aggregator({"type": "RotoGrad", **option})

    def test_size(self):
        model = Model(size=61)
        multitask(model)
        with pytest.raises(ValueError, match=r"rotations.size: 61 is more than the 60 values"):
            model(X)

    def test_channels(self):
        rotations = Rotations(TASKS, [3])
        with pytest.raises(ValueError, match=r"maps of \[3\] channels, got \[2\]"):
            rotations.eval()([torch.zeros(1, 2, 4)])


def test_copies_and_pickles_after_a_step():
    """As for an average of the weights, or torch.save of a whole model."""
    model = Model()
    backward = multitask(model)
    backward(model(X))
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model.rotations))):
        found = getattr(other, "rotations", other)
        assert torch.equal(found.matrix("a", 0), model.rotations.matrix("a", 0))
    found.skew["a"]["0"].add_(1.0)  # a copy's change is seen in the copy alone
    assert not torch.equal(found.matrix("a", 0), model.rotations.matrix("a", 0))


def test_map_that_nobody_reads_is_passed_on():
    rotations = Rotations(TASKS, [None, 2]).eval()
    maps = [torch.randn(1, 5, 3), torch.randn(1, 2, 3)]
    assert rotations(maps)["a"][0] is maps[0]
    assert sum(p.numel() for p in rotations.parameters()) == 2 * 2 * 2
