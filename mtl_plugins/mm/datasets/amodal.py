"""Images with depth, and objects whose hidden part is labelled too."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from mmdet.datasets import CocoDataset
from mmdet.datasets.api_wrappers import COCO
from mmdet.registry import DATASETS

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
        for kind, keys in _NEEDED.items():
            if kind not in self.dataset:
                raise self._error(f"there is no {kind!r}", self.dataset)
            for position, record in enumerate(self.dataset[kind]):
                for key in keys:
                    if key not in record:
                        name = f"id {record['id']}" if "id" in record else f"number {position}"
                        raise self._error(f"of the {kind}, {name} has no {key!r}", record)
        super().createIndex()

    def _error(self, what: str, record: Json) -> ValueError:
        return ValueError(
            f"{self.annotation_file}: {what}; found: {', '.join(record) or 'nothing'}. "
            "tools/dataset_converters/metagraspnet.py writes such files"
        )


@DATASETS.register_module()
class MetaGraspNetDataset(CocoDataset):
    """`MetaGraspNet <https://github.com/maximiliangilles/MetaGraspNet>`_ in the files of
    ``tools/dataset_converters/metagraspnet.py``: one class, UOAIS's keys.

    What an image has: ``img_path``; ``depth_path``, of an npz; ``instances``, each with the amodal
    ``bbox``, the amodal ``mask``, the ``visible_mask`` and the ``occluded_rate`` (0 to 1).

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
        """Reads the file."""
        images = super().load_data_list()
        if not self.cat_ids:
            raise ValueError(
                f"{self.ann_file}: no category is called one of {self.metainfo['classes']}; name "
                "those of the file in metainfo=dict(classes=...)"
            )
        return images

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
