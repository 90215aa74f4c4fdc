"""Check this package on a GPU, in at most eight minutes, and print one table.

    python tools/analysis/check_gpu.py

It needs PyTorch and torchvision, and takes MMDetection's Mask R-CNN R-50 where that is installed,
torchvision's elsewhere, with random weights and images. Three tasks: RPN, boxes, masks. Sections:

* every method at every level, in fp32, bf16 autocast and fp16 with a loss scale: ``error`` is the
  distance of the gradient of what is shared from that of ``torch.autograd.grad`` for each task,
  aggregated on the CPU (GradDrop, which draws, on the device), over its length; ``waits`` how often
  a step waits for the device beyond what one backward pass of each task does (wanted: once, for the
  Gramian);
* a loss scaler, and a task that overflows;
* two processes with half a batch each (NCCL where there are two GPUs) beside one;
* the trunk compiled: the same numbers, and the time;
* time and memory of a step beside the plain sum, LibMTL's loop and TorchJD if installed.

The last line says ok, or which rows failed; the exit status is 1 then. Rows for which there was no
time are named. ``--device cpu`` tries the script itself, on a tiny model, without counting waits.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))  # the package need not be installed

from gpu_check import detector, methods, ranks, speed  # noqa: E402
from gpu_check.detector import Detector  # noqa: E402

from mtl_plugins import MultiTaskBackward  # noqa: E402

# Share of the time by whose end a section is to be over; each may use what others left.
ENDS = {"fp32": 0.22, "bf16": 0.41, "fp16": 0.6}
ENDS |= {"scaler": 0.65, "ranks": 0.75, "compiled": 0.9, "speed": 1.0}


class Report:
    """Prints rows, and remembers which failed and which had no time."""

    def __init__(self, seconds: float) -> None:
        self._start = time.perf_counter()
        self._seconds = seconds
        self.failed: list[str] = []
        self.left_out: list[str] = []

    def end_of(self, section: str) -> float:
        """Return the time by which a section is to be over."""
        return self._start + self._seconds * ENDS[section]

    def row(self, section: str, name: str, check: Callable[[], tuple[str, bool]]) -> None:
        """Print the row of a check, which returns its text and whether all is well."""
        if time.perf_counter() > self.end_of(section):
            self.left_out.append(name)
            return
        try:
            text, ok = check()
        except Exception as error:  # one row must not hide the others
            text, ok = f"{type(error).__name__}: {str(error).splitlines()[0]}", False
        print(f"{name:<40} {text}{'' if ok else '  FAILED'}", flush=True)
        if not ok:
            self.failed.append(name)

    def close(self) -> int:
        """Print the last line, and return the exit status."""
        seconds = time.perf_counter() - self._start
        if self.left_out:
            print(f"no time for {len(self.left_out)}: {'; '.join(self.left_out)}")
        verdict = f"FAILED: {'; '.join(self.failed)}" if self.failed else "ok"
        print(f"{verdict}{' as far as there was time' if self.left_out else ''} ({seconds:.0f} s)")
        return int(bool(self.failed))


def check_methods(report: Report, net: Detector, names: list[str], device: str) -> None:
    print(f"\n{'method, level, precision':<40} {'error':>8} {'waits':>6}")
    for precision in methods.DTYPES:
        oracle: methods.Oracle | None = None
        for level in methods.LEVELS:
            for name in names:
                if not methods.fits(name, level):
                    continue

                def check(name: str = name, level: str = level) -> tuple[str, bool]:
                    nonlocal oracle
                    oracle = oracle or methods.Oracle(net, precision)  # noqa: B023
                    row = methods.take(net, oracle, name, level, precision, device)  # noqa: B023
                    waits = "-" if row.waits is None else str(row.waits)
                    ok = row.error <= methods.TOLERANCE[precision]  # noqa: B023
                    ok &= row.waits is None or row.waits <= methods.wanted_waits(name)
                    return f"{row.error:8.1e} {waits:>6}", ok

                report.row(precision, f"{name}, {level}, {precision}", check)


def check_scaler(net: Detector, device: str) -> tuple[str, bool]:
    """Let a task overflow, then not: the first step is skipped and names it, the scale halves."""
    model = copy.deepcopy(net.model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    backward = MultiTaskBackward(model.parameters(), "PCGrad")
    scaler = torch.amp.GradScaler(torch.device(device).type, init_scale=1024.0)
    seen, moved = [], []
    for factor in (1e38, 1.0):
        before = [p.detach().clone() for p in model.parameters()]
        optimizer.zero_grad()
        losses = net.losses(model, torch.float16)
        losses["mask"] = losses["mask"] * factor
        backward(losses, scale=scaler.scale(torch.ones((), device=device)))
        scaler.step(optimizer)
        scaler.update()
        pairs = zip(before, model.parameters(), strict=True)
        moved.append(not all(torch.equal(a, b) for a, b in pairs))
        seen.append(backward.last.nonfinite if backward.last else ())
    text = f"skipped for {seen[0]}, scale {scaler.get_scale():.0f}"
    return text, seen == [("mask",), ()] and moved == [False, True] and scaler.get_scale() == 512.0


def check_ranks(device: str) -> tuple[str, bool]:
    if torch.device(device).type == "cuda" and torch.cuda.device_count() < 2:
        return "left out: one GPU", True
    error = ranks.distance(device)
    return f"{error:8.1e}", error <= 1e-4


def check_compiled(net: Detector, device: str) -> tuple[str, bool]:
    """Compare the gradients with a compiled trunk to those without, in fp32."""
    backend = "inductor" if torch.device(device).type == "cuda" else "aot_eager"
    grads, seconds = [], []
    for compiled in (False, True):
        model = copy.deepcopy(net.model)
        backward = MultiTaskBackward(model.parameters(), "PCGrad")
        if compiled:
            model.backbone.compile(backend=backend)
        for _ in range(3):
            model.zero_grad()
            start = time.perf_counter()
            backward(net.losses(model))
            if torch.device(device).type == "cuda":
                torch.cuda.synchronize()
            taken = time.perf_counter() - start
        seconds.append(taken)
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    error = float((grads[1] - grads[0]).norm() / grads[0].norm())
    return f"{error:8.1e}  {seconds[1] / seconds[0]:.2f} x eager ({backend})", error <= 2e-2


def check_speed(report: Report, net: Detector, device: str) -> None:
    if time.perf_counter() > report.end_of("speed"):
        report.left_out.append("time and memory")
        return
    print(f"\n{'fp32':<40} {'ms':>8} {'x plain':>8} {'MiB':>7} {'x plain':>8}")
    found = speed.measure(net, device, report.end_of("speed"))
    plain, least = found["plain sum"]
    for name, (seconds, mib) in found.items():
        memory = "      -        -" if mib is None else f"{mib:7.0f} {mib / least:8.2f}"
        print(f"{name:<40} {seconds * 1e3:8.1f} {seconds / plain:8.2f} {memory}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", help="cpu: a tiny model, to try the script")
    parser.add_argument("--detector", choices=["auto", "mmdet", "torchvision"], default="auto")
    parser.add_argument("--methods", nargs="+", choices=methods.names(), default=methods.names())
    parser.add_argument("--seconds", type=float, default=440.0, help="for all sections together")
    args = parser.parse_args()
    on_cuda = torch.device(args.device).type == "cuda"
    if on_cuda and not torch.cuda.is_available():
        parser.error("--device: PyTorch sees no CUDA device here; --device cpu tries the script")
    report = Report(args.seconds)
    net = detector.build(args.device, args.detector, small=not on_cuda)
    where = torch.cuda.get_device_name(args.device) if on_cuda else "CPU"
    print(f"{net.name}; {where}; PyTorch {torch.__version__}")
    print(f"tolerances {methods.TOLERANCE}")
    check_methods(report, net, args.methods, args.device)
    print()
    report.row("scaler", "loss scaler, a task overflows", lambda: check_scaler(net, args.device))
    report.row("ranks", "two processes", lambda: check_ranks(args.device))
    report.row("compiled", "compiled trunk", lambda: check_compiled(net, args.device))
    check_speed(report, net, args.device)
    return report.close()


if __name__ == "__main__":
    sys.exit(main())
