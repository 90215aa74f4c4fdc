"""A Mask R-CNN of three tasks: MMDetection's where that is installed, or torchvision's."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN

TASKS = {
    "rpn": ("loss_objectness", "loss_rpn_"),
    "box": ("loss_classifier", "loss_box_reg", "loss_cls", "loss_bbox"),
    "mask": ("loss_mask",),
}
CLASSES = 4
SIZE = 512  # pixels, side of an image of the large detector


@dataclass(eq=False)
class Detector:
    """A model, its batch, and the modules that matter to a level.

    Attributes:
        name: Name for the report.
        model: Model that is trained.
        loss_terms: Function that runs a model on the batch and returns its losses by name.
        features: Path of the module whose output the tasks share.
        layers: Path of the module whose parameters decide at the level of layers.
    """

    name: str
    model: nn.Module
    loss_terms: Callable[[nn.Module], Mapping[str, Tensor]]
    features: str
    layers: str

    def losses(self, model: nn.Module, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        """Run a copy of the model, with the same draws each time; one loss a task.

        Args:
            model: The model, or a copy.
            dtype: Dtype of autocast; single precision for none.
        """
        torch.manual_seed(0)
        device = next(model.parameters()).device.type
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            terms = self.loss_terms(model)
        return {
            task: torch.stack([v.float() for k, v in terms.items() if k.startswith(names)]).sum()
            for task, names in TASKS.items()
        }


def boxes_and_masks(count: int, size: int) -> tuple[Tensor, Tensor]:
    """Draw boxes ``[N, 4]`` with masks ``[N, size, size]`` of ellipses."""
    low = torch.rand(count, 2) * size / 2
    boxes = torch.cat([low, low + size * (0.2 + 0.3 * torch.rand(count, 2))], 1)
    across = torch.arange(size) + 0.5
    x, y = (
        (across - boxes[:, i, None].add(boxes[:, i + 2, None]) / 2)
        / (boxes[:, i + 2, None] - boxes[:, i, None])
        for i in (0, 1)
    )
    return boxes, (x[:, None].square() + y[:, :, None].square() < 0.25).to(torch.uint8)


def tiny() -> nn.Module:
    """Build a Mask R-CNN of a few layers."""
    stages = {
        "0": nn.Sequential(nn.Conv2d(3, 16, 3, 4, 1), nn.BatchNorm2d(16), nn.ReLU()),
        "1": nn.Sequential(nn.Conv2d(16, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU()),
    }
    maps = {name: name for name in stages}
    trunk = BackboneWithFPN(nn.Sequential(OrderedDict(stages)), maps, [16, 32], 16)
    return detection.MaskRCNN(
        trunk,
        min_size=64,
        max_size=64,
        rpn_anchor_generator=AnchorGenerator(((16,), (32,), (64,)), ((1.0,),) * 3),
        rpn_post_nms_top_n_train=50,
        box_head=detection.faster_rcnn.TwoMLPHead(16 * 7 * 7, 32),
        box_predictor=detection.faster_rcnn.FastRCNNPredictor(32, CLASSES + 1),
        box_batch_size_per_image=16,
        mask_head=detection.mask_rcnn.MaskRCNNHeads(16, (16,), 1),
        mask_predictor=detection.mask_rcnn.MaskRCNNPredictor(16, 16, CLASSES + 1),
    )


def of_torchvision(device: str, small: bool) -> Detector:
    """Build torchvision's Mask R-CNN, with a ResNet-50 or a tiny one."""
    size = 64 if small else SIZE
    if small:
        model = tiny()
    else:
        model = detection.maskrcnn_resnet50_fpn(
            weights=None,
            weights_backbone=None,
            num_classes=CLASSES + 1,
            min_size=size,
            max_size=size,
        )
    images, targets = [], []
    for _ in range(2):
        boxes, masks = boxes_and_masks(4, size)
        labels = torch.randint(1, CLASSES + 1, (4,))
        target = {"boxes": boxes, "masks": masks, "labels": labels}
        targets.append({key: value.to(device) for key, value in target.items()})
        images.append(torch.rand(3, size, size, device=device))
    return Detector(
        "torchvision's Mask R-CNN, " + ("tiny" if small else "R-50"),
        model.to(device).train(),
        lambda model: model(images, targets),
        "backbone",
        "backbone.fpn",
    )


def of_mmdet(device: str) -> Detector:
    """Build MMDetection's Mask R-CNN R-50."""
    from mmdet.registry import MODELS
    from mmdet.testing import demo_mm_inputs
    from mmdet.utils import register_all_modules
    from mmengine.hub import get_config

    import mtl_plugins.mm  # noqa: F401

    register_all_modules()
    cfg = get_config("mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py").model
    cfg.backbone.init_cfg = None
    model = MODELS.build(cfg).to(device).train()
    packed = demo_mm_inputs(
        2, [[3, SIZE, SIZE]] * 2, num_items=[4, 4], num_classes=CLASSES, with_mask=True
    )

    def loss_terms(model: nn.Module) -> Mapping[str, Tensor]:
        batch = model.data_preprocessor(packed, True)
        _, log = model.parse_losses(model(**batch, mode="loss"))
        return {name: value for name, value in log.items() if name.startswith("loss_")}

    return Detector("MMDetection's Mask R-CNN, R-50", model, loss_terms, "neck", "neck")


def build(device: str, which: str, small: bool) -> Detector:
    """Build a detector with random weights.

    Args:
        device: Device of model and batch.
        which: ``"mmdet"``, ``"torchvision"`` or ``"auto"``, the first of the two that is installed.
        small: Whether to build a tiny one, which is torchvision's.
    """
    torch.manual_seed(0)
    if which == "mmdet" or (which == "auto" and not small and find_spec("mmdet")):
        return of_mmdet(device)
    return of_torchvision(device, small)
