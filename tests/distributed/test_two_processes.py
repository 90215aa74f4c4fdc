"""The core in two real processes over gloo, against one process with the whole batch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from unittest import mock

import pytest
import torch
from models import FEATURE_METHODS, ORDINARY, RANDOM, Trunk, method
from torch import Tensor, distributed, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.nn.functional import all_reduce
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint
from two_processes import results_of_two, work

from mtl_plugins import MultiTaskBackward
from mtl_plugins.aggregation import AGGREGATORS
from mtl_plugins.monitors import feature_disentanglement

STEPS = 5
DRAWING = [name for name in RANDOM if name in ORDINARY]
TAKE_GRADIENTS = [name for name in ORDINARY if AGGREGATORS[name].needs_gradients]
# Options that take the weights from the Gramian averaged over the ranks.
ESTIMATES = {
    "gramian": dict(sync="gramian"),
    "low memory": dict(sync="gramian", low_memory=True),
    "sketch": dict(sync="gramian", gramian="sketch"),
}
# Sketches that are averaged over the ranks: few enough rows for all layers of the trunk.
SKETCHES = dict(sync="sketch", gramian="sketch", sketch_rows=4)
# Options with which reentrant checkpointing goes.
DETOURS = {"detours": {}, "detours, reused weights": dict(weights_every=2)}


def whole_batch() -> Tensor:
    return torch.randn(8, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def new_trunk() -> Trunk:
    torch.manual_seed(0)
    return Trunk().double()


def losses_of(model: Trunk, batch: Tensor, names: str = "abc") -> dict[str, Tensor]:
    return {name: loss for name, loss in model(batch).items() if name in names}


def losses_of_found(model: Trunk, batch: Tensor, count: int) -> dict[str, Tensor]:
    """Two losses of the objects that were found, of which there may be none, and one of all."""
    z = model.trunk(batch)
    both = torch.tanh(model.heads_ab(z[:count]))
    return {
        "a": model.heads["a"](both).square().sum(),
        "b": model.heads["b"](both).exp().sum(),
        "c": model.heads["c"](z).sin().mean(),
    }


# At the feature level GradDrop decides by the examples of the rank.
CASES = [(name, "parameter") for name in ORDINARY]
CASES += [(name, "feature") for name in ["Sum", "Mean", *FEATURE_METHODS] if name != "GradDrop"]
CASES += [(name, "layers") for name in ("PCGrad", "NashMTL", "MCLGS")]
WEIGHTING_OPTIONS: dict[str, dict[str, Any]] = {
    "Uncertainty": {},
    "GradNorm": {},
    "IMTLL": {},
    "DWA": {"window": 1},
    "RLW": {"seed": 3},
    "FAMO": {"min_losses": -2.0},
    "GLS": {"min_losses": -2.0},
    "Log": {"min_losses": -2.0},
    "STCH": {"mu": 0.5},
    "SLAW": {},
    "DTP": {},
    "Achievement": {"potential": dict.fromkeys("abcd", 0.9), "min_losses": -2.0},
}
WEIGHTED = [
    (name, aggregator, level)
    for name in WEIGHTING_OPTIONS
    for aggregator, level in (("Sum", "parameter"), ("CAGrad", "parameter"), ("MGDA", "feature"))
]


def train(name: str, level: str, batch: Tensor, **options: Any) -> dict[str, Any]:
    """Trains on one batch; what it returns is comparable across numbers of ranks."""
    model = new_trunk()
    representation = model.trunk if level == "feature" else None
    layers = model.trunk[2] if level == "layers" else None
    backward = MultiTaskBackward(
        model.parameters(),
        method(name),
        level=level,
        representation=representation,
        layers=layers,
        tasks="abcd",
        **options,
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    steps = []
    for _ in range(STEPS):
        backward.monitor = not AGGREGATORS[name].needs_gradients
        backward(losses_of(model, batch))  # d is absent everywhere
        optimizer.step()
        optimizer.zero_grad()
        if backward.weighting is not None and backward.weighting.needs_new_losses:
            with torch.no_grad():
                backward.after_step(losses_of(model, batch))
        step = backward.last
        if backward.weighting is not None and backward.weighting.needs_indicators:
            named = zip(step.tasks, step.losses.tolist(), strict=True)
            backward.tell({task: 1.0 / (1.0 + abs(loss)) for task, loss in named})
        assert step.tasks == ("a", "b", "c")
        steps.append((step.losses, step.weights, step.gramian))
    return {"steps": steps, "parameters": [p.detach() for p in model.parameters()]}


def grads_with(model: Trunk, losses: Mapping[str, Tensor], **options: Any) -> dict[str, Any]:
    """One step of MGDA."""
    backward = MultiTaskBackward(model.parameters(), "MGDA", tasks="abcd", **options)
    backward(losses)
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    return {"grads": grads, "last": backward.last, "unused": model.unused.weight.grad}


class SyncedNorm(nn.Module):
    """Batch norm over all ranks. PyTorch's own refuses to run without a GPU."""

    def forward(self, x: Tensor) -> Tensor:
        sums = torch.cat([x.sum(dim=0), x.square().sum(dim=0), x.new_tensor([len(x)])])
        if distributed.is_initialized():
            sums = all_reduce(sums)  # and its backward pass is another all-reduce
        mean, square = (sums[:-1] / sums[-1]).chunk(2)
        return (x - mean) / (square - mean.square() + 1e-5).sqrt()


def trunk_with_synced_norm() -> Trunk:
    model = new_trunk()
    model.trunk.insert(1, SyncedNorm())
    return model


class Detour(nn.Module):
    """A step may take a detour, and checkpointing of the whole hides the parameters."""

    def __init__(self, hidden: bool) -> None:
        super().__init__()
        self.model, self.hidden, self.detours = new_trunk(), hidden, False

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = x.clone().requires_grad_()
        losses = checkpoint(self.losses, x, use_reentrant=True) if self.hidden else self.losses(x)
        return dict(zip("abc", losses, strict=True))

    def losses(self, x: Tensor) -> tuple[Tensor, ...]:
        z = self.model.trunk(x)
        if self.detours:
            z = torch.cat([self.model.unused(z[:, :3]), z[:, 3:]], dim=1)
        losses = self.model.losses(z)
        return tuple(losses[name] for name in "abc")


def detours(
    model: Detour, losses_of: Callable[[Detour, bool], dict[str, Tensor]], options: dict[str, Any]
) -> list[list[Tensor | None]]:
    """Gradients of two steps, of which the second takes a detour."""
    backward = MultiTaskBackward(model.parameters(), "MGDA", tasks="abc", **options)
    found = []
    for second in (False, True):
        model.zero_grad()
        backward(losses_of(model, second))
        found.append([p.grad for p in model.parameters()])
    return found


class Wide(nn.Module):
    """Large enough for the parameters to outweigh the rest of what is sent."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(40, 100), nn.Tanh(), nn.Linear(100, 100))
        self.heads = nn.ModuleDict({name: nn.Linear(100, 20) for name in "abc"})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        z = self.trunk(x)
        return {name: head(z).square().mean() for name, head in self.heads.items()}


@contextlib.contextmanager
def counted() -> Iterator[list[int]]:
    """Bytes that this rank hands to a collective of :mod:`torch.distributed`."""
    sent: list[int] = []
    with contextlib.ExitStack() as stack:
        for name, argument in (("all_reduce", 0), ("all_gather", 1), ("broadcast", 0)):
            real = getattr(distributed, name)

            def spy(*args: Any, real=real, argument=argument, **kwargs: Any) -> Any:
                sent.append(args[argument].nbytes)
                return real(*args, **kwargs)

            stack.enter_context(mock.patch.object(distributed, name, spy))
        yield sent


def bytes_of_a_step(name: str, **options: Any) -> int:
    """Of the second one, behind PyTorch's wrapper, whose own traffic counts as well."""
    torch.manual_seed(0)
    model = DistributedDataParallel(Wide())
    backward = MultiTaskBackward(model.parameters(), name, tasks="abc", **options)
    for step in range(2):
        with model.no_sync() if backward.synchronizes() else contextlib.nullcontext():
            losses = model(torch.ones(4, 40))
        if step == 0:
            backward(losses)
            model.register_comm_hook(None, allreduce_hook)  # in Python, where it can be counted
            model.zero_grad()
            continue
        with counted() as sent:
            backward(losses)
    return sum(sent)


def find(rank: int) -> dict[str, Any]:
    half = whole_batch().chunk(2)[rank]
    found: dict[str, Any] = {f"{name}, {level}": train(name, level, half) for name, level in CASES}
    for name, aggregator, level in WEIGHTED:
        weighting = {"type": name, **WEIGHTING_OPTIONS[name]}
        found[f"{name}, {aggregator}, {level}"] = train(
            aggregator, level, half, weighting=weighting
        )
    found["sketches"] = train("MGDA", "parameter", half, **SKETCHES)
    with pytest.raises(ValueError, match="gramian: with 'sketch' .* sync='sketch'"):
        train("MGDA", "parameter", half, gramian="sketch")
    model = new_trunk()
    found["sketches, absent"] = grads_with(
        model, losses_of(model, half, "abd" if rank == 1 else "abcd"), **SKETCHES
    )
    for title, options in {"": {}, ", sketches": SKETCHES}.items():
        model = new_trunk()
        losses = losses_of_found(model, half, 0 if rank == 1 else 3)
        found[f"found nothing on rank 1{title}"] = grads_with(model, losses, **options)
    sharded = nn.Linear(4, 2)
    fully_shard(sharded, mesh=init_device_mesh("cpu", (2,)))
    backward = MultiTaskBackward(sharded.parameters(), "MGDA", tasks="ab")
    output = sharded(torch.ones(3, 4))
    with pytest.raises(ValueError, match="params: 2 parameters are sharded over the ranks"):
        backward({"a": output.sum(), "b": output.square().sum()})
    model = new_trunk()
    found["CosReg, nothing on rank 1"] = grads_with(
        model, losses_of(model, half) if rank == 0 else {}, regularizer="CosReg"
    )
    model = new_trunk()
    backward = MultiTaskBackward(model.parameters(), tasks="abcd")
    backward.watch(model.trunk)
    backward.monitor_features = True
    backward(losses_of(model, half) if rank == 0 else (model(half), {})[1])
    found["FD, nothing on rank 1"] = backward.last.disentanglement
    model = new_trunk()
    found["CosReg"] = grads_with(model, losses_of(model, half, "abc"), regularizer="CosReg")
    # Rank 1 has no task c: what it owns alone must be averaged all the same, and nobody waits.
    names = "abd" if rank == 1 else "abcd"
    model = new_trunk()
    found["absent"] = grads_with(model, losses_of(model, half, names))
    model = trunk_with_synced_norm()
    found["synced norm"] = grads_with(model, losses_of(model, half, names))
    for title, options in {"": {}, ", low memory": dict(sync="gramian", low_memory=True)}.items():
        model = new_trunk()
        losses = losses_of(model, half) if rank == 0 else {}
        found[f"nothing on rank 1{title}"] = grads_with(model, losses, **options)
    for title, options in ESTIMATES.items():
        model = new_trunk()
        found[title] = grads_with(model, losses_of(model, half, names), **options)
        # heads_ab is shared on rank 0 and task a's alone on rank 1
        model = new_trunk()
        less = losses_of(model, half, "acd" if rank == 1 else "abcd")
        found[f"{title}, shared elsewhere"] = grads_with(model, less, **options)
    model = new_trunk()
    less = losses_of(model, half, "acd" if rank == 1 else "abcd")
    found["shared elsewhere"] = grads_with(model, less)

    for name in ("Sum", "MGDA"):
        model = new_trunk()
        losses = losses_of(model, half)
        losses["b"] = losses["b"] * (torch.nan if rank == 1 else 1.0)
        backward = MultiTaskBackward(model.parameters(), name, tasks="abcd")
        backward(losses)
        found[f"NaN, {name}"] = backward.last.nonfinite, [p.grad for p in model.parameters()]

    for name in DRAWING:
        model = new_trunk()
        torch.manual_seed(rank)  # as MMEngine's diff_rank_seed does
        cfg = {key: value for key, value in method(name).items() if key != "seed"}
        backward = MultiTaskBackward(model.parameters(), cfg, tasks="abcd")
        found[f"draws of {name}"] = []
        for _ in range(STEPS):
            backward(losses_of(model, half))
            found[f"draws of {name}"].append(model.trunk[0].weight.grad.clone())

    def losses_here(model: Detour, second: bool) -> dict[str, Tensor]:
        model.detours = second and rank == 1
        return model(half)

    for title, options in DETOURS.items():
        found[title] = detours(Detour(hidden=True), losses_here, options)

    found["bytes"] = {
        "Sum": bytes_of_a_step("Sum"),
        "exact": bytes_of_a_step("PCGrad"),
        "gramian": bytes_of_a_step("PCGrad", sync="gramian"),
        "low memory": bytes_of_a_step("PCGrad", sync="gramian", low_memory=True),
        "sketches": bytes_of_a_step("PCGrad", **SKETCHES),
        "reused": bytes_of_a_step("PCGrad", weights_every=2),
    }
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What the two ranks found."""
    return results_of_two(__file__, tmp_path_factory.mktemp("two") / "results")


def check_same_training(key: str, expected: dict[str, Any], found: list[dict[str, Any]]) -> None:
    for rank in range(2):
        actual = found[rank][key]
        for got, want in zip(actual["steps"], expected["steps"], strict=True):
            for g, w in zip(got, want, strict=True):
                assert_close(g, w, rtol=1e-5, atol=1e-6)
        assert_close(actual["parameters"], expected["parameters"])


@pytest.mark.parametrize("name, level", CASES)
def test_two_halves_are_the_whole(name, level, found):
    check_same_training(f"{name}, {level}", train(name, level, whole_batch()), found)


def test_sketches_of_two_halves_are_those_of_the_whole(found):
    """Linear as they are; every rank draws the same random rows, new ones in every step."""
    expected = train("MGDA", "parameter", whole_batch(), **SKETCHES)
    check_same_training("sketches", expected, found)
    exact = train("MGDA", "parameter", whole_batch())
    for (*_, sketched), (*_, gramian) in zip(expected["steps"], exact["steps"], strict=True):
        assert not torch.allclose(sketched, gramian, rtol=1e-3)


@pytest.mark.parametrize("name, aggregator, level", WEIGHTED)
def test_weightings_see_the_whole_batch(name, aggregator, level, found):
    weighting = {"type": name, **WEIGHTING_OPTIONS[name]}
    expected = train(aggregator, level, whole_batch(), weighting=weighting)
    check_same_training(f"{name}, {aggregator}, {level}", expected, found)


def test_regulariser_is_the_mean_of_the_ranks(found):
    """As in one process that accumulates the two halves."""
    model = new_trunk()
    backward = MultiTaskBackward(model.parameters(), "MGDA", regularizer="CosReg", tasks="abcd")
    for half, last in zip(whole_batch().chunk(2), (False, True), strict=True):
        losses = losses_of(model, half, "abc")
        backward(losses, aggregate=last, share=0.5)
    expected = [p.grad for p in model.parameters() if p.grad is not None]
    for rank in range(2):
        grads = [g for g in found[rank]["CosReg"]["grads"] if g.any()]
        assert_close(grads, expected)
        assert_close(found[rank]["CosReg"]["last"].penalty, backward.last.penalty)
        assert found[rank]["CosReg"]["unused"] is None
        assert found[rank]["CosReg, nothing on rank 1"]["last"].penalty > 0.0


def test_disentanglement_where_a_rank_has_no_loss(found):
    model = new_trunk()
    z = model.trunk(whole_batch().chunk(2)[0])
    losses = model.losses(z)
    rows = [torch.autograd.grad(losses[k], z, retain_graph=True)[0] for k in "abc"]
    expected = feature_disentanglement(torch.stack(rows))
    for rank in range(2):
        assert_close(found[rank]["FD, nothing on rank 1"], expected.float())


def halves(model: Trunk, on_rank_1: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    first, second = whole_batch().chunk(2)
    return losses_of(model, first, "abcd"), losses_of(model, second, on_rank_1)


def mean_of(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Over the ranks: the one that lacks a task takes part with zero."""
    return {k: (first.get(k, 0.0) + second.get(k, 0.0)) / 2 for k in "abcd"}


@pytest.mark.parametrize(("case", "on_rank_1"), [("absent", "abd"), ("shared elsewhere", "acd")])
def test_absent_on_one_rank(case, on_rank_1, found):
    model = new_trunk()
    expected = grads_with(model, mean_of(*halves(model, on_rank_1)))
    for rank in range(2):
        assert_close(found[rank][case]["grads"], expected["grads"])
        assert found[rank][case]["unused"] is None


def test_sketches_where_a_rank_finds_nothing(found):
    """A layer that is run on nothing has no mean input, and makes no task's sketch NaN."""
    for rank in range(2):
        exact = found[rank]["found nothing on rank 1"]
        sketched = found[rank]["found nothing on rank 1, sketches"]
        assert sketched["last"].nonfinite == ()
        # Every rank has the same; the lengths are estimates.
        assert_close(
            sketched["last"].gramian, found[0]["found nothing on rank 1, sketches"]["last"].gramian
        )
        lengths = [step["last"].gramian.diagonal().sqrt() for step in (sketched, exact)]
        assert_close(*lengths, rtol=0.5, atol=0.0)


def test_sketches_where_a_rank_lacks_a_task(found):
    model = new_trunk()
    expected = grads_with(model, mean_of(*halves(model, "abd")), **SKETCHES)
    for rank in range(2):
        assert_close(found[rank]["sketches, absent"]["last"].gramian, expected["last"].gramian)
        assert_close(found[rank]["sketches, absent"]["grads"], expected["grads"])


@pytest.mark.parametrize("title", DETOURS)
def test_hidden_parameters_that_only_one_rank_reaches(title, found):
    """And that no rank reaches in the first step: there is no gradient then."""

    def mean(model: Detour, second: bool) -> dict[str, Tensor]:
        found = []
        for rank, half in enumerate(whole_batch().chunk(2)):
            model.detours = second and rank == 1
            found.append(model(half))
        return mean_of(*found)

    expected = detours(Detour(hidden=False), mean, DETOURS[title])
    assert [grad is None for grad in expected[0]] != [grad is None for grad in expected[1]]
    for rank in range(2):
        for here, there in zip(found[rank][title], expected, strict=True):
            assert [grad is None for grad in here] == [grad is None for grad in there]
            assert_close(
                [grad for grad in here if grad is not None],
                [grad for grad in there if grad is not None],
            )


@pytest.mark.parametrize("title", ["", ", low memory"])
def test_no_task_on_one_rank(title, found):
    """The shortest vector is the same by the Gramian of one rank as by that of both."""
    model = new_trunk()
    first = losses_of(model, whole_batch().chunk(2)[0])
    expected = grads_with(model, {k: loss / 2 for k, loss in first.items()})
    for rank in range(2):
        assert_close(found[rank][f"nothing on rank 1{title}"]["grads"], expected["grads"])


def test_synchronised_batch_norm_with_a_task_absent_on_one_rank(found):
    """The normalisation is that of the whole batch, and no rank waits for another."""
    model = trunk_with_synced_norm()
    first, second = (model.losses(z) for z in model.trunk(whole_batch()).chunk(2))
    del second["c"]
    expected = grads_with(model, mean_of(first, second))
    for rank in range(2):
        assert_close(found[rank]["synced norm"]["grads"], expected["grads"])


def grads_of(loss: Tensor | None, params: list[Tensor]) -> list[Tensor]:
    """Zeros where the loss does not reach, or is none."""
    if loss is None:
        return [torch.zeros_like(p) for p in params]
    grads = torch.autograd.grad(loss, params, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(params, grads, strict=True)]


@pytest.mark.parametrize("case", ESTIMATES)
@pytest.mark.parametrize(("suffix", "on_rank_1"), [("", "abd"), (", shared elsewhere", "acd")])
def test_weights_of_the_averaged_gramian(case, suffix, on_rank_1, found):
    """The mean of the ranks' Gramians decides; the weights apply to the mean gradients."""
    model = new_trunk()
    shared = [*model.trunk.parameters(), *model.heads_ab.parameters()]
    ranks = halves(model, on_rank_1)
    gramians = []
    for losses in ranks:
        rows = [grads_of(losses.get(k), shared) for k in "abc"]
        jacobian = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])
        gramians.append(jacobian @ jacobian.T)
    gramian = (gramians[0] + gramians[1]) / 2
    weights = AGGREGATORS["MGDA"]().weights(gramian)
    mean = mean_of(*ranks)
    total = sum(w * mean[k] for w, k in zip(weights.tolist(), "abc", strict=True))
    wanted = dict(zip(shared, torch.autograd.grad(total, shared, retain_graph=True), strict=True))
    alone = [*model.heads.parameters()]
    wanted |= zip(alone, torch.autograd.grad(sum(mean.values()), alone), strict=True)
    expected = [wanted[p] for p in model.parameters() if p in wanted]
    for rank in range(2):
        actual = found[rank][case + suffix]
        assert_close(actual["last"].gramian[:3, :3], gramian)
        assert_close(actual["last"].weights[:3], weights)
        assert_close(actual["grads"], expected)


@pytest.mark.parametrize("name", ["Sum", "MGDA"])
def test_not_finite_on_one_rank(name, found):
    """All ranks skip the step together, and know the task."""
    for rank in range(2):
        nonfinite, grads = found[rank][f"NaN, {name}"]
        assert nonfinite == ("b",)
        assert grads == [None] * len(grads)


@pytest.mark.parametrize("name", DRAWING)
def test_same_draws_on_all_ranks(name, found):
    """Whatever their seeds are."""
    first, second = (ranks[f"draws of {name}"] for ranks in found)
    assert_close(first, second, rtol=0, atol=0)


def test_bytes(found):
    """``T · D_shared + D_rest`` is what exact averages cost, ``D + T²`` what the estimate does."""
    model = Wide()
    tasks = len(model.heads)
    shared = sum(p.nbytes for p in model.trunk.parameters())
    rest = sum(p.nbytes for p in model.heads.parameters())
    sent = found[0]["bytes"]
    assert sent["exact"] == pytest.approx(tasks * shared + rest, rel=0.01)
    estimate = shared + rest + 4 * tasks**2
    assert sent["gramian"] == pytest.approx(estimate, rel=0.01)
    assert sent["low memory"] == pytest.approx(estimate, rel=0.01)
    biases = sum(p.nbytes for p in model.trunk.parameters() if p.ndim == 1)
    first = model.trunk[0].weight.nbytes  # exact
    sketches = tasks * (4 * SKETCHES["sketch_rows"] * 100 + first + biases) + 4 * 100
    assert sent["sketches"] == pytest.approx(shared + rest + sketches, rel=0.01)
    assert sent["reused"] == pytest.approx(shared + rest, rel=0.01)
    assert sent["Sum"] == pytest.approx(shared + rest, rel=0.01)


if __name__ == "__main__":
    work(find)
