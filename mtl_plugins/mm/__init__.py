"""The OpenMMLab adapter: importing it registers its parts, as ``custom_imports`` does.

Examples:
    >>> # In a config:
    >>> custom_imports = dict(imports=["mtl_plugins.mm"])
"""

from mtl_plugins.ops import install_mmcv_ops

# Before anything imports mmcv.ops, which needs the compiled extension or its stand-in.
install_mmcv_ops()

from mtl_plugins.mm import hooks, optim, samplers  # noqa: E402

__all__ = ["hooks", "optim", "samplers"]
