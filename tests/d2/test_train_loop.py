"""The trainers, step by step: against Detectron2's own, a loop by hand, and the other adapter."""

from __future__ import annotations

import copy
import inspect
from concurrent.futures import ThreadPoolExecutor
from threading import current_thread, main_thread
from typing import Any
from unittest.mock import patch

import pytest
import torch
from detectron2.engine import SimpleTrainer, TrainerBase
from detectron2.solver import build_optimizer
from detectron2.utils.events import EventStorage
from mmengine.model import BaseModel
from mmengine.optim import build_optim_wrapper
from models import FEATURE_METHODS, ORDINARY, method
from small import (
    PANOPTIC,
    SMALL,
    TASKS,
    config,
    detector,
    images,
    keys_of,
    parameters,
    toy,
    toy_batches,
    toy_config,
    trainer_for,
)
from torch import Tensor
from torch.testing import assert_close

from mtl_plugins import MultiTaskBackward
from mtl_plugins.d2 import MTLAMPTrainer, MTLSimpleTrainer
from mtl_plugins.tasks import TaskGroups
from mtl_plugins.weighting import WEIGHTINGS

WEIGHTED = {name: {"type": name} for name in WEIGHTINGS}
WEIGHTED["Fixed"]["weights"] = {"box": 1.0, "mask": 0.5}
WEIGHTED["DWA"]["window"] = 2
WEIGHTED["RLW"]["seed"] = 3
WEIGHTED["Achievement"]["potential"] = {"box": 1.0, "mask": 0.5}
FEATURE = ["MTL.LEVEL", "feature"]


def weighting_keys(name: str, tasks: tuple[str, str]) -> list[Any]:
    keys = keys_of("MTL.WEIGHTING", WEIGHTED[name])
    weights = f"{{{tasks[0]}: 1.0, {tasks[1]}: 0.5}}"
    return [weights if isinstance(value, dict) else value for value in keys]


def train(trainer: SimpleTrainer, steps: int) -> list[Tensor]:
    trainer.train(0, steps)
    return parameters(trainer.model)


@pytest.mark.parametrize("file", [SMALL, PANOPTIC], ids=["Mask R-CNN", "Panoptic FPN"])
def test_sum_is_simple_trainer_bitwise(file):
    """Ten steps of a detector with everything that the config brings, such as clipping."""
    cfg = config(file=file)
    batches = [images(2, seed) for seed in range(10)]
    model = detector(cfg)
    plain = copy.deepcopy(model)
    torch.manual_seed(1)  # the samplers draw
    ours = train(trainer_for(cfg, model, batches), 10)
    torch.manual_seed(1)
    theirs = train(SimpleTrainer(plain, batches, build_optimizer(cfg, plain)), 10)
    assert all(torch.equal(p, q) for p, q in zip(ours, theirs, strict=True))


def by_hand(
    cfg: Any, options: dict[str, Any], batches: list[Any], after_step: bool = False
) -> list[Tensor]:
    """The same training without a trainer."""
    model = toy()
    optimizer = build_optimizer(cfg, model)
    if "level" in options:
        options = options | {"representation": model.backbone}
    backward = MultiTaskBackward(model.parameters(), tasks=list(TASKS), **options)
    groups = TaskGroups(TASKS)
    for batch in batches:
        optimizer.zero_grad()
        backward(groups(model(batch)))
        optimizer.step()
        if after_step:
            with torch.no_grad():
                backward.after_step(groups(model(batch)))
    return parameters(model)


@pytest.mark.parametrize("clip", [False, True], ids=["", "clipped"])
@pytest.mark.parametrize("name", ORDINARY)
def test_aggregator_trains_as_by_hand(name, clip):
    options = ["SOLVER.BASE_LR", 0.1, "SOLVER.CLIP_GRADIENTS.ENABLED", clip]
    cfg = toy_config(
        *keys_of("MTL.AGGREGATOR", method(name)), *options, "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 0.05
    )
    trained = train(trainer_for(cfg, toy(), toy_batches(6)), 6)
    assert_close(trained, by_hand(cfg, {"aggregator": method(name)}, toy_batches(6)))


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_weighting_trains_as_by_hand(name):
    cfg = toy_config(*weighting_keys(name, ("box", "mask")), "SOLVER.BASE_LR", 0.1)
    trained = train(trainer_for(cfg, toy(), toy_batches(6)), 6)
    new_losses = WEIGHTINGS[name].needs_new_losses
    assert_close(trained, by_hand(cfg, {"weighting": WEIGHTED[name]}, toy_batches(6), new_losses))


def test_feature_level_trains_as_by_hand():
    cfg = toy_config("MTL.AGGREGATOR.NAME", "MGDA", *FEATURE, "SOLVER.BASE_LR", 0.1)
    trained = train(trainer_for(cfg, toy(), toy_batches(6)), 6)
    assert_close(trained, by_hand(cfg, {"aggregator": "MGDA", "level": "feature"}, toy_batches(6)))


class InMMEngine(BaseModel):
    """The toy as a model of the other framework."""

    def __init__(self) -> None:
        super().__init__()
        self.toy = toy()

    def forward(self, inputs: Tensor, mode: str = "tensor") -> dict[str, Tensor]:
        return self.toy(inputs)


def watch_grads(optimizer: torch.optim.Optimizer, model: torch.nn.Module) -> list[list[Tensor]]:
    """The gradients of each step, filled as it is made."""
    found: list[list[Tensor]] = []
    optimizer.register_step_pre_hook(
        lambda *_: found.append([p.grad.clone() for p in model.parameters()])
    )
    return found


@pytest.mark.parametrize(
    ("name", "level"),
    [(name, "parameter") for name in ORDINARY] + [(name, "feature") for name in FEATURE_METHODS],
)
def test_both_adapters_give_the_same_gradients(name, level):
    """Of the same losses, in each of three steps that do not move the parameters."""
    cfg = toy_config(
        *keys_of("MTL.AGGREGATOR", method(name)), "SOLVER.BASE_LR", 0.0, "MTL.LEVEL", level
    )
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = False
    trainer = trainer_for(cfg, toy(), toy_batches(3))
    here = watch_grads(trainer.optimizer, trainer.model)
    trainer.train(0, 3)

    model = InMMEngine()
    wrapper = build_optim_wrapper(
        model,
        dict(
            type="MTLOptimWrapper",
            optimizer=dict(type="SGD", lr=0.0),
            tasks=TASKS,
            aggregator=method(name),
            level=level,
            representation="toy.backbone" if level == "feature" else None,
        ),
    )
    there = watch_grads(wrapper.optimizer, model.toy)
    wrapper.initialize_count_status(model, 0, cfg.SOLVER.MAX_ITER)
    for batch in toy_batches(3):
        model.train_step({"inputs": batch}, wrapper)
    assert len(here) == 3
    assert_close(here, there, rtol=0.0, atol=0.0)


RUNS = {
    **{name: keys_of("MTL.AGGREGATOR", method(name)) for name in ORDINARY},
    **{
        f"{name}, feature": keys_of("MTL.AGGREGATOR", method(name)) + FEATURE
        for name in FEATURE_METHODS
    },
    **{name: weighting_keys(name, ("detection", "mask")) for name in WEIGHTINGS},
    "CosReg": ["MTL.REGULARIZER.NAME", "CosReg"],
    "CosReg, feature": ["MTL.REGULARIZER.NAME", "CosReg", *FEATURE],
    "low memory": ["MTL.AGGREGATOR.NAME", "MGDA", "MTL.LOW_MEMORY", True],
    "sketch": ["MTL.AGGREGATOR.NAME", "MGDA", "MTL.GRAMIAN", "sketch", "MTL.SKETCH_ROWS", 16],
    "weights every 2": ["MTL.AGGREGATOR.NAME", "MGDA", "MTL.WEIGHTS_EVERY", 2],
    "bfloat16": ["MTL.AGGREGATOR.NAME", "MGDA", "SOLVER.AMP.ENABLED", True],
}


@pytest.fixture(scope="module")
def mask_rcnn() -> torch.nn.Module:
    return detector(config())


@pytest.mark.parametrize("run", RUNS)
def test_everything_trains_mask_rcnn(run, mask_rcnn):
    cfg = config(*RUNS[run])
    trainer = trainer_for(cfg, copy.deepcopy(mask_rcnn), [images(2, seed) for seed in range(2)])
    trained = train(trainer, 2)
    assert trainer.multitask.last.nonfinite == ()
    before = parameters(mask_rcnn)
    moved = [not torch.equal(p, q) for p, q in zip(trained, before, strict=True)]
    assert all(p.isfinite().all() for p in trained)
    # RPN's anchors are few here, and some parameters have no gradient in such a batch.
    assert sum(moved) > 0.9 * len(moved)


@pytest.mark.parametrize(
    "options",
    [["MODEL.META_ARCHITECTURE", "RetinaNet"], ["MODEL.META_ARCHITECTURE", "PanopticFPN"]],
    ids=lambda options: options[1],
)
def test_other_architectures(options):
    """Without tasks in the config, every loss is one."""
    cfg = config(*options, "MTL.AGGREGATOR.NAME", "PCGrad")
    cfg.MTL.TASKS.clear()
    if options[1] == "RetinaNet":
        cfg.MODEL.BACKBONE.NAME = "build_retinanet_resnet_fpn_backbone"
        cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
        cfg.MODEL.RETINANET.NUM_CLASSES = 3
    trainer = trainer_for(cfg, detector(cfg), [images(2)])
    train(trainer, 1)
    with EventStorage():
        losses = trainer.model(images(2))
    assert trainer.multitask.last.tasks == tuple(losses)
    assert len(losses) > 1


def test_bfloat16():
    """What the model computes in it, and roughly the same steps."""
    options = ["MTL.AGGREGATOR.NAME", "MGDA", "SOLVER.BASE_LR", 0.1]
    exact = train(trainer_for(toy_config(*options), toy(), toy_batches(6)), 6)
    dtypes = []
    model = toy()
    model.box.register_forward_hook(lambda *args: dtypes.append(args[2].dtype))
    cfg = toy_config(*options, "SOLVER.AMP.ENABLED", True)
    assert_close(train(trainer_for(cfg, model, toy_batches(6)), 6), exact, rtol=0.1, atol=0.05)
    assert set(dtypes) == {torch.bfloat16}


def scaled(scale: float, model: torch.nn.Module, **options: Any) -> Any:
    """Steps as fp16 makes them, with a real scaler, on a CPU for want of a GPU."""
    cfg = toy_config("MTL.AGGREGATOR.NAME", "MGDA", "SOLVER.AMP.ENABLED", True)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    return trainer_for(cfg, model, toy_batches(8), grad_scaler=scaler, **options)


def test_loss_scaler():
    """A scale of a power of two changes no bit."""
    trainer = scaled(1024.0, toy())
    with_scaler = train(trainer, 4)
    assert trainer.grad_scaler.get_scale() == 1024.0
    cfg = toy_config("MTL.AGGREGATOR.NAME", "MGDA", "SOLVER.AMP.ENABLED", True)
    assert_close(with_scaler, train(trainer_for(cfg, toy(), toy_batches(8)), 4))


def test_overflow_lowers_the_scale_and_goes_on():
    model = toy()
    before = parameters(model)
    model.mask.register_full_backward_hook(lambda _, grads, __: (grads[0] * 2.0**10,))
    trainer = scaled(2.0**121, model)
    trainer.train(0, 1)
    assert trainer.multitask.last.nonfinite == ("mask",)
    assert all(torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))
    trainer.train(1, 8)
    assert trainer.multitask.last.nonfinite == ()
    assert trainer.grad_scaler.get_scale() < 2.0**121
    assert not torch.equal(before[0], next(model.parameters()))


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "scaled"])
@pytest.mark.parametrize("clip", ["value", "norm"])
def test_skipped_step(clip, precision):
    """The optimizer, which would clip gradients that are not there, makes no step."""
    batches = toy_batches(3)
    batches[1][0, 0] = float("nan")
    cfg = toy_config("MTL.AGGREGATOR.NAME", "MGDA", "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", clip)
    cfg.SOLVER.AMP.ENABLED = precision != "float32"
    trained = []
    for some in (batches, [batches[0], batches[2]]):
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0) if precision == "scaled" else None
        options = {"grad_scaler": scaler} if scaler else {}
        trainer = trainer_for(cfg, toy(), some, **options)
        with patch.object(trainer.optimizer, "step", wraps=trainer.optimizer.step) as step:
            trained.append(train(trainer, len(some)))
        assert step.call_count == 2
        if scaler:  # it backs off after the step that was skipped
            assert scaler.get_scale() == (1.0 if len(some) == 3 else 2.0)
    assert_close(*trained)


@pytest.mark.parametrize("on_nonfinite", ["skip", "raise"])
def test_loss_that_is_nan(on_nonfinite):
    """Detectron2's own error for it would end the run."""
    batches = toy_batches(3)
    batches[1][0, 0] = float("nan")
    cfg = toy_config("MTL.ON_NONFINITE", on_nonfinite, "MTL.AGGREGATOR.NAME", "MGDA")
    trainer = trainer_for(cfg, toy(), batches)
    if on_nonfinite == "raise":
        with pytest.raises(FloatingPointError, match="the loss of task 'box' is nan"):
            trainer.train(0, 3)
        return
    without = trainer_for(cfg, toy(), [batches[0], batches[2]])
    assert_close(train(trainer, 3), train(without, 2))


@pytest.mark.parametrize("name", ["GradVac", "NashMTL", "MCLGS"])
def test_checkpoint_of_the_method(name):
    """Half a run from the state of the other half is the whole run."""
    options = ["SOLVER.BASE_LR", 0.1, "MTL.WEIGHTING.NAME", "Uncertainty"]
    cfg = toy_config(*keys_of("MTL.AGGREGATOR", method(name)), *options)
    whole = train(trainer_for(cfg, toy(), toy_batches(8)), 8)
    first = trainer_for(cfg, toy(), toy_batches(4))
    first.train(0, 4)
    second = trainer_for(cfg, first.model, toy_batches(8)[4:])
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert all(torch.equal(p, q) for p, q in zip(train(second, 4), whole, strict=True))


def test_resume_at_a_batch_without_a_task():
    """What the first batches have shown of the losses is known after a restart."""
    cfg = toy_config("MTL.AGGREGATOR.NAME", "MGDA")
    model = toy()
    first = trainer_for(cfg, model, toy_batches(1))
    first.train(0, 1)
    model.register_forward_hook(lambda _, __, losses: {"loss_cls": losses["loss_cls"]})
    second = trainer_for(cfg, model, toy_batches(1))
    with pytest.raises(KeyError, match="matches none"):  # at the start of a run
        second.train(0, 1)
    second = trainer_for(cfg, model, toy_batches(1))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    second.train(0, 1)
    assert second.multitask.last.tasks == ("box",)


def test_checkpoint_of_another_method_or_trainer():
    state = trainer_for(toy_config("MTL.AGGREGATOR.NAME", "GradVac"), toy(), []).state_dict()
    other = trainer_for(toy_config("MTL.AGGREGATOR.NAME", "PCGrad"), toy(), [])
    message = "written with GradVac, this run uses PCGrad.*set MODEL.WEIGHTS and leave --resume off"
    with pytest.raises(ValueError, match=message):
        other.load_state_dict(state)
    del state["mtl"]
    with pytest.raises(ValueError, match="MODEL.WEIGHTS"):
        other.load_state_dict(state)


def test_famo_sees_the_same_proposals_and_no_second_log(mask_rcnn):
    """The forward pass after the step draws what the first one drew, and leaves no trace."""
    cfg = config("MTL.WEIGHTING.NAME", "FAMO", "SOLVER.BASE_LR", 0.0)
    trainer = trainer_for(cfg, copy.deepcopy(mask_rcnn), [images(2)])
    seen = []
    after_step = trainer.multitask.after_step
    trainer.multitask.after_step = lambda losses: (seen.append(losses), after_step(losses))
    trainer.train(0, 1)
    # The parameters have not moved: the losses have not either.
    assert_close(torch.stack(list(seen[0].values())), trainer.multitask.last.losses)
    assert len(trainer.storage.history("roi_head/num_fg_samples").values()) == 1


class Order(torch.optim.SGD):
    """Notes when the gradients are zeroed."""

    def __init__(self, model: torch.nn.Module, events: list[str]) -> None:
        super().__init__(model.parameters(), lr=0.1)
        self.events = events
        model.register_forward_hook(lambda *_: events.append("forward"))

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.events.append("zero_grad")
        super().zero_grad(set_to_none)


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("cls", [MTLSimpleTrainer, MTLAMPTrainer])
def test_zero_grad_before_forward(cls, early):
    """Gradients that a forward pass leaves, as in an accumulation of one's own, are kept."""
    model, events = toy(), []
    optimizer = Order(model, events)
    multitask = MultiTaskBackward(model.parameters())
    options = {"zero_grad_before_forward": True} if early else {}
    train(cls(model, toy_batches(2), optimizer, multitask, **options), 2)
    assert events == ["zero_grad", "forward"] * 2 if early else ["forward", "zero_grad"] * 2


@pytest.fixture
def later(monkeypatch):
    """The arguments that Detectron2 has had since version 0.6, if this one does not have them."""
    init, write = SimpleTrainer.__init__, SimpleTrainer._write_metrics
    if "async_write_metrics" in inspect.signature(init).parameters:
        return

    def init_later(self, model, loader, optimizer, async_write_metrics=False):
        init(self, model, loader, optimizer)
        self.concurrent_executor = ThreadPoolExecutor(max_workers=1)

    def write_later(self, losses, data_time, prefix="", iter=None):
        write(self, losses, data_time, prefix)

    def after_train_later(self):
        TrainerBase.after_train(self)
        self.concurrent_executor.shutdown()

    monkeypatch.setattr(SimpleTrainer, "__init__", init_later)
    monkeypatch.setattr(SimpleTrainer, "after_train", after_train_later)
    monkeypatch.setattr(SimpleTrainer, "_write_metrics", write_later)


@pytest.mark.parametrize("options", [{}, {"async_write_metrics": True}], ids=["", "async"])
def test_async_write_metrics(options, later, monkeypatch):
    """By the thread that Detectron2's trainer has for it, and the same numbers."""
    threads = []
    write = SimpleTrainer.write_metrics
    monkeypatch.setattr(
        SimpleTrainer,
        "write_metrics",
        staticmethod(lambda *args: (threads.append(current_thread()), write(*args))),
    )
    trainer = trainer_for(toy_config("SOLVER.BASE_LR", 0.0), toy(), toy_batches(1), **options)
    trainer.train(0, 1)
    assert [thread is main_thread() for thread in threads] == [not options]
    expected = sum(loss.item() for loss in toy()(toy_batches(1)[0]).values())
    assert trainer.storage.latest()["total_loss"][0] == pytest.approx(expected)


@pytest.mark.parametrize("log", [False, True])
def test_log_grad_scaler(log):
    trainer = scaled(1024.0, toy(), log_grad_scaler=log)
    trainer.train(0, 1)
    logged = trainer.storage.latest().get("[metric]grad_scaler")
    assert logged == ((1024.0, 0) if log else None)


def test_half_precision_on_a_cpu_is_refused():
    """bfloat16, in which it trains, is not what was asked for."""
    cfg = toy_config("SOLVER.AMP.ENABLED", True)
    with pytest.raises(ValueError, match="precision: a CPU trains in 'bfloat16', got torch.fl"):
        trainer_for(cfg, toy(), [], precision=torch.float16)


@pytest.mark.parametrize("named_by", ["config", "model", "nobody"])
def test_optional_losses(named_by):
    """A loss that the first batch lacks is a mistake, unless the model or the config names it."""
    model = toy()
    model.register_forward_hook(
        lambda _, args, losses: (
            losses | {"loss_late": losses["loss_mask"] * 2.0} if args[0][0, 0] > 50.0 else None
        )
    )
    batches = toy_batches(2)
    batches[1][0, 0] = 100.0
    cfg = toy_config("MTL.OPTIONAL_LOSSES", ["loss_l*"] if named_by == "config" else [])
    cfg.MTL.TASKS.mask = ["loss_mask", "loss_late"]
    if named_by == "model":
        model.optional_losses = ["loss_late"]
    trainer = trainer_for(cfg, model, batches)
    if named_by == "nobody":
        with pytest.raises(KeyError, match="'loss_late' matches none of the losses"):
            trainer.train(0, 2)
        return
    trainer.train(0, 2)
    assert set(trainer.multitask.last.tasks) == {"box", "mask"}
    assert trainer.storage.latest()["loss_late"][0] > 0.0


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("aggregator", ["Sum", "MGDA"])
def test_nan_in_an_image_leaves_the_buffers(aggregator, precision):
    """Running statistics, which it would spoil for ever."""
    model = toy()
    model.backbone[1] = torch.nn.BatchNorm1d(6)
    batches = toy_batches(3)
    batches[1][0, 0] = float("nan")
    cfg = toy_config("MTL.AGGREGATOR.NAME", aggregator)
    cfg.SOLVER.AMP.ENABLED = precision != "float32"
    trainer = trainer_for(cfg, model, batches)
    trainer.train(0, 1)
    before = copy.deepcopy(model.state_dict())
    trainer.train(1, 2)
    assert trainer.multitask.last.nonfinite == ("box", "mask")
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    trainer.train(2, 3)
    assert not torch.equal(model.backbone[1].running_mean, before["backbone.1.running_mean"])
