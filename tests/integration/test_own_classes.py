"""Data of one's own, three classes, in both frameworks: what the README says, from outside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import ROOT
from PIL import Image

FRUIT = ("apple", "fig", "kiwi")
# The README's, but for a smaller model, fewer steps and images.
CONFIG = """
_base_ = ["{root}/configs/mask_rcnn/mask-rcnn_r18-small_fpn_coco.py"]
fruit = dict(data_root="fruit", metainfo=dict(classes=("apple", "fig", "kiwi")))
train_dataloader = dict(
    dataset=dict(**fruit, ann_file="train.json", data_prefix=dict(img="images")), batch_size=2
)
val_dataloader = dict(dataset=dict(**fruit, ann_file="train.json", data_prefix=dict(img="images")))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file="fruit/train.json")
test_evaluator = val_evaluator
model = dict(roi_head=dict(bbox_head=dict(num_classes=3), mask_head=dict(num_classes=3)))
train_cfg = dict(max_iters=2, val_interval=2)
"""
SCRIPT = """
import mtl_plugins.d2
from detectron2.config import get_cfg
from detectron2.data.datasets import register_coco_instances
from mtl_plugins.d2 import MTLTrainer, add_mtl_config

register_coco_instances("fruit_train", {{}}, "fruit/train.json", "fruit/images")
cfg = get_cfg()
add_mtl_config(cfg)
cfg.merge_from_file("{root}/configs/detectron2/mask_rcnn_R_18_small.yaml")
cfg.merge_from_list(["DATASETS.TRAIN", ("fruit_train",), "DATASETS.TEST", ()])
cfg.merge_from_list(["MODEL.ROI_HEADS.NUM_CLASSES", {classes}, "MTL.AGGREGATOR.NAME", "PCGrad"])
cfg.merge_from_list(["SOLVER.MAX_ITER", 2, "DATALOADER.NUM_WORKERS", 0, "OUTPUT_DIR", "d2"])
cfg.merge_from_list(["MTL.MONITOR.INTERVAL", 1])
if __name__ == "__main__":
    trainer = MTLTrainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four images with an object of each class, somewhere outside the repository."""
    folder = tmp_path_factory.mktemp("elsewhere")
    (folder / "fruit/images").mkdir(parents=True)
    images, annotations = [], []
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 99, (96, 128, 3), np.uint8)
        name = f"{number}.jpg"
        images.append({"id": number, "file_name": name, "width": 128, "height": 96})
        for label in range(3):
            x, y = 8 + 40 * label, 8 + 12 * number
            pixels[y : y + 32, x : x + 32, label] = 250
            polygon = [x, y, x + 32, y, x + 32, y + 32, x, y + 32]
            annotations.append(
                {
                    **{"id": len(annotations) + 1, "image_id": number, "iscrowd": 0},
                    **{"category_id": label + 1, "bbox": [x, y, 32, 32], "area": 1024},
                    "segmentation": [polygon],
                }
            )
        Image.fromarray(pixels).save(folder / "fruit/images" / name)
    categories = [{"id": i, "name": name} for i, name in enumerate(FRUIT, start=1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "fruit/train.json").write_text(json.dumps(content))
    return folder


def python(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True
    )


def test_mmdetection(folder: Path) -> None:
    (folder / "fruit.py").write_text(CONFIG.format(root=ROOT))
    done = python(folder, f"{ROOT}/tools/train.py", "fruit.py", "--mtl", "pcgrad")
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    assert "Iter(train) [2/2]" in done.stdout + done.stderr
    assert "bbox_mAP" in done.stdout + done.stderr
    assert (folder / "work_dirs/fruit_pcgrad/iter_2.pth").is_file()


def test_detectron2(folder: Path) -> None:
    (folder / "fruit_d2.py").write_text(SCRIPT.format(root=ROOT, classes=3))
    done = python(folder, "fruit_d2.py")
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    lines = [json.loads(line) for line in (folder / "d2/metrics.json").read_text().splitlines()]
    assert np.isfinite(lines[-1]["total_loss"]) and "mtl/gds" in lines[-1]
    assert (folder / "d2/model_final.pth").is_file()
