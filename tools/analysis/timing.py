"""Timing of alternatives side by side."""

import statistics
import time
from collections.abc import Callable, Mapping

import torch


def median_seconds(
    calls: Mapping[str, Callable[[], object]],
    rounds: int,
    turn: float = 0.0,
    before: Callable[[], object] = lambda: None,
    device: str = "cpu",
) -> dict[str, float]:
    """The median time of each call, taken in turn: A B C A B C ...

    The clock of a machine drifts and other programs come and go. Taken in turn, all calls see the
    same weather, so that the ratios hold where the times do not.

    Args:
        calls: What to time, by name.
        rounds: Turns of each call, after one that does not count.
        turn: Seconds that a turn lasts, at least; 0 makes it one call.
        before: Called before every call, outside the clock.
        device: Where the calls do their work; a CUDA device is waited for.
    """
    wait = torch.cuda.synchronize if torch.device(device).type == "cuda" else lambda: None
    seconds: dict[str, list[float]] = {}
    for i in range(rounds + 1):
        if i <= 1:
            seconds = {name: [] for name in calls}
        for name, call in calls.items():
            end = time.perf_counter() + turn
            while True:
                before()
                wait()
                start = time.perf_counter()
                call()
                wait()
                now = time.perf_counter()
                seconds[name].append(now - start)
                if now >= end:
                    break
    return {name: statistics.median(taken) for name, taken in seconds.items()}
