"""Mistakes in a config: one error before step 1, with key, what was found, what is valid."""

from __future__ import annotations

import re

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from models import build_detector, method
from test_optim_wrapper import mtl
from toy import TASKS, TwoTasks, make_runner, parameters

from mtl_plugins.mm.optim.model import late_losses

BOX, MASK = TASKS["box"], TASKS["mask"]


def fixed(**weights):
    return dict(weighting=dict(type="Fixed", weights=weights))


def feature(**options):
    return dict(level="feature", **options)


# Error, options that are wrong, and what the message has, in this order: key, found, valid.
MISTAKES = [
    (KeyError, dict(aggregator="PCGard"), ".aggregator.type: ", "'PCGard'", "mean 'PCGrad'"),
    (KeyError, dict(aggregator="GradNorm"), ".aggregator.type: ", "'GradNorm'", "set as weighting"),
    (KeyError, dict(aggregator="CosReg"), ".aggregator.type: ", "'CosReg'", "set as regularizer"),
    (TypeError, dict(aggregator=dict(name="MGDA")), ".aggregator: ", "{'name'", "dict(type=name"),
    (
        TypeError,
        dict(aggregator=5),
        ".aggregator: ",
        "got 5",
        "Valid names: AlignedMTL, CAGrad, ConnectionStrength, Sum",
    ),
    (TypeError, dict(aggregator=dict(type="CAGrad", cc=1)), ".aggregator: ", "'cc'", "mean 'c'"),
    (KeyError, dict(weighting="Equl"), ".weighting.type: ", "'Equl'", "mean 'Equal'"),
    (KeyError, dict(weighting="PCGrad"), ".weighting.type: ", "'PCGrad'", "set as aggregator"),
    (TypeError, dict(weighting="Fixed"), ".weighting: ", "Fixed needs", "'weights'"),
    (TypeError, dict(weighting=dict(type="Fixed", weights=[1])), ".weighting: ", "dict", "[1]"),
    (
        ValueError,
        dict(weighting=dict(type="Uncertainty", lr=-1.0)),
        ".weighting: ",
        "lr",
        "expected more than 0",
    ),
    (KeyError, fixed(bx=1.0, mask=1.0), ".weighting.weights: ", "'bx'", "did you mean 'box'"),
    (KeyError, fixed(box=1.0), ".weighting.weights: ", "'mask'", "Valid: box"),
    (KeyError, fixed(box=1.0, mask=1.0, c=0.0), ".weighting.weights: ", "'c'", "Valid: box, mask"),
    (KeyError, dict(regularizer="CosRg"), ".regularizer.type: ", "'CosRg'", "mean 'CosReg'"),
    (KeyError, dict(regularizer="MGDA"), ".regularizer.type: ", "'MGDA'", "set as aggregator"),
    (TypeError, dict(tasks={}), ".tasks: expected a dict", "loss_mask", "got {}"),
    (TypeError, dict(tasks=["loss_mask"]), ".tasks: expected a dict", "loss_mask", "got ['loss"),
    (TypeError, dict(tasks=dict(box=BOX, mask=5)), ".tasks.mask: ", "'loss_mask'", "got 5"),
    (TypeError, dict(tasks=dict(box=[3], mask=MASK)), ".tasks.box: ", "'loss_mask'", "got [3]"),
    (KeyError, dict(tasks=TASKS | dict(depth=[])), ".tasks.depth: ", "no loss", "['loss_mask']"),
    (
        KeyError,
        dict(tasks=dict(box="loss_*", mask=MASK)),
        ".tasks: the loss 'loss_mask' is claimed by ",
        "tasks.box ('loss_*')",
        "tasks.mask ('loss_mask')",
    ),
    (KeyError, dict(tasks=dict(box=BOX)), ".tasks: no task claims", "'loss_mask'", "patterns are"),
    (
        KeyError,
        dict(tasks=dict(box=["loss_cls", "loss_rg"], mask=MASK)),
        ".tasks.box: ",
        "'loss_rg' matches none",
        "did you mean 'loss_reg'",
    ),
    (KeyError, dict(tasks=TASKS | dict(x="loss_msk")), ".tasks.x: ", "'loss_msk'", "'loss_mask'"),
    (
        KeyError,
        dict(tasks=TASKS | dict(seg="sem")),
        ".tasks.seg: ",
        "'sem' matches none",
        "Valid: loss_cls, loss_reg, loss_mask",
    ),
    (KeyError, dict(tasks=TASKS | dict(acc="acc")), ".tasks.acc: ", "'acc'", "'loss' has to be in"),
    (TypeError, dict(optional_losses=3), ".optional_losses: ", "'loss_mask'", "got 3"),
    (ValueError, dict(level="features"), ".level: ", "'feature'", "got 'features'"),
    (ValueError, feature(), ".representation: ", "needs the path", "trunk, box, mask"),
    (ValueError, feature(representation="truk"), ".representation: ", "'truk'", "mean 'trunk'"),
    (ValueError, dict(representation="trunk"), ".representation: ", "level='parameter'", "module"),
    (
        ValueError,
        feature(representation="trunk", aggregator=method("MCLGS")),
        ".level: ",
        "MCLGS",
        "level='parameter'",
    ),
    (
        ValueError,
        feature(representation="trunk", low_memory=True),
        ".low_memory ",
        "level='parameter'",
        "feature level",
    ),
    (ValueError, dict(sync="exakt"), ".sync: ", "'exact'", "got 'exakt'"),
    (ValueError, dict(sync="sketch"), ".sync: ", "'sketch' is for", "gramian='sketch'"),
    (ValueError, dict(gramian="sketched"), ".gramian: ", "'sketch'", "got 'sketched'"),
    (ValueError, dict(sketch_rows=16), ".sketch_rows: ", "16 is for", "gramian='sketch'"),
    (ValueError, dict(weights_every=0), ".weights_every: ", "at least 1", "got 0"),
    (
        ValueError,
        dict(aggregator="GradDrop", weights_every=2),
        ".weights_every ",
        "weighs the gradients",
        "GradDrop",
    ),
    (ValueError, dict(max_skips="3"), ".max_skips: ", "at least 1", "got '3'"),
    (ValueError, dict(on_nonfinite="ignore"), ".on_nonfinite: ", "'skip'", "got 'ignore'"),
    (TypeError, dict(lowmemory=True), ": there is no option ", "'lowmemory'", "mean 'low_memory'"),
    (ValueError, dict(accumulative_counts=0), ".accumulative_counts: ", "at least 1", "got 0"),
    (ValueError, dict(accumulative_counts="2"), ".accumulative_counts: ", "integer", "got '2'"),
    (TypeError, dict(clip_grad={}), ".clip_grad: ", "'max_norm'", "dict(max_norm=35)"),
    (TypeError, dict(clip_grad=35), ".clip_grad: ", "dict(max_norm=35)", "got 35"),
    (TypeError, dict(clip_grad=dict(maxnorm=1)), ".clip_grad: ", "max_norm", "dict(max_norm=35)"),
    (ValueError, dict(clip_grad=dict(type="l2")), ".clip_grad.type: ", "'norm'", "got 'l2'"),
    (
        ValueError,
        dict(type="AmpMTLOptimWrapper", dtype="float16"),
        ".dtype: ",
        "'bfloat16'",
        "got 'float16'",
    ),
]


@pytest.mark.parametrize(
    ("error", "options", "key", "found", "valid"),
    MISTAKES,
    ids=[re.sub(r"\W+", "-", str(mistake[1]))[:60] for mistake in MISTAKES],
)
def test_mistake(error, options, key, found, valid, tmp_path):
    runner = make_runner(tmp_path, mtl() | options)
    before = parameters(runner)
    with pytest.raises(error) as caught:
        runner.train()
    message = caught.value.args[0]
    assert message.startswith(f"optim_wrapper{key}")
    assert found in message and valid in message
    assert all(torch.equal(p, q) for p, q in zip(before, parameters(runner), strict=True))


@MODELS.register_module(force=True)
class LateLoss(TwoTasks):
    """As YOLOX's head: a loss that a hook switches on near the end of the run."""

    def __init__(self, starts=3):
        super().__init__()
        self.use_l1, self.loss_l1 = False, torch.nn.L1Loss()
        self.starts, self.calls = starts, 0

    def forward(self, inputs, mode="tensor"):
        losses = super().forward(inputs, mode)
        self.calls += 1
        self.use_l1 = self.calls > self.starts
        return losses | ({"loss_l1": losses["loss_reg"] * 2.0} if self.use_l1 else {})


@MODELS.register_module(force=True)
class UnseenLateLoss(LateLoss):
    """The same, which nothing in the model shows."""

    def __init__(self):
        super().__init__()
        del self.loss_l1


class TestLateLosses:
    CLAIMED = dict(box=[*BOX, "loss_l1"], mask=MASK)

    def train(self, tmp_path, model, **options):
        runner = make_runner(tmp_path, mtl("Sum") | options, model=dict(type=model))
        runner.train()
        return runner

    def test_claimed(self, tmp_path):
        runner = self.train(tmp_path / "a", "LateLoss", tasks=self.CLAIMED)
        plain = make_runner(tmp_path / "b", dict(type="OptimWrapper"), model=dict(type="LateLoss"))
        plain.train()
        assert runner.model.calls == 6
        torch.testing.assert_close(parameters(runner), parameters(plain))

    def test_not_claimed(self, tmp_path):
        with pytest.raises(KeyError, match=r"optim_wrapper.tasks: no task claims .*'loss_l1'"):
            self.train(tmp_path, "LateLoss")
        assert not list(tmp_path.glob("*.pth"))

    def test_named_by_the_config(self, tmp_path):
        options = dict(tasks=self.CLAIMED, optional_losses="loss_l1")
        assert self.train(tmp_path / "a", "UnseenLateLoss", **options).iter == 6
        message = r"optim_wrapper.tasks.box: 'loss_l1' matches none.*optional_losses"
        with pytest.raises(KeyError, match=message):
            self.train(tmp_path / "b", "UnseenLateLoss", tasks=self.CLAIMED)


def test_yolox_head_has_a_late_loss():
    cfg = Config(
        dict(type="YOLOXHead", num_classes=3, in_channels=8, feat_channels=8, stacked_convs=1)
    )
    head = build_detector(cfg)
    assert late_losses(torch.nn.Sequential(head)) == ["loss_l1"]
    head.use_l1 = True
    assert late_losses(torch.nn.Sequential(head)) == []


@MODELS.register_module(force=True)
class HalfAHead(TwoTasks):
    """As Mask Scoring R-CNN: where nobody has the task, a loss of it is 0 and another is absent."""

    def __init__(self, first=2):
        super().__init__()
        self.first, self.calls = first, 0

    def forward(self, inputs, mode="tensor"):
        losses = super().forward(inputs, mode)
        self.calls += 1
        if self.calls <= self.first:
            return losses | {"loss_mask": 0.0 * losses["loss_mask"]}
        return losses | {"loss_mask_iou": losses["loss_mask"] * 0.5}


class TestTaskWithoutExamples:
    TASKS = dict(box=BOX, mask=["loss_mask", "loss_mask_iou"])

    def run(self, tmp_path, tasks=None, first=2, **overrides):
        cfg = mtl("Sum") | dict(tasks=tasks or self.TASKS)
        runner = make_runner(tmp_path, cfg, model=dict(type="HalfAHead", first=first), **overrides)
        runner.train()
        return runner

    def test_in_the_first_batches(self, tmp_path):
        assert self.run(tmp_path).iter == 6

    def test_in_the_first_batch_of_a_resume(self, tmp_path):
        self.run(tmp_path, iters=3)
        assert self.run(tmp_path, iters=6, resume=True).iter == 6

    def test_a_typo_is_found_with_the_first_example(self, tmp_path):
        tasks = dict(box=BOX, mask=["loss_mask", "loss_mask_iou", "loss_point"])
        with pytest.raises(KeyError, match="optim_wrapper.tasks.mask: 'loss_point' matches none"):
            self.run(tmp_path, tasks)


@pytest.mark.parametrize(
    ("written", "resumed", "message"),
    [
        (mtl("PCGrad"), mtl("MGDA"), "resume: aggregator: .*with PCGrad, this run uses MGDA"),
        (dict(type="OptimWrapper"), mtl(), "resume: .*not written by MTLOptimWrapper"),
        (
            mtl() | dict(tasks=dict(a=BOX, mask=MASK)),
            mtl(),
            r"resume: tasks: the checkpoint has \['a', 'mask'\], this run has \['box', 'mask'\]",
        ),
    ],
)
def test_refused_resume_says_what_to_do(written, resumed, message, tmp_path):
    make_runner(tmp_path, written, iters=1).train()
    runner = make_runner(tmp_path, resumed, resume=True)
    with pytest.raises(ValueError, match=f"{message}.*set load_from and leave resume off"):
        runner.train()
