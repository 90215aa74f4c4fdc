"""Configs of dense prediction: nyuv2, nyud, pascal_context and cityscapes_dense."""

from __future__ import annotations

import contextlib
import functools
import io
import math
import re
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import dense_files
import numpy as np
import pytest
import torch
import train
from commands import ROOT
from demo_scenes.draw import LAYOUTS
from demo_scenes.scene import draw_scene
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.optim.scheduler import CosineAnnealingLR, LinearLR, MultiStepLR, PolyLR
from mmengine.registry import DefaultScope
from mmengine.runner import set_random_seed
from mmseg.registry import DATASETS, METRICS, MODELS
from torch import nn

import mtl_plugins.mm.datasets
import mtl_plugins.mm.evaluation
import mtl_plugins.mm.models
import mtl_plugins.mm.transforms  # noqa: F401
from mtl_plugins.mm.data_check import data_problem
from mtl_plugins.rotations import Rotations

FOLDERS = ("nyuv2", "nyud", "pascal_context", "cityscapes_dense")
CONFIGS = [
    f"{folder}/{path.stem}"
    for folder in FOLDERS
    for path in sorted((ROOT / "configs" / folder).glob("*.py"))
    if not path.stem.startswith("data")
]
FULL = [name for name in CONFIGS if "small" not in name]
FIELD = {
    "seg": "sem_seg",
    "parts": "human_parts",
    "depth": "depth",
    "normals": "normals",
    "edges": "edges",
    "sal": "saliency",
}
CLASSES = {
    "nyuv2": {"seg": 13},
    "nyud": {"seg": 40},
    "pascal_context": {"seg": 21, "parts": 7},
    "cityscapes-7": {"seg": 7},
    "cityscapes-19": {"seg": 19},
}
WEIGHTS = {  # found by hand, of the survey and paper D; of a single task too
    "nyuv2": {"seg": 1, "depth": 1, "normals": 1},
    "nyud": {"seg": 1, "depth": 1, "normals": 10, "edges": 50},
    "pascal_context": {"seg": 1, "parts": 2, "sal": 5, "normals": 10, "edges": 50},
    "cityscapes_dense": {"seg": 1, "depth": 1},
}
MTI_NET_AUXILIARY = 4  # predictions of each task, one for each scale

# Optimizer, learning rate, momentum, weight decay, batch size, epochs
SCHEDULES: dict[str, tuple[str, float, float, float, int, int]] = {
    "nyuv2/segnet_200e_nyuv2": ("SGD", 0.007, 0.9, 1e-4, 2, 200),
    "nyuv2/mtan_segnet_200e_nyuv2": ("SGD", 0.007, 0.9, 1e-4, 2, 200),
    "nyuv2/segnet_200e_nyuv2_*": ("Adam", 1e-4, 0, 0, 2, 200),
    "nyuv2/mtan_segnet_adam_200e_nyuv2": ("Adam", 1e-4, 0, 0, 2, 200),
    "nyud/*_100e_*": ("Adam", 1e-4, 0, 1e-4, 8, 100),
    "nyud/cross-stitch_r50_50e_nyud": ("SGD", 1e-3, 0.9, 1e-4, 8, 50),
    "pascal_context/hr18_60e_*": ("SGD", 0.01, 0.9, 1e-4, 8, 60),
    "pascal_context/mti-net_hr18_*": ("Adam", 1e-4, 0, 1e-4, 8, 100),
    "pascal_context/mti-net_r18_*": ("Adam", 1e-4, 0, 1e-4, 6, 100),
    "cityscapes_dense/*segnet_200e_*": ("Adam", 5e-5, 0, 0, 8, 200),
    "cityscapes_dense/deeplab_*": ("Adam", 1e-4, 0, 1e-4, 8, 100),
}
RATES: dict[int, Callable[[int], float]] = {  # factor of the learning rate by epochs and epoch
    200: lambda epoch: 1.0 if epoch < 100 else 0.5,
    **{n: (lambda epoch, n=n: (1 - epoch / n) ** 0.9) for n in (50, 60, 100)},
}

PARAMETERS = {
    "nyuv2/segnet_200e_nyuv2": 25_055_185,
    "nyuv2/mtan_segnet_200e_nyuv2": 44_229_073,
    "nyuv2/segnet_200e_nyuv2_seg": 24_981_069,
    "cityscapes_dense/segnet_200e_cityscapes-7": 25_017_672,
}
MEBIBYTES = {  # "#P." of paper D, Table 3: float32
    "cityscapes_dense/segnet_200e_cityscapes-7": "95.43",
    "cityscapes_dense/cross-stitch_segnet_200e_cityscapes-7": "190.59",
    "cityscapes_dense/rotograd_segnet_200e_cityscapes-7": "103.43",
    "cityscapes_dense/recon_segnet_200e_cityscapes-7": "108.44",
}


@pytest.fixture(autouse=True)
def in_mmseg(monkeypatch: pytest.MonkeyPatch) -> Any:
    for folder in ("NYUV2", "NYUD", "PASCAL", "CITYSCAPES_MTAN", "CITYSCAPES"):
        monkeypatch.delenv(f"{folder}_ROOT", raising=False)
    with DefaultScope.overwrite_default_scope("mmseg"):
        yield


@functools.cache
def config_of(name: str) -> Config:
    return Config.fromfile(ROOT / f"configs/{name}.py")


@functools.cache
def model_of(name: str) -> nn.Module:
    """Model without memory for its weights."""
    with torch.device("meta"):
        return MODELS.build(config_of(name).model)


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", CONFIGS)
def test_heads_tasks_data_and_evaluators_agree(name: str) -> None:
    cfg, model = config_of(name), model_of(name)
    folder = name.split("/")[0]
    tasks = list(model.heads)
    assert cfg.optim_wrapper.tasks == {task: f"{task}.*" for task in tasks}
    assert len(tasks) == 1 or not re.search("_(seg|depth|normals|parts|sal)$", name)

    key = next(key for key in CLASSES if key in name)
    for task, head in model.heads.items():
        assert head.field == FIELD[task]
        small = task == "depth" and "segnet-small_cityscapes" in name
        assert head.loss_weight == (20 if small else WEIGHTS[folder][task])
        assert getattr(head, "out_channels", None) == CLASSES[key].get(
            task, 3 if task == "normals" else 1
        )

    predicted = [task for task, head in model.heads.items() if head.decoder is not None]
    assert [task for task in tasks if task not in predicted] == (
        ["edges"] if "mti-net" in name else []
    )
    for evaluators in (cfg.val_evaluator, cfg.test_evaluator):
        metrics = [METRICS.build(evaluator) for evaluator in evaluators]
        assert [metric.prefix for metric in metrics] == predicted
        assert [metric.field for metric in metrics] == [FIELD[task] for task in predicted]

    for part in ("train", "val", "test"):
        options = {**cfg[f"{part}_dataloader"].dataset, "lazy_init": True}
        data = DATASETS.build(options)
        loaded = data.fields
        assert set(loaded) >= {FIELD[task] for task in (tasks if part == "train" else predicted)}
        assert len(tasks) > 1 or loaded == (FIELD[tasks[0]],)
        assert data.split == ("train" if part == "train" else "val")
        for task, classes in CLASSES[key].items():
            names = "classes" if task == "seg" else f"{FIELD[task]}_classes"
            assert len(data.metainfo[names]) == classes

    for source in (cfg.model.backbone, cfg.model.get("neck", {})):
        if "tasks" in source:  # features by task
            assert [*source["tasks"], *source.get("auxiliary_tasks", [])] == tasks
        if "backbones" in source:
            assert list(source["backbones"]) == tasks


@pytest.mark.parametrize("name", ["nyud/mti-net_r18_100e_nyud", "nyud/cross-stitch_r50_50e_nyud"])
def test_the_largest_networks_predict_every_task(name: str) -> None:
    """Only shapes are computed, since the weights have no memory."""
    model = model_of(name).eval()
    image = torch.empty(2, 3, 32, 64, device="meta")
    with torch.no_grad():
        x = model.extract_feat(image)
        logits = {task: model.heads[task](features) for task, features in x.features.items()}
    assert {task: logit.shape[1] for task, logit in logits.items()} == {
        task: CLASSES["nyud"].get(task, 3 if task == "normals" else 1) for task in logits
    }
    assert {logit.shape[3] / logit.shape[2] for logit in logits.values()} == {2}
    assert set(x.auxiliary) == (set(model.heads) if "mti-net" in name else set())
    assert all(len(given) == MTI_NET_AUXILIARY for given in x.auxiliary.values())


@pytest.mark.parametrize("name", FULL)
def test_schedule_is_the_published_one(name: str) -> None:
    cfg = config_of(name)
    (expected,) = (facts for pattern, facts in SCHEDULES.items() if fnmatch(name, pattern))
    kind, rate, momentum, decay, batch, epochs = expected
    optimizer = cfg.optim_wrapper.optimizer
    found = (optimizer.type, optimizer.lr, optimizer.get("momentum", 0))
    assert found == (kind, rate, momentum)
    assert optimizer.get("weight_decay", 0) == decay
    assert cfg.train_cfg.max_epochs == epochs
    assert cfg.train_dataloader.batch_size == batch and cfg.train_dataloader.drop_last

    (scheduler,) = cfg.param_scheduler
    options = {key: value for key, value in scheduler.items() if key != "type"}
    sgd = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    built = {"PolyLR": PolyLR, "MultiStepLR": MultiStepLR}[scheduler.type](sgd, **options)
    rates = []
    for _ in range(epochs):
        rates.append(sgd.param_groups[0]["lr"])
        sgd.step()
        built.step()
    assert rates == pytest.approx([RATES[epochs](epoch) for epoch in range(epochs)])


@pytest.mark.parametrize("name", [name for name in CONFIGS if "small" in name])
def test_small_variants_train_to_the_end(name: str) -> None:
    """The rate rises at first, and is above 0 until the last iteration."""
    cfg = config_of(name)
    sgd = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=cfg.optim_wrapper.optimizer.lr)
    rules = {"LinearLR": LinearLR, "CosineAnnealingLR": CosineAnnealingLR}
    built = [
        rules[one.type](sgd, **{key: value for key, value in one.items() if key != "type"})
        for one in cfg.param_scheduler
    ]
    rates = []
    for _ in range(cfg.train_cfg.max_iters):
        rates.append(sgd.param_groups[0]["lr"])
        sgd.step()
        for scheduler in built:
            scheduler.step()
    assert 0 < rates[0] < rates[20] and min(rates) > 0
    assert cfg.train_dataloader.sampler.type == "InfiniteSampler"
    assert count(model_of(name)) < 4e6


@pytest.mark.parametrize("name", PARAMETERS)
def test_full_models_have_as_many_parameters_as_published(name: str) -> None:
    assert count(model_of(name)) == PARAMETERS[name]


@pytest.mark.parametrize("name", MEBIBYTES)
def test_full_models_have_the_size_in_print(name: str) -> None:
    assert f"{4 * count(model_of(name)) / 2**20:.2f}" == MEBIBYTES[name]


def test_losses_are_those_of_each_protocol() -> None:
    """The cosine for MTAN's data; L1 of unit vectors for the survey's; edges at 0.95."""
    for name in CONFIGS:
        heads = model_of(name).heads
        if "normals" in heads:
            mode = "cosine" if name.startswith("nyuv2") else "l1"
            assert heads["normals"].loss_module.mode == mode, name
        if "edges" in heads:
            assert heads["edges"].loss_module.pos_weight == 0.95, name
        if "sal" in heads:
            assert heads["sal"].loss_module.pos_weight == "batch", name


# ---------------------------------------------------------------------------- on tiny files


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Write two images of 32 x 48 pixels in the layout of a folder of configs."""
    monkeypatch.setattr(dense_files, "HEIGHT", 32)
    monkeypatch.setattr(dense_files, "WIDTH", 48)
    writers: dict[str, tuple[str, Callable[[Path], Any]]] = {
        "nyuv2": ("NYUV2_ROOT", lambda root: dense_files.mtan(root, count=2)),
        "nyud": ("NYUD_ROOT", lambda root: dense_files.nyud(root, png=False)),
        "pascal_context": ("PASCAL_ROOT", dense_files.pascal),
        "cityscapes-7": (
            "CITYSCAPES_MTAN_ROOT",
            lambda root: dense_files.mtan(root, classes=7, count=2, folder="label_7"),
        ),
        "cityscapes-19": ("CITYSCAPES_ROOT", dense_files.cityscapes),
    }

    def write(name: str) -> Path:
        variable, writer = next(v for key, v in writers.items() if key in name)
        root = tmp_path / variable
        writer(root)
        monkeypatch.setenv(variable, str(root))
        return root

    return write


def test_networks_take_a_step_on_the_data_of_their_config(
    files: Callable[[str], Path],
) -> None:
    """Every network and every data set; the step of SegNets in full size is the Runner's below."""
    for name in (
        "nyuv2/mtan_segnet-small_nyuv2",
        "cityscapes_dense/cross-stitch_segnet-small_cityscapes-7",
        "cityscapes_dense/deeplab_r50_100e_cityscapes-19",
        "cityscapes_dense/deeplab_r18-small_cityscapes-19",
        "nyud/mti-net_hr-small_nyud",
        "pascal_context/mti-net_hr18_100e_pascal-context",
    ):
        files(name)
        cfg = Config.fromfile(ROOT / f"configs/{name}.py")
        assert data_problem(cfg) is None
        for transform in cfg.train_dataloader.dataset.pipeline:
            if transform.type == "MTResize":
                transform.scale = (64, 64)
        data = DATASETS.build(cfg.train_dataloader.dataset)
        batch = pseudo_collate([data[0], data[len(data) - 1]])
        torch.manual_seed(0)
        model = MODELS.build(cfg.model).train()
        losses = model(**model.data_preprocessor(batch, True), mode="loss")
        assert {key.split(".")[0] for key in losses} == set(cfg.optim_wrapper.tasks), name
        total, _ = model.parse_losses(losses)
        assert total.isfinite(), (name, losses)
        total.backward()
        lost = [key for key, p in model.named_parameters() if p.grad is None]
        assert not lost, (name, lost)


@pytest.mark.parametrize(
    "name", [name for name in CONFIGS if re.search(r"dense/.*small_cityscapes-\d+(_depth)?$", name)]
)
def test_small_variants_begin_near_the_depth_of_cityscapes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From far away, or from far apart, some hundred iterations do not reach the labels."""
    official = "-19" in name
    write = LAYOUTS["cityscapes" if official else "cityscapes_mt"]
    scenes = [draw_scene(np.random.default_rng(i), (128, 256)) for i in range(2)]
    write(tmp_path, "train", scenes)
    monkeypatch.setenv("CITYSCAPES_ROOT" if official else "CITYSCAPES_MTAN_ROOT", str(tmp_path))
    cfg = Config.fromfile(ROOT / f"configs/{name}.py")
    data = DATASETS.build(cfg.train_dataloader.dataset)
    set_random_seed(0)  # of the crops, too
    model = MODELS.build(cfg.model)
    model.init_weights()
    for part in model.modules():
        if isinstance(part, Rotations):
            part.learned = True  # RotoGrad says so
    batch = model.data_preprocessor(pseudo_collate(list(data)), True)
    depth = torch.cat([sample.gt_depth_map.data for sample in batch["data_samples"]])
    depth = depth[depth > 0]
    constant = (depth - depth.median()).abs().mean()
    loss = model(**batch, mode="loss")["depth.loss_depth"]
    assert loss < 2 * constant * cfg.model.heads.depth.get("loss_weight", 1.0)


def test_a_full_config_trains_and_is_validated(
    files: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = files("nyuv2")
    monkeypatch.setenv("NYUV2_ROOT", str(root))
    saved: list[Any] = []
    monkeypatch.setattr(torch, "save", lambda content, *_, **__: saved.append(content))
    words = ["configs/nyuv2/segnet_200e_nyuv2.py", "--mtl", "pcgrad", "--cfg-options"]
    words += ["train_cfg.max_epochs=1", "train_cfg.val_interval=1", "custom_hooks.0.interval=1"]
    words += ["default_hooks.logger.interval=1", f"visualizer.name={tmp_path.name}"]
    for loader in ("train_dataloader", "val_dataloader"):
        words += [f"{loader}.num_workers=0", f"{loader}.persistent_workers=False"]
    monkeypatch.chdir(ROOT)
    train.main([*words, f"work_dir={tmp_path / 'run'}", "randomness.seed=0"])
    lines = next((tmp_path / "run").rglob("scalars.json")).read_text()
    for task in ("seg", "depth", "normals"):
        assert f'"mtl/loss/{task}"' in lines
    for column in (
        *("seg/mIoU", "seg/aAcc", "depth/abs_err", "depth/abs_rel"),
        *("normals/mean_angle", "normals/median_angle"),
        *("normals/within_11.25", "normals/within_22.5", "normals/within_30"),
    ):
        (value,) = re.findall(rf'"{re.escape(column)}": ([\d.e+-]+)', lines)
        assert math.isfinite(float(value)), column


# ---------------------------------------------------------------------------- READMEs


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_readme_names_every_config(folder: str) -> None:
    text = (ROOT / "configs" / folder / "README.md").read_text("utf-8")
    lacking = [name for name in CONFIGS if name.startswith(folder) and Path(name).name not in text]
    assert not lacking
    methods = re.findall(r"--mtl ([\w+/-]+)", text)
    overlays = ROOT / "configs/_base_/mtl"
    known = {p.relative_to(overlays).with_suffix("").as_posix() for p in overlays.rglob("*.py")}
    assert methods and {part for method in methods for part in method.split("+")} <= known
    for path in re.findall(r"configs/[\w/.-]+\.py", text):
        assert (ROOT / path).is_file(), path


PAGES = [*(f"configs/{folder}/README.md" for folder in FOLDERS), "docs/guides/dense.md"]


@pytest.mark.parametrize("page", PAGES)
def test_python_on_a_page_does_as_it_says(page: str) -> None:
    """A block that prints says beside each line what; another is a config, which is built."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text("utf-8"), re.DOTALL)
    assert blocks
    for block in blocks:
        if "print(" in block:
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(block, {})
            assert printed.getvalue().split() == re.findall(r"print\(.*\)  # (\S+)", block)
        elif block.startswith("_base_"):
            cfg = Config.fromstring(block, ".py")
            assert set(cfg.optim_wrapper.tasks) == set(MODELS.build(cfg.model).heads)
