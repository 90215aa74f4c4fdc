"""The Detectron2 adapter: a config node, and trainers that do what it says.

Examples:
    >>> cfg = get_cfg()
    >>> add_mtl_config(cfg)
    >>> cfg.merge_from_file("configs/detectron2/mask_rcnn_R_50_FPN_1x.yaml")
    >>> merge_options(cfg, ["MTL.AGGREGATOR.NAME", "PCGrad"])
    >>> trainer = MTLTrainer(cfg)
"""

from mtl_plugins.d2.allocation import AllocatedLoader, AllocationGates
from mtl_plugins.d2.config import add_mtl_config, merge_options
from mtl_plugins.d2.defaults import MTLTrainer
from mtl_plugins.d2.hooks import TaskInterferenceHook
from mtl_plugins.d2.launch import launch
from mtl_plugins.d2.train_loop import MTLAMPTrainer, MTLSimpleTrainer

__all__ = [
    "AllocatedLoader",
    "AllocationGates",
    "MTLAMPTrainer",
    "MTLSimpleTrainer",
    "MTLTrainer",
    "TaskInterferenceHook",
    "add_mtl_config",
    "launch",
    "merge_options",
]
