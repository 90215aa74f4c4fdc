"""Pairs of methods that the papers report, each by its formulas, from the config that has it."""

import math
import runpy
from itertools import permutations, product

import pytest
import torch
from by_autograd import flat, mclgs_factors
from models import ROOT
from torch import nn
from torch.testing import assert_close

from mtl_plugins import MultiTaskBackward
from mtl_plugins.aggregation import CAGrad
from mtl_plugins.allocation import TaskAllocation

TASKS = ("a", "b", "c")
FOLDER = ROOT / "configs/_base_/mtl/as_published"


def config(name):
    return runpy.run_path(str(FOLDER / f"{name}.py"))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Linear(5, 6)
        self.heads = nn.ModuleDict({name: nn.Linear(6, 2) for name in TASKS})
        self.double()

    def losses(self, batch, tasks):
        """The loss of each task, the mean over the examples that have the task."""
        found = {}
        for i, (name, head) in enumerate(self.heads.items()):
            mine = [n for n, names in enumerate(tasks) if name in names]
            if mine:
                found[name] = (head(torch.tanh(self.trunk(batch[mine]))) - i).square().mean()
        return found

    def gradients(self, losses):
        """Of the trunk, ``[T, D]``, and of each task's own head, by ``autograd.grad``."""
        shared = list(self.trunk.parameters())
        rows, heads = [], {}
        for name, loss in losses.items():
            head = list(self.heads[name].parameters())
            grads = torch.autograd.grad(loss, shared + head, retain_graph=True)
            rows.append(flat(grads[: len(shared)], shared))
            heads[name] = flat(grads[len(shared) :], head)
        return torch.stack(rows), heads

    def found(self):
        """What ``.grad`` holds, in the same form."""
        shared = flat([p.grad for p in self.trunk.parameters()], list(self.trunk.parameters()))
        heads = {
            name: flat([p.grad for p in head.parameters()], list(head.parameters()))
            for name, head in self.heads.items()
        }
        return shared, heads


def batches(count):
    return torch.randn(count, 8, 5, generator=torch.Generator().manual_seed(1)).double().unbind()


EVERYTHING = [TASKS] * 8


def adam(history):
    """The number that Adam at 0.025 has gone to, from 0, after these gradients."""
    number = nn.Parameter(torch.zeros((), dtype=torch.float64))
    optimizer = torch.optim.Adam([number], lr=0.025)
    for gradient in history:
        number.grad = torch.tensor(gradient(number.item()), dtype=torch.float64)
        optimizer.step()
    return number.item()


def uncertainty_weights(history):
    """``½ e^{-s_t}``, with s learned from ``½ e^{-s} L + ½ s`` over the losses so far."""
    weights = {}
    for name in TASKS:
        mine = [losses[name] for losses in history if name in losses]
        slopes = [lambda s, x=x: 0.5 * (1.0 - math.exp(-s) * x) for x in mine]
        weights[name] = 0.5 * math.exp(-adam(slopes))
    return weights


def check(model, update, heads):
    shared, own = model.found()
    assert_close(shared, update, rtol=1e-5, atol=1e-7)
    for name, grad in heads.items():
        assert_close(own[name], grad, rtol=1e-5, atol=1e-7)


def test_uncertainty_and_mclgs():
    """Paper A, eq. 4, of the weighted losses, heads included."""
    cfg = config("MCLGS/uncertainty_mclgs")["optim_wrapper"]
    model, history = Model(), []
    backward = MultiTaskBackward(
        model.parameters(), cfg["aggregator"], cfg["weighting"], total_steps=10
    )
    for step, batch in enumerate(batches(5)):
        losses = model.losses(batch, EVERYTHING)
        w = uncertainty_weights(history)
        rows, heads = model.gradients({n: w[n] * loss for n, loss in losses.items()})
        alpha = mclgs_factors(rows, 40.0 - step * 40.0 / 10)
        model.zero_grad()
        backward(losses)
        check(model, alpha @ rows, {n: a * heads[n] for n, a in zip(TASKS, alpha, strict=True)})
        history.append({n: loss.item() for n, loss in losses.items()})


def test_cagrad_and_mclgs():
    """The gradients ``T α_t g_t``, and of them CAGrad's."""
    cfg = config("MCLGS/cagrad_mclgs")["optim_wrapper"]
    model = Model()
    backward = MultiTaskBackward(model.parameters(), cfg["aggregator"], total_steps=10)
    for step, batch in enumerate(batches(3)):
        losses = model.losses(batch, EVERYTHING)
        rows, heads = model.gradients(losses)
        factors = 3 * mclgs_factors(rows, 40.0 - step * 40.0 / 10)
        model.zero_grad()
        backward(losses)
        update = CAGrad(c=0.4)(factors[:, None] * rows)
        check(model, update, {n: f * heads[n] for n, f in zip(TASKS, factors, strict=True)})


def allocated(sampler, batch_count):
    """Batches in their order, with the tasks of each example."""
    turns = 3 if sampler == "ISTABatchSampler" else 1
    allocation = TaskAllocation(TASKS, 1, gap=1, seed=0)
    for number, batch in enumerate(batches(batch_count)):
        for turn in range(turns):
            yield batch, [allocation.tasks_of(i, number, turn) for i in range(len(batch))]


@pytest.mark.parametrize("policy", ["sta", "ista"])
@pytest.mark.parametrize("name", ["uncertainty", "gradnorm", "pcgrad"])
def test_with_task_allocation(name, policy):
    """Each method sees the losses of the examples that a task got, and no others."""
    cfg = config(f"STA/{name}_{policy}")
    wrapper = cfg["optim_wrapper"]
    sampler = cfg["train_dataloader"]["batch_sampler"]
    assert sampler == {"type": f"{policy.upper()}BatchSampler", "tasks_per_sample": 1}
    aggregator = wrapper.get("aggregator", "Sum")
    if name == "pcgrad":
        aggregator = aggregator | {"seed": 0}
    model = Model()
    backward = MultiTaskBackward(
        model.parameters(), aggregator, wrapper.get("weighting"), tasks=TASKS
    )
    history, seen = [], []
    weights = dict.fromkeys(TASKS, 1.0)
    for batch, tasks in allocated(sampler["type"], 4):
        losses = model.losses(batch, tasks)
        seen.append(tasks)
        rows, heads = model.gradients(losses)
        if name == "uncertainty":
            weights = uncertainty_weights(history)
        if name == "gradnorm":
            weights = dict(backward.weighting.weights(TASKS))
            assert sum(weights.values()) == pytest.approx(3.0)
        factors = torch.tensor([weights[n] for n in losses], dtype=torch.float64)
        update = projected(rows) if name == "pcgrad" else factors @ rows
        model.zero_grad()
        backward(losses)
        if name == "pcgrad":
            # One of the updates that some order of the tasks gives.
            shared, _ = model.found()
            assert any(torch.allclose(shared, one, rtol=1e-5, atol=1e-7) for one in update)
            update = shared
        check(model, update, {n: weights[n] * heads[n] for n in losses})
        history.append({n: loss.item() for n, loss in losses.items()})
    if policy == "ista":  # three turns give each example all tasks
        for turns in zip(seen[::3], seen[1::3], seen[2::3], strict=True):
            for example in zip(*turns, strict=True):
                assert sorted(name for names in example for name in names) == list(TASKS)
    if name == "gradnorm":
        assert backward.weighting.weights(TASKS) != dict.fromkeys(TASKS, 1.0)


def projected(rows):
    """Paper PCGrad, algorithm 1, for every combination of orders."""
    count = len(rows)
    orders = [list(permutations([j for j in range(count) if j != i])) for i in range(count)]
    for choice in product(*orders):
        total = torch.zeros_like(rows[0])
        for i, others in enumerate(choice):
            v = rows[i].clone()
            for j in others:
                v = v - min((v @ rows[j]).item(), 0.0) / (rows[j] @ rows[j]) * rows[j]
            total += v
        yield total
