"""What every ``Runner`` with our optimizer wrapper gets, whoever starts it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import mmdet
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import CheckpointHook
from mmengine.registry import DATASETS, HOOKS
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from models import ROOT
from test_optim_wrapper import mtl
from torch.utils.data import Dataset
from toy import TASKS, make_data, make_runner

from mtl_plugins.mm.hooks import MTLCheckpointHook


@DATASETS.register_module(force=True)
class Labelled(Dataset):
    """Examples with a data sample."""

    def __len__(self):
        return 12

    def __getitem__(self, index):
        return {**make_data()[index], "data_samples": BaseDataElement()}


@HOOKS.register_module(force=True)
class OfTheUser(CheckpointHook):
    pass


def checkpoint_hooks(runner):
    return [type(hook) for hook in runner.hooks if isinstance(hook, CheckpointHook)]


@pytest.mark.parametrize(
    ("optim_wrapper", "hooks", "expected"),
    [
        (mtl(), dict(checkpoint=dict(type="CheckpointHook", interval=3)), [MTLCheckpointHook]),
        (mtl(), dict(checkpoint=dict(type=CheckpointHook, interval=3)), [MTLCheckpointHook]),
        (mtl(), None, [MTLCheckpointHook]),
        (mtl(), dict(checkpoint=None), []),
        (mtl(), dict(checkpoint=dict(type="OfTheUser", interval=3)), [OfTheUser]),
        (mtl() | dict(type="AmpMTLOptimWrapper"), None, [MTLCheckpointHook]),
        (dict(type="OptimWrapper"), None, [CheckpointHook]),
        ({}, dict(checkpoint=dict(type="CheckpointHook", interval=3)), [CheckpointHook]),
    ],
)
def test_checkpoints_outlive_a_kill(optim_wrapper, hooks, expected, tmp_path):
    runner = make_runner(tmp_path, optim_wrapper, default_hooks=hooks)
    assert checkpoint_hooks(runner) == expected
    assert all(hook.interval in (1, 3) for hook in runner.hooks if type(hook) in expected)


@pytest.mark.parametrize("sampler", ["STABatchSampler", "ISTABatchSampler"])
@pytest.mark.parametrize("from_cfg", [False, True])
def test_a_batch_sampler_hears_of_the_tasks(sampler, from_cfg, tmp_path):
    loader = dict(
        batch_size=2,
        sampler=dict(type="DefaultSampler", shuffle=False),
        batch_sampler=dict(type=sampler),
        dataset=dict(type="Labelled"),
    )
    if from_cfg:
        cfg = dict(model=dict(type="TwoTasks"), work_dir=str(tmp_path), train_dataloader=loader)
        cfg |= dict(train_cfg=dict(by_epoch=True, max_epochs=1), optim_wrapper=mtl())
        cfg["optim_wrapper"]["optimizer"] = dict(type="SGD", lr=0.1)
        runner = Runner.from_cfg(Config(cfg))
    else:
        runner = make_runner(tmp_path, mtl(), train_dataloader=loader)
    batch_sampler = Runner.build_dataloader(runner._train_dataloader).batch_sampler
    assert {task for batch in batch_sampler for index in batch for task in index.tasks} == set(
        TASKS
    )
    assert "tasks" not in loader["batch_sampler"]  # the config of the user is not changed


def test_data_that_is_not_there_is_named_by_its_key(tmp_path):
    dataset = dict(type="Labelled", data_root=str(tmp_path / "nowhere"))
    loader = dict(batch_size=2, sampler=dict(type="DefaultSampler"), dataset=dataset)
    runner = make_runner(tmp_path, mtl(), cfg=Config(dict(train_dataloader=loader)))
    with pytest.raises(ValueError, match="train_dataloader.dataset.data_root: .*nowhere"):
        runner.train()


CONFIG = """
custom_imports = dict(imports=["mtl_plugins.mm", "toy"])
default_scope = "mmengine"
model = dict(type="TwoTasks")
train_dataloader = dict(
    batch_size=2, sampler=dict(type="InfiniteSampler", shuffle=False), dataset=dict(type="ToyData")
)
train_cfg = dict(by_epoch=False, max_iters=3)
optim_wrapper = dict(
    type="MTLOptimWrapper",
    optimizer=dict(type="SGD", lr=0.1),
    tasks=dict(box=["loss_cls", "loss_reg"], mask="loss_mask"),
    aggregator=dict(type="MGDA"),
)
default_hooks = dict(checkpoint=dict(type="CheckpointHook", by_epoch=False, interval=3))
log_processor = dict(by_epoch=False)
randomness = dict(seed=0)
"""


def test_the_training_script_of_mmdetection_in_two_processes_on_cpus(tmp_path):
    """It trains as one process does that sees both halves of each batch."""
    config = tmp_path / "config.py"
    config.write_text(CONFIG)
    script = Path(mmdet.__file__).parent / ".mim" / "tools" / "train.py"
    path = os.pathsep.join(str(ROOT / folder) for folder in (".", "tests", "tests/mm"))
    env = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}

    def train(command, out, *options):
        done = subprocess.run(
            [*command, str(script), str(config), "--work-dir", str(tmp_path / out), *options],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == 0, done.stdout[-3000:]
        return torch.load(tmp_path / out / "iter_3.pth", weights_only=False)

    torchrun = "-m torch.distributed.run --standalone --nproc_per_node=2"
    two = train([sys.executable, *torchrun.split()], "two", "--launcher", "pytorch")
    one = train([sys.executable], "one", "--cfg-options", "train_dataloader.batch_size=4")
    assert len(two["message_hub"]["runtime_info"]["random_states"]) == 2  # of each rank
    for name, value in one["state_dict"].items():
        torch.testing.assert_close(two["state_dict"][name], value)
