"""``mtl_plugins::`` in the ``_base_`` of a config, in a folder that knows nothing of this one."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import ROOT
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.utils import get_installed_path

import mtl_plugins.mm  # noqa: F401
from mtl_plugins.mm.train import lay_over

MASK_RCNN = "mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py"
SEGMENTER = "mmseg::fcn/fcn_r50-d8_4xb2-40k_cityscapes-512x1024.py"


def read(folder: Path, *bases: str, rest: str = "") -> Config:
    path = folder / "config.py"
    path.write_text(f"_base_ = {list(bases)!r}\n{rest}")
    return Config.fromfile(path)


@pytest.mark.parametrize("base", [MASK_RCNN, SEGMENTER, "own.py"])
@pytest.mark.parametrize(
    "names", ["pcgrad", "uncertainty+mgda+feature", "ista", "as_published/nash-mtl/mgda"]
)
def test_methods_among_the_bases_are_laid_over_the_others(base, names, tmp_path):
    (tmp_path / "own.py").write_text(
        f"_base_ = {MASK_RCNN!r}\n"
        "custom_imports = dict(imports=['json'])\n"
        "custom_hooks = [dict(type='CheckInvalidLossHook')]\n"
    )
    methods = [f"mtl_plugins::_base_/mtl/{name}.py" for name in names.split("+")]
    cfg = read(tmp_path, base, *methods)
    expected = lay_over(read(tmp_path, base), names)
    assert cfg.to_dict() == expected.to_dict()
    if base == "own.py":
        assert cfg.custom_hooks[0].type == "CheckInvalidLossHook"
        assert cfg.custom_imports.imports == ["json", "mtl_plugins.mm"]
    assert read(tmp_path, *methods, base).to_dict() == expected.to_dict()


def test_own_keys_come_last_and_nothing_else_changes(tmp_path):
    method = "mtl_plugins::_base_/mtl/cagrad.py"
    rest = "optim_wrapper = dict(aggregator=dict(c=0.7), optimizer=dict(lr=0.003))\n"
    cfg = read(tmp_path, MASK_RCNN, method, rest=rest)
    assert cfg.optim_wrapper.aggregator == {"type": "CAGrad", "c": 0.7, "rescale": 1}
    plain = read(tmp_path, MASK_RCNN)
    assert cfg.optim_wrapper.optimizer == plain.optim_wrapper.optimizer | {"lr": 0.003}
    for key in plain:
        if key != "optim_wrapper":
            assert cfg[key] == plain[key]


def test_a_method_alone(tmp_path):
    cfg = read(tmp_path, "mtl_plugins::_base_/mtl/pcgrad.py")
    assert cfg.to_dict() == Config.fromfile(ROOT / "configs/_base_/mtl/pcgrad.py").to_dict()


def test_a_whole_config_of_the_package(tmp_path):
    name = "mask_rcnn/mask-rcnn_r18-small_fpn_coco.py"
    expected = Config.fromfile(ROOT / "configs" / name).to_dict()
    assert read(tmp_path, f"mtl_plugins::{name}").to_dict() == expected
    assert get_config(f"mtl_plugins::{name}").to_dict() == expected


@pytest.mark.parametrize("base", [MASK_RCNN, SEGMENTER])
def test_the_index_of_models_is_not_parsed(base, tmp_path, monkeypatch):
    """Bases are files of the package, their types are looked up in its scope."""
    package, name = base.split("::")
    file = Path(get_installed_path(package), ".mim/configs", name)
    (tmp_path / "plain.py").write_text(f"_base_ = {str(file)!r}\n")
    expected = Config.fromfile(tmp_path / "plain.py")
    monkeypatch.setattr("mmengine.config.utils.load", None)
    cfg = read(tmp_path, base)
    assert cfg.model.pop("_scope_") == package
    assert cfg.model.backbone == expected.model.backbone
    assert cfg.keys() == expected.keys()


def test_mistakes_name_the_base(tmp_path):
    with pytest.raises(FileNotFoundError, match="_base_: there is no .*did you mean .*/pcgrad.py"):
        read(tmp_path, MASK_RCNN, "mtl_plugins::_base_/mtl/pcgard.py")
    with pytest.raises(FileNotFoundError, match="_base_: there is no 'mtl_plugins::mask_rcnn/x.py"):
        read(tmp_path, "mtl_plugins::mask_rcnn/x.py")
    methods = [f"mtl_plugins::_base_/mtl/{name}.py" for name in ("pcgrad", "mgda")]
    with pytest.raises(ValueError, match="^_base_: 'pcgrad' and 'mgda' both set the aggregator"):
        read(tmp_path, MASK_RCNN, *methods)
    # Two other bases with the same key stay the error that MMEngine makes of them.
    with pytest.raises(KeyError, match="Duplicate key"):
        read(tmp_path, MASK_RCNN, SEGMENTER, "mtl_plugins::_base_/mtl/pcgrad.py")
