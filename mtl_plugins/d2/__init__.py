"""Detectron2 adapter: a config node, and trainers that do what the node says.

Examples:
    >>> cfg = get_cfg()
    >>> add_mtl_config(cfg)
    >>> cfg.merge_from_file(config_file("mask_rcnn_R_50_FPN_1x.yaml"))
    >>> merge_options(cfg, ["MTL.AGGREGATOR.NAME", "PCGrad"])
    >>> cfg.MTL.AGGREGATOR.NAME  # the method that MTLTrainer(cfg) trains with
    'PCGrad'
"""

from mtl_plugins import configs
from mtl_plugins.extras import DETECTRON2, require

require(
    "mtl_plugins.d2",
    "detectron2",
    extra="d2",
    how=DETECTRON2.format(tools=configs().parent / "tools"),
)

from mtl_plugins.d2.allocation import AllocatedLoader, AllocationGates  # noqa: E402
from mtl_plugins.d2.config import add_mtl_config, config_file, merge_options  # noqa: E402
from mtl_plugins.d2.defaults import MTLTrainer  # noqa: E402
from mtl_plugins.d2.hooks import LayerConflictHook, TaskInterferenceHook  # noqa: E402
from mtl_plugins.d2.launch import launch  # noqa: E402
from mtl_plugins.d2.train_loop import MTLAMPTrainer, MTLSimpleTrainer  # noqa: E402

__all__ = [
    "AllocatedLoader",
    "AllocationGates",
    "LayerConflictHook",
    "MTLAMPTrainer",
    "MTLSimpleTrainer",
    "MTLTrainer",
    "TaskInterferenceHook",
    "add_mtl_config",
    "config_file",
    "launch",
    "merge_options",
]
