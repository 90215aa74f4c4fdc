"""The OpenMMLab adapter: importing it registers its parts, as ``custom_imports`` does.

It also has every ``Runner`` that trains with ``MTLOptimWrapper`` write checkpoints that outlive a
kill, and tell the tasks to a batch sampler that allocates them, see :mod:`mtl_plugins.mm.runner`.

Examples:
    >>> # In a config:
    >>> custom_imports = dict(imports=["mtl_plugins.mm"])
"""

from mtl_plugins.ops import install_mmcv_ops

# Before anything imports mmcv.ops, which needs the compiled extension or its stand-in.
install_mmcv_ops()

from mtl_plugins.mm import hooks, optim, samplers  # noqa: E402
from mtl_plugins.mm.runner import enter_runner  # noqa: E402

enter_runner()

__all__ = ["hooks", "optim", "samplers"]
