"""Lets the tests import Detectron2's parts before ours."""

from mtl_plugins.ops import install_detectron2_ops

install_detectron2_ops()
