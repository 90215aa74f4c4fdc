"""DeepLab's head and the dilated ResNet-50 before it: torchvision's values and weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision
from dense_networks import count, untrained
from mmseg.models.backbones import ResNet
from mmseg.registry import MODELS
from torch import nn
from torchvision.models.segmentation import deeplabv3

from mtl_plugins.mm.models import DeepLabHead

DILATED = {
    "type": "ResNet",
    "depth": 50,
    "strides": (1, 2, 1, 1),
    "dilations": (1, 1, 2, 4),
    "contract_dilation": True,
    "out_indices": (3,),
}

pytestmark = pytest.mark.usefixtures("seeded")


def head(**options: object) -> DeepLabHead:
    return DeepLabHead(**{"in_index": 0, "num_classes": 5, "threshold": 0.3, **options})


def test_it_has_as_many_parameters_as_published() -> None:
    with torch.device("meta"):
        found = head(in_channels=2048, num_classes=40)
        oracle = deeplabv3.DeepLabHead(2048, 40, (12, 24, 36))
    # models/aspp.py in github.com/SimonVandenhende/Multi-Task-Learning-PyTorch @ ed3d9ac
    assert count(found) == count(oracle) == 16_135_720


def test_its_prediction_is_torchvisions() -> None:
    oracle = deeplabv3.DeepLabHead(8, 5, (12, 24, 36))
    for norm in (m for m in oracle.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    found = head(in_channels=8)
    aspp, *last = oracle
    # MMSegmentation joins the pooled map first, torchvision last.
    join = aspp.project[0].weight
    join.data = join.data.roll(256, 1)
    theirs = [*aspp.convs[-1:], *aspp.convs[:-1], aspp.project, *last]
    ours = [found.image_pool, *found.aspp_modules, found.bottleneck, found.conv_seg]
    values = [value for module in theirs for value in module.state_dict().values()]
    names = [(module, name) for module in ours for name in module.state_dict()]
    assert len(names) == len(values)
    for (module, name), value in zip(names, values, strict=True):
        module.state_dict()[name].copy_(value)
    join.data = join.data.roll(-256, 1)

    x = torch.randn(2, 8, 40, 50)
    torch.testing.assert_close(found.eval()([x]), oracle.eval()(x))


def test_half_of_the_joined_branches_are_dropped_in_training_only() -> None:
    found = head(in_channels=4, channels=8)
    rates = [m.p for m in found.modules() if isinstance(m, nn.Dropout)]
    assert rates == [0.5]
    assert found.dropout is None
    x = torch.randn(2, 4, 6, 6)
    assert not torch.equal(found([x]), found([x]))
    found.eval()
    assert torch.equal(found([x]), found([x]))


def test_a_task_may_have_a_single_image_of_a_batch() -> None:
    """torchvision's head fails there; the running statistics normalise the pooled map."""
    found = head(in_channels=4, channels=8)
    norm = found.image_pool[1].bn
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    before = norm.running_mean.clone()
    x = torch.randn(1, 4, 6, 6)
    trained = found.image_pool(x)
    assert norm.training and torch.equal(norm.running_mean, before)
    found([x]).sum().backward()
    assert all(p.grad.isfinite().all() for p in found.parameters())
    assert torch.equal(found.eval().image_pool(x), trained)

    found.train().image_pool(torch.randn(2, 4, 6, 6))
    assert not torch.equal(norm.running_mean, before)


def test_norm_cfg_says_which_normalisation() -> None:
    config = {"in_channels": 4, "channels": 8, "num_classes": 5, "norm_cfg": {"type": "SyncBN"}}
    found = MODELS.build({"type": "DeepLabHead", **config})
    assert sum(isinstance(m, nn.SyncBatchNorm) for m in found.modules()) == 7
    assert not any(isinstance(m, nn.BatchNorm2d) for m in found.modules())


@pytest.mark.parametrize("depth", [18, 50])
def test_torchvisions_weights_load_from_a_file(depth: int, tmp_path: Path) -> None:
    dilate = [False, depth == 50, depth == 50]
    oracle = getattr(torchvision.models, f"resnet{depth}")(replace_stride_with_dilation=dilate)
    for norm in (m for m in oracle.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.running_mean.normal_(std=0.1)
        norm.running_var.uniform_(0.5, 2)
    file = tmp_path / "resnet.pth"
    torch.save(oracle.state_dict(), file)
    init_cfg = {"type": "Pretrained", "checkpoint": str(file)}
    shape = DILATED if depth == 50 else {"type": "ResNet", "depth": 18, "out_indices": (3,)}
    network = MODELS.build({**shape, "init_cfg": init_cfg})
    network.init_weights()

    values = oracle.state_dict()
    assert set(values) - set(network.state_dict()) == {"fc.weight", "fc.bias"}
    for name, value in network.state_dict().items():
        assert torch.equal(value, values[name]), name
    oracle.fc = oracle.avgpool = nn.Identity()
    image = torch.randn(1, 3, 64, 96)
    network.eval()
    (found,) = network(image)
    assert found.shape[2:] == ((8, 12) if depth == 50 else (2, 3))
    torch.testing.assert_close(found.flatten(1), oracle.eval()(image), rtol=1e-4, atol=1e-4)


def test_every_parameter_of_the_full_size_is_trained() -> None:
    network = MODELS.build(DILATED)
    assert isinstance(network, ResNet)
    heads = nn.ModuleList([head(in_channels=2048, num_classes=n) for n in (40, 1)])
    features = network(torch.randn(2, 3, 32, 32))
    # torchvision's rates leave only the middle of a 3 x 3 kernel on a map of 4 x 4 pixels.
    assert untrained([h(features) for h in heads], network, heads) == []
