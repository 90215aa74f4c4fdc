"""What stands in for a compiled Detectron2, and never for one that is there."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from detectron2 import model_zoo
from detectron2.data.transforms import ExtentTransform
from detectron2.structures.masks import PolygonMasks, polygons_to_bitmask
from models import ROOT


def run(code: str) -> None:
    """In a fresh interpreter: what is imported, and in which order, is the subject."""
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_detectron2_before_mtl_plugins():
    """No part of Detectron2 needs what another import has put in place."""
    run(
        "import detectron2.data, detectron2.modeling, detectron2.engine, detectron2.evaluation;"
        "from detectron2.utils.collect_env import collect_env_info; collect_env_info();"
        "import sys; assert 'mtl_plugins' not in sys.modules; import mtl_plugins.d2"
    )


@pytest.mark.parametrize("kind", ["yaml", "py"])
def test_model_zoo(kind):
    """Its configs are there: of both kinds, with their bases."""
    cfg = model_zoo.get_config(f"COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.{kind}")
    mask_head = (
        cfg.MODEL.ROI_MASK_HEAD.NUM_CONV if kind == "yaml" else cfg.model.roi_heads.mask_head
    )
    assert mask_head == 4 if kind == "yaml" else len(mask_head.conv_dims) == 5


def test_names_that_were_dropped():
    """Arrays of NumPy's former ``np.bool`` and ``np.int``, and Pillow's ``LINEAR``."""
    square = [np.array([0.0, 0.0, 4.0, 0.0, 4.0, 4.0, 0.0, 4.0])]
    mask = polygons_to_bitmask(square, 4, 4)
    assert mask.dtype == bool
    assert mask.all()
    assert PolygonMasks([square]).nonempty().tolist() == [True]
    image = np.zeros((4, 4, 3), np.uint8)
    assert (ExtentTransform((0, 0, 4, 4), (4, 4)).apply_image(image) == image).all()


def test_operator_without_a_stand_in_names_itself():
    from detectron2 import _C
    from detectron2.layers import nms_rotated

    with pytest.raises(AttributeError, match="'deform_conv_forward' needs its compiled extension"):
        _C.deform_conv_forward()
    with pytest.raises(NotImplementedError, match="'nms_rotated' needs its compiled extension"):
        nms_rotated(torch.zeros(1, 5), torch.zeros(1), 0.5)


def test_installer_leaves_an_installed_one():
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "install_detectron2.py"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "there already" in done.stdout
