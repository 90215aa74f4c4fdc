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
    """A COCO file with UOAIS's keys, all of which are looked for before anything is used.

    Args:
        annotation_file: Path of the file.

    Raises:
        ValueError: A record lacks a key.
    """

    def __init__(self, annotation_file: str) -> None:
        self.annotation_file = annotation_file
        super().__init__(annotation_file)

    def createIndex(self) -> None:
        """Checks the records, which this is the first to read."""
        for kind in _NEEDED:
            if kind not in self.dataset:
                raise _error(self.annotation_file, f"there is no {kind!r}", self.dataset)
            _check(self.annotation_file, kind, self.dataset[kind])
        super().createIndex()


def _check(file: str, kind: str, records: list[Json]) -> None:
    """Raises a ValueError for a record that lacks a key."""
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
    """`MetaGraspNet <https://github.com/maximiliangilles/MetaGraspNet>`_ in the files of
    ``tools/dataset_converters/metagraspnet.py``: one class, UOAIS's keys.

    What an image has: ``img_path``; ``depth_path``, of an npz; ``instances``, each with the amodal
    ``bbox``, the amodal ``mask``, the ``visible_mask`` and the ``occluded_rate`` (0 to 1).

    Of the converter's own files the objects are read when their image is asked for, so that the
    whole of MetaGraspNet needs little memory; other files with these keys are read at once.

    Args:
        data_prefix: Folders to which the file's names are relative: ``img``, and ``depth`` if that
            is another one.
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
        """Reads the file, or all but its objects."""
        self._lazy = LazyObjects.of(self.ann_file) if os.path.isfile(self.ann_file) else None
        images = super().load_data_list() if self._lazy is None else self._images(self._lazy.head)
        if not self.cat_ids:
            raise ValueError(
                f"{self.ann_file}: no category is called one of {self.metainfo['classes']}; name "
                "those of the file in metainfo=dict(classes=...)"
            )
        return images

    def _images(self, head: Json) -> list[Json]:
        """The images as they stand in the file."""
        for kind in ("images", "categories"):
            _check(self.ann_file, kind, head[kind])
        names = self.metainfo["classes"]
        self.cat_ids = [one["id"] for one in head["categories"] if one["name"] in names]
        self.cat2label = {category: label for label, category in enumerate(self.cat_ids)}
        # There is one category.
        labelled = [image["id"] for image in head["images"] if image[AT][1]]
        self.cat_img_map = dict.fromkeys(self.cat_ids, labelled)
        return [{**image, "img_id": image["id"]} for image in head["images"]]

    def get_data_info(self, idx: int) -> Json:
        """What is known of an image, its objects among it."""
        info = super().get_data_info(idx)
        if self._lazy is None:
            return info
        objects = self._lazy.read(info)
        _check(self.ann_file, "annotations", objects)
        parsed = self.parse_data_info({"raw_img_info": info, "raw_ann_info": objects})
        return {**parsed, "sample_idx": info["sample_idx"]}

    def parse_data_info(self, raw_data_info: Json) -> Json:
        """Adds depth and the second mask to what ``CocoDataset`` finds out of an image."""
        # CocoDataset hands on whatever is the segmentation of the annotations that it keeps.
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
