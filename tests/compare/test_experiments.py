"""Configs of both frameworks, read before anything runs, and the plan that is made of them."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from commands import ROOT, SMALL
from detectron2.config import get_cfg
from mmengine.config import Config, DictAction

from mtl_plugins.compare.experiments import load
from mtl_plugins.compare.frameworks import FRAMEWORKS
from mtl_plugins.compare.plan import check_settings, plan
from mtl_plugins.compare.schedule import length, stretched
from mtl_plugins.d2 import add_mtl_config, merge_options, overlay
from mtl_plugins.d2.train_net import argument_parser
from mtl_plugins.mm.train import lay_over, parse_args

D2 = "configs/detectron2/mask_rcnn_R_18_small.yaml"


@pytest.fixture(autouse=True)
def place(monkeypatch, coco, tmp_path):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("COCO_ROOT", str(coco))
    monkeypatch.setattr("mtl_plugins.d2.data.missing_data", lambda cfg: None)


def overlaid(command: list[str]) -> Config:
    """The config that ``mtl-train`` would build of a command of the plan."""
    assert command[1:3] == ["-m", "mtl_plugins.mm.train"]
    args = parse_args(command[3:])
    cfg = Config.fromfile(args.config)
    if args.mtl:
        cfg = lay_over(cfg, args.mtl)
    cfg.merge_from_dict(args.cfg_options)
    return cfg


def merged(command: list[str]):
    """The config that ``mtl-train-net`` would build of a command of the plan."""
    assert command[1:3] == ["-m", "mtl_plugins.d2.train_net"]
    args = argument_parser().parse_args(command[3:])
    cfg = get_cfg()
    add_mtl_config(cfg)
    cfg.merge_from_file(args.config_file)
    if args.mtl:
        overlay.lay_over(cfg, args.mtl)
    merge_options(cfg, args.opts)
    return cfg


def test_plan_of_openmmlab(tmp_path):
    experiment = load(SMALL, ["sum", "mgda+feature"], ["train_cfg.max_iters=7"])
    runs = plan(experiment, ["mgda+feature"], 2, tmp_path, single=True)
    names = ["single_detection", "single_mask", "sum", "mgda+feature"]
    assert [(r.name, r.seed) for r in runs] == [(n, s) for s in range(2) for n in names]
    configs = {r.name: overlaid(FRAMEWORKS[r.framework].train(r)) for r in runs if r.seed == 1}
    for cfg in configs.values():
        assert cfg.randomness.seed == 1 and cfg.train_cfg.max_iters == 7
    assert configs["mgda+feature"].optim_wrapper.level == "feature"
    assert configs["mgda+feature"].optim_wrapper.aggregator.type == "MGDA"
    alone = configs["single_mask"]
    assert alone.train_dataloader.batch_sampler.only == "mask"
    assert alone.train_dataloader.batch_sampler.batch_sampler.type == "AspectRatioBatchSampler"
    assert alone.optim_wrapper.aggregator.type == "Sum"


def test_plan_of_detectron2(tmp_path):
    experiment = load(D2, ["mgda+feature"], ["SOLVER.MAX_ITER=7"])
    runs = plan(experiment, ["mgda+feature"], 1, tmp_path, single=True)
    configs = {r.name: merged(FRAMEWORKS[r.framework].train(r)) for r in runs}
    for name, cfg in configs.items():
        assert cfg.SOLVER.MAX_ITER == 7 and cfg.SEED == 0
        assert str(tmp_path / name / "0") == cfg.OUTPUT_DIR
    assert configs["mgda+feature"].MTL.LEVEL == "feature"
    assert configs["mgda+feature"].MTL.AGGREGATOR.NAME == "MGDA"
    assert configs["single_mask"].MTL.ALLOCATION.NAME == "STA"
    assert configs["single_mask"].MTL.ALLOCATION.ONLY == "mask"
    assert configs["sum"].MTL.ALLOCATION.NAME == ""


@pytest.mark.parametrize("config", [SMALL, D2])
def test_options_of_a_method_are_in_its_name(config, tmp_path):
    methods = ["cagrad", "cagrad:c=0.8:rescale=2+ista:gap=2"]
    runs = plan(load(config, methods, []), methods, 1, tmp_path)
    assert [run.name for run in runs] == ["sum", *methods]
    command = FRAMEWORKS[runs[2].framework].train(runs[2])
    if config == SMALL:
        cfg = overlaid(command)
        assert cfg.optim_wrapper.aggregator == dict(type="CAGrad", c=0.8, rescale=2)
        assert cfg.train_dataloader.batch_sampler.gap == 2
    else:
        mtl = merged(command).MTL
        assert (mtl.AGGREGATOR.NAME, mtl.AGGREGATOR.C, mtl.AGGREGATOR.RESCALE) == ("CAGrad", 0.8, 2)
        assert mtl.ALLOCATION.GAP == 2


def test_a_checkpoint_is_resumed_and_load_from_is_kept_without_one(tmp_path):
    experiment = load(SMALL, [], [])
    (run,) = plan(experiment, [], 1, tmp_path)
    framework = FRAMEWORKS["openmmlab"]
    assert "--resume" not in framework.train(run)
    run.path.mkdir(parents=True)
    (run.path / "iter_3.pth").touch()
    (run.path / "last_checkpoint").write_text("/elsewhere/iter_3.pth")  # the folder was moved
    assert "--resume" in framework.train(run)


def test_own_configs_of_tasks_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("mtl_plugins.mm.data_check.data_problem", lambda cfg: None)
    experiment = load("configs/nyuv2/segnet-small_nyuv2.py", [], [])
    runs = plan(experiment, [], 1, tmp_path, single=True)
    assert {r.name: Path(r.config).stem for r in runs if r.task} == {
        f"single_{task}": f"segnet-small_nyuv2_{task}" for task in ("seg", "depth", "normals")
    }
    assert all(not r.method for r in runs if r.task)
    for config in ("nyuv2/mtan_segnet-small_nyuv2", "nyud/mti-net_hr-small_nyud"):
        assert {"seg", "depth", "normals"} <= load(f"configs/{config}.py", [], []).single.keys()


def test_other_settings_in_the_same_folder(tmp_path):
    check_settings(tmp_path, load(SMALL, [], ["train_cfg.max_iters=7"]).settings)
    check_settings(tmp_path, load(SMALL, [], ["train_cfg.max_iters=7"]).settings)
    with pytest.raises(SystemExit, match="train_cfg.max_iters was 7 and is 8.*name another folder"):
        check_settings(tmp_path, load(SMALL, [], ["train_cfg.max_iters=8"]).settings)


@pytest.mark.parametrize("config", [SMALL, D2])
@pytest.mark.parametrize(
    ("methods", "message"),
    [
        (["pcgard"], "--mtl: no method is called 'pcgard'; did you mean 'pcgrad'"),
        (["pcgrad+cagrad"], "'pcgrad' and 'cagrad' both set"),
        (["cagrad:c"], "expected NAME:KEY=VALUE, got 'c'"),
        (["imtl:eps=1"], "--mtl imtl: sets "),
    ],
)
def test_bad_methods(config, methods, message):
    with pytest.raises(SystemExit, match=message):
        load(config, methods, [])


def test_bad_configs(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="config: there is no file 'nothing.py'"):
        load("nothing.py", [], [])
    with pytest.raises(SystemExit, match="expected KEY=VALUE, got 'train_cfg'"):
        load(SMALL, [], ["train_cfg"])
    with pytest.raises(SystemExit, match="SOLVER.MAX_ITERS: SOLVER has no 'MAX_ITERS'"):
        load(D2, [], ["SOLVER.MAX_ITERS=3"])
    monkeypatch.setenv("COCO_ROOT", str(tmp_path))
    with pytest.raises(SystemExit, match="ann_file: there is no"):
        load(SMALL, [], [])


def test_equal_time_stretches_the_whole_schedule():
    experiment = load(SMALL, [], [])
    assert length(experiment) == (450, "iterations")
    options = dict(option.split("=") for option in stretched(experiment, 0.5))
    assert options == {
        "train_cfg.max_iters": "225",
        "train_cfg.val_interval": "225",
        "param_scheduler.0.end": "10",
        "param_scheduler.1.T_max": "225",
    }
    standard = load("configs/mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py", [], [])
    assert length(standard) == (12, "epochs")
    options = shlex.join(stretched(standard, 2))
    assert "train_cfg.max_epochs=24" in options and "[16,22]" in options
    cfg = Config.fromfile("configs/mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py")
    cfg.merge_from_dict({"param_scheduler.1.milestones": DictAction._parse_iterable("[16,22]")})
    assert cfg.param_scheduler[1].milestones == [16, 22]
    options = stretched(load(D2, [], []), 0.5)
    assert options == ["SOLVER.MAX_ITER=900", "SOLVER.STEPS=(750,)", "SOLVER.WARMUP_ITERS=50"]


def test_equal_time_stretches_a_scheduler_outside_of_a_list():
    experiment = load(SMALL, [], [])
    experiment.cfg.param_scheduler = {"type": "CosineRestartLR", "periods": [100, 350]}
    assert "param_scheduler.periods=[50,175]" in stretched(experiment, 0.5)
    experiment.cfg.param_scheduler = {"optimizer": [{"type": "MultiStepLR", "milestones": [300]}]}
    assert "param_scheduler.optimizer.0.milestones=[150]" in stretched(experiment, 0.5)
