"""What the tests of the command line share: a run of a script, and a training of two steps."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SMALL = "configs/mask_rcnn/mask-rcnn_r18-small_fpn_coco.py"
NARROW = [
    "model.backbone.base_channels=8",
    "model.backbone.norm_cfg.num_groups=8",
    "model.neck.in_channels=[8,16,32,64]",
    "model.roi_head.bbox_head.fc_out_channels=32",
]
TWO_STEPS = [
    "--cfg-options",
    *NARROW,
    "train_cfg.max_iters=2",
    "train_cfg.val_interval=100",
    "default_hooks.checkpoint.interval=2",
    "custom_hooks.0.interval=1",
    "train_dataloader.dataset.pipeline.2.scale=(96,72)",
    "model.train_cfg.rcnn.sampler.num=16",
]


def run(*command: str, coco: Path, cwd: Path = ROOT, **env: str) -> str:
    """Runs a script in a fresh process, as from a shell, and returns all that it prints.

    A Python script runs in the tests' interpreter, also where its directory is not on ``PATH``.
    """
    done = subprocess.run(
        [sys.executable, *command] if command[0].endswith(".py") else command,
        cwd=cwd,
        env=os.environ | {"COCO_ROOT": str(coco)} | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout
