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

    Raises:
        FileNotFoundError: The folder is a link that was checked out as a file.
    """
    folder = Path(__file__).parent / ".mim" / "configs"
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} is no folder: the repository was checked out without symbolic links; "
            "git config core.symlinks true, then git checkout again"
        )
    return folder


__all__ = ["MultiTaskBackward", "__version__", "configs"]
