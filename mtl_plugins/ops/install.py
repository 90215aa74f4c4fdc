"""Makes ``import mmcv.ops`` work where mmcv was installed without its compiled extension."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType


class _MmcvExtFinder:
    """Import finder that answers ``mmcv._ext`` with our ``mmcv_ext.py``."""

    @staticmethod
    def find_spec(
        fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "mmcv._ext":
            return None
        return spec_from_file_location(fullname, Path(__file__).with_name("mmcv_ext.py"))


def install_mmcv_ops() -> None:
    """Lets ``mmcv._ext`` fall back on torch and torchvision; call it before ``import mmcv.ops``.

    The fallback is an import finder placed last, so a compiled ``mmcv._ext`` always wins, nothing
    is imported before mmcv asks for it, and a missing mmcv stays missing. Repeated calls do
    nothing. Operators without a stand-in raise ``NotImplementedError`` when they are called.
    """
    if _MmcvExtFinder not in sys.meta_path:
        sys.meta_path.append(_MmcvExtFinder)
