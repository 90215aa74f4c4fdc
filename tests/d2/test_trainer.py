"""``MTLTrainer`` on drawn images: its hooks, its checkpoints, its loader."""

from __future__ import annotations

import logging
import math
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.engine import DefaultTrainer, HookBase
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils.env import seed_all_rng
from models import method
from small import config, keys_of, parameters, toy, toy_batches, toy_config
from small import trainer_for as toy_trainer
from torch.testing import assert_close
from torch.utils._pytree import tree_leaves

from mtl_plugins.d2 import AllocatedLoader, MTLTrainer, TaskInterferenceHook, config_file
from mtl_plugins.d2.data import TrainLoader, missing_data
from mtl_plugins.layer_conflicts import FILE, read_record


@pytest.fixture(scope="module")
def drawn(coco):
    """The drawn images as the data sets ``drawn_train`` and ``drawn_val``."""
    for split in ("train", "val"):
        annotations = coco / "annotations" / f"instances_{split}2017.json"
        register_coco_instances(f"drawn_{split}", {}, str(annotations), str(coco / f"{split}2017"))
    yield
    for split in ("train", "val"):
        DatasetCatalog.remove(f"drawn_{split}")
        MetadataCatalog.remove(f"drawn_{split}")


@pytest.fixture
def cfg(drawn, tmp_path):
    cfg = config("DATASETS.TRAIN", ("drawn_train",), "DATASETS.TEST", ("drawn_val",))
    cfg.merge_from_list(["INPUT.MIN_SIZE_TRAIN", (60,), "INPUT.MAX_SIZE_TRAIN", 80])
    cfg.merge_from_list(["INPUT.MIN_SIZE_TEST", 60, "INPUT.MAX_SIZE_TEST", 80])
    cfg.merge_from_list(["MODEL.ROI_HEADS.NUM_CLASSES", 80, "OUTPUT_DIR", str(tmp_path)])
    cfg.merge_from_list(["SOLVER.MAX_ITER", 2, "SOLVER.CHECKPOINT_PERIOD", 100])
    return cfg


class Draws(DatasetEvaluator):
    """Evaluates nothing, with random numbers."""

    def process(self, inputs: Any, outputs: Any) -> None:
        torch.rand(1), np.random.rand()


class Trainer(MTLTrainer):
    @classmethod
    def build_evaluator(cls, cfg: Any, dataset_name: str) -> DatasetEvaluator:
        return Draws()


class Kill(HookBase):
    """Ends a run before an iteration."""

    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def before_step(self) -> None:
        if self.trainer.iter == self.iteration:
            raise KeyboardInterrupt


def trainer_for(cfg: Any, resume: bool = False) -> Trainer:
    seed_all_rng(3)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume)
    return trainer


def test_sum_is_default_trainer_bitwise(cfg):
    """Data, schedule, clipping and the draws of the samplers included."""
    cfg.SOLVER.MAX_ITER = 4
    cfg.DATASETS.TEST = ()
    trained = []
    for cls in (DefaultTrainer, MTLTrainer):
        seed_all_rng(3)
        trainer = cls(cfg)
        trainer.train()
        trained.append(parameters(trainer.model))
    assert all(torch.equal(p, q) for p, q in zip(*trained, strict=True))


def plain(state: Any) -> list[Any]:
    """What a state is made of, to be compared."""
    leaves = tree_leaves(state)
    return [leaf.tolist() if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]


@pytest.mark.parametrize(
    "options",
    [
        keys_of("MTL.AGGREGATOR", method("GradVac")) + ["MTL.WEIGHTING.NAME", "Uncertainty"],
        ["MTL.WEIGHTING.NAME", "FAMO"],
    ],
    ids=["GradVac and Uncertainty", "FAMO"],
)
def test_resumed_run_is_the_uninterrupted_one(options, cfg, tmp_path):
    """Killed after a checkpoint, and after an evaluation that drew random numbers."""
    cfg.merge_from_list(options)
    cfg.merge_from_list(["SOLVER.MAX_ITER", 6, "SOLVER.CHECKPOINT_PERIOD", 3])
    cfg.merge_from_list(["TEST.EVAL_PERIOD", 3, "SEED", 3, "SOLVER.STEPS", (5,)])
    cfg.OUTPUT_DIR = str(tmp_path / "whole")
    whole = trainer_for(cfg)
    whole.train()

    cfg.OUTPUT_DIR = str(tmp_path / "parts")
    killed = trainer_for(cfg)
    killed.register_hooks([Kill(4)])
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    resumed = trainer_for(cfg, resume=True)
    assert resumed.start_iter == 3
    resumed.train()

    pairs = zip(parameters(whole.model), parameters(resumed.model), strict=True)
    assert all(torch.equal(p, q) for p, q in pairs)
    states = [plain(trainer.multitask.state_dict()) for trainer in (whole, resumed)]
    assert states[0] == states[1]
    assert_close(resumed.multitask.last.losses, whole.multitask.last.losses, rtol=0, atol=0)


def test_checkpoint_of_detectron2s_own_trainer(cfg):
    cfg.DATASETS.TEST = ()
    DefaultTrainer(cfg).train()
    with pytest.raises(ValueError, match="--resume: the checkpoint was not written by"):
        trainer_for(cfg, resume=True)
    trainer_for(cfg)  # from its weights, or none


class Bare(Trainer):
    """As AdelaiDet's: its checkpointer knows the model, the optimizer and the scheduler."""

    def resume_or_load(self, resume: bool = True) -> None:
        parts = dict(optimizer=self.optimizer, scheduler=self.scheduler)
        self.checkpointer = DetectionCheckpointer(self.model, self.cfg.OUTPUT_DIR, **parts)
        super().resume_or_load(resume)


class Kept(logging.Handler):
    """Keeps the texts, whatever other tests have done to the loggers."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


@pytest.fixture
def logged():
    """All that the adapter logs."""
    logger, kept = logging.getLogger("mtl_plugins.d2"), Kept()
    logger.addHandler(kept)
    yield kept.texts
    logger.removeHandler(kept)


@pytest.mark.parametrize("cls", [Trainer, Bare])
def test_resume_without_the_state_of_the_trainer_is_warned_of(cls, cfg, logged):
    """It begins anew, from the weights of the checkpoint: the momentum is lost as well."""
    trainer_for(cfg).train()
    trainer = cls(cfg)
    trainer.resume_or_load(resume=False)
    assert logged == []
    trainer.resume_or_load(resume=True)
    if cls is Trainer:
        assert logged == []
        assert trainer.start_iter == 2
        return
    (warning,) = logged
    assert "model_final.pth, but not the state of the trainer" in warning
    assert "starts at iteration 1" in warning
    assert trainer.start_iter == 1
    assert not trainer.optimizer.state_dict()["state"]


@pytest.mark.parametrize("options", [[], ["MTL.AGGREGATOR.NAME", "MGDA"]], ids=["Sum", "MGDA"])
def test_what_is_logged(options, cfg):
    """Every other iteration, and it changes no bit."""
    cfg.merge_from_list(["MTL.MONITOR.INTERVAL", 2, "SOLVER.MAX_ITER", 3, *options])
    cfg.MTL.MONITOR.MEASURES = ["gds", "gms", "angles", "fd"]
    trainer = trainer_for(cfg)
    trainer.train()
    latest = trainer.storage.latest()
    scalars = {name: value for name, (value, at) in latest.items() if name.startswith("mtl/")}
    assert {at for name, (_, at) in latest.items() if name.startswith("mtl/")} == {1}
    tasks = ("detection", "mask")
    names = {f"mtl/{part}/{task}" for part in ("loss", "weight") for task in tasks}
    assert scalars.keys() == names | {"mtl/gds", "mtl/gms", "mtl/fd", "mtl/angle/detection|mask"}
    # The cosine of two tasks is that of their angle.
    angle = math.radians(scalars["mtl/angle/detection|mask"])
    assert scalars["mtl/gds"] == pytest.approx(math.cos(angle), abs=1e-5)
    assert 0.0 <= scalars["mtl/fd"] <= math.log(2)
    terms = ("loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg")
    at_1 = {name: dict((i, v) for v, i in trainer.storage.history(name).values()) for name in terms}
    detection = sum(values[1] for values in at_1.values())
    assert scalars["mtl/loss/detection"] == pytest.approx(detection, rel=1e-5)

    cfg.MTL.MONITOR.INTERVAL = 0
    silent = trainer_for(cfg)
    silent.train()
    assert not any(name.startswith("mtl/") for name in silent.storage.latest())
    pairs = zip(parameters(trainer.model), parameters(silent.model), strict=True)
    assert all(torch.equal(p, q) for p, q in pairs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["MTL.MONITOR.MEASURES", ["gdss"]], "MTL.MONITOR.MEASURES: 'gdss' is none; .*'gds'"),
        (["MTL.MONITOR.INTERVAL", -1], "MTL.MONITOR.INTERVAL: expected an integer of at"),
        (["MTL.AGGREGATOR.NAME", "Summ"], "MTL.AGGREGATOR.NAME: .*'Summ'"),
        (["MTL.AGGREGATOR.NAME", "{type: Sum"], "NAME: '{type: Sum' is no dict in YAML"),
        (["MTL.ALLOCATION.NAME", "IST"], "MTL.ALLOCATION.NAME: .*'ISTA'"),
        (["MTL.WEIGHTING.NAME", "DWAY"], "MTL.WEIGHTING.NAME: .*did you mean 'DWA'"),
        (["MTL.TASKS.mask", ["loss_msk", "loss_mask"]], "MTL.TASKS.mask: 'loss_msk' matches none"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_error_before_the_first_step(options, message, cfg):
    cfg.merge_from_list(options)
    with pytest.raises((KeyError, ValueError), match=message):
        trainer_for(cfg).train()


def test_task_without_an_example_is_warned_of_once(logged):
    """The ten iterations are two periods of five."""
    cfg = toy_config("MTL.AGGREGATOR.NAME", "PCGrad")
    cfg.MTL.TASKS.late = ["loss_late"]
    cfg.MTL.OPTIONAL_LOSSES = ["loss_late"]
    trainer = toy_trainer(cfg, toy(), toy_batches(10))
    trainer.register_hooks([TaskInterferenceHook(interval=2, patience=5)])
    trainer.train(0, 10)
    assert logged == [
        "the task 'late' had no loss or no gradient for 5 iterations: does the data have examples "
        "of it?"
    ]


def test_allocation(cfg):
    cfg.merge_from_list(["MTL.ALLOCATION.NAME", "ISTA", "SOLVER.MAX_ITER", 4])
    trainer = trainer_for(cfg)
    assert isinstance(trainer.data_loader, AllocatedLoader)
    seen = []
    trainer.model.register_forward_pre_hook(
        lambda model, args: seen.append(
            [(image["file_name"], image["tasks"]) for image in args[0] if model.training]
        )
    )
    trainer.train()
    # Each image has each task once.
    images = {name for batch in seen for name, _ in batch}
    both = [(name, (task,)) for name in images for task in ("detection", "mask")]
    assert sorted(turn for batch in seen[:4] for turn in batch) == sorted(both)


@pytest.fixture
def mixed():
    """A data set of upright and wide images, some more of these."""
    sizes = [(4, 3), (3, 4), (4, 3), (4, 3), (3, 4), (4, 3), (4, 3)]
    images = [dict(width=w, height=h, image_id=i) for i, (w, h) in enumerate(sizes)]
    DatasetCatalog.register("mixed", lambda: [image | {"annotations": []} for image in images])
    yield
    DatasetCatalog.remove("mixed")
    MetadataCatalog.remove("mixed")


@pytest.mark.parametrize("grouping", [True, False])
@pytest.mark.parametrize("start", [1, 2, 5, 12])
def test_loader_starts_in_the_middle(start, grouping, mixed):
    cfg = config("DATASETS.TRAIN", ("mixed",), "DATALOADER.ASPECT_RATIO_GROUPING", grouping)
    cfg.merge_from_list(["DATALOADER.FILTER_EMPTY_ANNOTATIONS", False, "SOLVER.IMS_PER_BATCH", 3])
    batches = []
    for first in (0, start):
        seed_all_rng(1)
        loader = TrainLoader(cfg, mapper=dict)
        loader.start = first
        found = [[image["image_id"] for image in batch] for batch in islice(loader, 20 - first)]
        batches.append(found)
    assert batches[1] == batches[0][start:]


def test_conflicts_by_layer_go_on_after_a_resume(cfg, tmp_path):
    """As with ``--config-file ... --resume``: a detector, with the overlay that the package has."""
    cfg.merge_from_file(config_file("mtl/recon.yaml"))
    cfg.DATASETS.TEST = ()
    trainer_for(cfg).train()
    first = read_record(tmp_path / FILE)
    cfg.SOLVER.MAX_ITER = 3
    trainer_for(cfg, resume=True).train()
    second = read_record(tmp_path / FILE)
    assert (first["steps"], second["steps"]) == (2, 3)
    assert {name.split(".")[0] for name in first["scores"]} == {"backbone"}
    assert all(second["scores"][name] - score in (0, 1) for name, score in first["scores"].items())


def test_checkpoint_of_another_method(cfg):
    cfg.MTL.AGGREGATOR.NAME = "MGDA"
    trainer_for(cfg).train()
    cfg.MTL.AGGREGATOR.NAME = "Sum"
    message = "--resume: MTL.AGGREGATOR: .* written with MGDA, .* set MODEL.WEIGHTS and leave"
    with pytest.raises(ValueError, match=message):
        trainer_for(cfg, resume=True)


def test_missing_data(cfg, tmp_path):
    assert missing_data(cfg) is None
    cfg.DATASETS.TEST = ("drawn_vall",)
    assert "DATASETS.TEST: no data set is registered as 'drawn_vall'; did you mean 'drawn_val'" in (
        missing_data(cfg)
    )
    gone = tmp_path / "gone.json"
    register_coco_instances("gone", {}, str(gone), str(tmp_path))
    cfg.DATASETS.TRAIN = ("gone",)
    message = missing_data(cfg)
    DatasetCatalog.remove("gone")
    MetadataCatalog.remove("gone")
    assert message.startswith(f"DATASETS.TRAIN: 'gone' needs '{gone}', which is not there.")
