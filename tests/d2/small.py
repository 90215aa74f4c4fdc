"""Small models for the Detectron2 adapter, batches for them, and trainers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from detectron2.solver import build_optimizer
from detectron2.structures import BitMasks, Boxes, Instances
from models import ROOT
from torch import Tensor, nn

from mtl_plugins.d2 import MTLAMPTrainer, MTLSimpleTrainer, add_mtl_config
from mtl_plugins.d2.config import build_groups, build_multitask

CONFIGS = ROOT / "configs" / "detectron2"
SMALL = CONFIGS / "mask_rcnn_R_18_small.yaml"
PANOPTIC = CONFIGS / "panoptic_fpn_R_18_small.yaml"
SIZE, CLASSES = 64, 3
NARROW = [  # Detectron2's R-18 and R-34 cannot be narrower than 64 channels
    *("MODEL.RESNETS.DEPTH", 50, "MODEL.RESNETS.STEM_OUT_CHANNELS", 8),
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", 16, "MODEL.RESNETS.WIDTH_PER_GROUP", 4),
    *("MODEL.RESNETS.NORM", ""),
]
TINY = [
    *NARROW,
    *("MODEL.FPN.NORM", "", "MODEL.FPN.OUT_CHANNELS", 16),
    *("MODEL.ROI_HEADS.NUM_CLASSES", CLASSES, "MODEL.ROI_BOX_HEAD.FC_DIM", 16),
    *("MODEL.ROI_MASK_HEAD.NUM_CONV", 1, "MODEL.ROI_MASK_HEAD.CONV_DIM", 16),
    *("MODEL.RPN.PRE_NMS_TOPK_TRAIN", 50, "MODEL.RPN.POST_NMS_TOPK_TRAIN", 20),
    *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 16, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", CLASSES),
    *("MODEL.SEM_SEG_HEAD.CONVS_DIM", 16, "MODEL.SEM_SEG_HEAD.NORM", ""),
    *("SOLVER.WARMUP_ITERS", 0, "SOLVER.STEPS", ()),
]


def config(*options: Any, file: Any = SMALL) -> CfgNode:
    """A config of the repository, made smaller still."""
    cfg = get_cfg()
    add_mtl_config(cfg)
    cfg.merge_from_file(str(file))
    cfg.merge_from_list([*TINY, *options])
    return cfg


def detector(cfg: CfgNode) -> nn.Module:
    torch.manual_seed(0)
    return build_model(cfg)


def images(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """As a ``DatasetMapper`` gives them: noise with two rectangles each."""
    random = np.random.default_rng(seed)
    batch = []
    for _ in range(count):
        corner = random.integers(0, SIZE // 2, (2, 2))
        boxes = torch.tensor(np.hstack([corner, corner + random.integers(12, SIZE // 2, (2, 2))]))
        masks = torch.zeros(2, SIZE, SIZE, dtype=torch.bool)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes.tolist(), strict=True):
            mask[y0 : (y0 + y1) // 2, x0:x1] = True
        instances = Instances((SIZE, SIZE))
        instances.gt_boxes, instances.gt_masks = Boxes(boxes.float()), BitMasks(masks)
        instances.gt_classes = torch.tensor(random.integers(0, CLASSES, 2))
        batch.append(
            {
                "image": torch.tensor(random.integers(0, 256, (3, SIZE, SIZE)), dtype=torch.uint8),
                "instances": instances,
                "sem_seg": torch.tensor(random.integers(0, CLASSES, (SIZE, SIZE))),
            }
        )
    return batch


TASKS = {"box": ["loss_cls", "loss_reg"], "mask": ["loss_mask"]}


class TwoTasks(nn.Module):
    """A trunk of two layers and two heads, with a loss dict as Detectron2's models have."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 6))
        self.box = nn.Linear(6, 3)
        self.mask = nn.Linear(6, 2)

    def forward(self, batch: Sequence[Tensor]) -> dict[str, Tensor]:
        z = self.backbone(torch.stack(list(batch)))
        return {
            "loss_cls": self.box(z).square().mean(),
            "loss_reg": self.box(z).abs().mean(),
            "loss_mask": (self.mask(z) - 1.0).square().mean(),
        }


def toy() -> TwoTasks:
    torch.manual_seed(0)
    return TwoTasks()


def toy_batches(count: int) -> list[Tensor]:
    return list(torch.randn(count, 3, 4, generator=torch.Generator().manual_seed(1)))


def trainer_for(
    cfg: CfgNode, model: nn.Module, batches: Iterable[Any], **options: Any
) -> MTLSimpleTrainer:
    """A trainer of these batches, with what the config says."""
    optimizer = build_optimizer(cfg, model)
    params = [p for group in optimizer.param_groups for p in group["params"]]
    groups = build_groups(cfg)
    bare = getattr(model, "module", model)
    multitask = build_multitask(cfg, bare, params, groups)
    cls = MTLAMPTrainer if cfg.SOLVER.AMP.ENABLED else MTLSimpleTrainer
    return cls(model, batches, optimizer, multitask, groups, **options)


def toy_config(*options: Any) -> CfgNode:
    cfg = config(*options)
    cfg.MTL.TASKS = CfgNode(TASKS)
    return cfg


def keys_of(node: str, method: Mapping[str, Any]) -> list[Any]:
    """``dict(type=name, ...)`` as keys and values of a command line."""
    keys: list[Any] = []
    for key, value in method.items():
        if method["type"] == "TorchJD":
            return [f"{node}.NAME", str(dict(method)).replace("'", "")]
        keys += [f"{node}.{'NAME' if key == 'type' else key.upper()}", value]
    return keys


def parameters(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]
