"""``tools/train_net.py`` as a user types it, on drawn images in Detectron2's place for COCO."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import run
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.engine import default_argument_parser
from models import ROOT
from PIL import Image
from small import NARROW, PANOPTIC, SMALL
from train_net import setup
from two_processes import output_of

TWO_STEPS = ["SOLVER.MAX_ITER", "2", "MTL.MONITOR.INTERVAL", "2", "SEED", "1"]
TWO_STEPS += ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"]  # such a model is sure of nothing
TWO_STEPS += ["INPUT.MIN_SIZE_TRAIN", "(72,)", "INPUT.MIN_SIZE_TEST", "72"]
TWO_STEPS += ["MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "16", "TEST.DETECTIONS_PER_IMAGE", "20"]
TWO_STEPS += NARROW


@pytest.fixture(scope="module")
def datasets(coco, tmp_path_factory) -> Path:
    """``DETECTRON2_DATASETS``, and in its folder the default of that."""
    folder = tmp_path_factory.mktemp("d2") / "datasets"
    script = ROOT / "tools" / "dataset_converters" / "detectron2_coco.py"
    subprocess.run([sys.executable, script, coco, folder / "coco"], check=True)
    return folder


@pytest.fixture
def train_net(datasets, tmp_path) -> Callable[..., str]:
    """The script, which returns all that it prints."""
    logs = (tmp_path / f"{i}.log" for i in count())
    return lambda *words: output_of(
        "tools/train_net.py", *words, log=next(logs), cwd=datasets.parent
    )


def metrics(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.json").read_text().splitlines()]


def test_train_resume_and_evaluate(datasets, train_net, tmp_path):
    base = ["--config-file", SMALL]
    options = ["OUTPUT_DIR", tmp_path, *TWO_STEPS]
    method = ["--mtl", "as_published/LibMTL/gradvac"]
    command = ["tools/train_net.py", *base, *method, *options]
    printed = run(*map(str, command), coco=datasets, DETECTRON2_DATASETS=str(datasets))
    assert "copypaste: Task: segm" in printed
    first = metrics(tmp_path)
    assert first[0]["iteration"] == 1
    assert "mtl/gds" in first[0]

    longer = [*base, *method, *options, "SOLVER.MAX_ITER", "4"]
    assert "Starting training from iteration 2" in train_net("--resume", *longer)
    state = torch.load(tmp_path / "model_final.pth")["trainer"]
    assert state["iteration"] == 3
    assert state["_trainer"]["mtl"]["aggregator"]["type"] == "GradVac"

    weights = ["MODEL.WEIGHTS", tmp_path / "model_final.pth"]
    nothing = ["DATASETS.TRAIN", "('not_needed',)"]
    printed = train_net("--eval-only", *base, *options, *weights, *nothing)
    assert "copypaste: Task: bbox" in printed


def test_two_processes(train_net, tmp_path):
    """On gloo, for want of GPUs."""
    options = ["OUTPUT_DIR", tmp_path, *TWO_STEPS, "MTL.AGGREGATOR.NAME", "PCGrad"]
    base = ["--config-file", SMALL, "--num-gpus", "2", "--dist-url", "auto"]
    printed = train_net(*base, *options)
    assert "World size: 2" in printed
    assert "copypaste: Task: segm" in printed
    assert (
        len(torch.load(tmp_path / "model_final.pth")["trainer"]["hooks"]["RandomStates"]["ranks"])
        == 2
    )


def test_panoptic_fpn(train_net, tmp_path):
    options = ["OUTPUT_DIR", tmp_path, *TWO_STEPS, "MTL.AGGREGATOR.NAME", "MGDA"]
    printed = train_net("--config-file", PANOPTIC, *options)
    assert "copypaste: Task: sem_seg" in printed
    assert "copypaste: Task: segm" in printed
    assert {"mtl/angle/box|mask", "mtl/loss/semantic"} < metrics(tmp_path)[0].keys()


def test_tasks_of_the_command_line(tmp_path):
    tasks = ["MTL.TASKS", "{rpn: loss_rpn_*, rest: [loss_cls, loss_box_reg, loss_mask]}"]
    options = ["--config-file", str(SMALL), *tasks, "OUTPUT_DIR", str(tmp_path)]
    cfg = setup(default_argument_parser().parse_args(options))
    assert list(cfg.MTL.TASKS) == ["rpn", "rest"]


def test_unknown_key():
    options = ["--config-file", str(SMALL), "MTL.AGREGATOR.NAME", "PCGrad"]
    with pytest.raises(SystemExit, match="MTL.AGREGATOR.NAME: MTL has no 'AGREGATOR'; did you"):
        setup(default_argument_parser().parse_args(options))


def test_semantic_maps_are_those_that_detectron2_expects(coco, datasets):
    """Things are 0, stuff counts from 1 in the order of its own categories."""
    stuff = [c["id"] for c in COCO_CATEGORIES if not c["isthing"]]
    content = json.loads((coco / "annotations" / "panoptic_train2017.json").read_text())
    image = content["annotations"][0]
    segments = np.asarray(
        Image.open(coco / "annotations" / "panoptic_train2017" / image["file_name"]), np.int64
    )
    labels = np.asarray(
        Image.open(datasets / "coco" / "panoptic_stuff_train2017" / image["file_name"])
    )
    seen = set()
    for segment in image["segments_info"]:
        colour = [segment["id"] >> shift & 255 for shift in (0, 8, 16)]
        here = (segments == colour).all(-1)
        category = segment["category_id"]
        expected = stuff.index(category) + 1 if category in stuff else 0
        assert (labels[here] == expected).all()
        seen.add(expected)
    assert 0 in seen
    assert len(seen) > 1
