"""A step of a method on the device, beside autograd there and the aggregation on the CPU."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from gpu_check.detector import Detector
from mtl_plugins import MultiTaskBackward
from mtl_plugins.aggregation import AGGREGATORS, GramianAggregator, build_aggregator
from mtl_plugins.draws import RandomMethod
from mtl_plugins.gradients import combine, gramian_of
from mtl_plugins.options import Options

LEVELS: dict[str, dict[str, Any]] = {
    "parameter": {},
    "feature": {"level": "feature"},
    "layers": {"level": "layers"},
    "low memory": {"low_memory": True},
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SCALE = 1024.0  # loss scale in fp16
# Largest distance from the result on the CPU, over its length. Passes that add up in another order
# each time (atomics) are in it, which half precision rounds coarsely.
TOLERANCE = {"fp32": 1e-3, "bf16": 2e-2, "fp16": 2e-2}
# These fetch more than the Gramian.
TWO_WAITS = {"ExcessMTL", "GCond", "GradVacByParameter", "MoCo"}
NEEDED = {"MCLGS": {"total_steps": 100}, "RotoGrad": {"rotate": False}}


def names() -> list[str]:
    """Return the methods that take one step for all tasks and need no special model."""
    return [
        name
        for name, cls in AGGREGATORS.items()
        if not (cls.takes_turns or cls.looks_ahead or name == "TorchJD")
    ]


def config(name: str) -> dict[str, Any]:
    """Return the config of a method, with the same draws each time."""
    seed = {"seed": 3} if issubclass(AGGREGATORS[name], RandomMethod) else {}
    return {"type": name} | NEEDED.get(name, {}) | seed


def make(detector: Detector, model: nn.Module, name: str, level: str) -> MultiTaskBackward:
    """Build the step of a method."""
    key = {"feature": "representation", "layers": "layers"}.get(level)
    path = {"feature": detector.features, "layers": detector.layers}.get(level, "")
    at = {} if key is None else {key: model.get_submodule(path)}
    return MultiTaskBackward(model.parameters(), config(name), **LEVELS[level], **at)


def fits(name: str, level: str) -> bool:
    """Tell whether a method goes with a level."""
    module = nn.Identity()
    at = LEVELS[level].get("level")
    try:
        Options(**LEVELS[level]).check(
            build_aggregator(config(name)),
            module if at == "feature" else None,
            module if at == "layers" else None,
        )
    except ValueError:
        return False
    return True


class Oracle:
    """Gradients of each task by ``torch.autograd.grad``, in one precision.

    Args:
        detector: Detector to take them of.
        precision: Key of :data:`DTYPES`.

    Attributes:
        shared: Names of the parameters that several tasks reach.
    """

    def __init__(self, detector: Detector, precision: str) -> None:
        self.scale = SCALE if precision == "fp16" else 1.0
        self._precision = precision
        model = copy.deepcopy(detector.model)
        losses = detector.losses(model, DTYPES[precision])
        self._losses = torch.stack([loss.detach() for loss in losses.values()]).cpu()
        params = {name: p for name, p in model.named_parameters() if p.requires_grad}
        grads = self._grads(losses, list(params.values()))
        reached = [sum(g[i] is not None for g in grads) for i in range(len(params))]
        self.shared = [n for n, count in zip(params, reached, strict=True) if count > 1]
        self._params = [params[name] for name in self.shared]
        chosen = [i for i, count in enumerate(reached) if count > 1]
        self._rows = self._flat(grads, chosen, self._params)
        mine = {id(p) for p in model.get_submodule(detector.layers).parameters()}
        inside = [i for i, p in zip(chosen, self._params, strict=True) if id(p) in mine]
        self._at_layers = self._flat(grads, inside, [p for p in self._params if id(p) in mine])
        # Once more, with the graph cut: one map may be made from another.
        self._outputs: list[Tensor] = []
        self._features: list[Tensor] = []
        model.get_submodule(detector.features).register_forward_hook(self._cut)
        losses = detector.losses(model, DTYPES[precision])
        self._at_features = self._flat(
            self._grads(losses, self._features), range(len(self._features)), self._features
        )

    def _cut(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        def leaf(z: Tensor) -> Tensor:
            self._outputs.append(z)
            self._features.append(z.detach().requires_grad_())
            return self._features[-1]

        return tree_map_only(Tensor, leaf, output)

    def _grads(self, losses: Mapping[str, Tensor], tensors: Sequence[Tensor]) -> Any:
        return [
            torch.autograd.grad(loss * self.scale, tensors, retain_graph=True, allow_unused=True)
            for loss in losses.values()
        ]

    def _flat(self, grads: Any, indices: Any, like: list[Tensor]) -> Tensor:
        rows = [
            torch.cat(
                [
                    (torch.zeros_like(x) if g[i] is None else g[i]).float().flatten()
                    for i, x in zip(indices, like, strict=True)
                ]
            )
            for g in grads
        ]
        return torch.stack(rows).div_(self.scale).cpu()

    def expected(self, name: str, level: str) -> Tensor:
        """Return the gradient ``[D]`` of what is shared, aggregated on the CPU."""
        method = build_aggregator(config(name))
        decide = {"feature": self._at_features, "layers": self._at_layers}.get(level, self._rows)
        if name == "GradDrop":  # each device has draws of its own
            decide = decide.to(self._params[0].device)
        if isinstance(method, GramianAggregator):
            weights = method.weights(gramian_of(decide), losses=self._losses)
            if level != "feature":
                return combine(weights, self._rows)
            return self._through_the_trunk(combine(weights, decide))
        if level == "feature":
            features = [z.detach().to(decide.device) for z in self._features]
            return self._through_the_trunk(method.on_features(decide, features))
        params = [p.detach().to(decide.device) for p in self._params]
        return method.on_parameters(decide, params, losses=self._losses).cpu()

    def _through_the_trunk(self, update: Tensor) -> Tensor:
        parts = (update * self.scale).split([z.numel() for z in self._features])
        grads = torch.autograd.grad(
            self._outputs,
            self._params,
            [g.to(z).view_as(z) for g, z in zip(parts, self._features, strict=True)],
            retain_graph=True,
            allow_unused=True,
        )
        return self._flat([grads], range(len(grads)), self._params)[0]


@dataclass
class Row:
    """One line of the table.

    Attributes:
        error: Distance from the result on the CPU, over its length.
        waits: Times that the second step waited for the device beyond what one backward pass of
            each task does; None where this cannot be counted.
    """

    error: float
    waits: int | None


@contextmanager
def counted(device: str) -> Iterator[list[str]]:
    """Give the list of the waits for a CUDA device; of another one it stays empty."""
    found: list[str] = []
    if torch.device(device).type != "cuda":
        yield found
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode("default")
            found += [
                f"{w.filename}:{w.lineno}" for w in caught if "synchronizing" in str(w.message)
            ]


@cache
def plain_waits(detector: Detector, precision: str, level: str, device: str) -> int:
    """Count the waits of one backward pass a task, by autograd alone.

    At the feature level, of the heads' passes and one of the trunk.
    """
    model = copy.deepcopy(detector.model)
    losses = list(detector.losses(model, DTYPES[precision]).values())
    with counted(device) as found:
        if level == "feature":
            torch.stack(losses).sum().backward()
        else:
            for loss in losses:
                loss.backward(retain_graph=True)
    return len(found)


def take(
    detector: Detector, oracle: Oracle, name: str, level: str, precision: str, device: str
) -> Row:
    """Take two steps of a method; the first is compared, the waits of the second are counted."""
    model = copy.deepcopy(detector.model)
    backward = make(detector, model, name, level)
    scale = None if precision != "fp16" else torch.tensor(SCALE, device=device)
    backward(detector.losses(model, DTYPES[precision]), scale=scale)
    params = dict(model.named_parameters())
    grads = [params[n].grad for n in oracle.shared]
    pairs = zip(grads, oracle.shared, strict=True)
    got = torch.cat([(torch.zeros_like(params[n]) if g is None else g).flatten() for g, n in pairs])
    got = got.float().cpu() / oracle.scale
    if name in ("Sum", "Mean"):
        want = oracle.expected(name, "parameter")
    else:
        want = oracle.expected(name, level)
    error = float((got - want).norm() / want.norm())
    model.zero_grad()
    losses = detector.losses(model, DTYPES[precision])
    with counted(device) as found:
        backward(losses, scale=scale)
    known = plain_waits(detector, precision, level, device)
    return Row(error, len(found) - known if torch.device(device).type == "cuda" else None)


def wanted_waits(name: str) -> int:
    """Return how often a step may wait."""
    return 0 if name in ("Sum", "Mean") else 1 + (name in TWO_WAITS)
