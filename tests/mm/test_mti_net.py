"""MTI-Net's neck: parameters as published, its masks and its distillation, and its backbones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from dense_networks import HRNET, count, hrnet_head, untrained
from mmseg.registry import MODELS
from torch import Tensor, nn
from torch.nn import functional as F

from mtl_plugins.mm.models import MTINet
from mtl_plugins.mm.models.mti_net import FeaturePropagation

W18 = [18, 36, 72, 144]
R18 = [64, 128, 256, 512]
MAIN, AUXILIARY = {"seg": 5, "depth": 1}, {"edges": 1}

pytestmark = pytest.mark.usefixtures("seeded")


def maps(channels: list[int], height: int = 16, width: int = 24) -> list[Tensor]:
    """Draw the maps of a backbone whose strides round up."""
    return [
        torch.randn(2, c, -(-height // 2**level), -(-width // 2**level))
        for level, c in enumerate(channels)
    ]


@pytest.mark.parametrize(
    ("channels", "tasks", "auxiliary", "parameters"),
    [
        # Without backbone and heads: models/mti_net.py in
        # github.com/SimonVandenhende/Multi-Task-Learning-PyTorch @ ed3d9ac, counted there.
        (W18, {"seg": 40, "depth": 1}, {}, 4_558_928),
        (W18, {"seg": 40, "depth": 1, "normals": 3}, {"edges": 1}, 12_306_030),
        (R18, {"seg": 40, "depth": 1}, {}, 57_455_188),
        (R18, {"seg": 40, "depth": 1, "normals": 3}, {"edges": 1}, 155_321_428),
    ],
)
def test_it_has_as_many_parameters_as_published(
    channels: list[int], tasks: dict, auxiliary: dict, parameters: int
) -> None:
    with torch.device("meta"):
        assert count(MTINet(channels, tasks, auxiliary)) == parameters


def test_hrnet_is_w18_small_v2_and_mmsegmentations_own() -> None:
    with torch.device("meta"):
        network, head = MODELS.build(HRNET), hrnet_head(W18, 40)
    # hrnet_w18 and HighResolutionHead of models/seg_hrnet.py in the same repository, counted there;
    # the names and shapes of the backbone's 864 tensors are the same. Its head has 270 biases more,
    # which the batch norm behind them subtracts again.
    assert count(network) == 3_860_720
    assert len(network.state_dict()) == 864
    assert count(head) == 84_550 - 270


@pytest.mark.parametrize("over", ["tasks", "channels"])
def test_the_mask_sums_to_one_over_tasks_or_adjacent_channels(over: str) -> None:
    part = FeaturePropagation(["a", "b", "c"], 4, over, {"type": "BN"})
    mask = part.mask(torch.randn(2, 12, 5, 7))
    assert mask.shape == (2, 12, 5, 7)
    whole = torch.ones(2, 4, 5, 7)
    over_tasks = mask[:, 0:4] + mask[:, 4:8] + mask[:, 8:12]
    adjacent = mask[:, 0::3] + mask[:, 1::3] + mask[:, 2::3]
    sums = {"tasks": over_tasks, "channels": adjacent}
    torch.testing.assert_close(sums.pop(over), whole)
    (other,) = sums.values()
    assert not torch.allclose(other, whole)


@pytest.mark.parametrize("over", ["tasks", "channels"])
def test_the_mask_is_the_softmax_of_the_scores(over: str) -> None:
    part = FeaturePropagation(["a", "b", "c"], 2, over, {"type": "BN"})
    last = part.scores[-1]
    last.weight.data.zero_()
    last.bias.data = torch.tensor([0.0, 1.0, 2.0, 3.0, 5.0, 8.0])
    e = last.bias.detach().exp().tolist()
    # Channels are a0 a1 b0 b1 c0 c1.
    groups = {"tasks": [(0, 2, 4), (1, 3, 5)], "channels": [(0, 1, 2), (3, 4, 5)]}[over]
    expected = [0.0] * 6
    for group in groups:
        for channel in group:
            expected[channel] = e[channel] / sum(e[c] for c in group)
    found = part.mask(torch.randn(2, 6, 3, 3))
    torch.testing.assert_close(found, torch.tensor(expected).view(1, 6, 1, 1).expand(2, 6, 3, 3))


def test_propagation_adds_the_gated_shared_features() -> None:
    part = FeaturePropagation(["a", "b"], 32, "tasks", {"type": "BN"})
    features = {"a": torch.randn(2, 32, 3, 3), "b": torch.randn(2, 32, 3, 3)}
    found = part(features)
    joint = torch.cat([features["a"], features["b"]], 1)
    shared = part.reduce(part.mask(joint) * joint)
    for task in "ab":
        narrow, wide = (m for m in part.squeeze[task].modules() if isinstance(m, nn.Conv2d))
        assert (narrow.in_channels, narrow.out_channels) == (32, 2)
        pooled = shared.mean((2, 3))
        hidden = F.relu(F.linear(pooled, narrow.weight.flatten(1), narrow.bias))
        gate = torch.sigmoid(F.linear(hidden, wide.weight.flatten(1), wide.bias))
        torch.testing.assert_close(found[task], gate[..., None, None] * shared + features[task])


def test_distillation_adds_what_the_other_tasks_masks_let_through() -> None:
    network = MTINet([4, 6], MAIN, AUXILIARY)
    refined: dict[tuple[int, str], Tensor] = {}
    for scale, parts in enumerate(network.refinements):
        for task, part in parts.items():
            part.register_forward_hook(lambda _, __, y, k=(scale, task): refined.update({k: y}))
    found = network(maps([4, 6]))
    assert set(found.features) == {"seg", "depth"}
    for scale in (0, 1):
        for task in MAIN:
            expected = refined[scale, task].clone()
            for other in {"seg", "depth", "edges"} - {task}:
                part = network.distillations[scale][task][other]
                x = refined[scale, other]
                passed = 1 / (1 + torch.exp(-F.conv2d(x, part.mask.weight, padding=1)))
                expected += F.conv2d(x, part.conv.weight, padding=1) * passed
            torch.testing.assert_close(found.features[task][scale], expected)
        for task in {**MAIN, **AUXILIARY}:
            layer = network.predictions[scale][task]
            torch.testing.assert_close(found.auxiliary[task][scale], layer(refined[scale, task]))


def test_a_finer_scale_sees_the_propagated_features_of_the_coarser_one() -> None:
    network = MTINet([4, 6], MAIN)
    given: dict[str, Tensor] = {}
    for task, part in network.refinements[0].items():
        part.register_forward_pre_hook(lambda _, x, task=task: given.update({task: x[0]}))
    carried: list[dict[str, Tensor]] = []
    network.propagations[0].register_forward_hook(lambda _, __, y: carried.append(y))
    fine, coarse = maps([4, 6], 9, 14)
    network([fine, coarse])
    for task in MAIN:
        assert torch.equal(given[task][:, :4], fine)
        expected = nn.Upsample((9, 14), mode="bilinear")(carried[0][task])
        torch.testing.assert_close(given[task][:, 4:], expected)


@pytest.mark.parametrize(
    ("channels", "size"),
    [([3, 5, 8, 16], (16, 24)), ([3, 5, 8, 16], (13, 9)), ([8, 8, 8], (13, 9))],  # last: an FPN's
)
def test_every_scale_has_features_and_predictions(
    channels: list[int], size: tuple[int, int]
) -> None:
    network = MTINet(channels, MAIN, AUXILIARY)
    inputs = maps(channels, *size)
    found = network(inputs)
    sizes = [x.shape[2:] for x in inputs]
    for task in MAIN:
        shapes = [(2, c, *s) for c, s in zip(channels, sizes, strict=True)]
        assert [x.shape for x in found.features[task]] == shapes
    for task, outputs in {**MAIN, **AUXILIARY}.items():
        assert [x.shape for x in found.auxiliary[task]] == [(2, outputs, *s) for s in sizes]


def test_one_task_takes_from_no_other() -> None:
    network = MTINet([4, 6], {"depth": 1})
    assert len(network(maps([4, 6])).features["depth"]) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": {}}, "model.neck.tasks: expected the channels of each task, got none"),
        ({"auxiliary_tasks": {"depth": 1}}, r"model.neck.auxiliary_tasks: .* got \['depth'\]"),
        ({"mask": "task"}, r"model.neck.mask: expected one of \('tasks', 'channels'\), got 'task'"),
    ],
)
def test_options_that_are_wrong_are_one_clear_error(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MTINet(**{"in_channels": [4, 6], "tasks": MAIN, **options})


def test_a_map_too_many_is_one_clear_error() -> None:
    with pytest.raises(ValueError, match=r"model.neck.in_channels: .* 3 maps .* got \[4, 6\]"):
        MTINet([4, 6], MAIN)(maps([4, 6, 8]))


def test_norm_cfg_says_which_normalisation() -> None:
    with torch.device("meta"):
        plain = MTINet(W18, MAIN)
        synced = MTINet(W18, MAIN, norm_cfg={"type": "SyncBN"})
    norms = [m for m in plain.modules() if type(m) is nn.BatchNorm2d]
    # Of 2 tasks and 4 scales: 4 in the blocks, 1 in a shortcut at all but the coarsest; of each
    # propagation 4 in the scores' blocks, 2 to reduce, and the 2 shortcuts.
    assert len(norms) == 2 * (4 * 4 + 3) + 3 * 8
    assert sum(isinstance(m, nn.SyncBatchNorm) for m in synced.modules()) == len(norms)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in synced.modules())


def test_openmmlabs_weights_of_hrnet_load_from_a_file(tmp_path: Path) -> None:
    source = MODELS.build(HRNET)
    values = source.state_dict()
    for value in values.values():
        if value.is_floating_point():
            value.uniform_(0.5, 1.5)
    classifier = {"incre_modules.0.0.conv1.weight": torch.ones(1), "classifier.bias": torch.ones(1)}
    file = tmp_path / "hrnet.pth"
    torch.save({"meta": {}, "state_dict": {**values, **classifier}}, file)
    init_cfg = {"type": "Pretrained", "checkpoint": str(file)}
    network = MODELS.build({**HRNET, "init_cfg": init_cfg})
    network.init_weights()
    found = network.state_dict()
    assert found.keys() == values.keys()
    assert all(torch.equal(found[name], value) for name, value in values.items())


@pytest.mark.parametrize("backbone", ["hrnet", "resnet18"])
def test_every_parameter_of_the_full_size_is_trained(backbone: str) -> None:
    channels = W18 if backbone == "hrnet" else R18
    config = HRNET if backbone == "hrnet" else {"type": "ResNet", "depth": 18}
    network = MODELS.build(config)
    # Of ResNet-18's width, three tasks would have 100 million parameters.
    more = AUXILIARY if backbone == "hrnet" else {}
    neck = MODELS.build(
        {"type": "MTINet", "in_channels": channels, "tasks": MAIN, "auxiliary_tasks": more}
    )
    heads = nn.ModuleDict({task: hrnet_head(channels, n) for task, n in MAIN.items()})
    found = neck(network(torch.randn(2, 3, 64, 64)))
    outputs = [head(found.features[task]) for task, head in heads.items()]
    assert [x.shape for x in outputs] == [(2, 5, 16, 16), (2, 1, 16, 16)]
    outputs += [x for predictions in found.auxiliary.values() for x in predictions]
    assert untrained(outputs, network, neck, heads) == []
