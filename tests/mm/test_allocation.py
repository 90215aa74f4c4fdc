"""STA and ISTA on a real detector: from the batch sampler to the losses."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from commands import ROOT, SMALL
from mmengine.config import Config
from mmengine.dataset import InfiniteSampler
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from models import DETECTION_MASK
from torch import nn
from torch.testing import assert_close
from torch.utils.data import DataLoader

from mtl_plugins.mm.allocation import AllocationGates
from mtl_plugins.mm.optim import MTLOptimWrapper
from mtl_plugins.mm.samplers import STABatchSampler
from mtl_plugins.mm.samplers.allocation import AllocatedIndex, carry_tasks
from mtl_plugins.tasks import TaskGroups
from mtl_plugins.weighting import FAMO

LOSSES = ("loss_rpn_cls", "loss_rpn_bbox", "loss_cls", "loss_bbox", "loss_mask")


def batch_of_four(tasks: list[str] | None) -> dict:
    """Four images; each letter of a string is a task that the image has."""
    from mmdet.testing import demo_mm_inputs

    names = {"d": "detection", "m": "mask"}
    batch = demo_mm_inputs(
        4, [[3, 64, 64]] * 4, num_items=[2, 3, 1, 2], num_classes=3, with_mask=True
    )
    for sample, letters in zip(batch["data_samples"], tasks or (), strict=False):
        sample.set_metainfo({"tasks": tuple(names[letter] for letter in letters)})
    return batch


@pytest.fixture
def gated(detector, monkeypatch) -> nn.Module:
    """A detector with gates, whose samplers take the first examples: nothing is drawn."""
    from mmdet.models.task_modules.samplers import RandomSampler

    monkeypatch.setattr(RandomSampler, "random_choice", lambda self, gallery, num: gallery[:num])
    model = copy.deepcopy(detector).train()
    AllocationGates(model, TaskGroups(DETECTION_MASK))
    return model


def losses_of(model: nn.Module, batch: dict) -> dict[str, torch.Tensor]:
    data = model.data_preprocessor(copy.deepcopy(batch), True)
    _, terms = model.parse_losses(model(**data, mode="loss"))
    return {name: terms[name] for name in LOSSES}


def spy_on(model: nn.Module, path: str, patch: pytest.MonkeyPatch) -> list[int]:
    """How many entries each call of a module's ``forward`` gets."""
    module = model.get_submodule(path)
    sizes: list[int] = []
    forward = module.forward

    def spy(x, *args):
        sizes.append(len(x))
        return forward(x, *args)

    patch.setattr(module, "forward", spy)
    return sizes


def test_losses_are_those_of_the_allocated_images_alone(gated, monkeypatch):
    """Image by image, from the same proposals, and put together by hand."""
    tasks = ["d", "m", "dm", "m"]
    kept: dict[str, list] = {}
    roi_head, rpn_head = gated.roi_head, gated.rpn_head
    for owner, name in (
        (roi_head, "bbox_loss"),
        (roi_head, "mask_loss"),
        (rpn_head, "loss_by_feat"),
    ):
        method = getattr(owner, name)

        def spy(*args, method=method, name=name, **kwargs):
            kept[name] = list(args) + list(kwargs.values())
            return method(*args, **kwargs)

        monkeypatch.setattr(owner, name, spy)
    losses = losses_of(gated, batch_of_four(tasks))
    x, sampling = kept["bbox_loss"]
    cls_scores, bbox_preds, gts, metas, _ = kept["loss_by_feat"]
    instances = kept["mask_loss"][3]
    gated.eval()  # the gates are for training

    totals = dict.fromkeys(LOSSES, 0.0)
    counts = dict.fromkeys(LOSSES, 0)
    for i, letters in enumerate(tasks):
        features = [level[i : i + 1] for level in x]
        if "d" in letters:
            boxes = roi_head.bbox_loss(features, [sampling[i]])["loss_bbox"]
            rois = len(sampling[i].priors)
            rpn = rpn_head.loss_by_feat(
                [level[i : i + 1] for level in cls_scores],
                [level[i : i + 1] for level in bbox_preds],
                [gts[i]],
                [metas[i]],
                None,
            )
            # As many anchors are sampled of each image.
            found = {name: (boxes[name], rois) for name in ("loss_cls", "loss_bbox")}
            found |= {name: (sum(rpn[name]), 1) for name in ("loss_rpn_cls", "loss_rpn_bbox")}
            for name, (loss, count) in found.items():
                totals[name] += loss * count
                counts[name] += count
        if "m" in letters:
            mask = roi_head.mask_loss(features, [sampling[i]], None, [instances[i]])["loss_mask"]
            totals["loss_mask"] += mask["loss_mask"] * len(sampling[i].pos_priors)
            counts["loss_mask"] += len(sampling[i].pos_priors)
    assert all(counts.values())
    for name in LOSSES:
        assert_close(losses[name], (totals[name] / counts[name]).reshape(()))


def test_heads_see_the_regions_of_their_images_only(gated, monkeypatch):
    kept: list = []
    bbox_loss = gated.roi_head.bbox_loss
    monkeypatch.setattr(gated.roi_head, "bbox_loss", lambda x, s: kept.extend(s) or bbox_loss(x, s))
    masks = spy_on(gated, "roi_head.mask_head", monkeypatch)
    boxes = spy_on(gated, "roi_head.bbox_head", monkeypatch)
    losses_of(gated, batch_of_four(["d", "m", "dm", "m"]))
    assert masks == [sum(len(kept[i].pos_priors) for i in (1, 2, 3))]
    assert boxes == [sum(len(kept[i].priors) for i in (0, 2))]


@pytest.mark.parametrize("tasks", [None, ["dm"] * 4])
def test_all_tasks_change_nothing(tasks, gated, detector):
    plain = losses_of(copy.deepcopy(detector).train(), batch_of_four(None))
    assert_close(losses_of(gated, batch_of_four(tasks)), plain, rtol=0, atol=0)


@pytest.mark.parametrize("nobody", ["d", "m"])
def test_a_task_that_nobody_has(nobody, gated, monkeypatch):
    masks = spy_on(gated, "roi_head.mask_head", monkeypatch)
    losses = losses_of(gated, batch_of_four(["m" if nobody == "d" else "d"] * 4))
    missing = LOSSES[:4] if nobody == "d" else LOSSES[4:]
    assert all((losses[name] == 0.0) == (name in missing) for name in LOSSES)
    sum(losses.values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in gated.parameters())
    assert len(masks) == (nobody == "d")


def test_task_without_a_head_of_its_own(detector):
    model = copy.deepcopy(detector).train()
    AllocationGates(model, TaskGroups({"all": "loss_*"}))
    batch = batch_of_four(None)
    batch["data_samples"][0].set_metainfo({"tasks": ("depth",)})
    for sample in batch["data_samples"][1:]:
        sample.set_metainfo({"tasks": ("all",)})
    with pytest.raises(ValueError, match="batch_sampler.tasks: no task is called 'depth'.*all"):
        losses_of(model, batch)


def test_a_replaced_method_is_refused(detector):
    """What it computes, on which images, nobody knows."""
    model = copy.deepcopy(detector).train()
    bbox_loss = model.roi_head.bbox_loss
    model.roi_head.bbox_loss = lambda *args: bbox_loss(*args)
    AllocationGates(model, TaskGroups(DETECTION_MASK))
    message = "'loss_cls' of the task 'detection' on all images.*overrides 'bbox_loss'.*loss_mask"
    with pytest.raises(ValueError, match=message):
        losses_of(model, batch_of_four(["d", "m", "d", "m"]))


def test_famo_looks_at_the_same_images_again(detector):
    model = copy.deepcopy(detector)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    wrapper = MTLOptimWrapper(optimizer, tasks=DETECTION_MASK, weighting="FAMO")
    told = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FAMO, "update_after", lambda self, old, new: told.append((old, new)))
        model.train_step(batch_of_four(["d", "m", "d", "d"]), wrapper)
    ((old, new),) = told
    assert new == pytest.approx(old)


def coco_config(coco: Path, work_dir: Path, batch_sampler: dict, **options) -> Config:
    """Training of the small Mask R-CNN on the drawn images."""
    cfg = Config.fromfile(ROOT / SMALL)
    cfg.model.backbone.base_channels, cfg.model.backbone.norm_cfg.num_groups = 8, 8
    cfg.model.neck.in_channels, cfg.model.roi_head.bbox_head.fc_out_channels = [8, 16, 32, 64], 32
    cfg.train_dataloader.dataset.pipeline[2].scale = (96, 72)
    cfg.work_dir = str(work_dir)
    root = str(coco) + "/"
    cfg.train_dataloader.dataset.data_root = root
    cfg.train_dataloader.batch_sampler = batch_sampler | {"tasks": list(DETECTION_MASK)}
    cfg.merge_from_dict(dict(options))
    for key in ("val_dataloader", "val_cfg", "val_evaluator"):
        cfg[key] = None
    cfg.train_cfg.pop("val_interval", None)
    for key in ("test_dataloader", "test_cfg", "test_evaluator"):
        cfg[key] = None
    cfg.default_hooks.checkpoint = dict(type="MTLCheckpointHook", by_epoch=False, interval=2)
    cfg.randomness = dict(seed=1)
    return cfg


def train(cfg: Config) -> tuple[Runner, list[list[tuple[int, tuple[str, ...]]]]]:
    """Trains, and tells image and tasks of each example at each step."""
    runner = Runner.from_cfg(cfg)
    seen = []

    def note(model, args, kwargs):
        if kwargs.get("mode") == "loss":
            metas = [sample.metainfo for sample in kwargs["data_samples"]]
            seen.append([(meta["img_id"], meta["tasks"]) for meta in metas])

    runner.model.register_forward_pre_hook(note, with_kwargs=True)
    runner.train()
    return runner, seen


STEPS = {"train_cfg.max_iters": 4}
WORKERS = {
    "train_dataloader.num_workers": 2,
    "train_dataloader.persistent_workers": True,
}


@pytest.mark.parametrize("workers", [{}, WORKERS], ids=["main", "workers"])
def test_ista_trains_a_batch_twice(workers, coco, tmp_path):
    sampler = dict(type="ISTABatchSampler", batch_sampler=dict(type="AspectRatioBatchSampler"))
    runner, seen = train(coco_config(coco, tmp_path, sampler, **STEPS, **workers))
    assert len(seen) == 4
    for first, second in (seen[:2], seen[2:]):
        assert [i for i, _ in first] == [i for i, _ in second]
        for (_, a), (_, b) in zip(first, second, strict=True):
            assert sorted(a + b) == ["detection", "mask"]
    assert all(p.isfinite().all() for p in runner.model.parameters())


def test_one_task_alone_trains_its_losses_and_no_other(coco, tmp_path):
    """The single-task baseline of a comparison."""
    sampler = dict(type="STABatchSampler", only="mask")
    runner, seen = train(coco_config(coco, tmp_path, sampler, **STEPS))
    assert all(list(tasks) == ["mask"] for batch in seen for _, tasks in batch)
    found = {name: runner.message_hub.get_scalar(f"train/{name}").data[0] for name in LOSSES}
    assert (found.pop("loss_mask") > 0.0).all()
    assert not any(values.any() for values in found.values())


def test_resume_goes_on_with_the_next_turn(coco, tmp_path):
    sampler = dict(type="ISTABatchSampler", gap=2)
    straight, seen = train(coco_config(coco, tmp_path / "a", sampler, **STEPS))
    options = {"resume": True, "load_from": str(tmp_path / "a" / "iter_2.pth")}
    resumed, later = train(coco_config(coco, tmp_path / "b", sampler, **STEPS, **options))
    assert seen[2:] == later
    for p, q in zip(straight.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("same_steps", [False, True])
def test_length_of_an_epoch(same_steps, coco, tmp_path):
    """Four images, two a step, two turns: schedules see four steps an epoch, or two."""
    cfg = coco_config(coco, tmp_path, dict(type="ISTABatchSampler", same_steps=same_steps))
    cfg.train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=2)
    cfg.train_dataloader.sampler = dict(type="DefaultSampler", shuffle=True)
    cfg.log_processor.by_epoch = True
    runner, seen = train(cfg)
    steps = 2 if same_steps else 4
    assert runner.max_iters == len(seen) == 2 * steps
    first, second = (
        [{i for i, _ in step} for step in part] for part in (seen[:steps], seen[steps:])
    )
    assert first[0] == first[1] and second[0] == second[1]
    if not same_steps:
        assert set.union(*first) == set.union(*second)
        assert [t for _, t in sum(seen[:4], [])] != [t for _, t in sum(seen[4:], [])]


class Images:
    """A data set whose examples carry nothing."""

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> dict:
        return {"inputs": index}


def test_examples_must_be_able_to_carry_tasks():
    dataset = Images()
    sampler = STABatchSampler(InfiniteSampler(dataset, shuffle=False), 2, tasks=["a", "b"])
    with pytest.raises(TypeError, match="no 'data_samples' to carry their tasks; Images"):
        next(iter(DataLoader(dataset, batch_sampler=sampler)))


def test_dataset_stays_what_it_was():
    dataset = Images()
    carry_tasks(dataset)
    carry_tasks(dataset)
    assert isinstance(dataset, Images) and type(dataset).__name__ == "Images"
    assert dataset[3] == {"inputs": 3}
    again = pickle.loads(pickle.dumps(dataset))
    assert again[3] == {"inputs": 3}
    with pytest.raises(TypeError, match="data_samples"):
        again[AllocatedIndex(3, ("a",))]


def test_index_survives_the_way_to_a_worker():
    index = pickle.loads(pickle.dumps(AllocatedIndex(7, ("a", "b"))))
    assert index == 7 and index.tasks == ("a", "b")


def test_ranks_divide_the_batch(monkeypatch):
    """The two halves of a batch on two ranks get what they get on one."""
    dataset = Images()
    whole = STABatchSampler(InfiniteSampler(dataset, shuffle=False), 4, tasks="abcd", seed=3)
    expected = [index.tasks for index in next(iter(whole))]
    found = []
    for rank in range(2):
        monkeypatch.setattr(
            "mtl_plugins.mm.samplers.allocation.get_dist_info", lambda rank=rank: (rank, 2)
        )
        half = STABatchSampler(InfiniteSampler(dataset, shuffle=False), 2, tasks="abcd", seed=3)
        found += [index.tasks for index in next(iter(half))]
    assert found == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"tasks_per_sample": 3},
            "train_dataloader.batch_sampler.tasks_per_sample: expected 1 to 2",
        ),
        ({"gap": 2}, "train_dataloader.batch_sampler.gap: a STABatchSampler .* no turns"),
        ({"only": "c"}, "train_dataloader.batch_sampler.only: no task is called 'c'"),
    ],
)
def test_options_are_named_with_their_key(options, message):
    with pytest.raises(ValueError, match=message):
        STABatchSampler(InfiniteSampler(Images()), 2, tasks=["a", "b"], **options)


def test_a_task_left_out_is_an_error_before_the_first_step(coco, tmp_path):
    cfg = coco_config(coco, tmp_path, dict(type="STABatchSampler"), **STEPS)
    cfg.train_dataloader.batch_sampler.tasks = ["detection"]
    runner = Runner.from_cfg(cfg)
    message = (
        r"train_dataloader.batch_sampler.tasks: \['detection'\] leaves out \['mask'\] of optim"
    )
    with pytest.raises(ValueError, match=message):
        runner.train()
    assert runner.iter == 0


class Batches(Images):
    """A data set that PyTorch asks for a batch at once."""

    def __getitem__(self, index: int) -> dict:
        return {"data_samples": BaseDataElement(metainfo={"index": int(index)})}

    def __getitems__(self, indices: list[int]) -> list[dict]:
        return [self[index] for index in map(int, indices)]


def test_tasks_reach_examples_that_are_loaded_a_batch_at_once():
    dataset = Batches()
    sampler = STABatchSampler(InfiniteSampler(dataset, shuffle=False), 2, tasks=["a", "b"])
    loaded = next(iter(DataLoader(dataset, batch_sampler=sampler, collate_fn=list)))
    assert all(len(example["data_samples"].metainfo["tasks"]) == 1 for example in loaded)


def test_tasks_must_be_known():
    with pytest.raises(ValueError, match="batch_sampler.tasks: name the tasks"):
        STABatchSampler(InfiniteSampler(Images()), 2)


def test_wrapper_installs_the_gates(detector):
    model = copy.deepcopy(detector)
    wrapper = MTLOptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1), tasks=DETECTION_MASK)
    model.train_step(batch_of_four(["d", "m", "d", "m"]), wrapper)
    both = wrapper.multitask.last.losses
    model.train_step(batch_of_four(["d", "d", "d", "d"]), wrapper)
    assert both.all() and wrapper.multitask.last.losses[1] == 0.0
