"""MetaGraspNet as its user does it: converter, training under methods, test, and what they cost."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import train
from commands import run
from dataset_converters import metagraspnet as converter
from make_demo_data import main as draw
from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.registry import DefaultScope
from models import NARROW_UOAIS
from two_processes import output_of

from mtl_plugins.mm import test as evaluate

CONFIG = "configs/metagraspnet/uoais_r18-small_fpn_rgbd.py"
TASKS = ("rpn_cls", "rpn_box", "cls", "box", "visible", "amodal", "occlusion")
TEST_SMALL = [
    "--cfg-options",
    *(f"{key}={value}".replace(" ", "") for key, value in NARROW_UOAIS.items()),
    "test_dataloader.dataset.pipeline.2.scale=(128,96)",
    "model.test_cfg.rpn.max_per_img=20",
    "model.test_cfg.rcnn.max_per_img=10",
]
SMALL = [
    *TEST_SMALL,
    "train_dataloader.dataset.pipeline.4.scale=(128,96)",
    "val_dataloader.dataset.pipeline.2.scale=(128,96)",
    "model.train_cfg.rpn_proposal.max_per_img=20",
    "model.train_cfg.rcnn.sampler.num=16",
]
SHORT = [
    *SMALL,
    "train_cfg.max_iters=2",
    "train_cfg.val_interval=2",
    "default_hooks.checkpoint.interval=2",
    "default_hooks.logger.interval=1",
    "custom_hooks.0.interval=1",
    "train_dataloader.batch_size=2",
]
COLUMNS = [f"{kind}_{score}" for kind in ("bbox", "visible", "amodal") for score in ("mAP", "mAR")]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six drawn scenes in the raw layout, converted; not to be changed."""
    out = tmp_path_factory.mktemp("metagraspnet") / "data"
    counts = ["--train", "4", "--val", "2", "--size", "128", "96"]
    draw(["--layout", "metagraspnet", "--out", str(out), *counts])
    converter.main([str(out), "--out", str(out / "annotations")])
    return out


@pytest.mark.parametrize("mtl", ["sum", "mgda+feature"])
def test_train_and_test_print_the_paper_s_columns(
    root: Path,
    tmp_path: Path,
    mtl: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("METAGRASPNET_ROOT", str(root))

    def said_by(script: str, *words: str) -> str:
        """What a command prints: the first method's in processes of their own."""
        if mtl == "sum":
            log, env = tmp_path / f"{script}.log", {"METAGRASPNET_ROOT": str(root)}
            return output_of(f"tools/{script}.py", *words, log=log, **env)
        capfd.readouterr()
        monkeypatch.setattr("sys.argv", [script, *words])
        {"train": train.main, "test": evaluate.main}[script]()
        return "".join(capfd.readouterr())

    words = [CONFIG, "--mtl", mtl, "--work-dir", str(tmp_path), *SHORT]
    printed = said_by("train", *words, f"visualizer.name={tmp_path.name}")
    losses = [float(loss) for loss in re.findall(r"  loss: (\S+)", printed)]
    assert len(losses) == 2 and all(map(math.isfinite, losses))
    scalars = next(tmp_path.glob("*/vis_data/scalars.json")).read_text()
    assert all(f'"mtl/loss/{task}"' in scalars for task in TASKS)

    words = [CONFIG, str(tmp_path / "iter_2.pth"), "--work-dir", str(tmp_path), *TEST_SMALL]
    printed = said_by("test", *words)
    for column in COLUMNS:
        assert re.search(rf"{column}: [01]\.\d+", printed), (column, printed[-2000:])
    for column in ("occlusion_accuracy", "occlusion_F1"):  # of nothing, perhaps
        assert re.search(rf"{column}: ([01]\.\d+|nan)", printed), (column, printed[-2000:])


def test_what_methods_cost_on_a_config(root: Path) -> None:
    printed = run(
        "tools/analysis/benchmark_methods.py", CONFIG, "--mtl", "mgda", "mgda+feature",
        "--repeats", "1", "--shared", "neck", *SMALL, "train_dataloader.batch_size=1",
        coco=root, METAGRASPNET_ROOT=str(root),
    )  # fmt: skip
    rows = {line.split()[0]: line.split()[1:] for line in printed.splitlines() if line.split()}
    for name in ("mgda", "mgda+feature"):
        assert len(rows[name]) == 4 and all(float(number) > 0 for number in rows[name])
    for level, parts in (
        ("parameter", ["forward", "heads", "7 x before them"]),
        ("feature", ["forward", "heads to features", "their parameters", "before them"]),
    ):
        words = ", ".join(rf"{part} -?\d+\.\d+" for part in parts)
        assert re.search(rf"sum of parts, {level} +\d+\.\d+ +\d+\.\d+  \({words}\)", printed)


def test_the_paper_s_pipeline(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METAGRASPNET_ROOT", str(root))
    cfg = Config.fromfile("configs/metagraspnet/uoais_r18_fpn_rgbd.py")
    assert list(cfg.optim_wrapper.tasks) == list(TASKS)
    with DefaultScope.overwrite_default_scope("mmdet"):
        data = DATASETS.build(cfg.train_dataloader.dataset)
    for i in range(12):  # of four scenes, half of the time a part of one
        packed = data[i % 4]
        image, truth = packed["inputs"], packed["data_samples"].gt_instances
        assert len(image) == 4 and max(image.shape) <= 640
        assert (truth.visible_masks.masks <= truth.masks.masks).all()
        assert truth.masks.masks.shape[1:] == image.shape[1:]
