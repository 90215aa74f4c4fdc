"""Multi-task optimisation for the detection and segmentation frameworks you already train with."""

from pathlib import Path

from mtl_plugins.backward import MultiTaskBackward

__version__ = "0.1.0"


def configs() -> Path:
    """Return the folder of the configs that come with the package.

    Examples:
        >>> (configs() / "_base_" / "mtl" / "pcgrad.py").is_file()
        True
        >>> (configs() / "detectron2" / "mtl" / "pcgrad.yaml").is_file()
        True
    """
    return Path(__file__).parent / ".mim" / "configs"


__all__ = ["MultiTaskBackward", "__version__", "configs"]
