"""Training hooks."""

from mtl_plugins.mm.hooks.task_interference_hook import TaskInterferenceHook

__all__ = ["TaskInterferenceHook"]
