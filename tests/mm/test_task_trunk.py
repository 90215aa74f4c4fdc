"""Rotations and layers of a task's own in the segmentor for several tasks."""

from __future__ import annotations

from copy import deepcopy
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from dense import BACKBONE, HEADS, config, images, sample
from dense_networks import count
from mmengine.config import Config
from mmengine.hooks import EMAHook
from mmengine.model import ExponentialMovingAverage, MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from mmengine.registry import DefaultScope
from mmengine.runner.checkpoint import load_state_dict
from mmseg.registry import MODELS
from models import ROOT
from torch import nn
from torch.testing import assert_close
from two_processes import work

import mtl_plugins.mm.models  # noqa: F401
from mtl_plugins.layer_conflicts import LayerConflicts
from mtl_plugins.mm.optim import AmpMTLOptimWrapper, MTLOptimWrapper
from mtl_plugins.mm.train import main

TASKS = ("seg", "depth")
CONV = "backbone.layer3.0.conv1"
NORM = "backbone.layer1.1.bn2"
NO_NORM = {"norm_cfg": {"type": "GN", "num_groups": 2}}
"""Norms that see one image at a time, so that two ranks can equal one process."""

pytestmark = pytest.mark.usefixtures("mmseg_scope")


def build(*tasks: str, **options: Any) -> Any:
    torch.manual_seed(1)
    return MODELS.build(config(*(tasks or TASKS), **options)).train()


def batch(n: int = 2, seed: int = 0) -> dict[str, Any]:
    torch.manual_seed(seed)
    return {"inputs": images(n), "data_samples": [sample() for _ in range(n)]}


def wrapper(model: Any, kind: type = MTLOptimWrapper, lr: float = 0.05, **options: Any) -> Any:
    sgd = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=0.1)
    tasks = {task: f"{task}.*" for task in TASKS}
    wrapped = kind(optimizer=sgd, tasks=tasks, **options)
    wrapped.attach(model)
    return wrapped


ROTOGRAD = {"level": "feature", "aggregator": {"type": "RotoGrad", "lr": 0.01}}


class TestRotations:
    def test_at_first_the_model_is_the_plain_one(self) -> None:
        plain, ours = build(), build(rotations={})
        theirs = {k: v for k, v in ours.state_dict().items() if not k.startswith("rotations.")}
        assert theirs.keys() == plain.state_dict().keys()
        assert all(torch.equal(v, theirs[k]) for k, v in plain.state_dict().items())
        x = images()
        for model in (plain, ours):
            model.eval()
        for one, other in zip(plain._forward(x).values(), ours._forward(x).values(), strict=True):
            assert_close(one, other)

    def test_only_maps_that_a_head_reads_are_turned(self) -> None:
        """All heads read the third of four levels, of 16 channels."""
        assert build(rotations={}).rotations.channels == [None, None, 16, None]
        more = {"seg": {**HEADS["seg"]["decoder"], "in_channels": 8, "in_index": 1}}
        more["seg"]["num_classes"] = 4
        model = build(rotations={"size": 20}, auxiliary_heads=more)
        assert model.rotations.channels == [None, 8, 16, None]
        assert count(model.rotations) == 2 * 2 * 20 * 20

    @pytest.mark.parametrize("size", [None, 20])
    def test_heads_see_what_is_turned(self, size: int | None) -> None:
        model = build(rotations={"size": size}).eval()
        model.rotations.skew["depth"]["2"].normal_()
        image = images()
        found, x = model.extract_feat(image).features, model.backbone(image)
        turned, plain = found["depth"][2], x[2]
        assert torch.equal(found["seg"][2], plain)
        matrix = model.rotations.matrix("depth", 2)
        if size is None:
            expected = torch.einsum("ij,bjhw->bihw", matrix, plain)
        else:
            flat = plain.flatten(1)
            expected = torch.cat([flat[:, :20] @ matrix.T, flat[:, 20:]], 1).view_as(plain)
        assert_close(turned, expected)
        assert_close(turned.norm(), plain.norm())
        assert all(torch.equal(found["depth"][i], x[i]) for i in (0, 1, 3))

    @pytest.mark.parametrize("kind", [MTLOptimWrapper, AmpMTLOptimWrapper])
    def test_training(self, kind: type) -> None:
        """Rotations move, stay rotations, and are not the business of the model's optimizer."""
        model = build(rotations={})
        optim = wrapper(model, kind, **ROTOGRAD)
        for seed in range(3):
            model.train_step(batch(seed=seed), optim)
        eye = torch.eye(16)
        for task in TASKS:
            matrix = model.rotations.matrix(task, 2)
            assert_close(matrix @ matrix.T, eye, atol=1e-5, rtol=0)
            assert (matrix - eye).abs().max() > 0.005
        assert optim.multitask.last.weights is not None

    def test_checkpoint_resumes(self) -> None:
        straight = build(rotations={})
        optim = wrapper(straight, **ROTOGRAD)
        straight.train_step(batch(), optim)
        saved = deepcopy((straight.state_dict(), optim.state_dict()))
        straight.train_step(batch(seed=1), optim)
        resumed = build(rotations={})
        again = wrapper(resumed, **ROTOGRAD)
        load_state_dict(resumed, saved[0])
        again.load_state_dict(saved[1])
        resumed.train_step(batch(seed=1), again)
        for p, q in zip(straight.parameters(), resumed.parameters(), strict=True):
            assert torch.equal(p, q)

    def test_validation_with_averaged_weights_has_averaged_rotations(self) -> None:
        """EMAHook exchanges the weights of the model itself, and back."""
        model = build(rotations={})
        optim, hook, runner = (
            wrapper(model, **ROTOGRAD),
            EMAHook(momentum=0.5),
            Mock(model=model, iter=0),
        )
        hook.before_run(runner)
        for seed in range(2):
            model.train_step(batch(seed=seed), optim)
            hook.after_train_iter(runner, seed)

        def rotation() -> torch.Tensor:
            below = model.rotations.skew["seg"]["2"].tril(-1)
            assert_close(model.rotations.matrix("seg", 2), torch.matrix_exp(below - below.T))
            return below.clone()

        trained = rotation()
        hook.before_val_epoch(runner)
        model.eval()
        assert not torch.equal(rotation(), trained)
        hook.after_val_epoch(runner)
        model.train()
        assert torch.equal(rotation(), trained)

    def test_accumulation_moves_the_rotations_once(self) -> None:
        model = build(rotations={})
        optim = wrapper(model, accumulative_counts=2, **ROTOGRAD)
        optim.initialize_count_status(model, 0, 4)
        model.train_step(batch(), optim)
        assert not any(p.any() for p in model.rotations.parameters())
        model.train_step(batch(seed=1), optim)
        assert any(p.any() for p in model.rotations.parameters())

    def test_one_image_of_a_task(self) -> None:
        """A task that some images lack, or all, trains on."""
        model = build(rotations={})
        optim = wrapper(model, **ROTOGRAD)
        for names in (("depth",), ("depth", "sem_seg")):
            data = batch(1)
            data["inputs"] = images(2)
            data["data_samples"] = [sample("depth"), sample(*names)]
            model.train_step(data, optim)
        assert optim.multitask.last.tasks == TASKS

    def test_checkpoint_with_rotations_in_a_model_without(self) -> None:
        state = build(rotations={}).state_dict()
        with pytest.raises(ValueError, match="^model.rotations: the checkpoint has rotations"):
            load_state_dict(build(), state)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"rotations": 3}, "model.rotations: expected dict"),
            ({"rotations": {"sizes": 3}}, "model.rotations: expected dict.*sizes"),
            ({"rotations": {"size": 1}}, "model.rotations.size: expected None or an integer"),
            ({"rotations": {"size": True}}, "model.rotations.size: "),
            (
                {"rotations": {}, "task_layers": [CONV]},
                "model.rotations: they turn features that the tasks share",
            ),
            (
                {"rotations": {}, "task_norm": {}},
                "model.rotations: they turn features that the tasks share",
            ),
            (
                {"task_norm": {}, "task_layers": [NORM]},
                "model.task_layers: .* is task-specific already",
            ),
        ],
    )
    def test_refused(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=f"^{message}"):
            build(**options)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({}, "model.rotations: nothing learns them"),
            ({"aggregator": "PCGrad"}, "model.rotations: nothing learns them"),
            ({"aggregator": "RotoGrad"}, "optim_wrapper.level: RotoGrad .*use level='feature'"),
        ],
    )
    def test_rotations_that_are_not_learned(self, options: Any, message: str) -> None:
        model = build(rotations={})
        with pytest.raises(ValueError, match=f"^{message}"):
            model.train_step(batch(), wrapper(model, **options))

    def test_plain_wrapper(self) -> None:
        model = build(rotations={})
        sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        with pytest.raises(ValueError, match="^model.rotations: nothing learns them"):
            model.train_step(batch(), OptimWrapper(optimizer=sgd))

    def test_rotograd_without_rotations(self) -> None:
        with pytest.raises(ValueError, match="^optim_wrapper.aggregator: .* has none"):
            wrapper(build(), **ROTOGRAD)


class TestTaskLayers:
    def test_network_of_a_task(self) -> None:
        """Backbone and neck of a task are the plain network with the task's copies."""
        model, plain = build(task_layers=[CONV, NORM]).eval(), build().eval()
        for task in TASKS:
            for name in (CONV, NORM):
                for p in model.get_submodule(f"{name}.copies.{task}").parameters():
                    p.data.normal_()
        x = images()
        found = model._forward(x)
        for task in TASKS:
            state = {
                k.replace(f".copies.{task}.", "."): v
                for k, v in model.state_dict().items()
                if ".copies." not in k or f".copies.{task}." in k
            }
            plain.load_state_dict(state)
            assert_close(found[task], plain._forward(x)[task])

    def test_losses_at_first_are_the_plain_ones(self) -> None:
        """The copies are equal before the first step; norms see the same batch once a task."""
        losses = [build(task_layers=layers).loss(**batch()) for layers in ((), [CONV, NORM])]
        assert losses[0].keys() == losses[1].keys()
        for name, value in losses[0].items():
            assert_close(losses[1][name], value)

    def test_only_the_shared_is_aggregated(self) -> None:
        model = build(task_layers=[CONV])
        model.train_step(batch(), optim := wrapper(model, aggregator="PCGrad"))
        assert optim.multitask.last.gramian is not None
        copies = model.get_submodule(f"{CONV}.copies")
        assert not torch.equal(copies["seg"].weight, copies["depth"].weight)

    def test_pretrained_backbone_loads_into_the_copies(self, tmp_path: Any) -> None:
        plain = build()
        for p in plain.parameters():
            p.data.normal_()
        torch.save(plain.backbone.state_dict(), tmp_path / "backbone.pth")
        init = {"type": "Pretrained", "checkpoint": str(tmp_path / "backbone.pth")}
        cfg = config(*TASKS, task_layers=[CONV])
        cfg["backbone"] = {**cfg["backbone"], "init_cfg": init}
        model = MODELS.build(cfg)
        model.init_weights()
        for task in TASKS:
            found = model.get_submodule(f"{CONV}.copies.{task}").weight
            assert torch.equal(found, plain.get_submodule(CONV).weight)

    def test_averages_of_the_weights_load(self) -> None:
        """As EMAHook does it in a resumed run: below another module."""
        model, options = build(), {"task_layers": [CONV]}
        average, again = (ExponentialMovingAverage(build(**options)) for _ in range(2))
        nn.init.zeros_(average.module.get_submodule(f"{CONV}.copies.depth").weight)
        again.load_state_dict(average.state_dict())
        assert not again.module.get_submodule(f"{CONV}.copies.depth").weight.any()
        with pytest.raises(ValueError, match=f"^model.task_layers: the checkpoint has '{CONV}'"):
            ExponentialMovingAverage(model).load_state_dict(average.state_dict())

    def test_checkpoint_with_layers_in_a_model_without(self) -> None:
        state = build(task_layers=[CONV]).state_dict()
        with pytest.raises(ValueError, match=f"^model.task_layers: the checkpoint has '{CONV}'"):
            load_state_dict(build(), state)
        load_state_dict(build(task_layers=[CONV]), state)

    @pytest.mark.parametrize(
        ("names", "message"),
        [
            (["backbone.layer9"], "model.task_layers: .*'backbone.layer9'; did you mean"),
            (["heads.seg"], "model.task_layers: 'heads.seg' is no layer of backbone or neck"),
            ("backbone.conv1", "model.task_layers: names must be a list"),
            ([CONV, CONV], "model.task_layers: names must be a list of different"),
            ([3], "model.task_layers: 3 is no layer"),
        ],
    )
    def test_refused(self, names: Any, message: str) -> None:
        with pytest.raises(ValueError, match=f"^{message}"):
            build(task_layers=names)

    def test_checkpointing(self) -> None:
        cfg = BACKBONE | {"with_cp": True}
        with pytest.raises(ValueError, match="^model.task_layers: with_cp=True of backbone"):
            build(backbone=cfg, task_layers=[CONV])

    def test_feature_level(self) -> None:
        for options in ({"task_layers": [CONV]}, {"task_norm": {}}):
            with pytest.raises(ValueError, match="^optim_wrapper.level: .* features of its own"):
                wrapper(build(**options), level="feature", aggregator="MGDA")
            model = build(**options)
            with pytest.raises(ValueError, match=r"^TaskInterferenceHook.representation: with nor"):
                wrapper(model).watch(model, "backbone")

    def test_mtan_computes_one_task_a_pass(self) -> None:
        """Of Recon's own networks: as without, and each norm of a task sees its batch once."""
        backbone = {"type": "MTANSegNet", "tasks": list(TASKS), "channels": [16], "convs": [2]}
        heads = {t: deepcopy(HEADS[t]) for t in TASKS}
        for head in heads.values():
            head["decoder"]["in_index"] = 0
        cfg = {"type": "MultiTaskSegmentor", "backbone": backbone, "heads": heads}
        losses, models = [], []
        for names in ((), ["backbone.encoder.0.1.0"]):
            torch.manual_seed(1)
            models.append(MODELS.build({**cfg, "task_layers": names}).train())
            losses.append(models[-1].loss(**batch()))
        assert losses[0].keys() == losses[1].keys()
        for name, value in losses[0].items():
            assert_close(losses[1][name], value)
        own, converted = (m.backbone.encoder_masks["seg"].state_dict() for m in models)
        for name, value in own.items():
            assert_close(converted[name], value)  # the running statistics, too
        assert converted["0.0.1.num_batches_tracked"] == 1
        assert models[1].backbone.encoder[0][0][1].num_batches_tracked == 2  # shared

    def test_features_of_all_tasks_at_once(self) -> None:
        backbone = {"type": "CrossStitchSegNet", "tasks": list(TASKS), "channels": [16]}
        backbone["convs"] = [1]
        heads = {t: deepcopy(HEADS[t]) for t in TASKS}
        for head in heads.values():
            head["decoder"]["in_index"] = 0
        cfg = {"type": "MultiTaskSegmentor", "backbone": backbone, "heads": heads}
        with pytest.raises(ValueError, match="^model.rotations: .*features of its own"):
            MODELS.build({**cfg, "rotations": {}})
        layer = "backbone.networks.seg.encoder.0.0.0"
        model = MODELS.build({**cfg, "task_layers": [layer]})
        with pytest.raises(ValueError, match="^model.task_layers: .*features of all tasks at once"):
            model.loss(**batch())


@pytest.mark.parametrize("name", ["rotograd", "recon"])
def test_small_configs_name_layers_of_the_small_model(name: str) -> None:
    cfg = Config.fromfile(ROOT / f"configs/cityscapes_dense/{name}_segnet-small_cityscapes-7.py")
    with torch.device("meta"):
        model = MODELS.build(cfg.model)
    assert isinstance(model, nn.Module)


@pytest.mark.parametrize("key", ["rotations", "task_layers"])
def test_another_model_is_one_clear_error(
    key: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mtl_plugins.mm.train.data_problem", lambda cfg: None)
    config = ROOT / "configs/mask_rcnn/mask-rcnn_r18-small_fpn_coco.py"
    option = f"model.{key}=['backbone.conv1']"
    with pytest.raises(SystemExit, match=f"^model.{key}: MaskRCNN does not take it"):
        main([str(config), "--work-dir", str(tmp_path), "--cfg-options", option])


# --- two processes --------------------------------------------------------------------------------

DISTRIBUTED = {
    "RotoGrad": ({"rotations": {}}, ROTOGRAD),
    "RotoGrad, 20 values": ({"rotations": {"size": 20}}, ROTOGRAD),
    "own layers": ({"task_layers": [CONV, NORM.replace("bn", "gn")]}, {"aggregator": "PCGrad"}),
    "conflicts": ({}, {"aggregator": "Sum"}),
    "conflicts, gramian": ({}, {"aggregator": "MGDA", "sync": "gramian"}),
}


def train(name: str, rank: int | None) -> dict[str, Any]:
    """Train on two images of one rank, or on the four of both."""
    options, method = DISTRIBUTED[name]
    cfg = config(*TASKS, **options)
    cfg["backbone"] = {**cfg["backbone"], **NO_NORM}
    cfg["heads"] = {
        t: {**h, "decoder": {**h["decoder"], **NO_NORM}} for t, h in cfg["heads"].items()
    }
    with DefaultScope.overwrite_default_scope("mmseg"):
        torch.manual_seed(1)
        model = MODELS.build(cfg).double().train()
    optim = wrapper(model, lr=0.01, **method)
    conflicts = LayerConflicts(model)
    if "conflicts" in name:
        optim.multitask.watch_layers(conflicts)
    whole = model if rank is None else MMDistributedDataParallel(model)
    for step in range(3):
        data = batch(4, seed=step)
        for one in data["data_samples"]:  # all pixels known: the losses are means over pixels
            one.gt_sem_seg.data.clamp_(max=3)
            one.gt_depth_map.data = one.gt_depth_map.data.clamp(min=0.5).double()
        mine = slice(None) if rank is None else slice(2 * rank, 2 * rank + 2)
        data = {k: v[mine] for k, v in data.items()}
        data["inputs"] = data["inputs"].double()
        optim.multitask.monitor_layers = "conflicts" in name
        whole.train_step(data, optim)
    parameters = {k: v.detach() for k, v in model.named_parameters()}
    return {"parameters": parameters, "scores": conflicts.scores()}


@pytest.mark.parametrize("name", DISTRIBUTED)
def test_two_ranks_equal_one_process(name: str, ranks: list[dict[str, Any]]) -> None:
    alone = train(name, None)
    assert_close(ranks[0][name], ranks[1][name], rtol=0, atol=0)
    if name != "conflicts, gramian":  # an estimate
        assert_close(ranks[0][name], alone, rtol=1e-5, atol=1e-7)
    if "conflicts" in name:
        assert len(alone["scores"]) > 10 and any(alone["scores"].values())
    if "RotoGrad" in name:
        moved = [v for k, v in alone["parameters"].items() if k.startswith("rotations.")]
        assert moved and all(v.abs().max() > 0.005 for v in moved)


if __name__ == "__main__":
    work(lambda rank: {name: train(name, rank) for name in DISTRIBUTED})
