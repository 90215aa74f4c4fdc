"""Cross-stitch networks: parameters as published, and what a unit gives to each task."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from dense_networks import count, segnet_head, untrained
from mmengine.optim import build_optim_wrapper
from mmseg.models import EncoderDecoder
from mmseg.registry import MODELS
from torch import nn

from mtl_plugins.mm.models import CrossStitchBackbone, CrossStitchSegNet, SegNet

SMALL = {"channels": (4, 6, 6), "convs": (2, 2, 3)}
RESNET = {"type": "ResNet", "depth": 18, "base_channels": 4, "stem_channels": 4}

pytestmark = pytest.mark.usefixtures("seeded")


def test_two_segnets_have_the_published_size() -> None:
    with torch.device("meta"):
        network = CrossStitchSegNet(["seg", "depth"])
        heads = [segnet_head(7), segnet_head(1)]
        single = SegNet()
    found = count(network, *heads)
    assert found == 2 * count(single) + count(*heads) + (4 + 5) * 2
    # Cross-Stitch and two single networks on Cityscapes are printed alike, in MiB of float32.
    assert f"{found * 4 / 2**20:.2f}" == f"{(found - 18) * 4 / 2**20:.2f}" == "190.59"


def test_three_segnets_have_as_many_parameters_as_published() -> None:
    with torch.device("meta"):
        network = CrossStitchSegNet(["seg", "depth", "normals"])
        heads = [segnet_head(number) for number in (13, 1, 3)]
    # im2im_pred/model_segnet_cross.py in github.com/lorenmt/mtan @ c36c30b, counted there, without
    # its three loss weights.
    assert count(network, *heads) == 74_941_807 - 3


def test_the_units_start_at_one() -> None:
    network = CrossStitchSegNet(["seg", "depth", "normals"], channels=(4, 4, 4, 4, 4))
    assert torch.equal(network.stitch_encoder, torch.ones(4, 3))
    assert torch.equal(network.stitch_decoder, torch.ones(5, 3))


def test_one_task_is_a_segnet() -> None:
    network = CrossStitchSegNet(["seg"], **SMALL)
    image = torch.randn(2, 3, 21, 16)
    found = network(image).features["seg"]
    assert torch.equal(found[0], network.networks["seg"](image)[0])


def test_units_that_take_one_task_leave_it_alone() -> None:
    network = CrossStitchSegNet(["seg", "depth"], **SMALL)
    for units in (network.stitch_encoder, network.stitch_decoder):
        units.data[:] = torch.tensor([1.0, 0.0])
    image = torch.randn(2, 3, 16, 21)
    seg, depth = network.networks["seg"], network.networks["depth"]
    before_last = []
    seg.decoder[-2].register_forward_hook(lambda _, __, out: before_last.append(out))
    found = network(image).features
    torch.testing.assert_close(found["seg"], seg(image))
    # The other task gets the same map, and unpools it by its own maxima.
    _, indices = nn.MaxPool2d(2, return_indices=True)(depth.encoder[0](image))
    unpooled = nn.MaxUnpool2d(2)(before_last[0], indices, output_size=image.shape[2:])
    torch.testing.assert_close(found["depth"][0], depth.decoder[-1](unpooled))


def test_each_stages_unit_weighs_its_own_maps() -> None:
    network = CrossStitchSegNet(["seg", "depth"], **SMALL)
    names = ["seg", "depth"]
    outs: dict[tuple[str, int], torch.Tensor] = {}
    ins: dict[tuple[str, int], torch.Tensor] = {}
    for name in names:
        stages = [*network.networks[name].encoder, *network.networks[name].decoder]
        for i, stage in enumerate(stages):
            stage.register_forward_hook(
                lambda _, x, y, k=(name, i): (ins.update({k: x[0]}), outs.update({k: y}), None)[-1]
            )
    units = [*network.stitch_encoder, *network.stitch_decoder]
    for unit in units:
        unit.data.uniform_(-1, 1)
    network(torch.randn(2, 3, 16, 24))
    pool = nn.MaxPool2d(2, return_indices=True)
    for i, unit in enumerate(units):
        maps = [outs[name, i] if i > 2 else pool(outs[name, i])[0] for name in names]
        mixed = unit[0] * maps[0] + unit[1] * maps[1]
        for name in names:
            given = mixed
            if i >= 2:  # the next stage is the decoder's, mirrored
                _, indices = pool(outs[name, 4 - i])
                given = nn.MaxUnpool2d(2)(mixed, indices)
            torch.testing.assert_close(ins[name, i + 1], given)


@pytest.mark.parametrize("tasks", [[], "seg", ["seg", "seg"]])
def test_task_names_that_are_none_are_one_clear_error(tasks: object) -> None:
    with pytest.raises(ValueError, match=r"model.backbone.tasks: expected .* distinct task names"):
        CrossStitchSegNet(tasks, **SMALL)


def test_segnets_are_drawn_by_xaviers_uniform_rule() -> None:
    network = CrossStitchSegNet(["seg", "depth"], channels=(32, 64), convs=(1, 1))
    network.init_weights()
    for net in network.networks.values():
        weight = net.encoder[1][0][0].weight
        bound = (6 / (9 * 96)) ** 0.5
        assert 0.98 * bound < weight.abs().max() <= bound


def test_every_parameter_of_two_full_segnets_is_trained() -> None:
    network = CrossStitchSegNet(["seg", "depth"])
    heads = nn.ModuleDict({"seg": segnet_head(7), "depth": segnet_head(1)})
    features = network(torch.randn(2, 3, 32, 64)).features
    assert untrained([heads[t](features[t]) for t in heads], network, heads) == []


@pytest.mark.parametrize("kind", ["ResNet", "ResNetV1c", "ResNeXt"])
def test_units_of_the_identity_are_single_networks(kind: str) -> None:
    options = {"groups": 2, "base_width": 4, "depth": 50} if kind == "ResNeXt" else {}
    stem = {"stem_channels": 64, "base_channels": 64} if kind == "ResNeXt" else {}
    config = {**RESNET, "type": kind, **options, **stem}
    network = CrossStitchBackbone({"seg": config, "depth": config}, alpha=1, beta=0)
    network.eval()
    image = torch.randn(2, 3, 32, 64)
    found = network(image)
    for task in ("seg", "depth"):
        torch.testing.assert_close(found.features[task], network.networks[task](image))
    assert not torch.equal(found.features["seg"][-1], found.features["depth"][-1])


def test_a_unit_weighs_every_channel_for_each_pair_of_tasks() -> None:
    tasks = ("seg", "depth", "normals")
    indices = {"seg": (0, 1, 2, 3), "depth": (3,), "normals": (1, 3)}
    network = CrossStitchBackbone({t: {**RESNET, "out_indices": indices[t]} for t in tasks})
    for weights in network.stitch:
        weights.data.uniform_(-1, 1)
    network.eval()
    image = torch.randn(2, 3, 32, 32)
    found = network(image).features
    maps = []
    for task in tasks:
        net = network.networks[task]
        maps.append(net.maxpool(net.relu(net.norm1(net.conv1(image)))))
    for stage in range(4):
        maps = [
            getattr(network.networks[t], f"layer{stage + 1}")(m)
            for t, m in zip(tasks, maps, strict=True)
        ]
        mixed = [torch.zeros_like(m) for m in maps]
        for i, j in itertools.product(range(3), range(3)):
            for channel in range(maps[0].shape[1]):
                weight = network.stitch[stage][i, j, channel]
                mixed[i][:, channel] += weight * maps[j][:, channel]
        maps = mixed
        for task, m in zip(tasks, maps, strict=True):
            if stage in indices[task]:
                torch.testing.assert_close(found[task][indices[task].index(stage)], m)
    assert {task: len(m) for task, m in found.items()} == {"seg": 4, "depth": 1, "normals": 2}


def test_a_unit_starts_with_alpha_and_beta() -> None:
    network = CrossStitchBackbone({t: RESNET for t in "abc"}, alpha=0.8, beta=0.05)
    for weights, channels in zip(network.stitch, (4, 8, 16, 32), strict=True):
        assert weights.shape == (3, 3, channels)
        for i, j in itertools.product(range(3), range(3)):
            expected = 0.8 if i == j else 0.05
            torch.testing.assert_close(weights[i, j], torch.full((channels,), expected))


@pytest.mark.parametrize("build", ["segnet", "resnet"])
def test_custom_keys_give_the_units_a_learning_rate_of_their_own(build: str) -> None:
    model = nn.Module()
    if build == "segnet":
        model.backbone = CrossStitchSegNet(["seg", "depth"], **SMALL)
        units = {model.backbone.stitch_encoder, model.backbone.stitch_decoder}
    else:
        model.backbone = CrossStitchBackbone({"seg": RESNET, "depth": RESNET})
        units = set(model.backbone.stitch)
    config = {
        "optimizer": {"type": "SGD", "lr": 0.001},
        "paramwise_cfg": {"custom_keys": {"stitch": {"lr_mult": 100}}},
    }
    groups = build_optim_wrapper(model, config).param_groups
    raised = {p for group in groups if group["lr"] == pytest.approx(0.1) for p in group["params"]}
    assert raised == units
    assert all(group["lr"] in (0.001, pytest.approx(0.1)) for group in groups)


def test_backbones_of_single_task_runs_load_from_their_checkpoints(tmp_path: Path) -> None:
    runs, configs = {}, {}
    for task in ("seg", "depth"):
        head = {"type": "FCNHead", "in_channels": 32, "channels": 4, "num_classes": 3}
        runs[task] = EncoderDecoder(backbone=RESNET, decode_head=head)
        file = tmp_path / f"{task}.pth"
        torch.save({"meta": {}, "state_dict": runs[task].state_dict()}, file)
        init_cfg = {"type": "Pretrained", "checkpoint": str(file), "prefix": "backbone."}
        configs[task] = {**RESNET, "init_cfg": init_cfg}
    network = MODELS.build({"type": "CrossStitchBackbone", "backbones": configs})
    network.init_weights()
    for task, run in runs.items():
        values = run.backbone.state_dict()
        found = network.networks[task].state_dict()
        assert found.keys() == values.keys()
        assert all(torch.equal(found[name], value) for name, value in values.items())
    for weights in network.stitch:
        torch.testing.assert_close(weights[0], torch.tensor([[0.9], [0.1]]).expand_as(weights[0]))


def test_a_checkpoint_without_the_backbones_weights_is_one_clear_error(tmp_path: Path) -> None:
    # As when prefix is forgotten: MMEngine then warns and goes on with the random weights.
    whole = nn.ModuleDict({"backbone": MODELS.build(RESNET)})
    file = tmp_path / "seg.pth"
    torch.save({"state_dict": whole.state_dict()}, file)
    init_cfg = [{"type": "Pretrained", "checkpoint": str(file)}]
    network = CrossStitchBackbone({"depth": RESNET, "seg": {**RESNET, "init_cfg": init_cfg}})
    with pytest.raises(ValueError, match=r"backbones.seg.init_cfg: .*seg.pth.*prefix='backbone.'"):
        network.init_weights()


@pytest.mark.parametrize(
    ("backbones", "message"),
    [
        ({}, "model.backbone.backbones: expected a config for each task, got none"),
        (
            {"seg": RESNET, "depth": {"type": "MobileNetV2"}},
            r"model.backbone.backbones.depth: expected a ResNet .*, got MobileNetV2",
        ),
        (
            {"seg": RESNET, "depth": {**RESNET, "base_channels": 8}},
            r"backbones.depth: expected stages of \[4, 8, 16, 32\] channels .* got \[8, 16, 32, 64",
        ),
    ],
)
def test_backbones_that_cannot_be_stitched_are_one_clear_error(
    backbones: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        CrossStitchBackbone(backbones)


def test_every_parameter_of_full_resnets_is_trained() -> None:
    network = CrossStitchBackbone({t: {"type": "ResNet", "depth": 18} for t in ("seg", "depth")})
    features = network(torch.randn(2, 3, 64, 64)).features
    assert untrained([maps[-1] for maps in features.values()], network) == []
