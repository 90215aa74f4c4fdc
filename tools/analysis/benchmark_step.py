"""Measure time and memory of a training step: one backward pass for all tasks, or one for each.

The trunk is backbone and neck of the small Mask R-CNN (ResNet-18 and FPN, 64 channels, two images
of 320 x 240); a task is a light head on every level of the pyramid. A step is forward and backward
without the optimizer. Compared are

* the plain sum of the losses: one ``backward()``, as a framework does without this package;
* ours, at the level of the parameters, with ``low_memory``, with ``gramian="sketch"`` and with the
  weights of one step kept for the next three (the mean over such a cycle of four), and at the level
  of the features;
* a loop as in LibMTL: one ``backward()`` a task into ``.grad``, copied from there to a matrix;
* TorchJD's ``mtl_backward``, as it comes, with the tasks in parallel by ``vmap``, and at its most
  frugal, task after task and without joining the Jacobians;
* and, as the bound at the level of the parameters, the sum of the times of its parts:
  forward + heads + T x trunk backward.

All methods are timed in turn. Memory is the peak over two steps (two cycles), above the memory
before the first. On a CUDA device memory is what PyTorch has allocated. On the CPU it is the
resident size of a process forked for each method, since the peak of a process never falls, and an
allocator keeps what other methods have freed.

Then the same images are shared out among ``--processes`` of one thread each (gloo, or nccl with a
CUDA device for each; 0 or 1 to leave it out): the plain sum under DistributedDataParallel, and
ours, which averages by itself. Bytes are counted as a rank hands them to ``all_reduce`` in a step.
Needs mmdet and torchjd.
"""

import argparse
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torchjd.aggregation
from mmdet.registry import MODELS
from mmengine.config import Config
from timing import MIB, in_a_fork, keep_freed_memory, median_seconds, peak_of
from torch import Tensor, distributed, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel
from torchjd.autojac import jac_to_grad, mtl_backward

import mtl_plugins.mm  # noqa: F401
from mtl_plugins import MultiTaskBackward
from mtl_plugins.aggregation import GramianAggregator, build_aggregator
from mtl_plugins.gradients import gramian_of

CONFIG = Path(__file__).parents[2] / "configs/mask_rcnn/mask-rcnn_r18-small_fpn_coco.py"
CHANNELS = 64
IMAGES = (2, 3, 240, 320)
EVERY = 4  # steps that weights are good for
WITHIN = 1.1  # wanted: at most so many times the sum of the parts
NAME = 24  # width of the names in the tables

Features = Sequence[Tensor]
Step = Callable[[], None]


class Head(nn.Module):
    """Head of one task: the same few layers on every level, and a loss."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(CHANNELS, 1, 1),
        )

    def forward(self, features: Features) -> Tensor:
        return torch.stack([(self.layers(f) - 1.0).square().mean() for f in features]).sum()


class Model(nn.Module):
    """Trunk that all tasks share, and a head for each task."""

    def __init__(self, tasks: int) -> None:
        super().__init__()
        cfg = Config.fromfile(CONFIG).model
        # Without P6, a max pool of P5, since mtl_backward would count the gradient of P6 twice.
        neck = MODELS.build(cfg.neck | {"num_outs": 4})
        self.trunk = nn.Sequential(MODELS.build(cfg.backbone), neck)
        self.heads = nn.ModuleList(Head() for _ in range(tasks))

    def losses(self, features: Features) -> list[Tensor]:
        return [head(features) for head in self.heads]

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.losses(self.trunk(images))


def plain(model: Model, images: Tensor, aggregator: str) -> Step:
    return lambda: torch.stack(model(images)).sum().backward()


def ours(model: Model, images: Tensor, aggregator: str, **options: Any) -> Step:
    backward = MultiTaskBackward(model.parameters(), aggregator, **options)
    return lambda: backward({str(t): loss for t, loss in enumerate(model(images))})


def ours_on_features(model: Model, images: Tensor, aggregator: str) -> Step:
    return ours(model, images, aggregator, level="feature", representation=model.trunk)


def ours_every(model: Model, images: Tensor, aggregator: str) -> Step:
    """Make a whole cycle: one step that finds the weights, then the steps that use them again."""
    step = ours(model, images, aggregator, weights_every=EVERY)

    def cycle() -> None:
        for _ in range(EVERY):
            model.zero_grad()
            step()

    return cycle


def loop(model: Model, images: Tensor, aggregator: str) -> Step:
    weigh = build_aggregator(aggregator)
    assert isinstance(weigh, GramianAggregator)
    shared = list(model.trunk.parameters())
    sizes = [p.numel() for p in shared]

    def step() -> None:
        losses = model(images)
        rows = images.new_zeros(len(losses), sum(sizes))
        for t, loss in enumerate(losses):
            loss.backward(retain_graph=t + 1 < len(losses))
            rows[t] = torch.cat([p.grad.flatten() for p in shared])
            for p in shared:
                p.grad.zero_()
        update = weigh.weights(gramian_of(rows)).to(rows) @ rows
        for p, grad in zip(shared, update.split(sizes), strict=True):
            p.grad.copy_(grad.view_as(p))

    return step


def their_step(model: Model, images: Tensor, aggregator: str, frugal: bool = False) -> Step:
    weigh = getattr(torchjd.aggregation, aggregator)()
    shared = list(model.trunk.parameters())
    alone = [list(head.parameters()) for head in model.heads]

    def step() -> None:
        features = model.trunk(images)
        mtl_backward(
            model.losses(features),
            features,
            tasks_params=alone,
            shared_params=shared,
            parallel_chunk_size=1 if frugal else None,
        )
        jac_to_grad(shared, weigh, optimize_gramian_computation=frugal)

    return step


def their_frugal_step(model: Model, images: Tensor, aggregator: str) -> Step:
    return their_step(model, images, aggregator, frugal=True)


CYCLE = f"ours, weights of {EVERY} steps"  # a call of it is several steps
METHODS: dict[str, Callable[[Model, Tensor, str], Step]] = {
    "plain sum": plain,
    "ours, parameters": ours,
    "ours, low memory": partial(ours, low_memory=True),
    "ours, sketch": partial(ours, gramian="sketch"),
    CYCLE: ours_every,
    "ours, features": ours_on_features,
    "loop as in LibMTL": loop,
    "TorchJD": their_step,
    "TorchJD, frugal": their_frugal_step,
}
# Other methods that backpropagate each task through the trunk.
OTHERS = ("loop as in LibMTL", "TorchJD", "TorchJD, frugal")


def parts(model: Model, images: Tensor) -> dict[str, Step]:
    """Split a step at the level of the parameters into its parts."""
    outputs = model.trunk(images)
    leaves = [output.detach().requires_grad_() for output in outputs]
    grads = [torch.randn_like(output) for output in outputs]

    def heads() -> None:
        for loss in model.losses(leaves):
            loss.backward()

    def backward() -> None:
        for _ in model.heads:
            model.trunk.zero_grad()  # gradients of a pass do not add up
            torch.autograd.backward(outputs, grads, retain_graph=True)

    return {"forward": lambda: model.trunk(images), "heads": heads, "T x trunk backward": backward}


def build(tasks: int, device: str) -> tuple[Model, Tensor]:
    torch.manual_seed(0)
    return Model(tasks).to(device), torch.randn(IMAGES, device=device)


def time_steps(tasks: int, args: argparse.Namespace) -> dict[str, float]:
    """Measure the median seconds of a step of each method, and of the sum of the parts."""
    # Each method has its own model, since the hook of the feature level would change other methods.
    built = {name: build(tasks, args.device) for name in [*METHODS, "parts"]}
    calls = {name: make(*built[name], args.aggregator) for name, make in METHODS.items()}

    def forget() -> None:
        for model, _ in built.values():
            model.zero_grad()

    pieces = parts(*built["parts"])
    seconds = median_seconds(calls | pieces, args.repeats, before=forget, device=args.device)
    seconds[CYCLE] /= EVERY
    return seconds | {"sum of the parts": sum(seconds.pop(name) for name in pieces)}


def peak_bytes(name: str, tasks: int, args: argparse.Namespace) -> int:
    """Measure the peak of a method above the memory of the model itself."""
    model, images = build(tasks, args.device)
    step = METHODS[name](model, images, args.aggregator)

    def step_from_zero() -> None:
        model.zero_grad()
        step()

    return peak_of(step_from_zero, args.device)


class Unsynchronized(DistributedDataParallel):
    """DDP wrapper that does not average, since our methods average by themselves."""

    @property
    def trunk(self) -> nn.Module:
        return self.module.trunk

    def forward(self, images: Tensor) -> list[Tensor]:
        with self.no_sync():
            return super().forward(images)


DATA_PARALLEL: dict[str, tuple[type[DistributedDataParallel], Callable[..., Step]]] = {
    "plain sum, DDP": (DistributedDataParallel, plain),
    "ours, exact": (Unsynchronized, ours),
    "ours, gramian": (Unsynchronized, partial(ours, sync="gramian")),
    "ours, features": (Unsynchronized, ours_on_features),
}


def all_reduced_bytes(step: Step) -> int:
    """Count the bytes that a step of this rank hands to ``all_reduce``."""
    with mock.patch.object(distributed, "all_reduce", wraps=distributed.all_reduce) as spy:
        step()
    return sum(call.args[0].nbytes for call in spy.call_args_list)


def measure_rank(rank: int, tasks: int, args: argparse.Namespace, store: str, results: Any) -> None:
    """Measure in one of the processes; rank 0 hands back the seconds and bytes of each method."""
    on_cuda = torch.device(args.device).type == "cuda"
    device = f"cuda:{rank}" if on_cuda else args.device
    if on_cuda:
        torch.cuda.set_device(rank)
    torch.set_num_threads(1)
    keep_freed_memory()
    distributed.init_process_group(
        "nccl" if on_cuda else "gloo", f"file://{store}", world_size=args.processes, rank=rank
    )
    models: dict[str, DistributedDataParallel] = {}
    calls: dict[str, Step] = {}
    for name, (wrap, make) in DATA_PARALLEL.items():
        model, images = build(tasks, device)
        models[name] = wrap(model)
        models[name].broadcast_buffers = False  # MMEngine's default
        calls[name] = make(models[name], images.chunk(args.processes)[rank], args.aggregator)

    def forget() -> None:
        for model in models.values():
            model.zero_grad()
        distributed.barrier()  # a late rank would add its delay to the time of other ranks

    seconds = median_seconds(calls, args.repeats, before=forget, device=device)
    for model in models.values():  # after the timing: the hook replaces one in C++
        model.register_comm_hook(None, allreduce_hook)
    sent = {name: all_reduced_bytes(call) for name, call in calls.items()}
    if rank == 0:
        results.put((seconds, sent))
    distributed.destroy_process_group()


def report_processes(tasks: int, args: argparse.Namespace) -> None:
    """Measure the data-parallel steps and print a table of them."""
    if args.device != "cpu" and torch.cuda.device_count() < args.processes:
        print(f"{args.processes} processes: there is not a CUDA device for each", flush=True)
        return
    results = torch.multiprocessing.get_context("spawn").SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        more = (tasks, args, f"{folder}/store", results)
        torch.multiprocessing.spawn(measure_rank, more, nprocs=args.processes)
    seconds, sent = results.get()
    title = f"{args.processes} processes"
    print(f"{title:<{NAME}} {'ms':>8} {'x plain':>8} {'MiB all-reduced':>16}")
    for name, taken in seconds.items():
        row = f"{name:<{NAME}} {taken * 1e3:8.1f} {taken / seconds['plain sum, DDP']:8.2f}"
        print(f"{row} {sent[name] / MIB:16.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, nargs="+", default=[2, 4, 7])
    parser.add_argument("--repeats", type=int, default=5, help="steps to take the median of")
    parser.add_argument("--aggregator", choices=["PCGrad", "MGDA"], default="PCGrad")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--processes", type=int, choices=range(IMAGES[0] + 1), default=IMAGES[0])
    args = parser.parse_args()

    on_cuda = torch.device(args.device).type == "cuda"
    measure = peak_bytes if on_cuda else partial(in_a_fork, peak_bytes)
    MODELS.import_from_location()  # once here, so that no fork does
    # First, since a fork does not inherit the threads that PyTorch starts when it computes.
    memory = {t: {name: measure(name, t, args) for name in METHODS} for t in args.tasks}
    width = sum(p.numel() * p.element_size() for p in build(1, "cpu")[0].trunk.parameters())
    print(f"{args.aggregator}; {torch.get_num_threads()} threads; {IMAGES[0]} images a step.")
    print(f"The trunk's parameters take {width / MIB:.1f} MiB, as does each task's gradient.")
    keep_freed_memory()
    for tasks in args.tasks:
        report(tasks, time_steps(tasks, args), memory[tasks], width)
        if args.processes > 1:
            report_processes(tasks, args)


def report(tasks: int, seconds: dict[str, float], memory: dict[str, int], width: int) -> None:
    """Print the table of one number of tasks, and whether its numbers are as wanted."""
    print(f"\n{tasks} tasks: a [T, D] matrix takes {tasks * width / MIB:.0f} MiB")
    print(f"{'':<{NAME}} {'ms':>8} {'x plain':>8} {'peak MiB':>9} {'- plain':>8}")
    for name, taken in seconds.items():
        row = f"{name:<{NAME}} {taken * 1e3:8.1f} {taken / seconds['plain sum']:8.2f}"
        if name in memory:
            extra = memory[name] - memory["plain sum"]
            row += f" {memory[name] / MIB:9.0f} {extra / MIB:8.0f}"
        print(row)
    mine = "ours, parameters"
    fastest = min(OTHERS, key=lambda name: seconds[name])
    smallest = min(OTHERS, key=lambda name: memory[name])
    wanted = [
        (f"as fast as {fastest}", seconds[mine] / seconds[fastest], 1.0),
        (f"as small as {smallest}", memory[mine] / memory[smallest], 1.0),
        ("near the sum of the parts", seconds[mine] / seconds["sum of the parts"], WITHIN),
    ]
    for words, ratio, limit in wanted:
        holds = "yes" if ratio <= limit else "no"
        print(f"{mine}: {words}? {holds}, x {ratio:.2f} (at most {limit:g})", flush=True)


if __name__ == "__main__":
    main()
