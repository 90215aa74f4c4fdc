"""Timing of alternatives side by side."""

import statistics
import time
from collections.abc import Callable, Mapping

import torch


def median_seconds(
    calls: Mapping[str, Callable[[], object]],
    rounds: int,
    before: Callable[[], object] = lambda: None,
    device: str = "cpu",
) -> dict[str, float]:
    """The median time of each call, taken in turn: A B C A B C ...

    The clock of a machine drifts and other programs come and go. Taken in turn, all calls see the
    same weather, so that the ratios hold where the times do not.

    Args:
        calls: What to time, by name.
        rounds: How often each is called, after one call that does not count.
        before: Called before every call, outside the clock.
        device: Where the calls do their work; a CUDA device is waited for.
    """
    wait = torch.cuda.synchronize if torch.device(device).type == "cuda" else lambda: None
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 1):
        for name, call in calls.items():
            before()
            wait()
            start = time.perf_counter()
            call()
            wait()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(taken[1:]) for name, taken in seconds.items()}
