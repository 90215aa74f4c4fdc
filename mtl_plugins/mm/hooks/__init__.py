"""Training hooks."""

from mtl_plugins.mm.hooks.checkpoint_hook import MTLCheckpointHook
from mtl_plugins.mm.hooks.epoch_length_hook import EpochLengthHook
from mtl_plugins.mm.hooks.indicator_hook import IndicatorHook
from mtl_plugins.mm.hooks.layer_conflict_hook import LayerConflictHook
from mtl_plugins.mm.hooks.task_interference_hook import TaskInterferenceHook

__all__ = [
    "EpochLengthHook",
    "IndicatorHook",
    "LayerConflictHook",
    "MTLCheckpointHook",
    "TaskInterferenceHook",
]
