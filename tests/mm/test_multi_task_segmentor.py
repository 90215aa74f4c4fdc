"""The segmentor for several tasks: equal to MMSegmentation's, and which image trains what."""

from __future__ import annotations

import pickle
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from dense import BACKBONE, CLASSES, FIELD, HEADS, HEIGHT, WIDTH, config, fcn, images, sample
from mmengine.optim import OptimWrapper
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmseg.registry import MODELS
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close
from two_processes import results_of_two, work

from mtl_plugins.features import Features
from mtl_plugins.mm.allocation import AllocationGates
from mtl_plugins.mm.data_check import class_count_problem
from mtl_plugins.mm.models.task_features import TaskFeatures
from mtl_plugins.mm.optim import MTLOptimWrapper
from mtl_plugins.mm.structures import FIELDS
from mtl_plugins.tasks import TaskGroups

TASKS = {task: f"{task}.*" for task in HEADS}
SLIDE = {"mode": "slide", "crop_size": (16, 32), "stride": (12, 16)}
PREPROCESSOR = {
    "type": "MultiTaskDataPreProcessor",
    "mean": [120.0, 110.0, 100.0],
    "std": [60.0, 61.0, 62.0],
    "bgr_to_rgb": True,
    "size_divisor": 32,
}

pytestmark = pytest.mark.usefixtures("mmseg_scope")


@MODELS.register_module(force=True)
class FeaturesByTask(nn.Module):
    """Neck that scales the last two levels by task, with auxiliary predictions of depth."""

    def __init__(self, tasks: tuple[str, ...], auxiliary: str = "depth") -> None:
        super().__init__()
        self.scales = nn.ParameterDict({task: nn.Parameter(torch.ones(1)) for task in tasks})
        self.first = nn.Conv2d(16, 1, 1)
        self.auxiliary = auxiliary

    def forward(self, x: Any) -> TaskFeatures:
        features = {t: tuple(level * s for level in x) for t, s in self.scales.items()}
        return TaskFeatures(features, {self.auxiliary: (self.first(x[2]), self.first(x[2]) * 2)})


def _build(*tasks: str, **options: Any) -> Any:
    model = MODELS.build(config(*tasks, **options))
    return model.train()


# --- equal to MMSegmentation ---------------------------------------------------------------------


def _pair(**options: Any) -> tuple[Any, Any]:
    """Return EncoderDecoder and ours, with one segmentation head, an auxiliary head and weights."""
    head = fcn(num_classes=CLASSES, dropout_ratio=0.1)
    more = fcn(num_classes=CLASSES, in_channels=8, in_index=1)
    shared = {"backbone": BACKBONE, "train_cfg": {}, **options}
    plain = {"type": "EncoderDecoder", "decode_head": head, "auxiliary_head": [more], **shared}
    ours = {"heads": {"seg": head}, "auxiliary_heads": {"seg": more}, **shared}
    models = []
    for cfg in (plain, {"type": "MultiTaskSegmentor", **ours}):
        torch.manual_seed(1)
        models.append(MODELS.build(deepcopy(cfg)))
        for module in models[-1].modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.1)
    return models[0], models[1]


def _batch(count: int = 2) -> dict[str, Any]:
    pictures = [torch.randint(256, (3, HEIGHT, WIDTH), dtype=torch.uint8) for _ in range(count)]
    return {"inputs": pictures, "data_samples": [sample() for _ in range(count)]}


@pytest.mark.parametrize("wrapper", [OptimWrapper, MTLOptimWrapper])
def test_one_segmentation_head_trains_as_in_mmsegmentation(wrapper: type) -> None:
    processor = {"data_preprocessor": PREPROCESSOR}
    plain, ours = _pair(**processor)
    batches = [_batch() for _ in range(3)]
    logs = []
    for model, kind in ((plain, OptimWrapper), (ours, wrapper)):
        torch.manual_seed(2)
        sgd = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        extra = {"tasks": {"seg": "seg.*"}, "aggregator": "Sum"} if kind is MTLOptimWrapper else {}
        optim = kind(optimizer=sgd, **extra)
        if kind is MTLOptimWrapper:
            optim.attach(model)
        model.train()
        logs.append([model.train_step(deepcopy(batch), optim) for batch in batches])

    for one, other in zip(*logs, strict=True):
        assert torch.equal(one["decode.loss_ce"], other["seg.loss_ce"])
        assert torch.equal(one["aux_0.loss_ce"], other["seg.aux_0.loss_ce"])
        assert torch.equal(one["decode.acc_seg"], other["seg.acc_seg"])
    values, others = plain.state_dict().values(), ours.state_dict().values()
    assert all(torch.equal(a, b) for a, b in zip(values, others, strict=True))
    assert len(values) == len(others) > 50


@pytest.mark.parametrize("test_cfg", [{"mode": "whole"}, SLIDE])
@pytest.mark.parametrize("flip", [None, "horizontal", "vertical"])
def test_one_segmentation_head_predicts_as_in_mmsegmentation(test_cfg: dict, flip: Any) -> None:
    from mmengine.config import ConfigDict

    plain, ours = _pair(test_cfg=ConfigDict(test_cfg))
    ours.load_state_dict(dict(zip(ours.state_dict(), plain.state_dict().values(), strict=True)))
    meta = {"ori_shape": (50, 61), "padding_size": [0, 5, 0, 3]}
    meta |= {"flip": True, "flip_direction": flip} if flip else {}
    inputs = images()
    found = [
        model.eval().predict(inputs, [sample(**meta) for _ in range(2)]) for model in (plain, ours)
    ]
    for one, other in zip(*found, strict=True):
        assert torch.equal(one.seg_logits.data, other.seg_logits.data)
        assert torch.equal(one.pred_sem_seg.data, other.pred_sem_seg.data)
        assert other.pred_sem_seg.data.shape == (1, 50, 61)


# --- which image trains what ---------------------------------------------------------------------


def test_losses_are_those_of_a_batch_of_the_labelled_images() -> None:
    model = _build().eval()  # BatchNorm would mix the images of the trunk's batch
    inputs, everyone = images(3), [sample() for _ in range(3)]
    for i, task in enumerate(HEADS):
        chosen = [j for j in range(3) if j != i % 3]
        partial = [s.clone() for s in everyone]
        delattr(partial[i % 3], FIELDS[FIELD[task]].truth)
        losses = model.loss(inputs, partial)
        want = model.loss(inputs[chosen], [everyone[j] for j in chosen])
        own = [name for name in want if name.startswith(f"{task}.")]
        assert any("loss" in name for name in own)
        for name in own:
            assert_close(losses[name], want[name], rtol=1e-4, atol=1e-5)


def test_an_unlabelled_image_does_not_reach_the_batchnorm_of_the_head() -> None:
    model = _build("depth", "seg")
    norm = model.heads["depth"].decoder.convs[0].bn
    before = norm.running_mean.clone()
    losses = model.loss(images(), [sample("sem_seg"), sample("sem_seg")])
    assert {name.split(".")[0] for name in losses} == {"seg"}
    assert torch.equal(norm.running_mean, before)


def test_allocated_images_train_only_their_tasks() -> None:
    model = _build("depth", "seg").eval()
    inputs, samples = images(3), [sample() for _ in range(3)]
    want = {
        "depth.loss_depth": model.loss(inputs[[0, 2]], [samples[0], samples[2]]),
        "seg.loss_ce": model.loss(inputs[[1, 2]], [samples[1], samples[2]]),
    }
    AllocationGates(model.train(), TaskGroups({"a": "depth.loss_depth", "b": "seg.*"}))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    for one, tasks in zip(samples, [("a",), ("b",), ("a", "b")], strict=True):
        one.set_metainfo({"tasks": tasks})
    losses = model(inputs, samples, mode="loss")
    for name, values in want.items():
        assert_close(losses[name], values[name], rtol=1e-4, atol=1e-5)


# --- runs ----------------------------------------------------------------------------------------


def _data(*missing: str) -> list[dict[str, Any]]:
    """Return four examples; the first lacks the labels of some names."""
    made = []
    for i in range(4):
        names = [name for name in FIELDS if i or name not in missing]
        picture = torch.randint(256, (3, HEIGHT, WIDTH), dtype=torch.uint8)
        made.append({"inputs": picture, "data_samples": sample(*names, img_path=f"{i}.png")})
    return made


def _train(tmp_path: Path, model: dict, batch_sampler: Any = None, **options: Any) -> Runner:
    import uuid

    loader: dict[str, Any] = {
        "batch_size": 2,
        "sampler": {"type": "InfiniteSampler", "shuffle": False},
        "dataset": _Listed(_data("depth", "edges")),
        "collate_fn": {"type": "pseudo_collate"},
    }
    if batch_sampler:
        loader["batch_sampler"] = batch_sampler
        loader["sampler"] = {"type": "DefaultSampler", "shuffle": False}
    runner = Runner(
        model=deepcopy(model) | {"data_preprocessor": PREPROCESSOR},
        work_dir=str(tmp_path),
        train_dataloader=loader,
        train_cfg={"by_epoch": False, "max_iters": 3},
        optim_wrapper={
            "type": "MTLOptimWrapper",
            "optimizer": {"type": "SGD", "lr": 0.01},
            "tasks": {task: f"{task}.*" for task in model["heads"]},
            **options,
        },
        default_hooks={"checkpoint": None},
        log_level="WARNING",
        default_scope="mmseg",
        experiment_name=uuid.uuid4().hex,
        randomness={"seed": 0},
    )
    runner.train()
    return runner


class _Listed(torch.utils.data.Dataset):
    metainfo = {"classes": tuple("abcd"[:CLASSES])}

    def __init__(self, made: list[dict[str, Any]]) -> None:
        self.made = made

    def __len__(self) -> int:
        return len(self.made)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.made[index]


@pytest.mark.parametrize(
    "options",
    [
        {"aggregator": "PCGrad"},
        {"aggregator": "MGDA", "level": "feature"},
        {"weighting": "Uncertainty"},
    ],
)
def test_methods_train_all_tasks(tmp_path: Path, options: dict) -> None:
    runner = _train(tmp_path, config(), **options)
    start = MODELS.build(config()).state_dict()
    for task in HEADS:
        name = f"heads.{task}.decoder.conv_seg.bias"
        assert not torch.equal(runner.model.state_dict()[name], start[name])
        assert runner.model.state_dict()[name].isfinite().all()


@pytest.mark.parametrize("kind", ["STABatchSampler", "ISTABatchSampler"])
def test_batch_samplers_allocate_tasks(tmp_path: Path, kind: str) -> None:
    sampler = {"type": kind, "tasks": list(HEADS)}
    runner = _train(tmp_path, config(), batch_sampler=sampler, aggregator="Sum")
    assert runner.iter == 3


def test_tasks_with_features_of_their_own_and_auxiliary_predictions(tmp_path: Path) -> None:
    neck = {"type": "FeaturesByTask", "tasks": ("depth", "seg")}
    cfg = config("depth", "seg", neck=neck)
    model = _build("depth", "seg", neck=neck)
    losses = model.loss(images(1), [sample()])
    assert [name for name in losses if "loss" in name] == [
        "depth.loss_depth",
        "depth.aux_0.loss_depth",
        "depth.aux_1.loss_depth",
        "seg.loss_ce",
    ]
    runner = _train(tmp_path, cfg, aggregator="PCGrad")
    assert runner.model.neck.first.weight.isfinite().all()


def test_the_representation_is_what_all_tasks_share() -> None:
    """The backbone, or the neck if its output is every task's; MTI-Net's is not."""
    paths = {
        "backbone": {"type": "MTINet", "in_channels": [4] * 4, "tasks": {"depth": 1, "seg": 4}},
        "neck": {"type": "Feature2Pyramid", "embed_dim": 8},
    }
    for path, neck in paths.items():
        assert MODELS.build(config("depth", "seg", neck=neck)).representation == path
    assert MODELS.build(config()).representation == "backbone"


def test_augmentation_in_the_test_is_refused() -> None:
    model = MODELS.build({"type": "SegTTAModel", "module": config("seg", "depth")})
    images_ = [images(1), images(1).flip(3)]
    batches = [[sample()], [sample(flip=True, flip_direction="horizontal")]]
    with pytest.raises(ValueError, match="tta_model: SegTTAModel merges .* segmentation alone"):
        model.test_step({"inputs": images_, "data_samples": batches})


def test_features_of_each_task_are_seen_as_a_representation() -> None:
    model = _build("depth", "seg", neck={"type": "FeaturesByTask", "tasks": ("depth", "seg")})
    features = Features(model.neck)
    losses = model.loss(images(), [sample(), sample()])
    # Four levels for each of two tasks, and two auxiliary predictions.
    assert len(features.tensors) == 10
    loss = losses["depth.loss_depth"]
    grads = torch.autograd.grad(loss, features.tensors, allow_unused=True)
    assert [i for i, grad in enumerate(grads) if grad is not None] == [2]


def test_a_task_without_decoder_has_auxiliary_predictions_only() -> None:
    neck = {"type": "FeaturesByTask", "tasks": ("seg",)}
    model = _build("seg", neck=neck, heads={"seg": HEADS["seg"], "depth": {"type": "DepthHead"}})
    one = sample()
    losses = model.loss(images(1), [one])
    label = one.gt_depth_map.data[None]
    logits = model.neck.first(model.backbone(images(0).new_zeros(1, 3, HEIGHT, WIDTH))[2])
    assert logits.shape[1] == label.shape[1] == 1
    assert sorted(n for n in losses if n.startswith("depth")) == [
        "depth.aux_0.loss_depth",
        "depth.aux_1.loss_depth",
    ]
    found = model.eval().predict(images(1), [one])[0]
    assert "pred_depth_map" not in found and "pred_sem_seg" in found


# --- predictions ---------------------------------------------------------------------------------


@pytest.mark.parametrize("test_cfg", [{}, SLIDE])
def test_predictions_have_the_size_of_the_file(test_cfg: dict) -> None:
    model = _build(test_cfg=test_cfg).eval()
    found = model.predict(images(1), [sample(ori_shape=(50, 61), padding_size=[0, 5, 0, 3])])[0]
    for task in HEADS:
        field = FIELDS[FIELD[task]]
        assert found.get(field.prediction).data.shape == (field.channels, 50, 61)
    assert_close(found.pred_normal_map.data.norm(dim=0), torch.ones(50, 61))
    for name in ("pred_edge_map", "pred_sal_map"):
        assert 0 <= found.get(name).data.min() <= found.get(name).data.max() <= 1


def test_slide_averages_the_windows_of_each_task() -> None:
    model = _build("depth", test_cfg=SLIDE).eval()
    inputs = images(1)
    total, count = torch.zeros(1, HEIGHT, WIDTH), torch.zeros(1, HEIGHT, WIDTH)
    for top in (0, 12, 16):
        for left in (0, 16):
            window = (..., slice(top, top + 16), slice(left, left + 32))
            coarse = model(inputs[window], mode="tensor")["depth"]
            total[window] += F.interpolate(coarse, size=(16, 32), mode="bilinear")[0]
            count[window] += 1
    found = model.predict(inputs, [sample()])[0].pred_depth_map.data
    assert_close(found, total / count)
    model.test_cfg = {"mode": "whole"}
    assert not torch.allclose(found, model.predict(inputs, [sample()])[0].pred_depth_map.data)


@pytest.mark.parametrize(
    ("direction", "axis", "element"), [("horizontal", 2, 0), ("vertical", 1, 1)]
)
def test_a_flipped_test_image_turns_back(direction: str, axis: int, element: int) -> None:
    model = _build("normals", "depth").eval()
    inputs = images(1)
    plain = model.predict(inputs, [sample()])[0]
    meta = {"flip": True, "flip_direction": direction}
    turned = model.predict(inputs, [sample(**meta)])[0]
    want = plain.pred_normal_map.data.flip(axis)
    want[element] *= -1
    assert_close(turned.pred_normal_map.data, want)
    assert_close(turned.pred_depth_map.data, plain.pred_depth_map.data.flip(axis))


# --- preprocessor --------------------------------------------------------------------------------


def test_each_label_is_padded_with_its_unknown_value() -> None:
    processor = MODELS.build(PREPROCESSOR)
    first = sample(height=20, width=30)
    given = {f.truth: first.get(f.truth).data for f in FIELDS.values()}
    batch = {
        "inputs": [torch.rand(3, 20, 30), torch.rand(3, 33, 10)],
        "data_samples": [first, sample("depth", height=33, width=10)],
    }
    done = processor(batch, training=True)
    assert done["inputs"].shape == (2, 3, 64, 32)
    for field in FIELDS.values():
        padded = done["data_samples"][0].get(field.truth).data
        assert padded.shape == (field.channels, 64, 32) and padded.dtype == given[field.truth].dtype
        assert torch.equal(padded[:, :20, :30], given[field.truth])
        assert (padded[:, 20:] == field.unknown).all() and (padded[..., 30:] == field.unknown).all()
    lone = done["data_samples"][1]
    assert [f.truth for f in FIELDS.values() if f.truth in lone] == ["gt_depth_map"]


def test_the_preprocessor_refuses_what_would_go_wrong() -> None:
    with pytest.raises(ValueError, match=r"data_preprocessor\.batch_augments"):
        MODELS.build(PREPROCESSOR | {"batch_augments": [{}]})
    with pytest.raises(ValueError, match=r"data_preprocessor\.seg_pad_val.*255"):
        MODELS.build(PREPROCESSOR | {"seg_pad_val": 0})
    batch = {"inputs": [torch.rand(3, 20, 31)], "data_samples": [sample(height=20, width=30)]}
    with pytest.raises(ValueError, match=r"gt_sem_seg of .* is 20 x 30 pixels, the image 20 x 31"):
        MODELS.build(PREPROCESSOR)(batch, training=True)


# --- errors --------------------------------------------------------------------------------------

DEPTH = {"type": "DepthHead"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": {"d": HEADS["depth"], "e": HEADS["depth"]}}, r"model\.heads\.d: .*\['d', 'e'\]"),
        ({"heads": {"my.d": HEADS["depth"]}}, r"model\.heads: 'my\.d'"),
        ({"heads": {"gloss": HEADS["depth"]}}, r"model\.heads: 'gloss'.*'loss'"),
        ({"heads": {}}, r"model\.heads: expected"),
        ({"heads": {"d": {"type": "DeptHead"}}}, r"model\.heads\.d: .*DeptHead"),
        ({"heads": {"d": DEPTH | {"decoder": fcn(num_classes=3)}}}, r"heads\.d\.decoder\.num_cl"),
        (
            {"heads": {"d": DEPTH | {"decoder": fcn(loss_decode={"type": "CrossEntropyLoss"})}}},
            r"model\.heads\.d\.decoder\.loss_decode: DepthHead.*'loss'",
        ),
        ({"auxiliary_heads": {"dept": []}}, r"model\.auxiliary_heads: 'dept'.*'depth'"),
        ({"auxiliary_heads": {"depth": [HEADS["seg"]]}}, r"auxiliary_heads\.depth\[0\].*sem_seg"),
        ({"test_cfg": {"mode": "slid"}}, r"model\.test_cfg\.mode: there is no 'slid'.*'slide'"),
        ({"test_cfg": {"mode": "slide"}}, r"model\.test_cfg\.crop_size"),
    ],
)
def test_faults_of_the_config_are_told_before_training(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MODELS.build(config() | options)


@pytest.mark.parametrize(
    ("heads", "neck", "message"),
    [
        (
            ["depth", "seg"],
            {"tasks": ("seg",)},
            r"model\.heads\.depth: model\.neck \(Feat.*Valid: s",
        ),
        (["seg"], {"tasks": ("seg",)}, r"model\.neck .*'depth', which is none of model\.heads"),
    ],
)
def test_features_of_other_tasks_are_refused(heads: list, neck: dict, message: str) -> None:
    model = _build(*heads, neck={"type": "FeaturesByTask", **neck})
    with pytest.raises(ValueError, match=message):
        model.loss(images(1), [sample()])


def test_a_task_that_nothing_predicts_is_refused() -> None:
    model = _build(heads={"depth": DEPTH})
    with pytest.raises(ValueError, match=r"model\.heads\.depth\.decoder: is None"):
        model.loss(images(1), [sample()])


def test_only_segmentation_has_the_classes_of_the_data() -> None:
    assert class_count_problem(_build(), {"classes": ("a",) * CLASSES}) is None
    problem = class_count_problem(_build(), {"classes": ("a", "b")})
    assert problem is not None and problem.startswith("model.heads.seg.decoder.num_classes is 4")


# --- two processes -------------------------------------------------------------------------------


def _of_rank(rank: int) -> dict[str, Any]:
    with DefaultScope.overwrite_default_scope("mmseg"):
        torch.manual_seed(0)
        model = _build("depth", "seg").eval()
        inputs, samples = images(3), [sample(), sample(), sample("sem_seg")]
        one = nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
        mine = slice(0, 2) if rank == 0 else slice(2, 3)
        losses = one(inputs[mine], samples[mine], mode="loss")
        losses["depth.loss_depth"].backward()
        return {
            "names": list(losses),
            "gradient": model.backbone.conv1.weight.grad,
            "bias": model.heads["depth"].decoder.conv_seg.bias.grad,
        }


@pytest.mark.filterwarnings("ignore")
def test_two_processes_are_one_where_one_lacks_a_task(tmp_path: Path) -> None:
    model = _build("depth", "seg").eval()
    inputs, samples = images(3), [sample(), sample(), sample("sem_seg")]
    model.loss(inputs, samples)["depth.loss_depth"].backward()
    for found in results_of_two(__file__, tmp_path / "results"):
        assert "depth.loss_depth" in found["names"]
        assert_close(found["gradient"], model.backbone.conv1.weight.grad, rtol=1e-4, atol=1e-6)
        assert_close(found["bias"], model.heads["depth"].decoder.conv_seg.bias.grad)


if __name__ == "__main__":
    work(_of_rank)


def test_a_class_that_a_plain_head_ignores_besides_unknown_pixels_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^model\.heads\.seg\.ignore_index: .* 255, got 0"):
        MODELS.build(config(heads={"seg": fcn(num_classes=4, ignore_index=0)}))


def test_auxiliary_predictions_have_the_channels_of_a_plain_head() -> None:
    neck = {"type": "MTINet", "in_channels": [4, 8, 16, 32], "tasks": {"seg": 9}}
    model = MODELS.build(config(heads={"seg": fcn(num_classes=4)}, neck=neck))
    with pytest.raises(ValueError, match="FCNHead needs predictions of 4 channels, got 9"):
        model.loss(images(), [sample(), sample()])


def test_mmsegmentations_preprocessor_would_pad_depth_by_255() -> None:
    plain = {"type": "SegDataPreProcessor", "size": (40, 64)}
    with pytest.raises(ValueError, match=r"^model\.data_preprocessor\.type: .*gt_depth_map"):
        MODELS.build(config("seg", "depth", data_preprocessor=plain))
    MODELS.build(config("seg", data_preprocessor=plain))


def test_one_labelled_image_before_a_norm_of_one_value_is_named() -> None:
    norm = {"type": "BN"}
    decoder = {
        "type": "ASPPHead",
        "in_channels": 16,
        "in_index": 2,
        "channels": 4,
        "norm_cfg": norm,
    }
    heads = {"seg": HEADS["seg"], "depth": {"type": "DepthHead", "decoder": decoder}}
    model = MODELS.build(config(heads=heads)).train()
    with pytest.raises(ValueError, match=r"^model\.heads\.depth: only one image .* gt_depth_map"):
        model.loss(images(), [sample(), sample("sem_seg")])


def test_padding_of_the_pipeline_and_of_the_preprocessor_is_cut_off() -> None:
    model = MODELS.build(config("depth")).eval()
    ramp = torch.arange(float(WIDTH)).expand(1, 1, HEIGHT, WIDTH)
    model.heads["depth"].predict = lambda features, metas, test_cfg: ramp
    size = (HEIGHT - 6, WIDTH - 8)
    pads = {"padding_size": [0, 5, 0, 2], "img_padding_size": [0, 3, 0, 4]}
    (found,) = model.predict(images(1), [sample(**{**pads, "ori_shape": size})])
    assert torch.equal(found.pred_depth_map.data[0], ramp[0, 0, : size[0], : size[1]])


def test_a_model_can_be_pickled() -> None:
    model = MODELS.build(config("depth")).eval()
    batch = images(1)
    copied = pickle.loads(pickle.dumps(model))
    assert_close(
        copied.predict(batch)[0].pred_depth_map.data, model.predict(batch)[0].pred_depth_map.data
    )
