"""Puts a COCO in the place where Detectron2 looks for it, with what its Panoptic FPN needs.

    python tools/dataset_converters/detectron2_coco.py data/coco datasets/coco

Images and annotations are linked, not copied. From the panoptic annotations, if there are any, it
makes the semantic maps ``panoptic_stuff_*``, in which all things are one class, like Detectron2's
``prepare_panoptic_fpn.py`` does.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SPLITS = ("train2017", "val2017")
THINGS, UNLABELLED = 0, 255  # in the semantic maps; stuff counts from 1


def main() -> None:
    """Links and makes what is not there yet."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="official layout: annotations/, train2017/, ...")
    parser.add_argument("target", type=Path, help="the folder coco in DETECTRON2_DATASETS")
    args = parser.parse_args()
    annotations = args.source / "annotations"
    if not annotations.is_dir():
        parser.error(f"source: there is no folder {str(annotations)!r}")
    args.target.mkdir(parents=True, exist_ok=True)
    link(annotations, args.target / "annotations")
    for split in SPLITS:
        link(args.source / split, args.target / split)
        # COCO's archive unpacks into annotations/, where Detectron2 does not look.
        segments = annotations / f"panoptic_{split}"
        if not segments.is_dir():
            segments = args.source / f"panoptic_{split}"
        if segments.is_dir():
            link(segments, args.target / f"panoptic_{split}")
            content = json.loads((annotations / f"panoptic_{split}.json").read_text())
            write_stuff(content, segments, args.target / f"panoptic_stuff_{split}")


def link(source: Path, target: Path) -> None:
    """Makes ``target`` a link to ``source``, if one is there and the other is not."""
    if source.exists() and not target.exists():
        target.symlink_to(source.resolve())


def write_stuff(content: dict[str, Any], segments: Path, out: Path) -> None:
    """Writes the semantic map of each image.

    Args:
        content: Of COCO's panoptic annotation file.
        segments: Its PNGs, with the id of a segment as R + 256 G + 256² B.
        out: A folder.
    """
    out.mkdir(exist_ok=True)
    stuff = sorted(c["id"] for c in content["categories"] if not c["isthing"])
    classes = {c["id"]: THINGS for c in content["categories"]}
    classes |= {category: i for i, category in enumerate(stuff, start=1)}
    for image in content["annotations"]:
        path = out / image["file_name"]
        if path.exists():
            continue
        ids = np.asarray(Image.open(segments / image["file_name"]), np.uint32) @ [1, 256, 256**2]
        labels = np.full(ids.shape, UNLABELLED, np.uint8)
        for segment in image["segments_info"]:
            labels[ids == segment["id"]] = classes[segment["category_id"]]
        Image.fromarray(labels).save(path)


if __name__ == "__main__":
    main()
