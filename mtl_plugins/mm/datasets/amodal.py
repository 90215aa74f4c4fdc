"""Images with depth, and objects whose hidden part is labelled too."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from mmdet.datasets import CocoDataset
from mmdet.datasets.api_wrappers import COCO
from mmdet.registry import DATASETS

from mtl_plugins.mm.datasets.lazy import AT, LazyObjects

Json = dict[str, Any]

_MASKS = ("segmentation", "visible_mask", "occluded_rate")
_NEEDED = {
    "images": ("id", "file_name", "depth_file_name", "height", "width"),
    "annotations": ("id", "image_id", "category_id", "iscrowd", "bbox", "area", *_MASKS),
    "categories": ("id", "name"),
}


class AmodalCOCO(COCO):
    """COCO file with UOAIS's keys, all of which are checked before anything is used.

    Args:
        annotation_file: Path of the file.

    Raises:
        ValueError: A record lacks a key.
    """

    def __init__(self, annotation_file: str) -> None:
        self.annotation_file = annotation_file
        super().__init__(annotation_file)

    def createIndex(self) -> None:
        """Check the records, then index them as ``COCO`` does."""
        for kind in _NEEDED:
            if kind not in self.dataset:
                raise _error(self.annotation_file, f"there is no {kind!r}", self.dataset)
            _check(self.annotation_file, kind, self.dataset[kind])
        super().createIndex()


def _check(file: str, kind: str, records: list[Json]) -> None:
    """Raise a ValueError for a record that lacks a key."""
    for position, record in enumerate(records):
        for key in _NEEDED[kind]:
            if key not in record:
                name = f"id {record['id']}" if "id" in record else f"number {position}"
                raise _error(file, f"of the {kind}, {name} has no {key!r}", record)


def _error(file: str, what: str, record: Json) -> ValueError:
    return ValueError(
        f"{file}: {what}; found: {', '.join(record) or 'nothing'}. "
        "tools/dataset_converters/metagraspnet.py writes such files"
    )


@DATASETS.register_module()
class MetaGraspNetDataset(CocoDataset):
    """`MetaGraspNet <https://github.com/maximiliangilles/MetaGraspNet>`_ with UOAIS's keys.

    The files are those of ``tools/dataset_converters/metagraspnet.py``, with one class. An image
    has ``img_path``; ``depth_path``, of an npz; ``instances``, each with the amodal ``bbox``, the
    amodal ``mask``, the ``visible_mask`` and the ``occluded_rate`` (0 to 1).

    From the converter's files, the objects of an image are read when the image is loaded, so that
    the whole of MetaGraspNet needs little memory; other files with these keys are read at once.

    Args:
        data_prefix: Folders to which the file's names are relative: ``img``, and ``depth`` if the
            depth is in another folder.
        **kwargs: Other arguments of ``CocoDataset``.

    Raises:
        ValueError: A record in ``ann_file`` lacks a key, or no category there has the class's name.
    """

    METAINFO = {"classes": ("object",), "palette": [(220, 20, 60)]}
    COCOAPI = AmodalCOCO

    def __init__(self, *args: Any, data_prefix: Mapping[str, str], **kwargs: Any) -> None:
        folders = {"depth": data_prefix.get("img", ""), **data_prefix}
        super().__init__(*args, data_prefix=folders, **kwargs)

    def load_data_list(self) -> list[Json]:
        """Read the file; of a converter's file, all but the objects."""
        self._lazy = LazyObjects.of(self.ann_file) if os.path.isfile(self.ann_file) else None
        images = super().load_data_list() if self._lazy is None else self._images(self._lazy.head)
        if not self.cat_ids:
            raise ValueError(
                f"{self.ann_file}: no category is called one of {self.metainfo['classes']}; name "
                "those of the file in metainfo=dict(classes=...)"
            )
        return images

    def _images(self, head: Json) -> list[Json]:
        """Return the images as they stand in the file."""
        for kind in ("images", "categories"):
            _check(self.ann_file, kind, head[kind])
        names = self.metainfo["classes"]
        self.cat_ids = [one["id"] for one in head["categories"] if one["name"] in names]
        self.cat2label = {category: label for label, category in enumerate(self.cat_ids)}
        # With one category, any image with objects has objects of this category.
        labelled = [image["id"] for image in head["images"] if image[AT][1]]
        self.cat_img_map = dict.fromkeys(self.cat_ids, labelled)
        return [{**image, "img_id": image["id"]} for image in head["images"]]

    def get_data_info(self, idx: int) -> Json:
        """Return the data of an image, including the objects."""
        info = super().get_data_info(idx)
        if self._lazy is None:
            return info
        objects = self._lazy.read(info)
        _check(self.ann_file, "annotations", objects)
        parsed = self.parse_data_info({"raw_img_info": info, "raw_ann_info": objects})
        return {**parsed, "sample_idx": info["sample_idx"]}

    def parse_data_info(self, raw_data_info: Json) -> Json:
        """Add depth and the visible mask to the image data of ``CocoDataset``."""
        # CocoDataset hands on any segmentation unchanged, so the other keys travel in there.
        annotations = [
            {**annotation, "segmentation": {key: annotation[key] for key in _MASKS}}
            for annotation in raw_data_info["raw_ann_info"]
        ]
        info = super().parse_data_info({**raw_data_info, "raw_ann_info": annotations})
        for instance in info["instances"]:
            masks = instance.pop("mask")
            instance["mask"] = masks.pop("segmentation")
            instance.update(masks)
        depth = raw_data_info["raw_img_info"]["depth_file_name"]
        info["depth_path"] = os.path.join(self.data_prefix["depth"], depth)
        return info
