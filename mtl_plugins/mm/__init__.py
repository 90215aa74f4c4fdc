"""The OpenMMLab adapter: importing it registers its parts, as ``custom_imports`` does.

Every ``Runner`` that trains with ``MTLOptimWrapper`` then writes checkpoints that outlive a kill,
and tells the tasks to a batch sampler that allocates them, see :mod:`mtl_plugins.mm.runner`.

Examples:
    >>> # In a config:
    >>> custom_imports = dict(imports=["mtl_plugins.mm"])
"""

from mtl_plugins.extras import require
from mtl_plugins.ops import install_mmcv_ops

require("mtl_plugins.mm", "mmengine", extra="mm")
# Comes before any import of mmcv.ops, which needs the compiled extension or its stand-in.
install_mmcv_ops()

from mtl_plugins.mm import hooks, optim, samplers  # noqa: E402
from mtl_plugins.mm.inheritance import enter_configs  # noqa: E402
from mtl_plugins.mm.runner import enter_runner  # noqa: E402

enter_configs()
enter_runner()

__all__ = ["hooks", "optim", "samplers"]
