"""The commands that a user types, on a small drawn data set."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from commands import NARROW, ROOT, SMALL, TWO_STEPS, run
from mmengine.config import Config
from mmengine.registry import DATASETS
from mmengine.runner import Runner
from models import build_detector, mask_rcnn_config

from mtl_plugins import MultiTaskBackward
from mtl_plugins.aggregation import AGGREGATORS, build_aggregator
from mtl_plugins.mm import train
from mtl_plugins.mm.optim import MTLOptimWrapper
from mtl_plugins.regularization import REGULARIZERS, build_regularizer
from mtl_plugins.tasks import TaskGroups
from mtl_plugins.weighting import WEIGHTINGS, build_weighting

STANDARD = "configs/mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py"
METHODS = sorted(path.stem for path in (ROOT / "configs/_base_/mtl").glob("*.py"))


@DATASETS.register_module(force=True)
class FiveExamples(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> dict:
        return {"data_samples": index}


def main(monkeypatch, coco: Path, *arguments: str) -> None:
    """Runs ``tools/train.py`` in this process."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("COCO_ROOT", str(coco))
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    train.main()


@pytest.fixture
def broken(coco, tmp_path):
    """A copy of the data, to damage its training annotations."""
    root = tmp_path / "coco"
    root.mkdir()
    for part in ("train2017", "val2017"):
        (root / part).symlink_to(coco / part)
    (root / "annotations").mkdir()
    for file in (coco / "annotations").glob("instances_*.json"):
        (root / "annotations" / file.name).write_text(file.read_text())

    def damage(edit) -> Path:
        path = root / "annotations" / "instances_train2017.json"
        content = json.loads(path.read_text())
        edit(content)
        path.write_text(json.dumps(content))
        return root

    return damage


def test_task_norms_of_mask_rcnn(coco, tmp_path):
    """The overlay registers the model, in a process that has imported nothing before."""
    mine = tmp_path / "mine.py"
    backbone = 'backbone=dict(norm_cfg=dict(_delete_=True, type="BN"))'
    model = f'model = dict(type="TaskNormMaskRCNN", {backbone})'
    mine.write_text(f'_base_ = ["{ROOT / SMALL}"]\n{model}\n')
    method = ["--mtl", "task_norm+connection_strength", "--work-dir", str(tmp_path / "run")]
    options = [option for option in TWO_STEPS if "num_groups" not in option]
    log = run("tools/train.py", str(mine), *method, *options, coco=coco)
    assert "Iter(train) [2/2]" in log


def test_train_then_test(coco, tmp_path):
    work_dir = str(tmp_path / "run")
    log = run(
        "tools/train.py", SMALL, "--mtl", "cagrad", "--work-dir", work_dir, *TWO_STEPS, coco=coco
    )
    assert "Iter(train) [2/2]" in log and "eta:" in log
    (scalars,) = Path(work_dir).rglob("scalars.json")
    lines = [json.loads(line) for line in scalars.read_text().splitlines()]
    assert {"mtl/gds", "mtl/gms", "mtl/loss/mask", "mtl/weight/detection"} <= lines[0].keys()
    checkpoint = tmp_path / "run" / "iter_2.pth"
    state = torch.load(checkpoint, weights_only=False)["optimizer"]["mtl"]
    assert state["tasks"] == ["detection", "mask"]
    assert state["aggregator"]["type"] == "CAGrad"
    any_score = ["--cfg-options", *NARROW, "model.test_cfg.rcnn.score_thr=0.0"]
    log = run(
        "tools/test.py", SMALL, str(checkpoint), "--work-dir", work_dir, *any_score, coco=coco
    )
    assert "coco/bbox_mAP:" in log and "coco/segm_mAP:" in log


def test_amp(coco, tmp_path, monkeypatch):
    main(
        monkeypatch, coco, SMALL, "--mtl", "mgda", "--amp", "--work-dir", str(tmp_path), *TWO_STEPS
    )
    state = torch.load(tmp_path / "iter_2.pth", weights_only=False)
    assert all(p.isfinite().all() for p in state["state_dict"].values())
    config = Config.fromfile(tmp_path / Path(SMALL).name)
    assert config.optim_wrapper.type == "AmpMTLOptimWrapper"


def test_resume(coco, tmp_path, monkeypatch):
    arguments = [SMALL, "--mtl", "gradvac", "--work-dir", str(tmp_path), *TWO_STEPS]
    main(monkeypatch, coco, *arguments)
    first = torch.load(tmp_path / "iter_2.pth", weights_only=False)
    arguments.insert(1, "--resume")
    main(
        monkeypatch,
        coco,
        *arguments,
        "train_cfg.max_iters=3",
        "default_hooks.checkpoint.interval=3",
    )
    second = torch.load(tmp_path / "iter_3.pth", weights_only=False)
    assert second["meta"]["iter"] == 3
    before, after = (
        s["optimizer"]["mtl"]["aggregator"]["state"]["target"] for s in (first, second)
    )
    assert before.any() and not torch.equal(before, after)


@pytest.mark.parametrize(
    "part, registry",
    [("aggregator", AGGREGATORS), ("weighting", WEIGHTINGS), ("regularizer", REGULARIZERS)],
)
def test_every_method_has_a_config(part, registry):
    wrappers = [
        Config.fromfile(ROOT / f"configs/_base_/mtl/{name}.py").optim_wrapper for name in METHODS
    ]
    assert {wrapper[part].type for wrapper in wrappers if part in wrapper} == set(registry)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    "config", [SMALL, STANDARD, "mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py"]
)
def test_mtl_lays_a_method_over_any_config(name, config, tmp_path):
    path = tmp_path / "config.py"
    base = config if "::" in config else str(ROOT / config)
    path.write_text(f"_base_ = [{base!r}]\ncustom_hooks = [dict(type='CheckInvalidLossHook')]\n")
    plain = Config.fromfile(path)
    cfg = train.lay_over(Config.fromfile(path), name)
    assert cfg.optim_wrapper.type == "MTLOptimWrapper"
    assert cfg.optim_wrapper.optimizer == plain.optim_wrapper.optimizer
    assert cfg.optim_wrapper.get("tasks") == plain.optim_wrapper.get("tasks")
    build = {
        "aggregator": build_aggregator,
        "weighting": build_weighting,
        "regularizer": build_regularizer,
    }
    for part in build.keys() & cfg.optim_wrapper.keys():
        build[part](cfg.optim_wrapper[part].to_dict())
    types = [hook.type for hook in cfg.custom_hooks]
    assert types[0] == "CheckInvalidLossHook" and types.count("TaskInterferenceHook") <= 1


def test_options_of_a_method():
    """Each where the method's own config has its arguments, read as --cfg-options reads them."""
    cfg = train.lay_over(
        Config.fromfile(ROOT / STANDARD), "uncertainty+cagrad:c=0.8:rescale=2+ista:gap=2"
    )
    assert cfg.optim_wrapper.aggregator == dict(type="CAGrad", c=0.8, rescale=2)
    assert cfg.optim_wrapper.weighting.type == "Uncertainty"
    assert cfg.train_dataloader.batch_sampler.gap == 2
    assert cfg.train_dataloader.batch_sampler.batch_sampler.type == "AspectRatioBatchSampler"
    cfg = train.lay_over(Config.fromfile(ROOT / STANDARD), "mgda+feature:representation=backbone")
    assert cfg.optim_wrapper.representation == "backbone"


def test_allocation_keeps_the_batch_sampler_and_combines(tmp_path):
    cfg = train.lay_over(Config.fromfile(ROOT / STANDARD), "uncertainty+ista")
    sampler = cfg.train_dataloader.batch_sampler
    assert sampler.type == "ISTABatchSampler"
    assert sampler.batch_sampler.type == "AspectRatioBatchSampler"
    assert cfg.optim_wrapper.weighting.type == "Uncertainty"
    assert cfg.optim_wrapper.aggregator.type == "Sum"


def test_allocation_drops_the_last_batch_where_the_data_loader_would():
    cfg = train.lay_over(Config.fromfile(ROOT / "configs/nyuv2/segnet_200e_nyuv2.py"), "ista")
    loader = cfg.train_dataloader
    loader.dataset = dict(type="FiveExamples", _scope_="mmengine")
    loader.num_workers, loader.persistent_workers = 0, False
    loader.batch_sampler.tasks = ["a"]
    batches = list(Runner.build_dataloader(loader, seed=0).batch_sampler)
    assert [len(batch) for batch in batches] == [2, 2]


def test_mtl_keeps_what_the_config_has(tmp_path):
    """Mixed precision, imports in either form, and an interval of one's own."""
    path = tmp_path / "config.py"
    path.write_text(
        f"_base_ = [{str(ROOT / SMALL)!r}]\n"
        "optim_wrapper = dict(type='AmpMTLOptimWrapper', loss_scale=512.0)\n"
        "custom_imports = dict(_delete_=True, imports='mmdet.models', allow_failed_imports=False)\n"
        "custom_hooks = [dict(type='TaskInterferenceHook', interval=50)]\n"
    )
    cfg = train.lay_over(Config.fromfile(path), "mgda")
    assert cfg.optim_wrapper.type == "AmpMTLOptimWrapper"
    assert cfg.optim_wrapper.loss_scale == 512.0
    assert cfg.custom_hooks == [dict(type="TaskInterferenceHook", interval=50)]
    assert cfg.custom_imports.imports == ["mmdet.models", "mtl_plugins.mm"]
    assert cfg.custom_imports.allow_failed_imports is False


def test_method_as_base_of_a_config(tmp_path):
    path = tmp_path / "config.py"
    path.write_text(
        f"_base_ = [{str(ROOT / 'configs/_base_/mtl/cagrad.py')!r}]\n"
        "optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1), aggregator=dict(c=0.2))\n"
    )
    assert build_aggregator(Config.fromfile(path).optim_wrapper.aggregator.to_dict()).c == 0.2


PUBLISHED = sorted(
    path.relative_to(ROOT / "configs/_base_/mtl").with_suffix("").as_posix()
    for path in (ROOT / "configs/_base_/mtl/as_published").rglob("*.py")
)


@pytest.mark.parametrize("name", PUBLISHED)
def test_as_published(name):
    cfg = train.lay_over(Config.fromfile(ROOT / SMALL), name)
    options = cfg.optim_wrapper.to_dict()
    framework = ("_scope_", "type", "optimizer", "clip_grad")
    kept = {k: v for k, v in options.items() if k not in framework}
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    wrapper = MTLOptimWrapper(optimizer, **kept)
    assert wrapper._options.keys() >= {"aggregator", "weighting"}
    assert f"`{name.removeprefix('as_published/')}`" in (ROOT / "docs/reproduce.md").read_text()
    with pytest.raises(SystemExit, match=f"did you mean '{name}'"):
        train.lay_over(Config.fromfile(ROOT / SMALL), name + "s")


class TestBadInput:
    """One error, before the first step, in the words of the command line or the config."""

    def test_unknown_method(self, coco, monkeypatch):
        with pytest.raises(SystemExit, match="--mtl: no method is called 'pcgard'; did you mean"):
            main(monkeypatch, coco, SMALL, "--mtl", "pcgard")

    @pytest.mark.parametrize(
        ("names", "part"),
        [
            ("pcgrad+cagrad", "aggregator"),
            ("imtl+dwa", "weighting"),
            ("sta+ista", "batch_sampler"),
        ],
    )
    def test_two_methods_of_a_kind(self, names, part):
        one, two = names.split("+")
        with pytest.raises(SystemExit, match=f"--mtl: '{one}' and '{two}' both set the {part}"):
            train.lay_over(Config.fromfile(ROOT / STANDARD), names)

    @pytest.mark.parametrize(
        ("names", "message"),
        [
            ("cagrad:c", "--mtl cagrad:c: expected NAME:KEY=VALUE, got 'c'"),
            ("imtl:eps=1", "--mtl imtl: sets the aggregator and the weighting"),
        ],
    )
    def test_options_that_no_method_can_have(self, names, message):
        with pytest.raises(SystemExit, match=message):
            train.lay_over(Config.fromfile(ROOT / STANDARD), names)

    def test_unknown_option(self, coco, monkeypatch):
        with pytest.raises(SystemExit, match="optim_wrapper.*'cc'.*did you mean 'c'"):
            main(monkeypatch, coco, SMALL, "--mtl", "cagrad:cc=0.8")

    def test_task_norms_of_a_model_without(self, coco, monkeypatch):
        with pytest.raises(SystemExit, match="model.task_norm: MaskRCNN.*'TaskNormMaskRCNN'"):
            main(monkeypatch, coco, SMALL, "--mtl", "task_norm")

    def test_config_that_is_not_there(self, coco, monkeypatch):
        with pytest.raises(SystemExit, match="config: there is no file 'configs/nothing.py'"):
            main(monkeypatch, coco, "configs/nothing.py")

    def test_mistake_in_a_config(self, coco, tmp_path):
        """As a user sees it: exit code, and the message alone on the last line."""
        arguments = [SMALL, "--mtl", "pcgrad", "--work-dir", str(tmp_path), *TWO_STEPS]
        done = subprocess.run(
            [sys.executable, "tools/train.py", *arguments, "optim_wrapper.lowmemory=True"],
            cwd=ROOT,
            env=os.environ | {"COCO_ROOT": str(coco)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 1
        last = done.stderr.splitlines()[-1]
        assert last.startswith("optim_wrapper: there is no option 'lowmemory'; did you mean 'low_")
        assert "Iter(train)" not in done.stdout + done.stderr

    def test_auto_scale_lr_without_a_base(self, coco, monkeypatch, tmp_path):
        path = tmp_path / "config.py"
        path.write_text(f"_base_ = [{str(ROOT / SMALL)!r}]\nauto_scale_lr = dict(_delete_=True)\n")
        with pytest.raises(SystemExit, match="no auto_scale_lr.base_batch_size"):
            main(monkeypatch, coco, str(path), "--auto-scale-lr")

    def test_data_root_that_is_not_there(self, monkeypatch, tmp_path):
        with pytest.raises(SystemExit, match=r"train_dataloader.dataset.data_root: .*COCO_ROOT"):
            main(monkeypatch, tmp_path / "nowhere", SMALL)

    def test_annotation_file_that_is_not_there(self, coco, monkeypatch):
        option = "train_dataloader.dataset.ann_file=annotations/instances_train.json"
        with pytest.raises(SystemExit, match=r"dataset.ann_file: .*instances_train2017.json"):
            main(monkeypatch, coco, SMALL, "--cfg-options", option)

    @pytest.mark.parametrize(
        ("edit", "message"),
        [
            (lambda c: c.pop("categories"), "has no 'categories'"),
            (
                lambda c: c["images"][0].pop("file_name"),
                r"images has a record without \['file_name'",
            ),
            (lambda c: c["annotations"][0].pop("area"), r"record without \['area'\]"),
            (lambda c: c["annotations"][0].pop("bbox"), r"record without \['bbox'\]"),
        ],
    )
    def test_annotations_with_missing_keys(self, edit, message, broken, monkeypatch, tmp_path):
        with pytest.raises(SystemExit, match=message):
            main(monkeypatch, broken(edit), SMALL, "--work-dir", str(tmp_path), *TWO_STEPS)
        assert not list(tmp_path.glob("*.pth"))


@pytest.mark.parametrize("name", ["MGDA", "CAGrad", "NashMTL"])
def test_images_without_an_instance_train_on(name):
    """No box and no mask: the mask loss is an empty sum, and the other task goes on."""
    from mmdet.testing import demo_mm_inputs

    model = build_detector(mask_rcnn_config())
    batch = demo_mm_inputs(2, [[3, 64, 64]] * 2, num_items=[0, 0], num_classes=3, with_mask=True)
    data = model.data_preprocessor(batch, True)
    _, terms = model.parse_losses(model(**data, mode="loss"))
    terms = {k: v for k, v in terms.items() if "loss" in k and k != "loss"}
    tasks = Config.fromfile(ROOT / SMALL).optim_wrapper.tasks
    backward = MultiTaskBackward(model.parameters(), name)
    backward(TaskGroups(tasks)(terms))
    grads = [p.grad for p in model.backbone.parameters()]
    assert all(g.isfinite().all() for g in grads) and any(g.any() for g in grads)
