"""MTAN on SegNet: parameters as published, whose blocks the tasks share, and its map."""

from __future__ import annotations

import pytest
import torch
from dense_networks import count, segnet_head, untrained
from mmseg.registry import MODELS
from torch import nn
from torch.nn import functional as F

from mtl_plugins.mm.models import MTANSegNet, SegNet

TASKS = ["seg", "depth", "normals"]
SMALL = {"channels": (4, 6, 6), "convs": (2, 2, 3)}

pytestmark = pytest.mark.usefixtures("seeded")


def test_it_has_as_many_parameters_as_published() -> None:
    with torch.device("meta"):
        shared = MTANSegNet(TASKS)
        own = MTANSegNet(TASKS, shared_attention=False)
        heads = [segnet_head(number) for number in (13, 1, 3)]
    # SegNetMtan of experiments/nyuv2/models.py in github.com/AvivNavon/nash-mtl @ cce1840, counted
    # there; im2im_pred/model_segnet_mtan.py in github.com/lorenmt/mtan @ c36c30b has three loss
    # weights more, 44,229,076.
    assert count(shared, *heads) == 44_229_073
    encoder = [(64, 128), (128, 256), (256, 512), (512, 512), (512, 512)]
    decoder = [(512, 512), (512, 256), (256, 128), (128, 64), (64, 64)]
    blocks = sum(9 * ins * outs + 3 * outs for ins, outs in encoder + decoder)
    assert count(own) == count(shared) + 2 * blocks


def test_a_tasks_map_is_the_one_written_out() -> None:
    network = MTANSegNet(TASKS, **SMALL).double()
    plain = SegNet(**SMALL).double()
    plain.load_state_dict(network.state_dict(), strict=False)
    first: dict[nn.Module, torch.Tensor] = {}
    last: dict[nn.Module, torch.Tensor] = {}
    unpooled: dict[nn.Module, torch.Tensor] = {}
    for stage in [*plain.encoder, *plain.decoder]:
        stage.register_forward_hook(lambda stage, _, out: last.update({stage: out}))
        stage.register_forward_pre_hook(lambda stage, ins: unpooled.update({stage: ins[0]}))
        stage[0].register_forward_hook(
            lambda _, __, out, stage=stage: first.update({stage: out.clone()})
        )
    # In training, the batch norms keep every map at a scale at which a difference shows.
    image = torch.randn(2, 3, 19, 26, dtype=torch.float64)
    found = network(image)
    plain(image)

    assert list(found.features) == TASKS
    for task in TASKS:
        masks, blocks = network.encoder_masks[task], network.encoder_blocks["shared"]
        x = image[:, :0]
        for stage, mask, block in zip(plain.encoder, masks, blocks, strict=True):
            x = x[..., : first[stage].shape[2], : first[stage].shape[3]]
            weight = mask(torch.cat([first[stage], x], 1))
            assert 0 < weight.min() < weight.max() < 1
            x = nn.MaxPool2d(2)(block(weight * last[stage]))
        masks, blocks = network.decoder_masks[task], network.decoder_blocks["shared"]
        for stage, mask, block in zip(plain.decoder, masks, blocks, strict=True):
            size = tuple(unpooled[stage].shape[2:])
            x = block(nn.Upsample(size, mode="bilinear", align_corners=True)(x))
            x = mask(torch.cat([unpooled[stage], x], 1)) * last[stage]
        torch.testing.assert_close(found.features[task], (x,))


@pytest.mark.parametrize("shared", [True, False])
def test_blocks_belong_to_all_tasks_or_to_each(shared: bool) -> None:
    network = MTANSegNet(["seg", "depth"], shared_attention=shared, **SMALL)
    loss = network(torch.randn(2, 3, 16, 16)).features["seg"][0].square().mean()
    names, parameters = zip(*network.named_parameters(), strict=True)
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    unreached = {name for name, g in zip(names, gradients, strict=True) if g is None}
    kinds = ("masks",) if shared else ("masks", "blocks")
    assert unreached == {n for n in names if ".depth." in n and any(kind in n for kind in kinds)}
    assert unreached


@pytest.mark.parametrize("tasks", [[], "seg", ["seg", "seg"]])
def test_task_names_that_are_none_are_one_clear_error(tasks: object) -> None:
    with pytest.raises(ValueError, match=r"model.backbone.tasks: expected .* distinct task names"):
        MTANSegNet(tasks, **SMALL)


def test_a_small_image_is_one_clear_error() -> None:
    with pytest.raises(ValueError, match=r"MTANSegNet .* at least 8x8 pixels, got 7x9"):
        MTANSegNet(TASKS, **SMALL)(torch.randn(2, 3, 7, 9))


def test_weights_are_drawn_by_xaviers_normal_rule() -> None:
    network = MODELS.build({"type": "MTANSegNet", "tasks": TASKS, "channels": (32, 64, 64, 64, 64)})
    network.init_weights()
    weight = network.encoder_masks["depth"][3][1][0].weight
    assert weight.std().item() == pytest.approx((2 / 128) ** 0.5, rel=0.1)


def test_every_parameter_of_the_full_size_is_trained() -> None:
    network = MTANSegNet(TASKS)
    heads = nn.ModuleDict({t: segnet_head(n) for t, n in zip(TASKS, (13, 1, 3), strict=True)})
    features = network(torch.randn(2, 3, 32, 64)).features
    outputs = [head(features[task]) for task, head in heads.items()]
    assert all(F.relu(output).shape[2:] == (32, 64) for output in outputs)
    assert untrained(outputs, network, heads) == []
