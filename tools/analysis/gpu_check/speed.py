"""Time and memory of a step beside the plain sum, LibMTL's loop and TorchJD."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from importlib.util import find_spec

import torch
from timing import MIB, highest
from torch import nn

from gpu_check.detector import Detector
from gpu_check.methods import make
from mtl_plugins.aggregation import build_aggregator
from mtl_plugins.gradients import gramian_of

Step = Callable[[], None]
OURS = {
    "Sum": ("Sum", "parameter"),
    "PCGrad, parameter": ("PCGrad", "parameter"),
    "PCGrad, low memory": ("PCGrad", "low memory"),
    "PCGrad, layers": ("PCGrad", "layers"),
    "PCGrad, feature": ("PCGrad", "feature"),
}


def shared_of(model: nn.Module, detector: Detector) -> list[nn.Parameter]:
    """Return what the tasks share for certain: the trunk's parameters."""
    return [p for n, p in model.named_parameters() if n.startswith(("backbone.", "neck."))]


def steps(detector: Detector) -> dict[str, tuple[nn.Module, Step]]:
    """Make a forward and backward pass of each way, with a model of its own."""
    made: dict[str, tuple[nn.Module, Step]] = {}

    def add(name: str, make_step: Callable[[nn.Module], Step]) -> None:
        model = copy.deepcopy(detector.model)
        made[name] = model, make_step(model)

    add("plain sum", lambda m: lambda: sum(detector.losses(m).values()).backward())
    for name, (method, level) in OURS.items():

        def ours(model: nn.Module, method: str = method, level: str = level) -> Step:
            backward = make(detector, model, method, level)
            return lambda: backward(detector.losses(model))

        add(name, ours)
    add("loop as in LibMTL", lambda m: loop(detector, m))
    if find_spec("torchjd"):
        add("TorchJD", lambda m: their_step(detector, m))
    return made


def loop(detector: Detector, model: nn.Module) -> Step:
    """Make a step of one ``backward()`` a task, copied from ``.grad`` into a matrix."""
    shared = shared_of(model, detector)
    weigh = build_aggregator("PCGrad")
    sizes = [p.numel() for p in shared]

    def step() -> None:
        losses = list(detector.losses(model).values())
        rows = shared[0].new_zeros(len(losses), sum(sizes))
        for t, loss in enumerate(losses):
            for p in shared:
                p.grad = None
            loss.backward(retain_graph=t + 1 < len(losses))
            rows[t] = torch.cat(
                [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in shared]
            )
        update = weigh.weights(gramian_of(rows)).to(rows) @ rows
        for p, grad in zip(shared, update.split(sizes), strict=True):
            p.grad = grad.view_as(p)

    return step


def their_step(detector: Detector, model: nn.Module) -> Step:
    """Make a step of TorchJD."""
    from torchjd.aggregation import PCGrad
    from torchjd.autojac import backward, jac_to_grad

    shared, weigh = shared_of(model, detector), PCGrad()

    def step() -> None:
        losses = list(detector.losses(model).values())
        backward(losses, inputs=shared, parallel_chunk_size=1)
        jac_to_grad(shared, weigh)

    return step


def measure(detector: Detector, device: str, until: float) -> dict[str, tuple[float, float | None]]:
    """Measure each way in turn, over and over until a time.

    Args:
        detector: The detector.
        device: Device to measure on.
        until: Time of :func:`time.perf_counter` to end at.

    Returns:
        Shortest seconds of a step, and MiB at its peak above the memory before it, None on a CPU.
    """
    on_cuda = torch.device(device).type == "cuda"
    wait: Callable[[], None] = torch.cuda.synchronize if on_cuda else lambda: None
    found: dict[str, tuple[float, float | None]] = {}
    made = steps(detector)
    rounds = 0
    while rounds < 2 or (time.perf_counter() < until and rounds < 20):
        for name, (model, step) in made.items():
            model.zero_grad()
            wait()
            if on_cuda:
                torch.cuda.reset_peak_memory_stats(device)
            before, start = highest(device), time.perf_counter()
            step()
            wait()
            seconds = time.perf_counter() - start
            mib = (highest(device) - before) / MIB if on_cuda else None
            if rounds:  # the first one allocates
                least = min(seconds, found.get(name, (seconds, None))[0])
                found[name] = least, mib
        rounds += 1
    return found
