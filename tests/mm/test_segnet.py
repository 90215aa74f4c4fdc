"""SegNet: parameters as published, any size of image, and each value as written out."""

from __future__ import annotations

import pytest
import torch
from dense_networks import count, segnet_head, untrained
from mmseg.registry import MODELS
from torch import Tensor, nn
from torch.nn import functional as F

from mtl_plugins.mm.models import SegNet
from mtl_plugins.rotations import Rotations
from mtl_plugins.task_layers import convert_task_layers
from mtl_plugins.task_norm import convert_task_norm

SMALL = {"channels": (4, 6), "convs": (2, 3)}

pytestmark = pytest.mark.usefixtures("seeded")


@pytest.mark.parametrize(
    ("outputs", "parameters"),
    [
        ((7, 1), 25_017_672),  # Cityscapes: printed as 95.43 MiB of float32
        # NYUv2: SegNet of experiments/nyuv2/models.py in github.com/AvivNavon/nash-mtl @ cce1840
        ((13, 1, 3), 25_055_185),
    ],
)
def test_it_has_as_many_parameters_as_published(outputs: tuple[int, ...], parameters: int) -> None:
    with torch.device("meta"):
        network = SegNet()
        heads = [segnet_head(number) for number in outputs]
    assert count(network, *heads) == parameters
    if outputs == (7, 1):
        assert f"{parameters * 4 / 2**20:.2f}" == "95.43"


def test_every_convolution_has_a_batch_norm() -> None:
    with torch.device("meta"):
        network = SegNet()
    convs = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in network.modules() if type(m) is nn.BatchNorm2d]
    assert [m.out_channels for m in convs] == [m.num_features for m in norms]
    assert len(convs) == 26
    assert all(m.bias is not None and m.kernel_size == (3, 3) for m in convs)
    # A second set of scales and shifts is 0.0547 MiB, 0.057 % of the network.
    assert sum(m.num_features for m in norms) == 7168


def written_out(network: nn.Module, x: Tensor, convs: tuple[int, ...]) -> Tensor:
    layers = iter([m for m in network.modules() if isinstance(m, nn.Conv2d)])

    def stage(x: Tensor, count: int) -> Tensor:
        for _ in range(count):
            conv = next(layers)
            x = F.conv2d(x, conv.weight, conv.bias, padding=1)
            mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), False, keepdim=True)
            x = ((x - mean) / (var + 1e-5).sqrt()).clamp(min=0)
        return x

    places = []
    for number in convs:
        x = stage(x, number)
        n, c, h, w = x.shape
        squares = x.unfold(2, 2, 2).unfold(3, 2, 2).reshape(n, c, h // 2, w // 2, 4)
        x, place = squares.max(-1)
        places.append((F.one_hot(place, 4), (h, w)))
    for number, (place, (h, w)) in zip(reversed(convs), reversed(places), strict=True):
        x = (x[..., None] * place).unflatten(-1, (2, 2)).transpose(3, 4).flatten(4).flatten(2, 3)
        x = stage(F.pad(x, (0, w - x.shape[3], 0, h - x.shape[2])), number)
    return x


@pytest.mark.parametrize("size", [(8, 12), (9, 7)])
def test_its_map_is_the_one_written_out(size: tuple[int, int]) -> None:
    network = SegNet(**SMALL).double()
    image = torch.randn(2, 3, *size, dtype=torch.float64)
    (found,) = network(image)
    torch.testing.assert_close(found, written_out(network, image, SMALL["convs"]))


@pytest.mark.parametrize("size", [(32, 32), (33, 63), (50, 41)])
def test_an_image_may_have_any_size_from_32_pixels_on(size: tuple[int, int]) -> None:
    network = SegNet(channels=(4, 4, 4, 4, 4))
    (found,) = network(torch.randn(2, 3, *size))
    assert found.shape == (2, 4, *size)


def test_a_smaller_image_is_one_clear_error() -> None:
    network = SegNet(channels=(4, 4, 4, 4, 4))
    with pytest.raises(ValueError, match=r"model.backbone: SegNet .* least 32x32 .* got 64x31"):
        network(torch.randn(2, 3, 64, 31))


def test_stages_without_a_number_of_convolutions_are_one_clear_error() -> None:
    with pytest.raises(ValueError, match=r"model.backbone.convs: .* 2 stages .* got \[2\]"):
        SegNet(channels=(4, 4), convs=(2,))


def test_weights_are_drawn_by_xaviers_normal_rule() -> None:
    network = SegNet(channels=(32, 64), convs=(1, 1))
    network.init_weights()
    for conv in (m for m in network.modules() if isinstance(m, nn.Conv2d)):
        outs, ins = conv.weight.shape[:2]
        scale = (2 / (9 * (ins + outs))) ** 0.5
        assert conv.weight.std().item() == pytest.approx(scale, rel=0.1)
        assert conv.weight.abs().max() > 2.5 * scale  # a uniform rule ends at 1.73
        assert not conv.bias.any()


def test_a_head_takes_the_same_rule() -> None:
    head = segnet_head(7)
    rule = {"type": "Xavier", "layer": "Conv2d", "distribution": "normal"}
    head.init_cfg = rule
    head.init_weights()
    weight = head.convs[0].conv.weight
    assert weight.std().item() == pytest.approx((2 / (9 * 128)) ** 0.5, rel=0.05)


@pytest.mark.parametrize(
    ("norm_cfg", "kind"),
    [
        ({"type": "SyncBN"}, nn.SyncBatchNorm),
        ({"type": "GN", "num_groups": 2}, nn.GroupNorm),
        ({"type": "BN", "momentum": 0.01}, nn.BatchNorm2d),
    ],
)
def test_norm_cfg_says_which_normalisation(norm_cfg: dict, kind: type) -> None:
    network = MODELS.build({"type": "SegNet", **SMALL, "norm_cfg": norm_cfg})
    norms = [m for m in network.modules() if isinstance(m, kind)]
    assert len(norms) == 10
    assert all(m.momentum == 0.01 for m in norms if norm_cfg.get("momentum"))


def test_every_parameter_of_the_full_size_is_trained() -> None:
    network, heads = SegNet(), nn.ModuleList([segnet_head(7), segnet_head(1)])
    features = network(torch.randn(2, 3, 32, 64))
    assert untrained([head(features) for head in heads], network, heads) == []


def mebibytes(*modules: nn.Module) -> str:
    return f"{4 * count(*modules) / 2**20:.4f}"


def published_ranking(network: nn.Module) -> list[str]:
    """Return the layers around the 40th of Recon's ranking for Cityscapes, the last one last.

    The first 37 are all norms but that of ``encoder.2.1``, and the convolutions of the heads' four
    stages and of the image's stage. (logs/ of github.com/moukamisama/Recon @ 356989d)
    """
    norms = [n for n, m in network.named_modules() if isinstance(m, nn.BatchNorm2d)]
    convs = [n for n, m in network.named_modules() if isinstance(m, nn.Conv2d)]
    near = [
        n for n in convs if n.startswith(("encoder.0.", *(f"decoder.{i}." for i in (1, 2, 3, 4))))
    ]
    later = "encoder.2.1.1"
    first = [n for n in norms if n != later] + near
    return [*first, "encoder.1.0.0", "encoder.1.1.0", later, "decoder.0.2.0"]


def test_sizes_with_task_specific_parts_are_those_of_paper_d() -> None:
    """Paper D, Table 3, and Recon's own ranking: MiB of float32 with 7 classes and depth."""
    tasks = ["seg", "depth"]
    with torch.device("meta"):
        heads = [segnet_head(number) for number in (7, 1)]
        singles = [SegNet(), SegNet()]
        names = published_ranking(singles[0])
        turned = Rotations(tasks, [64], 1024)
        assert len(names) == 41
        found = {}
        for top in (37, 38, 39, 40, 41):
            network = SegNet()
            convert_task_layers(network, names[:top], tasks)
            found[top] = mebibytes(network, *heads)
        normed = SegNet()
        convert_task_norm(normed, tasks, lambda net: net(torch.zeros(1, 3, 64, 64)))
    assert mebibytes(singles[0], *heads) == "95.4348"  # printed 95.43
    assert mebibytes(*singles, *heads)[:7] == "190.586"  # 190.59: two single networks
    assert mebibytes(singles[0], *heads, turned) == "103.4348"  # 103.43: RotoGrad
    assert mebibytes(normed, *heads) == "95.4895"  # 95.48, cut off: a norm a task, "Ours"
    assert (found[39], found[40]) == ("108.4385", "108.4405")  # "w/ Recon", 108.44
    assert found[38] == "107.8755" and found[41] == "117.4424"
