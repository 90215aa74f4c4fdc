"""Measure how a training step grows with tasks T, shared parameters D, and ranks.

The trunk is four square linear layers with D weights, which each of ``--rows`` examples uses once;
a task is one linear unit behind it. A step is forward and backward without the optimizer. For each
D and T there is a row of

* one process (``--ranks 1``): the time of the plain sum, and beside it the level of the parameters,
  ``low_memory`` and the level of the features; and the peak of memory above the model, as
  benchmark_step.py measures it. Processor time on the CPU, which other programs do not lengthen;
* several ranks (gloo, or nccl with a CUDA device for each): the time of the plain sum under
  DistributedDataParallel and of each ``sync``, and the bytes that a rank hands to collective
  operations in one step, as PyTorch's dispatcher sees them, beside those of the formula.

Run it in parts with ``--tasks``, ``--sizes`` and ``--ranks``: what would take more memory than
``--gib`` is left out.
"""

import argparse
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from timing import MIB, in_a_fork, keep_freed_memory, median_seconds, peak_of
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from mtl_plugins import MultiTaskBackward

LAYERS = 4
SKETCH_ROWS = 64

Step = Callable[[], Any]
Cell = tuple[int, int]
"""Number of shared parameters that is asked for, and number of tasks."""


class Model(nn.Module):
    """Trunk of about ``size`` parameters that all tasks share, and one unit for each task."""

    def __init__(self, size: int, tasks: int) -> None:
        super().__init__()
        width = math.isqrt(size // LAYERS)
        layers = (nn.Linear(width, width, bias=False) for _ in range(LAYERS))
        self.trunk = nn.Sequential(*(nn.Sequential(layer, nn.ReLU()) for layer in layers))
        self.heads = nn.ModuleList(nn.Linear(width, 1) for _ in range(tasks))

    @property
    def shared(self) -> int:
        """Number of parameters of the trunk."""
        return sum(p.numel() for p in self.trunk.parameters())

    @property
    def rest(self) -> int:
        """Number of parameters of the heads."""
        return sum(p.numel() for p in self.heads.parameters())

    def forward(self, examples: Tensor) -> list[Tensor]:
        features = self.trunk(examples)
        return [(head(features) - 1.0).square().mean() for head in self.heads]


def plain(model: nn.Module, examples: Tensor) -> Step:
    return lambda: torch.stack(model(examples)).sum().backward()


def ours(model: Model, examples: Tensor, **options: Any) -> Step:
    names = [str(t) for t in range(len(model.heads))]
    backward = MultiTaskBackward(model.parameters(), "PCGrad", tasks=names, **options)
    return lambda: backward(dict(zip(names, model(examples), strict=True)))


def on_features(model: Model, examples: Tensor) -> Step:
    return ours(model, examples, level="feature", representation=model.trunk)


WAYS: dict[str, Callable[[Model, Tensor], Step]] = {
    "plain sum": plain,
    "parameters": ours,
    "low memory": partial(ours, low_memory=True),
    "features": on_features,
}
SYNCED: dict[str, Callable[[Model, Tensor], Step]] = {
    "plain sum": lambda model, examples: plain(DistributedDataParallel(model), examples),
    "exact": ours,
    "gramian": partial(ours, sync="gramian"),
    "sketch": partial(ours, sync="sketch", gramian="sketch", sketch_rows=SKETCH_ROWS),
    "features": on_features,
}


def formula(way: str, model: Model) -> int:
    """Compute the bytes that a rank hands to collective operations in one step.

    The losses, whether they are there, and whether anything changed are ``2 T + 1`` numbers; at the
    level of the features a flag of eight bytes a parameter tells whether it has a gradient.

    Args:
        way: A key of ``SYNCED``. With ``sketch`` the gradient of a weight ``[C_out, K]`` is
            projected to ``[C_out, min(K, SKETCH_ROWS)]``, for which the ranks agree on the mean
            input ``[K]``; that of the first layer is not.
        model: The model.
    """
    tasks, every, report = len(model.heads), model.shared + model.rest, 2 * len(model.heads) + 1
    if way == "plain sum":
        return 4 * every
    if way == "exact":
        return 4 * (tasks * model.shared + model.rest + report)
    if way == "sketch":
        first, *others = model.trunk.parameters()
        sketches = first.numel() + sum(len(p) * min(p.shape[1], SKETCH_ROWS) for p in others)
        means = sum(p.shape[1] for p in others if p.shape[1] > SKETCH_ROWS)
        return 4 * (tasks * sketches + means + every + report)
    flags = 8 * len(list(model.parameters())) if way == "features" else 0
    return 4 * (every + tasks**2 + report) + flags


class Sent(TorchDispatchMode):
    """Counts the bytes that this process hands to collective operations."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.namespace == "c10d" and func is not torch.ops.c10d.barrier.default:
            # The tensors that go out are the last list: before it stand those that are to come.
            given = [arg for arg in args if isinstance(arg, list) and arg]
            self.bytes += sum(tensor.nbytes for tensor in given[-1])
        return func(*args, **(kwargs or {}))


def build(cell: Cell, args: argparse.Namespace, device: str, rank: int = 0) -> tuple[Model, Tensor]:
    torch.manual_seed(0)  # all ranks start alike
    model = Model(*cell)
    torch.manual_seed(rank)
    examples = torch.randn(args.rows, model.trunk[0][0].in_features)
    return model.to(device), examples.to(device)


def peak_bytes(way: str, cell: Cell, args: argparse.Namespace) -> int:
    """Measure the peak of a way above the memory of the model itself."""
    WAYS[way](*build((LAYERS, 2), args, args.device))()  # load what a first step loads
    model, examples = build(cell, args, args.device)
    step = WAYS[way](model, examples)

    def step_from_zero() -> None:
        model.zero_grad()
        step()

    return peak_of(step_from_zero, args.device)


def one_process(cells: Sequence[Cell], args: argparse.Namespace) -> None:
    """Print time and memory of every cell."""
    measure = peak_bytes if args.device != "cpu" else partial(in_a_fork, peak_bytes)
    # First, since a fork does not inherit the threads that PyTorch starts when it computes.
    peaks = {cell: {way: measure(way, cell, args) for way in WAYS} for cell in cells}
    keep_freed_memory()
    print("one process: seconds of the plain sum, x plain sum; peak in MiB above the model")
    names = [*WAYS][1:]
    head = "".join(f"{name:>13}" for name in names)
    print(f"{'D':>12} {'T':>3} {'plain s':>8}{head} |{'plain MiB':>10}{head}")
    for cell in cells:
        # The second, since at the level of the features the graph is cut in the forward pass.
        models = {way: build(cell, args, args.device) for way in ("plain sum", "features")}
        calls = {way: make(*models.get(way, models["plain sum"])) for way, make in WAYS.items()}

        def forget(models: Any = models) -> None:
            for model, _ in models.values():
                model.zero_grad()

        clock = time.process_time if args.device == "cpu" else time.perf_counter
        seconds = median_seconds(calls, args.repeats, 0.0, forget, args.device, clock)
        plainly = seconds["plain sum"]
        ratios = "".join(f"{seconds[name] / plainly:13.2f}" for name in names)
        peak = {way: found / MIB for way, found in peaks[cell].items()}
        peaks_of_ours = "".join(f"{peak[name]:13.0f}" for name in names)
        size, tasks = models["plain sum"][0].shared, cell[1]
        row = f"{size:12,} {tasks:3} {plainly:8.3f}{ratios} |{peak['plain sum']:10.0f}"
        print(row + peaks_of_ours, flush=True)


def measure_rank(
    rank: int, ranks: int, cells: Sequence[Cell], args: argparse.Namespace, store: str, results: Any
) -> None:
    """Measure in one of the processes; the first hands back seconds and bytes, cell by cell."""
    on_cuda = args.device != "cpu"
    device = f"cuda:{rank}" if on_cuda else "cpu"
    if on_cuda:
        torch.cuda.set_device(rank)
    torch.set_num_threads(1)
    distributed.init_process_group(
        "nccl" if on_cuda else "gloo", f"file://{store}", world_size=ranks, rank=rank
    )
    for cell in cells:
        for way, make in SYNCED.items():  # one after another, to hold the rows of one
            model, examples = build(cell, args, device, rank)
            step = make(model, examples)

            def forget(model: Model = model) -> None:
                model.zero_grad()
                distributed.barrier()  # a late rank would add its delay to that of others

            step()  # the ranks agree on what is shared
            seconds = median_seconds({way: step}, args.repeats, before=forget, device=device)
            forget()
            with Sent() as sent:
                step()
            if rank == 0:
                results.put((cell, way, seconds[way], sent.bytes))
    distributed.destroy_process_group()


def over_ranks(
    ranks: int, cells: Sequence[Cell], args: argparse.Namespace
) -> Iterator[tuple[Cell, str, float, int]]:
    """Measure in so many processes: cell, way, seconds and bytes of a step of the first rank."""
    with tempfile.TemporaryDirectory() as folder:
        context = torch.multiprocessing.get_context(method := "forkserver")
        context.set_forkserver_preload(["torch"])
        results = context.SimpleQueue()
        more = (ranks, cells, args, f"{folder}/store", results)
        processes = torch.multiprocessing.start_processes(
            measure_rank, more, nprocs=ranks, join=False, start_method=method
        )
        for _ in range(len(cells) * len(SYNCED)):
            while results.empty() and not processes.join(timeout=0.2):
                pass  # an error in a process is raised here
            yield results.get()
        while not processes.join():
            pass


def several_ranks(ranks: int, cells: Sequence[Cell], args: argparse.Namespace) -> None:
    """Print time and bytes of every cell."""
    if args.device != "cpu" and torch.cuda.device_count() < ranks:
        print(f"{ranks} ranks: there is not a CUDA device for each", flush=True)
        return
    print(f"\n{ranks} ranks: seconds of a step; bytes that a rank hands over in it")
    print(f"{'D':>12} {'T':>3}  {'sync':<10} {'s':>8} {'x plain':>8} {'bytes':>15} {'formula':>15}")
    plainly = 0.0
    for cell, way, seconds, sent in over_ranks(ranks, cells, args):
        plainly = seconds if way == "plain sum" else plainly
        with torch.device("meta"):
            model = Model(*cell)
        row = f"{model.shared:12,} {cell[1]:3}  {way:<10} {seconds:8.3f} {seconds / plainly:8.2f}"
        expected = formula(way, model)
        same = "equal" if sent == expected else "DIFFERENT"
        print(f"{row} {sent:15,} {expected:15,} {same}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    whole: Callable[[str], int] = lambda text: int(float(text))  # noqa: E731
    parser.add_argument("--tasks", type=int, nargs="+", default=[2, 4, 8, 16, 32])
    parser.add_argument("--sizes", type=whole, nargs="+", default=[10**6, 10**7, 10**8])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--rows", type=int, default=128, help="examples a step, of each rank")
    parser.add_argument("--repeats", type=int, default=3, help="steps to take the median of")
    parser.add_argument("--gib", type=float, default=6.0, help="memory that may be used")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    args = parser.parse_args()

    cells = [(size, tasks) for size in args.sizes for tasks in args.tasks]
    print(f"PCGrad; {args.rows} examples a step and rank; {torch.get_num_threads()} threads")
    for ranks in args.ranks:
        # Parameters, gradients, an update, and a second model; once for each rank on the CPU.
        copies = 1 if args.device == "cuda" else ranks
        fits = [c for c in cells if 4 * c[0] * (c[1] + 6) * copies <= args.gib * 2**30]
        if ranks == 1:
            one_process(fits, args)
        else:
            several_ranks(ranks, fits, args)
        for size, tasks in cells:
            if (size, tasks) not in fits:
                print(f"{size:12,} {tasks:3}  left out: more than {args.gib:g} GiB")


if __name__ == "__main__":
    main()
