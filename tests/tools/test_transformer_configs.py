"""DINO and Mask2Former as examples: MMDetection's configs with a few lines more."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import train
from commands import ROOT
from mmengine.config import Config
from mmengine.hub import get_config

from mtl_plugins.tasks import TaskGroups

DINO = "dino/dino-3scale_r18-small_coco"
MASK2FORMER = "mask2former/mask2former_r18-small_coco"
FULL = ["dino/dino-4scale_r50_8xb2-12e_coco", "mask2former/mask2former_r50_8xb2-lsj-50e_coco"]
# Three decoder layers: d0 and d1 precede the last one; Mask2Former also rates its first queries.
LAYERS = {DINO: ["", "d0.", "d1."], MASK2FORMER: ["", "d0.", "d1.", "d2."]}
TASKS = {
    DINO: {
        "cls": [*(f"{d}{dn}loss_cls" for d in LAYERS[DINO] for dn in ("", "dn_")), "enc_loss_cls"],
        "box": [
            f"{prefix}loss_{term}"
            for prefix in ("enc_", *(f"{d}{dn}" for d in LAYERS[DINO] for dn in ("", "dn_")))
            for term in ("bbox", "iou")
        ],
    },
    MASK2FORMER: {
        "cls": [f"{d}loss_cls" for d in LAYERS[MASK2FORMER]],
        "mask": [f"{d}loss_{term}" for d in LAYERS[MASK2FORMER] for term in ("mask", "dice")],
    },
}
SHORT = [
    "train_cfg.max_iters=2",
    "train_cfg.val_begin=100",
    "default_hooks.checkpoint.interval=2",
    "default_hooks.logger.interval=1",
    "custom_hooks.0.interval=1",
    "train_dataloader.dataset.pipeline.2.scale=(96,72)",
    "randomness.seed=0",
]


def config_of(name: str) -> Config:
    return Config.fromfile(ROOT / f"configs/{name}.py")


def plain(part: Any) -> Any:
    """Dicts and lists without the scope that MMEngine notes in what it inherits."""
    if isinstance(part, Mapping):
        return {key: plain(value) for key, value in part.items() if key != "_scope_"}
    return [plain(value) for value in part] if isinstance(part, list | tuple) else part


@pytest.fixture
def train_here(monkeypatch: pytest.MonkeyPatch, coco: Path) -> Any:
    """A training of two steps in this process, by ``tools/train.py``; what it saved and logged."""
    monkeypatch.setenv("COCO_ROOT", str(coco))
    # Indents the config for the log, and takes longer than the training.
    monkeypatch.setattr("yapf.yapflib.yapf_api.FormatCode", lambda code, **_: (code, True))

    def run(config: str | Path, work_dir: Path, *options: str) -> tuple[Any, list[dict[str, Any]]]:
        words = ["train.py", str(config), "--work-dir", str(work_dir), *options]
        # MMEngine keeps one visualizer of a name, and so one file of scalars.
        words += ["--cfg-options", *SHORT, f"visualizer.name={work_dir}"]
        monkeypatch.setattr("sys.argv", words)
        train.main()
        (path,) = work_dir.rglob("scalars.json")
        saved = torch.load(work_dir / "iter_2.pth", weights_only=False)
        return saved["state_dict"], [json.loads(line) for line in path.read_text().splitlines()]

    return run


@pytest.mark.parametrize("name", FULL)
def test_only_the_loss_side_differs_from_mmdetection(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COCO_ROOT", "data/coco")
    both = config_of(name), get_config(f"mmdet::{name}.py")
    ours, theirs = (plain(config.to_dict()) for config in both)
    for part in ("model", "train_cfg", "param_scheduler", "val_evaluator", "auto_scale_lr"):
        assert ours[part] == theirs[part]
    for loader in ("train_dataloader", "val_dataloader", "test_dataloader"):
        for config in (ours, theirs):
            config[loader]["dataset"]["data_prefix"].pop("seg", None)  # of panoptic maps
        assert ours[loader] == theirs[loader]
    added = {"type", "tasks", "aggregator"}
    kept = {key: value for key, value in ours["optim_wrapper"].items() if key not in added}
    del theirs["optim_wrapper"]["type"]
    assert kept == theirs["optim_wrapper"]


@pytest.mark.parametrize("name", [DINO, MASK2FORMER])
def test_every_loss_of_every_layer_has_one_task(name: str, train_here: Any, tmp_path: Path) -> None:
    _, lines = train_here(ROOT / f"configs/{name}.py", tmp_path, "--mtl", "pcgrad")
    first = {key: value for line in lines if line["step"] == 1 for key, value in line.items()}
    losses = {key: value for key, value in first.items() if re.match(r"(?!mtl/).*loss_", key)}
    assert set(losses) == {loss for task in TASKS[name].values() for loss in task}
    groups = TaskGroups(config_of(name).optim_wrapper.tasks)
    for task, members in TASKS[name].items():
        assert all(groups.task_of(loss) == task for loss in members)
        total = sum(losses[loss] for loss in members)
        assert first[f"mtl/loss/{task}"] == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("name", [DINO, MASK2FORMER])
def test_sum_is_the_plain_wrapper(name: str, train_here: Any, tmp_path: Path) -> None:
    path = ROOT / f"configs/{name}.py"
    wrapper = plain(config_of(name).optim_wrapper) | {"_delete_": True, "type": "OptimWrapper"}
    del wrapper["tasks"], wrapper["aggregator"]
    without = tmp_path / "plain.py"
    lines = f"_base_ = {str(path)!r}", f"optim_wrapper = {wrapper!r}"
    hooks = "custom_hooks = [dict(type='CheckInvalidLossHook')]"
    without.write_text("\n".join([*lines, hooks]))
    expected, _ = train_here(without, tmp_path / "plain")
    actual, _ = train_here(path, tmp_path / "sum")
    assert expected.keys() == actual.keys()
    assert all(torch.equal(actual[key], expected[key]) for key in expected)
