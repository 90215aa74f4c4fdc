"""STA and ISTA for Detectron2: from the loader to the losses of its own models."""

from __future__ import annotations

import mtl_plugins.d2  # noqa: F401  # isort: skip  (before Detectron2, for the second process)
import copy
import shutil
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_train_loader
from detectron2.data.datasets import register_coco_instances
from detectron2.modeling import build_model
from detectron2.modeling.roi_heads import StandardROIHeads
from detectron2.solver import build_optimizer
from detectron2.structures import BitMasks, Boxes, Instances, Keypoints
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage
from small import CONFIGS, NARROW, detector, parameters, trainer_for
from small import config as small_config
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close
from two_processes import results_of_two, work

from mtl_plugins import MultiTaskBackward
from mtl_plugins.allocation import TaskAllocation
from mtl_plugins.d2 import AllocatedLoader, AllocationGates, MTLTrainer, add_mtl_config
from mtl_plugins.d2.data import TrainLoader
from mtl_plugins.gates import GateTable
from mtl_plugins.tasks import TaskGroups

TASKS = {
    "detection": ["loss_rpn_*", "loss_cls*", "loss_box_reg*"],
    "mask": "loss_mask",
    "semantic": "loss_sem_seg",
    "keypoint": "loss_keypoint",
}
LETTERS = {task[0]: task for task in TASKS}
SIZE, CLASSES, STUFF, POINTS = 96, 3, 4, 5


def config(*options: Any) -> CfgNode:
    """A very small Panoptic FPN with a keypoint head, that samples everything."""
    cfg = get_cfg()
    model = cfg.MODEL
    model.DEVICE, model.WEIGHTS, model.META_ARCHITECTURE = "cpu", "", "PanopticFPN"
    model.BACKBONE.NAME, model.BACKBONE.FREEZE_AT = "build_resnet_fpn_backbone", 0
    cfg.merge_from_list(NARROW)
    model.PIXEL_STD = [100.0] * 3  # without norms, large activations round too coarsely
    model.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    model.FPN.update(IN_FEATURES=model.RESNETS.OUT_FEATURES, OUT_CHANNELS=8)
    levels = [f"p{i}" for i in range(2, 7)]
    model.ANCHOR_GENERATOR.SIZES = [[16], [32], [64], [128], [256]]
    model.RPN.update(IN_FEATURES=levels, PRE_NMS_TOPK_TRAIN=50, POST_NMS_TOPK_TRAIN=20)
    model.RPN.BATCH_SIZE_PER_IMAGE = model.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 10**6
    model.ROI_HEADS.update(NAME="StandardROIHeads", NUM_CLASSES=CLASSES, IN_FEATURES=levels[:4])
    box = dict(NAME="FastRCNNConvFCHead", NUM_FC=1, FC_DIM=16, POOLER_RESOLUTION=7)
    model.ROI_BOX_HEAD.update(box, CLS_AGNOSTIC_BBOX_REG=True)
    mask = dict(NAME="MaskRCNNConvUpsampleHead", NUM_CONV=1, CONV_DIM=8, POOLER_RESOLUTION=7)
    model.ROI_MASK_HEAD.update(mask)
    model.ROI_KEYPOINT_HEAD.update(NUM_KEYPOINTS=POINTS, CONV_DIMS=[8], POOLER_RESOLUTION=7)
    model.SEM_SEG_HEAD.update(NUM_CLASSES=STUFF, CONVS_DIM=8, NORM="", IN_FEATURES=levels[:4])
    model.MASK_ON = model.KEYPOINT_ON = True
    cfg.merge_from_list(list(options))
    return cfg


def build(cfg: CfgNode) -> nn.Module:
    torch.manual_seed(0)
    return build_model(cfg).train()


@pytest.fixture(scope="module", params=["StandardROIHeads", "CascadeROIHeads"])
def plain(request) -> nn.Module:
    return build(config("MODEL.ROI_HEADS.NAME", request.param))


@pytest.fixture
def gated(plain) -> nn.Module:
    model = copy.deepcopy(plain)
    AllocationGates(model, TaskGroups(TASKS))
    return model


def image(generator: np.random.Generator, count: int) -> dict:
    corner = generator.integers(0, SIZE // 2, (count, 2))
    boxes = torch.tensor(np.hstack([corner, corner + generator.integers(20, 48, (count, 2))]))
    instances = Instances((SIZE, SIZE))
    instances.gt_boxes = Boxes(boxes.float())
    instances.gt_classes = torch.tensor(generator.integers(0, CLASSES, count))
    masks = torch.zeros(count, SIZE, SIZE, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[y0 : (y0 + y1) // 2, x0:x1] = True
    instances.gt_masks = BitMasks(masks)
    centre = (boxes[:, :2] + boxes[:, 2:]).float() / 2
    points = torch.cat([centre, torch.full((count, 1), 2.0)], dim=1)
    instances.gt_keypoints = Keypoints(points[:, None].repeat(1, POINTS, 1))
    return {
        "image": torch.tensor(generator.integers(0, 256, (3, SIZE, SIZE)), dtype=torch.uint8),
        "instances": instances,
        "sem_seg": torch.tensor(generator.integers(0, STUFF, (SIZE, SIZE))),
    }


def batch_of(tasks: Sequence[str]) -> list[dict]:
    """An image for each string, whose letters are its tasks; one has no object."""
    generator = np.random.default_rng(4)
    return [
        image(generator, (2, 3, 1, 0)[i]) | {"tasks": tuple(LETTERS[x] for x in letters)}
        for i, letters in enumerate(tasks)
    ]


def without_tasks(batch: Sequence[dict]) -> list[dict]:
    return [{k: v for k, v in each.items() if k != "tasks"} for each in batch]


def losses_of(model: nn.Module, batch: Sequence[dict]) -> dict[str, Tensor]:
    with EventStorage():
        return TaskGroups(TASKS)(model(batch))


def gradients(loss: Tensor, model: nn.Module) -> list[Tensor | None]:
    return list(torch.autograd.grad(loss, list(model.parameters()), allow_unused=True))


def sizes_at(module: nn.Module) -> list[int]:
    """How many entries each call of a module gets."""
    sizes: list[int] = []
    module.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    return sizes


# Every task with some of the images, and one image with none, and one with all.
SPREAD = ["d", "msk", "dmsk", ""], ["dm", "", "sk", "dmsk"]


@pytest.mark.parametrize("tasks", SPREAD)
def test_losses_are_those_of_the_chosen_images_alone(tasks, gated, plain):
    """Detectron2's own model, which has no batch statistics, on those images."""
    batch = batch_of(tasks)
    losses = losses_of(gated, batch)
    for letter, task in LETTERS.items():
        chosen = [b for b, letters in zip(batch, tasks, strict=True) if letter in letters]
        alone = losses_of(plain, without_tasks(chosen))[task]
        assert alone > 0
        assert_close(losses[task], alone, rtol=1e-4, atol=1e-6)
        found, expected = gradients(losses[task], gated), gradients(alone, plain)
        assert [g is None for g in found] == [g is None for g in expected]
        for a, b in zip(found, expected, strict=True):
            if a is not None:
                assert_close(a, b, rtol=1e-3, atol=1e-5)
        losses = losses_of(gated, batch)  # the graph is used up


def test_heads_see_the_regions_of_their_images_only(gated):
    kept: list[Instances] = []
    rpn, roi_heads = gated.proposal_generator, gated.roi_heads
    sample, match = roi_heads.label_and_sample_proposals, rpn.anchor_matcher
    labelled: list[Any] = []
    roi_heads.label_and_sample_proposals = lambda *args: kept.extend(sample(*args)) or kept
    rpn.anchor_matcher = lambda x: labelled.append(x) or match(x)
    box_head = roi_heads.box_head
    seen = {
        "d": sizes_at(box_head[0] if isinstance(box_head, nn.ModuleList) else box_head),
        "m": sizes_at(roi_heads.mask_head),
        "k": sizes_at(roi_heads.keypoint_head),
        "s": sizes_at(gated.sem_seg_head.predictor),
    }
    tasks = ["d", "ms", "dmsk", "k"]
    losses_of(gated, batch_of(tasks))
    all_regions = [len(x) for x in kept]
    objects = [int((x.gt_classes < CLASSES).sum()) for x in kept]
    assert min(all_regions) > 0 and len(kept) == 4  # the RPN proposes for all images
    counts = {"d": all_regions, "m": objects, "k": objects, "s": [1] * 4}
    for letter, sizes in seen.items():
        chosen = [i for i, letters in enumerate(tasks) if letter in letters]
        assert sizes == [sum(counts[letter][i] for i in chosen)]
    assert len(labelled) == 2


@pytest.mark.parametrize("tasks", [None, ["dmsk"] * 4])
def test_all_tasks_change_nothing(tasks, gated, plain):
    batch = batch_of(tasks or [""] * 4)
    expected = losses_of(plain, without_tasks(batch))
    found = losses_of(gated, batch if tasks else without_tasks(batch))
    assert_close(found, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("nobody", LETTERS)
def test_a_task_that_no_image_has(nobody, gated):
    """Its loss is 0, its head has gradients of 0, and the trunk hears nothing."""
    parts = {"d": ["proposal_generator", "roi_heads.box"], "s": ["sem_seg_head"]}
    parts |= {"m": ["roi_heads.mask_head"], "k": ["roi_heads.keypoint_head"]}
    others = "".join(letter for letter in LETTERS if letter != nobody)
    predictor = sizes_at(gated.sem_seg_head.predictor)
    losses = losses_of(gated, batch_of([others] * 4))
    for letter, task in LETTERS.items():
        assert (losses[task] == 0.0) == (letter == nobody)
    found = gradients(losses[LETTERS[nobody]], gated)
    for (name, _), g in zip(gated.named_parameters(), found, strict=True):
        if any(name.startswith(part) for part in parts[nobody]):
            assert not g.any()
        else:
            assert g is None
    assert len(predictor) == (nobody != "s")


def test_evaluation_is_as_without(gated, plain):
    batch = batch_of(["d", "m", "s", "k"])
    with EventStorage():
        gated(batch)  # what it noted does not stay
    gated.eval(), plain.eval()
    with torch.no_grad():
        found, expected = gated(without_tasks(batch)), plain(without_tasks(batch))
    plain.train()
    for a, b in zip(found, expected, strict=True):
        assert_close(a["sem_seg"], b["sem_seg"])
        assert_close(a["instances"].scores, b["instances"].scores)


def refused(cfg: CfgNode, tasks: dict[str, Any]) -> None:
    model = build(cfg)
    AllocationGates(model, TaskGroups(tasks))
    model(batch_of(["d", "m", "d", "m"]))


@pytest.mark.parametrize(
    ("options", "tasks", "message"),
    [
        (
            ["MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES", True],
            TASKS,
            r"MTL.ALLOCATION: .*roi_heads \(StandardROIHeads\) of PanopticFPN computes 'loss_mask' "
            "of the task 'mask' on all images.*TRAIN_ON_PRED_BOXES .* set it to False",
        ),
        (
            [],
            TASKS | {"detection": ["loss_rpn_*", "loss_cls"], "boxes": "loss_box_reg"},
            r"MTL.TASKS: roi_heads \(StandardROIHeads\) computes loss_cls, loss_box_reg together.*"
            r"'loss_box_reg' is of the task 'boxes' and others of 'detection'.*beside.*RPN",
        ),
    ],
    ids=["predicted boxes", "divided head"],
)
def test_what_cannot_be_gated(options, tasks, message):
    with EventStorage(), pytest.raises(ValueError, match=message):
        refused(config(*options), tasks)


def test_keypoints_that_count_images_count_those_of_the_task():
    model = build(config("MODEL.ROI_KEYPOINT_HEAD.NORMALIZE_LOSS_BY_VISIBLE_KEYPOINTS", False))
    plain = copy.deepcopy(model)
    AllocationGates(model, TaskGroups(TASKS))
    batch = batch_of(["d", "msk", "dmsk", ""])
    alone = losses_of(plain, without_tasks(batch[1:3]))["keypoint"]
    assert_close(losses_of(model, batch)["keypoint"], alone, rtol=1e-4, atol=1e-6)


class OwnROIHeads(StandardROIHeads):
    """A user's, which looks at the masks of all regions in its own way."""

    def _forward_mask(self, features: Any, instances: Any) -> Any:
        return {k: v + 0.0 for k, v in super()._forward_mask(features, instances).items()}


class DepthHead(nn.Module):
    """A user's, beside those of Detectron2."""

    def __init__(self) -> None:
        super().__init__()
        self.predict = nn.Conv2d(8, 1, 1)

    def losses(self, features: Tensor, targets: Sequence[Tensor]) -> dict[str, Tensor]:
        depth = self.predict(features).mean(dim=(1, 2, 3))
        return {"loss_depth": (depth - torch.stack(list(targets))).abs().mean()}


class WithDepth(nn.Module):
    """A user's meta-architecture."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Conv2d(3, 8, 3)
        self.depth = DepthHead()

    def forward(self, batch: Sequence[dict]) -> dict[str, Tensor]:
        x = self.backbone(torch.stack([each["image"].float() for each in batch]))
        targets = [each["image"].float().mean() for each in batch]
        return self.depth.losses(x, targets)


def test_a_head_of_a_user_is_refused_until_a_gate_is_registered(monkeypatch):
    table = GateTable()
    monkeypatch.setattr(AllocationGates, "table", table)
    tasks = TaskGroups({"mask": "loss_depth", "semantic": "loss_sem_seg"})
    plain, batch = WithDepth(), batch_of(["m", "s", "ms", "s"])
    alone = plain(batch[:1] + batch[2:3])["loss_depth"]
    ungated = copy.deepcopy(plain)
    AllocationGates(ungated, tasks)
    message = r"MTL.ALLOCATION: .*depth \(DepthHead\) of WithDepth computes 'loss_depth' .* on all"
    with pytest.raises(ValueError, match=message + ".*GateTable"):
        ungated(batch)
    table.register(DepthHead, "losses", losses=["loss_depth"], maps=["features"], lists=["targets"])
    gated = copy.deepcopy(plain)
    AllocationGates(gated, tasks)
    assert_close(gated(batch)["loss_depth"], alone)
    with torch.no_grad():  # a copy has its own modules
        again = copy.deepcopy(gated)
        again.depth.predict.bias += 1.0
    assert gated(batch)["loss_depth"] == alone != again(batch)["loss_depth"]


def test_a_head_that_overrides_a_gated_method_is_refused():
    model = build(config())
    model.roi_heads.__class__ = OwnROIHeads
    AllocationGates(model, TaskGroups(TASKS))
    message = "'loss_mask' .* on all images.*OwnROIHeads overrides '_forward_mask' of StandardROIH"
    with EventStorage(), pytest.raises(ValueError, match=message):
        model(batch_of(["d", "m", "d", "m"]))


def test_a_task_that_the_loader_does_not_give_is_an_error(gated):
    allocation = TaskAllocation(["detection", "mask", "semantic"])
    batch = [b | {"tasks": allocation.tasks_of(i, 0, 0)} for i, b in enumerate(batch_of(["d"] * 4))]
    with pytest.raises(ValueError, match=r"leaves out \['keypoint'\] of MTL.TASKS"):
        losses_of(gated, batch)


def test_heads_with_a_common_part_are_refused():
    """C4: box and mask head stand on one stage of the backbone, which sees all regions."""
    options = ["MODEL.META_ARCHITECTURE", "GeneralizedRCNN", "MODEL.KEYPOINT_ON", False]
    options += ["MODEL.ROI_HEADS.NAME", "Res5ROIHeads", "MODEL.ROI_HEADS.IN_FEATURES", ["res4"]]
    options += ["MODEL.BACKBONE.NAME", "build_resnet_backbone"]
    options += ["MODEL.RESNETS.OUT_FEATURES", ["res4"], "MODEL.RPN.IN_FEATURES", ["res4"]]
    options += ["MODEL.ANCHOR_GENERATOR.SIZES", [[32, 64]]]
    message = (
        r"roi_heads \(Res5ROIHeads\) of GeneralizedRCNN computes 'loss_cls' .*on all .*loss_rpn_cls"
    )
    with EventStorage(), pytest.raises(ValueError, match=message):
        refused(config(*options), TASKS)


def test_one_stage_detectors_are_refused():
    options = ["MODEL.META_ARCHITECTURE", "RetinaNet", "MODEL.RETINANET.IN_FEATURES", ["p2"]]
    options += ["MODEL.ANCHOR_GENERATOR.SIZES", [[32]]]
    with EventStorage(), pytest.raises(ValueError, match="RetinaNet computes 'loss_cls' .*on all"):
        refused(config(*options), TASKS)


def shapes(count: int = 10) -> list[dict]:
    """Entries of a data set, wide ones and high ones."""
    return [{"id": i, "width": 2 + i % 2, "height": 3 - i % 2} for i in range(count)]


def loader(allocation: TaskAllocation, **options: Any) -> AllocatedLoader:
    batches = build_detection_train_loader(
        shapes(), **dict(mapper=dict, total_batch_size=2, num_workers=0) | options
    )
    return AllocatedLoader(batches, allocation)


@pytest.mark.parametrize("grouping", [True, False])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("gap", [1, 3])
def test_ista_gives_each_image_every_task_a_gap_later(gap, workers, grouping):
    allocation = TaskAllocation(list(TASKS), 3, gap)
    batches = loader(allocation, num_workers=workers, aspect_ratio_grouping=grouping)
    steps = list(islice(batches, 4 * gap))
    for start in (0, 2 * gap):
        for i in range(start, start + gap):
            for a, b in zip(steps[i], steps[i + gap], strict=True):
                assert a["id"] == b["id"]
                assert sorted(a["tasks"] + b["tasks"]) == sorted(TASKS)
                assert len(a["tasks"]) == 3


def test_sta_goes_on_with_other_images():
    steps = list(islice(loader(TaskAllocation(list(TASKS))), 4))
    ids = [image["id"] for step in steps for image in step]
    assert len(set(ids)) == len(ids)
    assert all(len(image["tasks"]) == 1 for step in steps for image in step)


def test_turns_share_the_images_but_no_dict():
    """What a model writes into the dicts of one turn is not there in the next."""
    first, second = islice(loader(TaskAllocation("ab", gap=1)), 2)
    first[0]["proposals"] = "mine"
    assert "proposals" not in second[0] and first[0] is not second[0]


def test_ranks_divide_the_batch(monkeypatch):
    def tasks_of_a_step(size: int) -> list[tuple[str, ...]]:
        allocation = TaskAllocation("abcdef", 3, gap=1, seed=3)
        return [image["tasks"] for image in next(iter(loader(allocation, total_batch_size=size)))]

    halves = []
    for rank in range(2):
        monkeypatch.setattr("mtl_plugins.d2.allocation.comm.get_rank", lambda rank=rank: rank)
        halves.append(tasks_of_a_step(2))
    monkeypatch.undo()
    assert halves[0] != halves[1]
    assert tasks_of_a_step(4) == sum(halves, [])


@pytest.mark.parametrize("name", ["STA", "ISTA"])
def test_a_later_start(name):
    """Of a resumed run: the same images with the same tasks as without the interruption."""
    DatasetCatalog.register("shapes", shapes)
    try:
        cfg = allocation_config(NAME=name, TASKS_PER_SAMPLE=2)
        cfg.DATASETS.TRAIN, cfg.SOLVER.IMS_PER_BATCH, cfg.DATALOADER.NUM_WORKERS = ["shapes"], 2, 0

        def steps(start: int, stop: int) -> list[list[dict]]:
            seed_all_rng(cfg.SEED)  # as default_setup() does
            batches = AllocatedLoader(cfg, TrainLoader(cfg, mapper=dict))
            batches.start = start
            return list(islice(batches, stop - start))

        straight = steps(0, 14)
        for start in range(10):
            assert steps(start, 14) == straight[start:]
    finally:
        DatasetCatalog.remove("shapes")


def allocation_config(**options: Any) -> CfgNode:
    cfg = get_cfg()
    add_mtl_config(cfg)
    cfg.SEED = 5
    cfg.MTL.TASKS.update({task: [losses] for task, losses in TASKS.items()})
    cfg.MTL.ALLOCATION.update(dict(NAME="ISTA", TASKS_PER_SAMPLE=1, GAP=2) | options)
    return cfg


@pytest.mark.parametrize(("name", "turns"), [("STA", 1), ("ISTA", 4)])
def test_loader_from_a_config(name, turns):
    found = AllocatedLoader(allocation_config(NAME=name), []).allocation
    assert found.turns == turns and found.tasks == tuple(TASKS) and found.seed == 5
    assert found.gap == (2 if name == "ISTA" else None)


def test_one_task_alone():
    loader = AllocatedLoader(allocation_config(ONLY="semantic"), [[{}, {}]] * 2)
    assert [[image["tasks"] for image in batch] for batch in loader] == [[("semantic",)] * 2] * 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"NAME": "ISTAA"}, "MTL.ALLOCATION.NAME: nothing is called 'ISTAA'; did you mean 'ISTA'"),
        ({"TASKS_PER_SAMPLE": 5}, "MTL.ALLOCATION.TASKS_PER_SAMPLE: expected 1 to 4"),
        ({"GAP": 0}, "MTL.ALLOCATION.GAP: expected at least 1"),
        ({"ONLY": "masks"}, "MTL.ALLOCATION.ONLY: no task is called 'masks'; did you mean"),
    ],
)
def test_invalid_options(options, message):
    with pytest.raises((KeyError, ValueError), match=message):
        AllocatedLoader(allocation_config(**options), [])


def test_tasks_must_be_known():
    cfg = allocation_config()
    cfg.MTL.TASKS.clear()
    with pytest.raises(ValueError, match="MTL.ALLOCATION: name the tasks .* in MTL.TASKS"):
        AllocatedLoader(cfg, [])


@pytest.fixture
def drawn(coco: Path) -> Iterator[str]:
    """A data set of four images that a config can name."""
    annotations = coco / "annotations" / "instances_train2017.json"
    register_coco_instances("drawn", {}, str(annotations), str(coco / "train2017"))
    yield "drawn"
    DatasetCatalog.remove("drawn")
    MetadataCatalog.remove("drawn")


def train(
    name: str, drawn: str, out: Path, *options: Any
) -> tuple[MTLTrainer, list[list[tuple[int, tuple[str, ...]]]]]:
    """Trains with a config of the repository, and tells image and tasks at each step."""
    cfg = small_config(*options, file=CONFIGS / f"mask_rcnn_R_18_small_{name}.yaml")
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST, cfg.OUTPUT_DIR = [drawn], [], str(out)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 80
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.RANDOM_FLIP = [64], "none"
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.CHECKPOINT_PERIOD, cfg.SEED = 4, 2, 1
    seed_all_rng(cfg.SEED)
    out.mkdir(exist_ok=True)
    trainer = MTLTrainer(cfg)
    seen: list[list[tuple[int, tuple[str, ...]]]] = []
    trainer.model.register_forward_pre_hook(
        lambda model, args: seen.append([(x["image_id"], x["tasks"]) for x in args[0]])
    )
    trainer.resume_or_load(resume=(out / "last_checkpoint").exists())
    trainer.train()
    return trainer, seen


@pytest.mark.parametrize("workers", [0, 2])
def test_ista_trains_a_batch_twice(workers, drawn, tmp_path):
    trainer, seen = train("ista", drawn, tmp_path, "DATALOADER.NUM_WORKERS", workers)
    assert len(seen) == 4
    for first, second in (seen[:2], seen[2:]):
        for (i, a), (j, b) in zip(first, second, strict=True):
            assert i == j and sorted(a + b) == ["detection", "mask"]
    assert {i for i, _ in seen[0]} != {i for i, _ in seen[2]}
    assert all(p.isfinite().all() for p in trainer.model.parameters())


@pytest.mark.parametrize("aggregator", ["Sum", "PCGrad"])
def test_sta_with_one_image_a_step(aggregator, drawn, tmp_path):
    """One of the tasks has none, and the training goes on."""
    options = ["SOLVER.IMS_PER_BATCH", 1, "MTL.AGGREGATOR.NAME", aggregator]
    trainer, seen = train("sta", drawn, tmp_path, *options)
    ((_, had),) = seen[-1]
    last = trainer.multitask.last
    for task, loss in zip(last.tasks, last.losses, strict=True):
        assert (loss > 0.0) == (task in had)
    assert all(p.isfinite().all() for p in trainer.model.parameters())


@pytest.mark.parametrize("gap", [1, 2], ids=["between batches", "between turns"])
def test_resume_goes_on_with_the_next_turn(gap, drawn, tmp_path):
    straight, seen = train("ista", drawn, tmp_path / "a", "MTL.ALLOCATION.GAP", gap)
    (tmp_path / "b").mkdir()
    shutil.copy(tmp_path / "a" / "model_0000001.pth", tmp_path / "b")
    (tmp_path / "b" / "last_checkpoint").write_text("model_0000001.pth")
    resumed, later = train("ista", drawn, tmp_path / "b", "MTL.ALLOCATION.GAP", gap)
    assert later == seen[2:]
    if gap == 1:  # otherwise batches are loaded again, and loading draws random numbers
        for p, q in zip(straight.model.parameters(), resumed.model.parameters(), strict=True):
            assert torch.equal(p, q)


def two_tasks(aggregator: str) -> tuple[CfgNode, TaskAllocation]:
    """The first image has one task and the second the other, and then vice versa."""
    everything = ["MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 10**6]
    everything += ["MODEL.RPN.BATCH_SIZE_PER_IMAGE", 10**6, "SOLVER.CLIP_GRADIENTS.ENABLED", False]
    cfg = small_config("MTL.AGGREGATOR.NAME", aggregator, "SOLVER.BASE_LR", 0.01, *everything)
    allocation = TaskAllocation(list(cfg.MTL.TASKS), gap=1, seed=3)
    assert allocation.tasks_of(0, 0, 0) != allocation.tasks_of(1, 0, 0)
    return cfg, allocation


def in_two_processes(rank: int) -> dict[str, list[Tensor]]:
    """One image each, two turns."""
    found = {}
    for aggregator in ("Sum", "PCGrad"):
        cfg, allocation = two_tasks(aggregator)
        model = detector(cfg)
        AllocationGates(model, TaskGroups(dict(cfg.MTL.TASKS)))
        batches = AllocatedLoader([batch_of(["", ""])[rank : rank + 1]], allocation)
        trainer = trainer_for(cfg, DistributedDataParallel(model, broadcast_buffers=False), batches)
        trainer.train(0, 2)
        found[aggregator] = parameters(model)
    return found


def in_one(aggregator: str) -> list[Tensor]:
    """It goes over the images one by one, and takes the mean of their losses."""
    cfg, allocation = two_tasks(aggregator)
    model = detector(cfg)
    groups = TaskGroups(dict(cfg.MTL.TASKS))
    AllocationGates(model, groups)
    optimizer = build_optimizer(cfg, model)
    backward = MultiTaskBackward(model.parameters(), aggregator=aggregator, tasks=groups.names)
    with EventStorage():
        for step in AllocatedLoader([batch_of(["", ""])], allocation):
            terms = [groups(model([image])) for image in step]
            optimizer.zero_grad()
            backward({task: sum(each[task] for each in terms) / 2 for task in groups.names})
            optimizer.step()
    moved = [
        not torch.equal(p, q)
        for p, q in zip(model.parameters(), detector(cfg).parameters(), strict=True)
    ]
    assert sum(moved) > 0.9 * len(moved)
    return parameters(model)


def test_two_processes_train_as_one(tmp_path):
    expected = {aggregator: in_one(aggregator) for aggregator in ("Sum", "PCGrad")}
    for found in results_of_two(__file__, tmp_path / "found"):
        assert_close(found, expected, rtol=1e-4, atol=1e-5)


if __name__ == "__main__":
    work(in_two_processes)
