"""Import finder that makes mmcv importable where its compiled extension is missing."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import NamedTuple


class _StandIn(NamedTuple):
    """Import finder that answers one module with a file of this folder.

    Attributes:
        module: Full name of the module.
        file: Name of the file.
    """

    module: str
    file: str

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.module:
            return None
        return spec_from_file_location(fullname, Path(__file__).with_name(self.file))

    def install(self) -> None:
        """Put the finder last in ``sys.meta_path``, once."""
        if self not in sys.meta_path:
            sys.meta_path.append(self)


def install_mmcv_ops() -> None:
    """Let ``mmcv._ext`` fall back on torch and torchvision, if called before ``import mmcv.ops``.

    The fallback is an import finder placed last, so a compiled ``mmcv._ext`` always wins, nothing
    is imported before mmcv asks for it, and a missing mmcv stays missing. Repeated calls do
    nothing. Operators without a stand-in raise ``NotImplementedError`` when called.
    """
    _StandIn("mmcv._ext", "mmcv_ext.py").install()
