"""What stands in for a compiled Detectron2, and never for one that is there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from models import ROOT

INSTALL = "from mtl_plugins.ops import install_detectron2_ops; install_detectron2_ops(); "
DROPPED = (
    "from PIL import Image; import numpy;dropped = hasattr(Image, 'LINEAR'), 'int' in vars(numpy); "
)


def run(code: str, *path: Path) -> None:
    """In a fresh interpreter: what is imported, and in which order, is the subject."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, [*path, ROOT]))}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_compiled_extension_wins(tmp_path):
    """Of a Detectron2 that hides the installed one; no other module is touched either."""
    (tmp_path / "detectron2").mkdir()
    (tmp_path / "detectron2" / "__init__.py").touch()
    (tmp_path / "detectron2" / "_C.py").write_text("compiled = True")
    run(
        f"import sys; finders = list(sys.meta_path); {DROPPED} before = dropped; {INSTALL}"
        "import detectron2._C; assert vars(detectron2._C)['compiled'];"
        f"{DROPPED} assert dropped == before and sys.meta_path == finders",
        tmp_path,
    )


def test_missing_detectron2_stays_missing():
    """In an environment that has torch and no Detectron2."""
    run(
        "import importlib.util as u; find = u.find_spec;"
        "u.find_spec = lambda name, *rest: None if 'detectron2' in name else find(name, *rest);"
        f"import sys; {INSTALL}"
        "assert not any('detectron2' in str(finder) for finder in sys.meta_path);"
        "assert 'detectron2' not in sys.modules"
    )


def test_second_call_does_nothing():
    run(
        INSTALL + "import sys; finders = list(sys.meta_path); install_detectron2_ops();"
        "assert sys.meta_path == finders"
    )


def test_everything_imports():
    run(
        INSTALL + "import detectron2.data, detectron2.engine, detectron2.evaluation;"
        "from detectron2.utils.collect_env import collect_env_info; collect_env_info()"
    )


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
