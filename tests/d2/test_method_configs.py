"""The method files of Detectron2 say what those of OpenMMLab say."""

from __future__ import annotations

import runpy

import pytest
import yaml
from detectron2.config import get_cfg
from models import ROOT
from small import toy
from write_detectron2_configs import PARTS, method_configs

from mtl_plugins.aggregation import build_aggregator
from mtl_plugins.d2 import add_mtl_config
from mtl_plugins.d2.config import build_groups, build_multitask
from mtl_plugins.regularization import build_regularizer
from mtl_plugins.weighting import build_weighting

PYTHON, YAML = ROOT / "configs/_base_/mtl", ROOT / "configs/detectron2/mtl"


def names(folder, ending):
    """Paths below the folder, without the ending."""
    return {p.relative_to(folder).with_suffix("").as_posix() for p in folder.rglob(f"*.{ending}")}


# The norms of Detectron2's models are converted in a script: no key of MTL is about the model. And
# Detectron2 clips each parameter by itself, where these authors clip the whole gradient.
CLIPPED = {f"as_published/{name}" for name in ("FAMO/famo", "fairgrad/fairgrad", "sdmgrad/sdmgrad")}
NAMES = sorted(names(PYTHON, "py") - {"task_norm"} - CLIPPED)
ALLOCATED = ["sta", "ista", *(name for name in NAMES if name.endswith(("_sta", "_ista")))]
BUILD = dict(zip(PARTS, (build_aggregator, build_weighting, build_regularizer), strict=True))


def state_of(method):
    """Its options, and what it holds in private, such as the weights of Fixed."""
    return (
        method if method is None else (repr(method), str(method.state_dict()), vars(method).keys())
    )


def test_the_same_files():
    assert names(YAML, "yaml") == set(NAMES)
    for name in CLIPPED:
        assert "clip_grad" in runpy.run_path(str(PYTHON / f"{name}.py"))["optim_wrapper"]


def test_files_are_up_to_date():
    texts = dict(method_configs())
    stale = [name for name, text in texts.items() if (YAML / name).read_text() != text]
    assert not stale, "run python tools/write_detectron2_configs.py"


@pytest.mark.parametrize("name", NAMES)
def test_same_method(name):
    cfg = get_cfg()
    add_mtl_config(cfg)
    cfg.merge_from_file(str(YAML / f"{name}.yaml"))
    wrapper = runpy.run_path(str(PYTHON / f"{name}.py"))["optim_wrapper"]
    model = toy()
    tasks = {"detection": ["loss_cls", "loss_reg"], "mask": ["loss_mask"]}
    cfg.MTL.TASKS = type(cfg)(tasks)
    if cfg.MTL.LAYERS:
        cfg.MTL.LAYERS = "backbone.2"  # the toy has no FPN
    multitask = build_multitask(cfg, model, list(model.parameters()), build_groups(cfg))
    defaults = {"aggregator": "Sum", "weighting": None, "regularizer": None}
    for part, default in defaults.items():
        expected = wrapper.get(part, default)
        built = None if expected is None else BUILD[part](expected)
        assert state_of(getattr(multitask, part)) == state_of(built)
    assert multitask.level == wrapper.get("level", "parameter")
    assert multitask.options.heads == wrapper.get("heads", "own")
    assert multitask.options.scale == wrapper.get("scale", "own")


@pytest.mark.parametrize("name", ALLOCATED)
def test_same_allocation(name):
    sampler = runpy.run_path(str(PYTHON / f"{name}.py"))["train_dataloader"]["batch_sampler"]
    cfg = get_cfg()
    add_mtl_config(cfg)
    cfg.merge_from_file(str(YAML / f"{name}.yaml"))
    assert sampler["type"] == f"{cfg.MTL.ALLOCATION.NAME}BatchSampler"
    assert sampler["tasks_per_sample"] == cfg.MTL.ALLOCATION.TASKS_PER_SAMPLE
    assert sampler.get("gap", 1) == cfg.MTL.ALLOCATION.GAP


def test_fixed_weights():
    """Which no attribute shows."""
    text = yaml.safe_load((YAML / "fixed.yaml").read_text())["MTL"]["WEIGHTING"]["WEIGHTS"]
    wrapper = runpy.run_path(str(PYTHON / "fixed.py"))["optim_wrapper"]
    assert yaml.safe_load(text) == wrapper["weighting"]["weights"]
