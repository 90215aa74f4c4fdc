from types import ModuleType

import pytest

from mtl_plugins.ops import install_mmcv_ops


@pytest.fixture(scope="session")
def mmcv_ops() -> ModuleType:
    """``mmcv.ops`` on top of the stand-in."""
    pytest.importorskip("mmcv")
    install_mmcv_ops()
    import mmcv._ext
    import mmcv.ops

    if not mmcv._ext.__file__.endswith("mmcv_ext.py"):
        pytest.skip("mmcv has its compiled extension")
    return mmcv.ops
