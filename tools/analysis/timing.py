"""Measure time and memory of alternatives side by side."""

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
    """Measure the median seconds of each call, taken in turn: A B C A B C ...

    The clock of a machine drifts and other programs come and go. Taken in turn, all calls see the
    same weather, so that the ratios hold where the times do not.

    Args:
        calls: Functions to time, by name.
        rounds: Number of turns of each call, after a turn that does not count.
        turn: Shortest length of a turn (seconds); 0 makes a turn one call.
        before: Function to call before every call, outside the clock.
        device: Device on which the calls work; a CUDA device is waited for.
        clock: Clock to read (seconds); ``time.process_time`` leaves out other programs.
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
    """Read the largest number of bytes that were in use so far."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # The size is in bytes on macOS, in kilobytes elsewhere.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def peak_of(step: Callable[[], object], device: str) -> int:
    """Measure the peak of two steps above the memory in use before (bytes).

    Args:
        step: Function to call; the second call runs beside what the first has left.
        device: Device on which the step works.
    """
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    before = highest(device)
    for _ in range(2):
        step()
    return highest(device) - before


def keep_freed_memory() -> None:
    """Stop glibc from returning memory that the next step faults in again.

    Page faults took up to a tenth of a step. PyTorch's allocator for CUDA keeps freed memory, too.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, mmap_max = -1, -4  # constants of malloc.h
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(mmap_max, 0)


def in_a_fork(function: Callable[..., Any], *args: Any) -> Any:
    """Call the function in a copy of this process, and return its result."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=lambda: sender.send(function(*args)))
    process.start()
    sender.close()
    result = receiver.recv()
    process.join()
    return result
