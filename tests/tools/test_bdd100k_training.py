"""BDD100K as its user does it: teacher, pseudo labels, joint training, one test of both tasks."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pseudo_label
import pytest
import train
from commands import ROOT
from dataset_converters import bdd100k as converter
from make_demo_data import main as draw
from mmengine.config import Config
from PIL import Image
from two_processes import output_of

CONFIGS = ROOT / "configs/bdd100k"
DET, SEG, JOINT, NO_PSEUDO = (
    str(CONFIGS / f"{name}.py")
    for name in (
        "fcos_r18-small_bdd100k",
        "semfpn_r18-small_bdd100k",
        "fcos-semfpn_r18-small_bdd100k",
        "fcos-semfpn_r18-small_bdd100k_no-pseudo",
    )
)
STEPS = 2
SHORT = [
    "--cfg-options",
    f"train_cfg.max_iters={STEPS}",
    "train_cfg.val_interval=100",
    f"default_hooks.checkpoint.interval={STEPS}",
    "default_hooks.logger.interval=1",
    "custom_hooks.0.interval=1",
    "train_dataloader.batch_size=2",
]
# Both sources in every batch.
MIXED = [
    "train_dataloader.batch_sampler.type=SourceRatioBatchSampler",
    "train_dataloader.batch_sampler.ratio=[1,1]",
]
Env = dict[str, str]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Env:
    """Four drawn images of each source, converted; not to be changed."""
    out = tmp_path_factory.mktemp("drawn")
    env = {"BDD100K_ROOT": str(out / "bdd100k"), "BDD100K_DERIVED": str(out / "derived")}
    counts = ["--train", "8", "--val", "4", "--size", "128", "96"]
    draw(["--layout", "bdd100k", "--out", env["BDD100K_ROOT"], *counts])
    converter.main([env["BDD100K_ROOT"], "--out", env["BDD100K_DERIVED"]])
    return env


@pytest.fixture
def own(drawn: Env, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Env:
    """The same, to be changed by a test that runs the commands in its own process."""
    env = {name: str(tmp_path / Path(path).name) for name, path in drawn.items()}
    for name, path in drawn.items():
        shutil.copytree(path, env[name])
        monkeypatch.setenv(name, env[name])
    return env


def names_in(work_dir: Path) -> set[str]:
    """What a training logged."""
    (path,) = work_dir.rglob("scalars.json")
    return set().union(*map(json.loads, path.read_text().splitlines()))


def train_here(
    monkeypatch: pytest.MonkeyPatch, config: str | Path, work_dir: Path, *options: str
) -> None:
    """A short ``tools/train.py`` in this process."""
    words = ["train.py", str(config), "--work-dir", str(work_dir), *SHORT]
    # MMEngine keeps one visualizer of a name, and so one file of scalars.
    monkeypatch.setattr("sys.argv", [*words, f"visualizer.name={work_dir}", *options])
    train.main()


def narrow(config: str, folder: Path) -> str:
    """The config with a quarter of the backbone's channels, at the size of the drawn images."""
    cfg = Config.fromfile(config)
    cfg.model.backbone.base_channels, cfg.model.neck.in_channels = 16, [32, 64, 128]
    cfg.model.backbone.norm_cfg.num_groups = 16
    text, count = re.subn(r"scale=\(\s*320,\s*240", "scale=(128, 96", cfg.pretty_text)
    assert count
    path = folder / Path(config).name
    path.write_text(text)
    return str(path)


def by_source(folder: Path, joint: str) -> Path:
    """The joint config with the task split of the large ``_by-source`` one."""
    tasks = Config.fromfile(CONFIGS / "fcos-semfpn_r50_fpn_30e_bdd100k_by-source.py")
    path = folder / "by-source.py"
    split = {"_delete_": True, **tasks.optim_wrapper.tasks}
    path.write_text(f"_base_ = {joint!r}\noptim_wrapper = dict(tasks={split!r})\n")
    return path


def test_from_teachers_to_map_and_miou(
    own: Env, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teachers: list[str] = []
    det, seg, both = (narrow(config, tmp_path) for config in (DET, SEG, JOINT))
    for option, config in (("--det", det), ("--seg", seg)):
        place = tmp_path / option
        train_here(monkeypatch, config, place)
        teachers += [option, config, str(place / f"iter_{STEPS}.pth")]
    # After two steps a teacher is sure of little.
    thresholds = ["--score-thr", "0.005", "--seg-thr", "0.1"]
    pseudo_label.main([both, *teachers, *thresholds, "--workers", "0"])
    for source in ("det_train", "sem_seg_train"):
        labels = Path(own["BDD100K_DERIVED"], f"pseudo/{source}.json")
        assert json.loads(labels.read_text())["annotations"]

    joint, config = tmp_path / "joint", str(by_source(tmp_path, both))
    train_here(monkeypatch, config, joint, *MIXED, "--mtl", "mclgs")
    logged = names_in(joint)
    for source in ("gt", "pseudo"):
        assert {f"mtl/loss/{source}_det", f"mtl/loss/{source}_seg"} <= logged
        terms = {"det_cls", "det_bbox", "det_centerness", "seg_ce", "seg_dice"}
        assert {f"loss_{source}_{term}" for term in terms} <= logged

    words = [config, str(joint / f"iter_{STEPS}.pth"), "--work-dir", str(joint / "test")]
    # Nothing found would be nothing to measure.
    words += ["--cfg-options", "model.test_cfg.score_thr=0.0"]
    said = output_of("tools/test.py", *words, log=tmp_path / "test.log", **own)
    measured = dict(re.findall(r"(coco/bbox_mAP|mIoU): +(-?[\d.]+)", said))
    assert measured.keys() == {"coco/bbox_mAP", "mIoU"}
    assert 0 <= float(measured["coco/bbox_mAP"]) <= 1 and 0 < float(measured["mIoU"]) <= 100


def test_pseudo_labels_that_are_not_there_stop_it_at_once(
    own: Env, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    derived = Path(own["BDD100K_DERIVED"])
    expected = ["pseudo/det_train.json", "pseudo/det_train"]
    for number, missing in enumerate(expected):
        key = ("pseudo_ann_file", "data_prefix.pseudo_seg")[number]
        with pytest.raises(SystemExit) as stopped:
            train_here(monkeypatch, JOINT, tmp_path / "work")
        message = str(stopped.value)
        assert re.match(rf"train_dataloader\.dataset\.datasets\[0\]\.{re.escape(key)}: ", message)
        assert f"{derived / missing}'" in message and "tools/pseudo_label.py writes it" in message
        (derived / "pseudo").mkdir(exist_ok=True)
        (derived / missing).touch()
    assert not (tmp_path / "work").exists()


def test_no_teacher_needs_no_pseudo_labels(
    own: Env, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_here(monkeypatch, narrow(NO_PSEUDO, tmp_path), tmp_path / "work")
    terms = {name for name in names_in(tmp_path / "work") if "loss_" in name}
    assert terms and all(name.startswith("loss_gt_") for name in terms)


@pytest.mark.parametrize(
    ("changed", "error"), [("images/10k", FileNotFoundError), ("labels/sem_seg/masks", ValueError)]
)
def test_a_missing_image_and_a_mask_of_the_wrong_size_are_named(
    own: Env, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str, error: type[Exception]
) -> None:
    folder = Path(own["BDD100K_ROOT"], changed, "train")
    stems = sorted(path.stem for path in folder.iterdir())
    for path in folder.iterdir():
        path.unlink()
        if error is ValueError:
            Image.fromarray(np.zeros((95, 128), np.uint8)).save(path)
    # An image that is missing may be found before the start.
    with pytest.raises((error, SystemExit), match=f"{changed}/train/({'|'.join(stems)})"):
        train_here(monkeypatch, narrow(NO_PSEUDO, tmp_path), tmp_path / "work")
