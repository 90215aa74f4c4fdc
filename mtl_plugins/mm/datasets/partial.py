"""Images that are labelled for some of the tasks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS
from mmseg.utils import bdd100k_classes, bdd100k_palette

COLOURS = {
    name: tuple(colour) for name, colour in zip(bdd100k_classes(), bdd100k_palette(), strict=True)
}
BOXES = (
    "pedestrian",
    "rider",
    "car",
    "truck",
    "bus",
    "train",
    "motorcycle",
    "bicycle",
    "traffic light",
    "traffic sign",
)


@DATASETS.register_module()
class PartialDataset(CocoDataset):
    """Images in a COCO file, with boxes or semantic maps or both, as labels or from a teacher.

    All images of one data set are labelled for the same tasks. Join several data sets with
    ``ConcatDataset``.

    Args:
        boxes: Whether the annotations in ``ann_file`` are labels; otherwise ``ann_file`` only lists
            the images.
        pseudo_ann_file: COCO file with a teacher's boxes for the same images, or None.
        data_prefix: Folders: ``img``, the images; ``seg``, the labels' maps, PNGs with the class of
            each pixel and 255 for none; ``pseudo_seg``, a teacher's maps. Without a folder of maps,
            the images have no such maps.
        **kwargs: Other arguments of ``CocoDataset``.

    Examples:
        >>> # In a config: segmentation labels, and boxes from a teacher
        >>> maps = dict(
        ...     type='PartialDataset', ann_file='sem_seg_train.json', boxes=False,
        ...     pseudo_ann_file='pseudo/sem_seg_train.json',
        ...     data_prefix=dict(img='images/10k/train', seg='labels/sem_seg/masks/train'))
    """

    filter_cfg: Any
    ann_file: str

    def __init__(
        self,
        *args: Any,
        boxes: bool = True,
        pseudo_ann_file: str | None = None,
        data_prefix: Mapping[str, str],
        **kwargs: Any,
    ) -> None:
        self.boxes = boxes
        self.pseudo_ann_file = pseudo_ann_file
        super().__init__(*args, data_prefix=dict(data_prefix), **kwargs)

    def load_data_list(self) -> list[dict[str, Any]]:
        """Read the COCO files.

        Raises:
            ValueError: The teacher's file was written for other images.
        """
        pseudo = None if self.pseudo_ann_file is None else self._teachers_boxes()
        images = super().load_data_list()
        if pseudo is not None:
            missing = [image["img_path"] for image in images if image["img_path"] not in pseudo]
            if missing:
                raise ValueError(
                    f"pseudo_ann_file: {self.pseudo_ann_file!r} lacks {len(missing)} of the "
                    f"{len(images)} images of {self.ann_file!r}, such as {missing[0]!r}; write it "
                    "again with tools/pseudo_label.py"
                )
        for image in images:
            if not self.boxes:
                del image["instances"]
            if pseudo is not None:
                image["pseudo_instances"] = pseudo[image["img_path"]]
        return images

    def parse_data_info(self, raw_data_info: dict[str, Any]) -> dict[str, Any]:
        """Add the path of the teacher's map to the image data of ``CocoDataset``."""
        info = super().parse_data_info(raw_data_info)
        if folder := self.data_prefix.get("pseudo_seg"):
            name = Path(raw_data_info["raw_img_info"]["file_name"])
            info["pseudo_seg_map_path"] = str(folder / name.with_suffix(".png"))
        return info

    def filter_data(self) -> list[dict[str, Any]]:
        """Filter as ``CocoDataset`` does; without labels for boxes no image counts as empty."""
        if self.filter_cfg and not self.boxes:
            self.filter_cfg = {**self.filter_cfg, "filter_empty_gt": False}
        return super().filter_data()

    def _teachers_boxes(self) -> dict[str, list[dict[str, Any]]]:
        """Return the teacher's instances by path of the image."""
        assert self.pseudo_ann_file is not None
        labels, self.ann_file = self.ann_file, str(Path(self.data_root, self.pseudo_ann_file))
        try:
            return {image["img_path"]: image["instances"] for image in super().load_data_list()}
        finally:
            self.ann_file = labels


@DATASETS.register_module()
class BDD100KDataset(PartialDataset):
    """`BDD100K <https://arxiv.org/abs/1805.04687>`_, with boxes or semantic maps on each image.

    The boxes have ten classes, the maps the nineteen of Cityscapes. The COCO files are those of
    ``tools/dataset_converters/bdd100k.py``.
    """

    METAINFO = {
        "classes": BOXES,
        "palette": [COLOURS[{"pedestrian": "person"}.get(name, name)] for name in BOXES],
        "seg_classes": tuple(COLOURS),
        "seg_palette": list(COLOURS.values()),
    }
