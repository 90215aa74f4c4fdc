"""From a record of conflicts to a config in which each task has the worst layers for itself."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import recon
from models import ROOT

CONFIG = ROOT / "configs/cityscapes_dense/segnet-small_cityscapes-7.py"
LAYERS = {"backbone.encoder.0.0.0": 5, "backbone.decoder.2.1.1": 9, "backbone.encoder.1.0.1": 7}


def write(folder: Path, **changes: Any) -> Path:
    record = {"tasks": ["seg", "depth"], "threshold": 0.0, "steps": 10}
    record["scores"] = dict(sorted(LAYERS.items(), key=lambda pair: -pair[1]))
    path = folder / "layer_conflicts.json"
    path.write_text(json.dumps(record | changes))
    return path


def test_the_worst_layers_become_task_specific(tmp_path, capsys):
    record = write(tmp_path)
    recon.main([str(record), str(CONFIG), "--top", "2"])
    said = capsys.readouterr().out
    rows = re.findall(r"^ +(\d)  (\S+) +(\d+)( +\*)?$", said, re.MULTILINE)
    assert [(rank, name, score, bool(star)) for rank, name, score, star in rows] == [
        ("1", "backbone.decoder.2.1.1", "9", True),
        ("2", "backbone.encoder.1.0.1", "7", True),
        ("3", "backbone.encoder.0.0.0", "5", False),
    ]
    assert "conflicts of 10" in said
    out = tmp_path / "segnet-small_cityscapes-7_recon-2.py"
    assert f"wrote {out}" in said
    cfg = recon.Config.fromfile(out)
    assert cfg.model.task_layers == ["backbone.decoder.2.1.1", "backbone.encoder.1.0.1"]
    plain = recon.Config.fromfile(CONFIG)
    del cfg.model["task_layers"]
    assert cfg.to_dict() == plain.to_dict()
    # 16 + 16 numbers of one norm and 32 + 32 of the other
    model = recon.build(recon.Config.fromfile(out))
    difference = recon.mebibytes(model) - recon.size_of(plain)
    assert difference * 2**20 == pytest.approx(4 * (2 * 16 + 2 * 32))


def test_out_may_be_elsewhere(tmp_path):
    record = write(tmp_path)
    out = tmp_path / "a" / "b" / "mine.py"
    recon.main([str(record), str(CONFIG), "--top", "1", "--out", str(out)])
    assert recon.Config.fromfile(out).model.task_layers == ["backbone.decoder.2.1.1"]


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({}, ["--top", "4"], "--top: expected 1 to 3 layers of the trunk, got 4"),
        ({}, ["--top", "0"], "--top: expected 1 to 3"),
        ({"scores": {}}, ["--top", "1"], "the record has no layer"),
        ({"scores": {"heads.x": 1}}, ["--top", "1"], "--top: expected 1 to 0"),
        ({"scores": {"backbone.x": 1}}, ["--top", "1"], "does not fit .*has no layer 'backbone.x'"),
        ({"tasks": ["seg", "normals"]}, ["--top", "1"], "counted for the tasks"),
        ({}, ["--top", "1", "--out", str(CONFIG)], "--out: .* is the config itself"),
    ],
)
def test_refused(changes, options, message, tmp_path):
    before = CONFIG.read_text()
    with pytest.raises(SystemExit, match=message):
        recon.main([str(write(tmp_path, **changes)), str(CONFIG), *options])
    assert CONFIG.read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["layer_conflicts.json"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("configs/mask_rcnn/mask-rcnn_r18-small_fpn_coco.py", "model.type: expected MultiTask"),
        ("configs/detectron2/Small.yaml", "expected a config in Python"),
        ("configs/nothing.py", "there is no such file"),
    ],
)
def test_config_of_another_kind(config, message, tmp_path):
    with pytest.raises(SystemExit, match=message):
        recon.main([str(write(tmp_path)), str(ROOT / config), "--top", "1"])
