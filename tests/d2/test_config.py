"""The MTL node: files, command lines, and what is wrong with them."""

from __future__ import annotations

import pytest
import torch
from detectron2.config import get_cfg
from mmengine.config import Config
from models import ROOT
from small import CONFIGS, SMALL, TwoTasks, config, toy_config, trainer_for

from mtl_plugins.aggregation import build_aggregator
from mtl_plugins.d2 import add_mtl_config, merge_options
from mtl_plugins.d2.config import build_groups, build_multitask, tasks_of
from mtl_plugins.regularization import build_regularizer
from mtl_plugins.weighting import build_weighting

METHODS = sorted(path.stem for path in (CONFIGS / "mtl").glob("*.yaml"))
MM = ROOT / "configs" / "_base_" / "mtl"


def multitask(cfg):
    model = TwoTasks()
    return build_multitask(cfg, model, list(model.parameters()), build_groups(cfg))


def test_both_adapters_have_the_same_methods():
    # Norms of each task are no key of MTL: a script converts Detectron2's models.
    assert sorted({path.stem for path in MM.glob("*.py")} - {"task_norm"}) == METHODS


@pytest.mark.parametrize("name", METHODS)
def test_method_laid_over_a_config_is_that_of_the_other_adapter(name, tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text(f'_BASE_: ["{SMALL}", "{CONFIGS / "mtl" / name}.yaml"]')
    cfg = config(file=mine)
    if cfg.MTL.LAYERS:
        cfg.MTL.LAYERS = "backbone.2"  # the toy has no FPN
    built = multitask(cfg)
    theirs = Config.fromfile(MM / f"{name}.py").optim_wrapper
    assert built.level == theirs.get("level", "parameter")
    aggregator = theirs.get("aggregator", "Sum")
    assert repr(built.aggregator) == repr(build_aggregator(aggregator))
    if "weighting" in theirs:
        assert repr(built.weighting) == repr(build_weighting(theirs.weighting))
    if "regularizer" in theirs:
        assert repr(built.regularizer) == repr(build_regularizer(theirs.regularizer))


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*_*_*.yaml")), ids=lambda path: path.stem)
def test_config_builds(path):
    """The model, and the MTL node with the tasks of its losses."""
    cfg = get_cfg()
    add_mtl_config(cfg)
    cfg.merge_from_file(str(path))
    assert multitask(cfg).tasks == list(cfg.MTL.TASKS)


def test_tasks_of_a_base_config_are_exchanged(tmp_path):
    mine = tmp_path / "mine.yaml"
    tasks = "detection: [], rpn: [loss_rpn_*], box: [loss_cls, loss_box_reg]"
    mine.write_text(f'_BASE_: "{SMALL}"\nMTL: {{TASKS: {{{tasks}}}}}')
    assert sorted(multitask(config(file=mine)).tasks) == ["box", "mask", "rpn"]


@pytest.mark.parametrize(
    ("options", "part", "expected"),
    [
        (
            ["MTL.AGGREGATOR.NAME", "CAGrad", "MTL.AGGREGATOR.C", "0.7"],
            "aggregator",
            build_aggregator({"type": "CAGrad", "c": 0.7}),
        ),
        (
            ["MTL.AGGREGATOR.NAME", "MCLGS", "MTL.AGGREGATOR.BASE", "{type: CAGrad, c: 0.2}"],
            "aggregator",
            build_aggregator({"type": "MCLGS", "base": {"type": "CAGrad", "c": 0.2}}),
        ),
        (
            ["MTL.AGGREGATOR.NAME", "{type: TorchJD, name: UPGradWeighting}"],
            "aggregator",
            build_aggregator({"type": "TorchJD", "name": "UPGradWeighting"}),
        ),
        (
            ["MTL.WEIGHTING.NAME", "Fixed", "MTL.WEIGHTING.WEIGHTS", "{detection: 1, mask: 3}"],
            "weighting",
            build_weighting({"type": "Fixed", "weights": {"detection": 1, "mask": 3}}),
        ),
        (
            ["MTL.REGULARIZER.NAME", "CosReg", "MTL.REGULARIZER.WEIGHT", "0.1"],
            "regularizer",
            build_regularizer({"type": "CosReg", "weight": 0.1}),
        ),
    ],
    ids=lambda value: value[1] if isinstance(value, list) else "",
)
def test_command_line(options, part, expected, tmp_path):
    cfg = config(*options)
    assert repr(getattr(multitask(cfg), part)) == repr(expected)
    # The file that Detectron2 leaves beside the results is a config again.
    (tmp_path / "config.yaml").write_text(cfg.dump())
    assert config(file=tmp_path / "config.yaml").MTL == cfg.MTL


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["MTL.AGGREGATOR.NAME", "PCGard"],
            "MTL.AGGREGATOR.NAME: no method is called 'PCGard'; did you mean 'PCGrad'",
        ),
        (
            ["MTL.AGGREGATOR.NAME", "PCGrad", "MTL.AGGREGATOR.C", 0.5],
            "MTL.AGGREGATOR: PCGrad takes no argument 'c'",
        ),
        (["MTL.WEIGHTING.NAME", "FAMOUS"], "MTL.WEIGHTING.NAME: .* did you mean 'FAMO'"),
        (["MTL.WEIGHTING.NAME", "Fixed"], "MTL.WEIGHTING: Fixed.*'weights'"),
        (["MTL.WEIGHTING.WEIGHTS", "{a: 1}"], "MTL.WEIGHTING.NAME: no method .*'weights'"),
        (
            ["MTL.WEIGHTING.NAME", "Fixed", "MTL.WEIGHTING.WEIGHTS", "{detection: 1}"],
            "MTL.WEIGHTING.WEIGHTS: no weight for the task 'mask'",
        ),
        (
            ["MTL.WEIGHTING.NAME", "Uncertainty", "MTL.WEIGHTING.LR", 0],
            "MTL.WEIGHTING: Uncertainty: lr: expected more than 0",
        ),
        (["MTL.AGGREGATOR.NAME", ""], "MTL.AGGREGATOR.NAME: no method is named; .*Valid: .*Sum"),
        (
            ["MTL.AGGREGATOR.NAME", "", "MTL.AGGREGATOR.C", 0.5],
            "MTL.AGGREGATOR.NAME: no method is named, but MTL.AGGREGATOR has ..c",
        ),
        (
            ["MTL.AGGREGATOR.NAME", "CAGrad", "MTL.AGGREGATOR.C", "abc"],
            "MTL.AGGREGATOR.C: CAGrad takes a number, got 'abc'",
        ),
        (["MTL.AGGREGATOR.NAME", "pcgrad"], "MTL.AGGREGATOR.NAME: .*did you mean 'PCGrad'"),
        (["MTL.REGULARIZER.NAME", "Cos"], "MTL.REGULARIZER.NAME: .*'CosReg'"),
        (["MTL.LEVEL", "features"], "MTL.LEVEL: expected one of"),
        (
            ["MTL.LEVEL", "feature", "MTL.REPRESENTATION", "bakbone"],
            "MTL.REPRESENTATION: the model has no module 'bakbone'; did you mean 'backbone'",
        ),
        (["MTL.SYNC", "all"], "MTL.SYNC: expected one of"),
        (
            ["MTL.LOW_MEMORY", True, "MTL.AGGREGATOR.NAME", "GradDrop"],
            "MTL.LOW_MEMORY needs an aggregator",
        ),
        (
            ["MTL.GRAMIAN", "sketch", "MTL.AGGREGATOR.NAME", "GradDrop"],
            "MTL.GRAMIAN='sketch' needs an aggregator",
        ),
        (["MTL.SKETCH_ROWS", 16], "MTL.SKETCH_ROWS: 16 is for"),
        (["MTL.WEIGHTS_EVERY", 0], "MTL.WEIGHTS_EVERY: expected"),
        (["MTL.ON_NONFINITE", "stop"], "MTL.ON_NONFINITE: expected one of"),
    ],
    ids=lambda value: str(value[0]) if isinstance(value, list) else "",
)
def test_what_is_wrong_is_named(options, message):
    with pytest.raises((KeyError, TypeError, ValueError), match=message):
        multitask(config(*options))


def test_wrong_argument_in_a_file(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text(f'_BASE_: "{SMALL}"\nMTL: {{AGGREGATOR: {{NAME: CAGrad, RESKALE: 1}}}}')
    with pytest.raises(TypeError, match="MTL.AGGREGATOR: .*'reskale'; did you mean 'rescale'"):
        multitask(config(file=mine))


def test_keys_in_lower_case(tmp_path):
    """Beside ``C``, which is in the config already, ``c`` would win or lose without a word."""
    mine = tmp_path / "mine.yaml"
    mine.write_text(f'_BASE_: "{SMALL}"\nMTL: {{AGGREGATOR: {{NAME: CAGrad, c: 0.7}}}}')
    with pytest.raises(KeyError, match="MTL.AGGREGATOR.c: .* upper case: MTL.AGGREGATOR.C"):
        multitask(config(file=mine))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["MTL.AGREGATOR.NAME", "Sum"], "MTL has no 'AGREGATOR'; did you mean 'AGGREGATOR'"),
        (["MTL.AGGREGATOR.CE", "1"], "MTL.AGGREGATOR has no 'CE'; "),
        (["MTL.AGGREGATOR.c", "1"], "MTL.AGGREGATOR has no 'c'; did you mean 'C'"),
        (["MTTL.SYNC", "exact"], "the config has no 'MTTL'; did you mean 'MTL'"),
        (["MTL.SYNC.X", "1"], "MTL.SYNC has no 'X'"),
        (["MTL.SYNC"], "MTL.SYNC: has no value"),
        (["MTL.WEIGHTS_EVERY", "two"], "Type mismatch .* MTL.WEIGHTS_EVERY|WEIGHTS_EVERY"),
        (["MTL.TASKS", "[a, b]"], "MTL.TASKS: '.a, b.' is no dict in YAML"),
        (["MTL.TASKS", "{a: [loss}"], "MTL.TASKS: '{a: .loss}' is no YAML"),
    ],
    ids=lambda value: str(value),
)
def test_wrong_options_of_a_command_line(options, message):
    with pytest.raises((KeyError, ValueError), match=message):
        merge_options(config(), options)


DETECTION = ["loss_rpn_*", "loss_cls", "loss_box_reg"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["MTL.SYNC", "gramian"], {"detection": DETECTION, "mask": ["loss_mask"]}),
        (
            ["MTL.TASKS.rpn_cls", "['loss_rpn_cls']"],
            {"detection": DETECTION, "mask": ["loss_mask"], "rpn_cls": ["loss_rpn_cls"]},
        ),
        (["MTL.TASKS", "{a: [loss_cls], b: loss_m*}"], {"a": ["loss_cls"], "b": "loss_m*"}),
        (["MTL.TASKS", "{'a': ['loss_cls']}"], {"a": ["loss_cls"]}),
        (["MTL.TASKS.mask", "loss_m*"], {"detection": DETECTION, "mask": "loss_m*"}),
        (["MTL.TASKS.mask", "[]"], {"detection": DETECTION}),
        (["MTL.TASKS", "{}"], {}),
    ],
    ids=lambda value: str(value) if isinstance(value, list) else "",
)
def test_tasks_of_a_command_line(options, expected, tmp_path):
    cfg = config()
    merge_options(cfg, options)
    assert tasks_of(cfg) == expected
    assert build_groups(cfg).names == list(expected)
    # The file that Detectron2 leaves beside the results is a config again.
    (tmp_path / "config.yaml").write_text(cfg.dump())
    again = get_cfg()
    add_mtl_config(again)
    again.merge_from_file(str(tmp_path / "config.yaml"))
    assert again.MTL == cfg.MTL


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ({"box": ["loss_cls", "loss_reg"]}, "no task claims the loss 'loss_mask'"),
        ({"box": ["loss_*"], "mask": ["loss_mask"]}, "'loss_mask' is claimed by"),
        ({"box": ["loss_cls", "loss_reg"], "mask": ["loss_m*", "seg"]}, "'seg' matches none"),
    ],
    ids=["unclaimed", "claimed twice", "no such loss"],
)
def test_tasks_that_do_not_fit(tasks, message):
    """An error before anything is trained."""
    cfg = toy_config()
    cfg.MTL.TASKS = type(cfg)(tasks)
    model = TwoTasks()
    before = [p.clone() for p in model.parameters()]
    trainer = trainer_for(cfg, model, [torch.ones(2, 4)])
    with pytest.raises(KeyError, match=message):
        trainer.run_step()
    assert all(torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))
