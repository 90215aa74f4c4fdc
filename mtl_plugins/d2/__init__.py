"""The Detectron2 adapter."""

from mtl_plugins.ops import install_detectron2_ops

# Before anything imports the parts of Detectron2 that need the compiled extension.
install_detectron2_ops()
