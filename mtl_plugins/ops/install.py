"""Makes mmcv and Detectron2 importable where they came without their compiled extensions."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import NamedTuple


class _StandIn(NamedTuple):
    """Import finder that answers one module with a file of this folder.

    Attributes:
        module: Its full name.
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
        """Asks it last, once."""
        if self not in sys.meta_path:
            sys.meta_path.append(self)


def install_mmcv_ops() -> None:
    """Lets ``mmcv._ext`` fall back on torch and torchvision; call it before ``import mmcv.ops``.

    The fallback is an import finder placed last, so a compiled ``mmcv._ext`` always wins, nothing
    is imported before mmcv asks for it, and a missing mmcv stays missing. Repeated calls do
    nothing. Operators without a stand-in raise ``NotImplementedError`` when they are called.
    """
    _StandIn("mmcv._ext", "mmcv_ext.py").install()


def install_detectron2_ops() -> None:
    """Lets a Detectron2 without ``detectron2._C`` be imported; call it before its other parts.

    Its models run on torchvision's operators; those that only the compiled extension has raise an
    error that names them. Such a Detectron2 is the 0.6 of ``tools/install_detectron2.py``, which
    also uses names that Pillow 10 and NumPy 1.24 have dropped: they are put back. With a compiled
    Detectron2 nothing is done, and a missing one stays missing.
    """
    if find_spec("detectron2") is None or find_spec("detectron2._C") is not None:
        return
    _StandIn("detectron2._C", "detectron2_ext.py").install()
    import numpy
    from PIL import Image

    dropped: list[tuple[ModuleType, dict[str, object]]] = [
        (Image, {"LINEAR": Image.Resampling.BILINEAR}),
        (numpy, {"bool": bool, "int": int, "float": float}),
    ]
    for module, names in dropped:
        for name, value in names.items():
            if not hasattr(module, name):
                setattr(module, name, value)
