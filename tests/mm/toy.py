"""The smallest MMEngine model with two tasks, and a runner for it."""

from __future__ import annotations

import uuid

import torch
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, MODELS
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils.data import Dataset

TASKS = {"box": ["loss_cls", "loss_reg"], "mask": "loss_mask"}


@MODELS.register_module(force=True)
class TwoTasks(BaseModel):
    """A trunk of two layers; one loss is a list of tensors, as RPN's are, and one entry no loss."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 6))
        self.box = nn.Linear(6, 3)
        self.mask = nn.Linear(6, 2)

    def forward(self, inputs: list[Tensor], mode: str = "tensor") -> dict[str, object]:
        x = torch.stack(inputs) if isinstance(inputs, list) else inputs
        z = self.trunk(x)
        return {
            "loss_cls": [self.box(z).square().mean(), self.box(z).cos().mean()],
            "loss_reg": self.box(z).abs().mean(),
            "loss_mask": (self.mask(z) - 1.0).square(),
            "acc": z.detach().mean(),
        }


def make_data(count: int = 12) -> list[dict[str, Tensor]]:
    """``count`` random examples."""
    rng = torch.Generator().manual_seed(0)
    return [{"inputs": torch.randn(4, generator=rng)} for _ in range(count)]


def make_runner(work_dir, optim_wrapper: dict, hooks=(), iters: int = 6, **overrides) -> Runner:
    """A runner over :func:`make_data` in its order, two examples a step."""
    torch.manual_seed(0)
    options = dict(
        model=dict(type="TwoTasks"),
        work_dir=str(work_dir),
        train_dataloader=dict(
            batch_size=2,
            sampler=dict(type="InfiniteSampler", shuffle=False),
            dataset=make_data(),
        ),
        train_cfg=dict(by_epoch=False, max_iters=iters),
        optim_wrapper=dict(dict(optimizer=dict(type="SGD", lr=0.1, momentum=0.9)), **optim_wrapper),
        custom_hooks=list(hooks),
        default_hooks=dict(
            logger=dict(type="LoggerHook", interval=1),
            checkpoint=dict(type="CheckpointHook", by_epoch=False, interval=iters),
        ),
        visualizer=dict(type="Visualizer", vis_backends=[dict(type="LocalVisBackend")]),
        log_processor=dict(by_epoch=False),
        randomness=dict(seed=0),
        experiment_name=uuid.uuid4().hex,  # MMEngine shares loggers between runs of one name
        default_scope="mmengine",
    )
    return Runner(**{**options, **overrides})


def parameters(runner: Runner) -> list[Tensor]:
    """Copies of the trained parameters."""
    return [p.detach().clone() for p in runner.model.parameters()]


@DATASETS.register_module(force=True)
class ToyData(Dataset):
    """:func:`make_data` for a config file."""

    def __init__(self) -> None:
        self.data = make_data()

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.data[index]
