"""Time and memory of alternatives side by side."""

import ctypes
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

MIB = 2**20


def median_seconds(
    calls: Mapping[str, Callable[[], object]],
    rounds: int,
    turn: float = 0.0,
    before: Callable[[], object] = lambda: None,
    device: str = "cpu",
    clock: Callable[[], float] = time.perf_counter,
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
        clock: ``time.process_time`` does not count what other programs of a busy machine take.
    """
    wait = torch.cuda.synchronize if torch.device(device).type == "cuda" else lambda: None
    seconds: dict[str, list[float]] = {}
    for i in range(rounds + 1):
        if i <= 1:
            seconds = {name: [] for name in calls}
        for name, call in calls.items():
            end = clock() + turn
            while True:
                before()
                wait()
                start = clock()
                call()
                wait()
                now = clock()
                seconds[name].append(now - start)
                if now >= end:
                    break
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def highest(device: str) -> int:
    """The most bytes that were in use so far."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # In bytes on macOS, in kilobytes elsewhere.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def keep_freed_memory() -> None:
    """Stops glibc from returning memory, only to fault it in again at the next step.

    That took a tenth of a step, here and there. PyTorch's own allocator for CUDA keeps it, too.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, mmap_max = -1, -4  # malloc.h
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(mmap_max, 0)


def in_a_fork(function: Callable[..., Any], *args: Any) -> Any:
    """The result of the function, called in a process that is a copy of this one."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=lambda: sender.send(function(*args)))
    process.start()
    sender.close()
    result = receiver.recv()
    process.join()
    return result
