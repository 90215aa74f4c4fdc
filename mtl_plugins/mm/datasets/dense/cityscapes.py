"""Cityscapes in its official folders, with disparity."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from mmseg.registry import DATASETS

from mtl_plugins.mm.datasets import dense_classes as names
from mtl_plugins.mm.datasets.dense.base import Files
from mtl_plugins.mm.datasets.dense.mtan import MTANCityscapesDataset
from mtl_plugins.mm.structures import IGNORED
from mtl_plugins.mm.transforms.dense_files import TRAIN_IDS


@DATASETS.register_module()
class CityscapesDenseDataset(MTANCityscapesDataset):
    """Cityscapes in its official folders, with 7 or 19 classes and disparity.

    Args:
        classes: 19, or 7 for their categories; pixels of no evaluated class have no category.
        depth: ``"disparity"`` in pixels of the full image, ``"metres"``, or ``"mtan"`` for
            ``p / 65535`` of the PNG's value p.
        **kwargs: Arguments of :class:`DenseDataset`.
    """

    METAINFO = {"classes": names.CITYSCAPES_19, "palette": names.CITYSCAPES_19_COLOURS}
    splits = ("train", "val", "test", "train_extra")
    root_variable = "CITYSCAPES_ROOT"
    layout = (
        "  leftImg8bit/{train,val}/<city>/<name>_leftImg8bit.png\n"
        "  gtFine/{train,val}/<city>/<name>_gtFine_labelIds.png (or ..._labelTrainIds.png)\n"
        "  disparity/{train,val}/<city>/<name>_disparity.png, 16 bits"
    )

    def __init__(
        self,
        *args: Any,
        classes: Literal[7, 19] = 19,
        depth: Literal["disparity", "metres", "mtan"] = "disparity",
        **kwargs: Any,
    ) -> None:
        if depth not in ("disparity", "metres", "mtan"):
            raise ValueError(f"depth: {depth!r} is not 'disparity', 'metres' or 'mtan'")
        self.depth = depth
        self.depth_kind = "metric" if depth == "metres" else "inverse"
        super().__init__(*args, classes=classes, **kwargs)

    def image_paths(self) -> list[Path]:
        """Return the images of every city, sorted."""
        folder = self.root / "leftImg8bit" / self.split
        paths = sorted(folder.glob("*/*_leftImg8bit.png"))
        if not paths:
            raise self._missing(f"there is no <city>/<name>_leftImg8bit.png in {str(folder)!r}")
        return paths

    def label_files(self, image: Path) -> Files:
        """Return the label map and the disparity of an image."""
        city, stem = image.parent.name, image.name.removesuffix("_leftImg8bit.png")
        fine = self.root / "gtFine" / self.split / city / f"{stem}_gtFine_labelIds.png"
        trained = fine.with_name(f"{stem}_gtFine_labelTrainIds.png")
        table = [int(i) for i in TRAIN_IDS]
        if trained.is_file() and not fine.is_file():
            fine, table = trained, list(range(256))
        if self.classes == 7:
            table = [names.CATEGORIES[i] if i < 19 else IGNORED for i in table]
        classes = {"path": str(fine), "table": table}
        disparity = {
            "path": str(self.root / "disparity" / self.split / city / f"{stem}_disparity.png")
        }
        return {
            "sem_seg": {**classes, "read": "classes", "classes": self.classes},
            "depth": {**disparity, "read": "depth", "scale": 1 / 65535}
            if self.depth == "mtan"
            else {**disparity, "read": "disparity", "inverse": self.depth == "disparity"},
        }
