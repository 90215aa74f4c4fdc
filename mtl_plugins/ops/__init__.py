"""Vision operators: a stand-in for mmcv's compiled extension, and a twice-differentiable RoIAlign.

Importing this package does not import mmcv. The operators live in its submodules, for example
``from mtl_plugins.ops.roi_align import roi_align``.
"""

from mtl_plugins.ops.install import install_mmcv_ops

__all__ = ["install_mmcv_ops"]
