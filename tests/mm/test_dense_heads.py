"""Heads of dense prediction: channels, resolution of the loss, and what they refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from dense import FIELD, HEADS, HEIGHT, WIDTH, config, fcn, sample
from mmseg.registry import MODELS
from torch.nn import functional as F
from torch.testing import assert_close

import mtl_plugins.mm.models  # noqa: F401
from mtl_plugins.mm.structures import FIELDS

CHANNELS = {"seg": 4, "parts": 3, "depth": 1, "normals": 3, "edges": 1, "sal": 1}

pytestmark = pytest.mark.usefixtures("mmseg_scope")


def _logits(task: str) -> torch.Tensor:
    return torch.randn(2, CHANNELS[task], HEIGHT // 4, WIDTH // 4)


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("task", HEADS)
def test_losses_are_taken_at_the_resolution_of_the_labels(task: str, align_corners: bool) -> None:
    head = MODELS.build(
        HEADS[task] | {"decoder": fcn(align_corners=align_corners), "loss_weight": 3.0}
    )
    samples, logits = [sample(), sample()], _logits(task)
    truth = torch.stack([s.get(FIELDS[FIELD[task]].truth).data for s in samples])
    how = {"mode": "bilinear", "align_corners": align_corners}
    full = F.interpolate(logits, size=(HEIGHT, WIDTH), **how)
    known = (truth != FIELDS[FIELD[task]].unknown).any(1, keepdim=True)
    if task in ("seg", "parts"):
        want = F.cross_entropy(full, truth[:, 0], ignore_index=255)
    elif task == "depth":
        want = F.l1_loss(full[known], truth[known])
    elif task == "normals":
        want = 1 - F.cosine_similarity(full, truth)[known[:, 0]].mean()
    else:
        positive = truth[known].float()
        w = 0.95 if task == "edges" else 1 - positive.mean()
        weights = positive * w + (1 - positive) * (1 - w)
        want = F.binary_cross_entropy_with_logits(full[known], positive, weights)
    losses = head.loss_by_feat(logits, samples)
    (name,) = (name for name in losses if "loss" in name)
    assert_close(losses[name], 3 * want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["FCNHead", "ASPPHead"])
@pytest.mark.parametrize("task", HEADS)
def test_any_decoder_gets_the_channels_of_the_task(task: str, kind: str) -> None:
    own = {"type": "ASPPHead", "in_channels": 16, "in_index": 2, "channels": 4, "norm_cfg": None}
    decoder = fcn() if kind == "FCNHead" else own | {"dilations": (1, 2)}
    head = MODELS.build(HEADS[task] | {"decoder": decoder})
    x = [torch.randn(2, 16, 4, 6) for _ in range(3)]
    assert head(x).shape == (2, CHANNELS[task], 4, 6)


@pytest.mark.parametrize("kind", ["seg", "parts"])
def test_an_image_without_a_known_pixel_has_no_loss_and_no_nan(kind: str) -> None:
    head = MODELS.build(HEADS[kind])
    one = sample()
    one.get(FIELDS[FIELD[kind]].truth).data.fill_(255)
    logits = torch.randn(1, CHANNELS[kind], 8, 12, requires_grad=True)
    losses = head.loss_by_feat(logits, [one])
    losses["loss_ce"].backward()
    assert losses["loss_ce"].item() == 0 and not logits.grad.any()
    assert losses["acc_seg"].isfinite().all()


def test_losses_of_mmsegmentation_fit() -> None:
    logits, samples = torch.randn(2, 1, 8, 12), [sample(), sample()]
    loss = {"type": "CrossEntropyLoss", "use_sigmoid": True, "avg_non_ignore": True}
    head = MODELS.build(HEADS["edges"] | {"loss": loss})
    full = F.interpolate(logits, size=(HEIGHT, WIDTH), mode="bilinear")
    truth = torch.stack([s.gt_edge_map.data for s in samples])
    want = F.binary_cross_entropy_with_logits(full[truth != 255], truth[truth != 255].float())
    assert_close(head.loss_by_feat(logits, samples)["loss_ce"], want)


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        (
            HEADS["depth"] | {"decoder": fcn(out_channels=2)},
            r"decoder\.out_channels: DepthHead.* 1",
        ),
        (HEADS["seg"] | {"num_classes": 1}, r"num_classes: .*2 or more, got 1"),
        (
            HEADS["depth"] | {"decoder": fcn(sampler={"type": "OHEMPixelSampler"})},
            r"decoder\.sampler: DepthHead does not use it",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(cfg: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MODELS.build(cfg)


def test_auxiliary_predictions_need_the_channels_of_the_head() -> None:
    with pytest.raises(ValueError, match="NormalHead needs predictions of 3 channels, got 2"):
        MODELS.build(HEADS["normals"]).loss_by_feat(torch.randn(1, 2, 4, 4), [sample()])


def test_a_loss_that_mmengine_would_not_train_is_refused() -> None:
    err = {"type": "DepthL1Loss", "loss_name": "err"}
    with pytest.raises(ValueError, match=r"^model\.heads\.depth\.loss\.loss_name: .*'loss_err'"):
        MODELS.build(config(heads={"depth": HEADS["depth"] | {"loss": err}}))
    plain = fcn(num_classes=4, loss_decode={"type": "CrossEntropyLoss", "loss_name": "ce"})
    with pytest.raises(ValueError, match=r"^model\.heads\.seg\.loss_decode\.loss_name: .*'ce'"):
        MODELS.build(config(heads={"seg": plain}))


@pytest.mark.parametrize("setting", [{"ignore_index": 0}, {"threshold": 0.3}])
def test_settings_of_a_decoder_that_have_no_effect_are_refused(setting: dict[str, Any]) -> None:
    head = HEADS["sal"] | {"decoder": fcn(**setting)}
    with pytest.raises(ValueError, match=rf"^model\.heads\.sal\.decoder\.{next(iter(setting))}: "):
        MODELS.build(config(heads={"sal": head}))


@pytest.mark.parametrize(
    ("task", "loss"),
    [
        ("edges", {"type": "CrossEntropyLoss", "use_sigmoid": True}),
        ("depth", {"type": "SiLogLoss"}),
    ],
)
def test_losses_of_mmsegmentation_get_no_image_without_a_known_pixel(
    task: str, loss: dict[str, Any]
) -> None:
    """The first fails without a pixel, the second has then a gradient of NaN (root of 0)."""
    head = MODELS.build(HEADS[task] | {"loss": loss})
    logits = torch.rand(2, 1, HEIGHT, WIDTH, requires_grad=True)
    samples = [sample(FIELD[task]) for _ in range(2)]
    field = FIELDS[FIELD[task]]
    samples[1].get(field.truth).data[:] = int(field.unknown)

    def gradient(images: slice) -> torch.Tensor:
        (value,) = head.loss_by_feat(logits[images], samples[images]).values()
        return torch.autograd.grad(value, logits)[0]

    assert (gradient(slice(1, 2)) == 0).all()
    both = gradient(slice(0, 2))
    assert (both[1] == 0).all()
    assert both[0].any() and both.isfinite().all()
    if task == "depth":
        assert_close(both[0], gradient(slice(0, 1))[0])
