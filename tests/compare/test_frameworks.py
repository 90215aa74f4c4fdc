"""Commands of the frameworks, run as the comparison runs them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import dense_files
import pytest
import torch
from commands import ROOT
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmseg.registry import MODELS

import mtl_plugins.mm.models  # noqa: F401
from mtl_plugins.compare.frameworks import OpenMMLab
from mtl_plugins.compare.runs import Run


def test_dense_predictions_are_drawn_in_the_folder_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dense_files, "HEIGHT", 32)
    monkeypatch.setattr(dense_files, "WIDTH", 48)
    dense_files.mtan(tmp_path / "data", classes=7, count=1, folder="label_7")
    monkeypatch.setenv("CITYSCAPES_MTAN_ROOT", str(tmp_path / "data"))
    config = Config.fromfile(ROOT / "configs/cityscapes_dense/segnet-small_cityscapes-7.py")
    folder = tmp_path / "run"
    folder.mkdir()
    config.dump(folder / "config.py")
    with DefaultScope.overwrite_default_scope("mmseg"):
        model = MODELS.build(config.model)
    torch.save({"state_dict": model.state_dict()}, folder / "iter_1.pth")
    (folder / "last_checkpoint").write_text(str(folder / "iter_1.pth"))
    (tmp_path / "shell").mkdir()

    run = Run("sum", 0, str(folder), "mm", str(folder / "config.py"), "", pictures=1)
    done = subprocess.run(
        OpenMMLab().draw(run, folder / "pictures"),
        cwd=tmp_path / "shell",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert [p.suffix for p in (folder / "pictures" / "predictions").rglob("*.*g")] == [".png"]
    assert not list((tmp_path / "shell").iterdir())
