"""Two processes with half of a batch each, beside one with the whole: NCCL, or gloo on a CPU."""

from __future__ import annotations

import tempfile

import torch
from torch import Tensor, distributed, nn

from mtl_plugins import MultiTaskBackward

CASES = [("PCGrad", "parameter"), ("GradDrop", "parameter"), ("CAGrad", "feature")]


class Small(nn.Module):
    """A convolutional trunk, and two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Tanh(), nn.Conv2d(16, 16, 3), nn.Tanh())
        self.heads = nn.ModuleList(nn.Conv2d(16, 2, 1) for _ in range(2))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.trunk(images)
        losses = [(head(features) - t).square().mean() for t, head in enumerate(self.heads)]
        return {str(t): loss for t, loss in enumerate(losses)}


def gradients(device: str, images: Tensor) -> list[Tensor]:
    """Return the gradients of each case on these images."""
    found = []
    for name, level in CASES:
        torch.manual_seed(0)
        model = Small().to(device)
        at = {"representation": model.trunk} if level == "feature" else {}
        seed = {"seed": 3} if name == "GradDrop" else {}
        backward = MultiTaskBackward(
            model.parameters(), {"type": name, **seed}, level=level, tasks="01", **at
        )
        backward(model(images.to(device)))
        found.append(torch.cat([p.grad.flatten() for p in model.parameters()]).cpu())
    return found


def batch() -> Tensor:
    """Draw the whole batch."""
    return torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def work(rank: int, on_cuda: bool, folder: str) -> None:
    """Work as one of the processes."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    torch.set_num_threads(1)
    if on_cuda:
        torch.cuda.set_device(rank)
    backend = "nccl" if on_cuda else "gloo"
    distributed.init_process_group(backend, f"file://{folder}/store", world_size=2, rank=rank)
    found = gradients(f"cuda:{rank}" if on_cuda else "cpu", batch().chunk(2)[rank])
    torch.save(found, f"{folder}/{rank}")
    distributed.destroy_process_group()


def distance(device: str) -> float:
    """Return the largest distance of a rank's gradients from one process's, over their length."""
    on_cuda = torch.device(device).type == "cuda"
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(work, (on_cuda, folder), nprocs=2)
        ranks = [torch.load(f"{folder}/{rank}") for rank in range(2)]
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    expected = gradients(device, batch())
    torch.backends.cudnn.allow_tf32 = allowed
    pairs = [pair for found in ranks for pair in zip(found, expected, strict=True)]
    return max(float((g - e).norm() / e.norm()) for g, e in pairs)
