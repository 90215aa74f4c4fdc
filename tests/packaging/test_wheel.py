"""The wheel in a fresh environment and an empty folder, as a user's own project has it."""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections import Counter
from pathlib import Path

import pytest
from commands import ROOT

PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
ENVIRONMENT = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
PARTS = ["mtl_plugins", "configs", "tools", "demo", "pyproject.toml", "README.md", "LICENSE"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, since setuptools writes beside its sources."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for part in PARTS:
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        options = {"symlinks": True, "ignore": shutil.ignore_patterns("__pycache__")}
        copy(ROOT / part, source / part, **(options if copy is shutil.copytree else {}))
    options = ["--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", str(folder)]
    subprocess.run([*PIP, "wheel", *options, str(source)], check=True)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel, and what it needs from that of the tests."""
    venv = tmp_path_factory.mktemp("fresh") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    python = str(venv / "bin" / "python")
    install = [*PIP, "--python", python, "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True, env=ENVIRONMENT)
    # A path that a .pth file adds comes after those of the environment, and its .pth files, among
    # them that of an editable installation, are not read.
    site = venv / Path(sysconfig.get_path("purelib")).relative_to(sys.prefix)
    (site / "needs.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return venv


def call(environment: Path, folder: Path, command: str, *arguments: str, **env: str) -> str:
    """Run a command of the environment in a folder, and return all that it prints."""
    done = subprocess.run(
        [str(environment / "bin" / command), *arguments],
        cwd=folder,
        env=ENVIRONMENT | {"OMP_NUM_THREADS": "1"} | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def three_classes(coco: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A data set of the user's own, and the names of its classes."""
    root = tmp_path_factory.mktemp("own") / "data"
    (root / "annotations").mkdir(parents=True)
    content = json.loads((coco / "annotations" / "instances_train2017.json").read_text())
    common = Counter(a["category_id"] for a in content["annotations"]).most_common(3)
    ids = {category for category, _ in common}
    for split in ("train2017", "val2017"):
        (root / split).symlink_to(coco / split)
        content = json.loads((coco / "annotations" / f"instances_{split}.json").read_text())
        content["categories"] = [c for c in content["categories"] if c["id"] in ids]
        content["annotations"] = [a for a in content["annotations"] if a["category_id"] in ids]
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root, [category["name"] for category in content["categories"]]


def test_wheel_holds_every_config_and_tool(wheel):
    with zipfile.ZipFile(wheel) as packed:
        names = set(packed.namelist())
        metadata = next(name for name in names if name.endswith("METADATA"))
        text = packed.read(metadata).decode()
    for folder in ("configs", "tools", "demo"):
        for path in (ROOT / folder).rglob("*.*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert f"mtl_plugins/.mim/{path.relative_to(ROOT)}" in names
    assert {"mtl_plugins/py.typed", "mtl_plugins/.mim/model-index.yml"} <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if name.startswith(("tests", "configs", "tools", "demo"))]
    extras = set(re.findall(r"^Provides-Extra: (.*)$", text, re.MULTILINE))
    assert {"mm", "d2", "torchjd", "compare", "metagraspnet", "dense", "docs"} <= extras
    # Nothing but torch is needed without an extra.
    needed = re.findall(r"^Requires-Dist: ([\w.-]+)(?!.*extra)", text, re.MULTILINE)
    assert needed == ["torch"]


def test_core_needs_torch_only_and_names_missing_extras(environment, tmp_path):
    """In an interpreter that has torch and what torch needs, and neither framework."""
    code = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top in ("mmengine", "mmcv", "mmdet", "mmseg", "detectron2", "torchjd", "torchvision"):
            raise ModuleNotFoundError(f"No module named {top!r}", name=top)
sys.meta_path.insert(0, Blocked())
import importlib, importlib.util
find = importlib.util.find_spec
def find_spec(name, package=None):
    try:
        return find(name, package)
    except ModuleNotFoundError:
        return None
importlib.util.find_spec = find_spec
import mtl_plugins
print(mtl_plugins.__file__)
for name in ("mtl_plugins.mm", "mtl_plugins.d2"):
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        print(error)
from mtl_plugins.aggregation import build_aggregator
try:
    build_aggregator(dict(type="TorchJD", name="UPGradWeighting"))
except ImportError as error:
    print(error)
"""
    arguments = ["-W", "error::DeprecationWarning:mtl_plugins", "-c", code]
    where, mm, d2, torchjd = call(environment, tmp_path, "python", *arguments).splitlines()
    assert Path(where).is_relative_to(environment)
    assert mm == "mtl_plugins.mm needs mmengine, not installed here: pip install 'mtl-plugins[mm]'"
    assert d2.startswith("mtl_plugins.d2 needs detectron2, not installed here: it is not on the")
    assert "facebookresearch/detectron2" in d2
    script = Path(re.search(r"python (\S+install_detectron2.py)", d2)[1])
    names = runpy.run_path(str(script))
    assert names["EXTENSION"].is_file()
    assert names["EXTENSION"].is_relative_to(environment)
    assert torchjd == "TorchJD is not installed: pip install 'mtl-plugins[torchjd]'"


def test_import_warns_of_nothing():
    subprocess.run([sys.executable, "-W", "error", "-c", "import mtl_plugins"], check=True)


OWN = """
model = dict(
    backbone=dict(depth=18, frozen_stages=-1, init_cfg=None),
    neck=dict(in_channels=[64, 128, 256, 512], out_channels=32),
    rpn_head=dict(in_channels=32, feat_channels=32),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=32),
        bbox_head=dict(in_channels=32, fc_out_channels=32, num_classes=3),
        mask_roi_extractor=dict(out_channels=32),
        mask_head=dict(num_convs=1, in_channels=32, conv_out_channels=32, num_classes=3),
    ),
)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="Resize", scale=(160, 120), keep_ratio=True),
    dict(type="PackDetInputs"),
]
data = dict(
    data_root={root!r},
    ann_file="annotations/instances_train2017.json",
    metainfo=dict(classes={classes!r}),
)
train_dataloader = dict(
    num_workers=0, persistent_workers=False, dataset=dict(**data, pipeline=train_pipeline)
)
train_cfg = dict(_delete_=True, type="IterBasedTrainLoop", max_iters=3)
val_cfg, val_dataloader, val_evaluator = None, None, None
test_cfg, test_dataloader, test_evaluator = None, None, None
param_scheduler = []
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(by_epoch=False, interval=3))
log_processor = dict(by_epoch=False)
custom_hooks = [dict(type="TaskInterferenceHook", interval=1)]
"""


def test_own_config_trains_on_three_classes(environment, three_classes, tmp_path):
    """The config of the README, and after it what a project of the user's has."""
    text = (ROOT / "README.md").read_text()
    readme = re.search(r"example: config -->\n```python\n(.*?)```", text, re.DOTALL)[1]
    root, classes = three_classes
    values = {"root": f"{root}/", "classes": tuple(classes)}
    own = re.sub(r"\{(root|classes)!r\}", lambda found: repr(values[found[1]]), OWN)
    (tmp_path / "mine.py").write_text(readme + own)
    printed = call(environment, tmp_path, "mtl-train", "mine.py")
    assert "Iter(train) [3/3]" in printed
    run = tmp_path / "work_dirs" / "mine"
    assert (run / "iter_3.pth").is_file()
    file = next(run.glob("*/vis_data/scalars.json"))
    records = [json.loads(line) for line in file.read_text().splitlines()]
    logged = set().union(*records)
    assert {"mtl/gds", "mtl/loss/detection", "mtl/loss/mask"} < logged


def test_list_prints_every_method(environment, tmp_path):
    printed = call(environment, tmp_path, "mtl-train", "--list")
    names = {line.split()[0] for line in printed.splitlines() if line and line[0] != " "}
    assert names >= {path.stem for path in (ROOT / "configs/_base_/mtl").glob("*.py")}
    row = next(line for line in printed.splitlines() if line.startswith("mclgs "))
    assert row.split()[1:4] == ["mean", "p", "T"]
    row = next(line for line in printed.splitlines() if line.startswith("pcgrad "))
    assert row.split()[1:5] == ["sum", "p", "f", "T"]


def test_own_yaml_trains_on_three_classes(environment, three_classes, tmp_path):
    """A data set that a module of the user's registers, and a method over a base of ours."""
    root, classes = three_classes
    (tmp_path / "my_data.py").write_text(
        "from detectron2.data.datasets import register_coco_instances\n"
        f"root = {str(root)!r}\n"
        "file = root + '/annotations/instances_train2017.json'\n"
        "register_coco_instances('mine', {}, file, root + '/train2017')\n"
    )
    (tmp_path / "mine.yaml").write_text(
        "_BASE_:\n"
        '- !!python/object/apply:mtl_plugins.d2.config_file ["mask_rcnn_R_18_small.yaml"]\n'
        '- !!python/object/apply:mtl_plugins.d2.config_file ["mtl/pcgrad.yaml"]\n'
        "MODEL:\n"
        "  FPN: {OUT_CHANNELS: 32}\n"
        "  ROI_HEADS: {NUM_CLASSES: 3}\n"
        "DATASETS: {TRAIN: ['mine'], TEST: []}\n"
        "INPUT: {MIN_SIZE_TRAIN: [120], MAX_SIZE_TRAIN: 160}\n"
        "SOLVER: {MAX_ITER: 3, STEPS: []}\n"
        "MTL: {MONITOR: {INTERVAL: 1}}\n"
    )
    call(
        environment, tmp_path, "mtl-train-net", "--import", "my_data", "--config-file", "mine.yaml"
    )
    records = [
        json.loads(line) for line in (tmp_path / "output/metrics.json").read_text().splitlines()
    ]
    assert records[-1]["iteration"] == 2
    assert {"mtl/gds", "mtl/loss/detection", "mtl/loss/mask"} < records[-1].keys()
    assert (tmp_path / "output" / "model_final.pth").is_file()
