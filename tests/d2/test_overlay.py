"""``--mtl NAME`` on Detectron2's command line."""

from __future__ import annotations

import pytest
from detectron2.config import get_cfg
from small import SMALL, config, toy, toy_batches, toy_config, trainer_for

from mtl_plugins.d2 import add_mtl_config
from mtl_plugins.d2.config import naming_keys
from mtl_plugins.d2.overlay import lay_over
from mtl_plugins.d2.train_net import argument_parser, setup


def laid_over(names, *options):
    cfg = config(*options)
    lay_over(cfg, names)
    return cfg.MTL


def test_names_combine_and_have_options():
    mtl = laid_over("uncertainty:lr=1+cagrad:c=1:rescale=2+ista:gap=2+feature")
    assert (mtl.WEIGHTING.NAME, mtl.WEIGHTING.LR) == ("Uncertainty", 1)
    assert (mtl.AGGREGATOR.NAME, mtl.AGGREGATOR.C, mtl.AGGREGATOR.RESCALE) == ("CAGrad", 1, 2)
    assert (mtl.ALLOCATION.NAME, mtl.ALLOCATION.GAP, mtl.LEVEL) == ("ISTA", 2, "feature")
    assert laid_over("gradvac_by_parameter:by=[backbone, mask]").AGGREGATOR.BY == [
        "backbone",
        "mask",
    ]


def test_as_published():
    mtl = laid_over("as_published/nash-mtl/nash_mtl")
    assert (mtl.AGGREGATOR.NAME, mtl.AGGREGATOR.MAX_NORM, mtl.HEADS) == ("NashMTL", 1.0, "weighted")
    assert laid_over("as_published/CAGrad/cagrad").SCALE == "sum"


def test_arguments_of_the_method_before_are_dropped():
    """CAGrad's ``c`` would be an error of PCGrad."""
    mtl = laid_over("pcgrad", "MTL.AGGREGATOR.NAME", "CAGrad", "MTL.AGGREGATOR.C", 0.7)
    assert (mtl.AGGREGATOR.NAME, mtl.AGGREGATOR.C) == ("PCGrad", None)


def test_what_follows_on_the_command_line_comes_last(tmp_path):
    words = ["--config-file", str(SMALL), "--mtl", "cagrad", "MTL.AGGREGATOR.C", "0.25"]
    cfg = setup(argument_parser().parse_args([*words, "OUTPUT_DIR", str(tmp_path)]))
    assert (cfg.MTL.AGGREGATOR.NAME, cfg.MTL.AGGREGATOR.C) == ("CAGrad", 0.25)
    saved = get_cfg()
    add_mtl_config(saved)
    saved.merge_from_file(str(tmp_path / "config.yaml"))
    assert saved.MTL == cfg.MTL


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("pcgard", "--mtl: no method is called 'pcgard'; did you mean 'pcgrad'"),
        ("as_published/LibMTL/gradvacc", "did you mean 'as_published/LibMTL/gradvac'"),
        ("pcgrad+cagrad", "'pcgrad' and 'cagrad' both set MTL.AGGREGATOR"),
        ("imtl:lr=1", "sets MTL.AGGREGATOR and MTL.WEIGHTING, .* such as MTL.AGGREGATOR.LR"),
        ("ista:gep=2", "--mtl ista: MTL.ALLOCATION.GEP: .* did you mean 'GAP'"),
        ("cagrad:c", "expected NAME:KEY=VALUE"),
    ],
)
def test_errors(names, message):
    with pytest.raises(SystemExit, match=message):
        laid_over(names)


def test_path_that_is_no_module():
    cfg = toy_config()
    lay_over(cfg, "gradvac_by_parameter:by=[backbon]")
    message = "MTL.AGGREGATOR.BY: the model has no module 'backbon'; did you mean 'backbone'"
    with pytest.raises(ValueError, match=message), naming_keys():
        trainer_for(cfg, toy(), toy_batches(1))
