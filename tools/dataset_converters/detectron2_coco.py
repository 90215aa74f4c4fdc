"""Put a COCO in the place where Detectron2 looks for it, with the maps for Panoptic FPN.

    python tools/dataset_converters/detectron2_coco.py data/coco datasets/coco

Images and annotations are linked, not copied. The panoptic annotations, if there are any, give the
semantic maps ``panoptic_stuff_*``, in which all things are one class, as Detectron2's
``prepare_panoptic_fpn.py`` makes them. After a stop, whole maps are kept, other maps made anew. A
link to a COCO that has moved is set to the new place.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SPLITS = ("train2017", "val2017")
THINGS, UNLABELLED = 0, 255  # values of the semantic maps; stuff counts from 1


def main() -> None:
    """Make the links and maps that are not there yet."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="official layout: annotations/, train2017/, ...")
    parser.add_argument("target", type=Path, help="the folder coco in DETECTRON2_DATASETS")
    args = parser.parse_args()
    annotations = args.source / "annotations"
    if not annotations.is_dir():
        parser.error(f"source: there is no folder {str(annotations)!r}")
    files = [f"instances_{split}.json" for split in SPLITS]
    if not any((annotations / name).is_file() for name in files):
        parser.error(f"source: {str(annotations)!r} has neither {' nor '.join(files)}")
    try:
        prepare(args.source, args.target)
    except (OSError, ValueError, KeyError) as error:
        sys.exit(str(error))


def prepare(source: Path, target: Path) -> None:
    """Make the links and maps.

    Args:
        source: Folder in COCO's official layout.
        target: Folder for Detectron2.

    Raises:
        OSError: A file cannot be read or written.
        ValueError: Another file is in the place of a link, or a source is not whole.
    """
    annotations = source / "annotations"
    target.mkdir(parents=True, exist_ok=True)
    link(annotations, target / "annotations")
    if not any((source / split).is_dir() for split in SPLITS):
        raise ValueError(f"{source}: has neither of the folders {' and '.join(SPLITS)}")
    for split in SPLITS:
        if not (source / split).is_dir():
            print(f"{source / split}: no such folder; {split} is left out")
            continue
        if not any((source / split).iterdir()):
            raise ValueError(f"{source / split}: there is nothing in it")
        link(source / split, target / split)
        # COCO's archive unpacks into annotations/, where Detectron2 does not look.
        segments = annotations / f"panoptic_{split}"
        if not segments.is_dir():
            segments = source / f"panoptic_{split}"
        if segments.is_dir():
            link(segments, target / f"panoptic_{split}")
            file = annotations / f"panoptic_{split}.json"
            try:
                content = json.loads(file.read_text())
            except ValueError as error:
                raise ValueError(f"{file}: is not JSON: {error}") from error
            write_stuff(content, segments, target / f"panoptic_stuff_{split}")


def link(source: Path, target: Path) -> None:
    """Make ``target`` a link to ``source``, also in place of a link to somewhere else.

    Raises:
        ValueError: A file or folder that is not the source has that name.
    """
    if target.is_symlink():
        target.unlink()
    elif target.exists():
        if not target.samefile(source):
            raise ValueError(
                f"{target}: is in the place of a link to {source}; take it away, or name another "
                "target"
            )
        return
    target.symlink_to(source.resolve())


def write_stuff(content: dict[str, Any], segments: Path, out: Path) -> None:
    """Write the semantic map of each image that has no whole map yet.

    Args:
        content: Content of COCO's panoptic annotation file.
        segments: Folder of the panoptic PNGs, with the id of a segment as R + 256 G + 256² B.
        out: Folder to write to.

    Raises:
        ValueError: A PNG is missing or not whole.
    """
    out.mkdir(exist_ok=True)
    stuff = sorted(c["id"] for c in content["categories"] if not c["isthing"])
    classes = {c["id"]: THINGS for c in content["categories"]}
    classes |= {category: i for i, category in enumerate(stuff, start=1)}
    for image in content["annotations"]:
        path = out / image["file_name"]
        if read(path) is not None:
            continue
        found = read(segments / image["file_name"])
        if found is None or found.ndim != 3:
            raise ValueError(f"{segments / image['file_name']}: is missing, or no whole RGB image")
        ids = found.astype(np.uint32) @ [1, 256, 256**2]
        labels = np.full(ids.shape, UNLABELLED, np.uint8)
        for segment in image["segments_info"]:
            labels[ids == segment["id"]] = classes[segment["category_id"]]
        # Write aside and move into place, so that a run that is stopped leaves no half a map.
        aside = path.with_name(f".{path.name}.unfinished")
        Image.fromarray(labels).save(aside, "PNG")
        aside.replace(path)


def read(path: Path) -> np.ndarray | None:
    """Read an image, None if the file is missing or not whole."""
    try:
        with Image.open(path) as image:
            return np.asarray(image)
    except (OSError, SyntaxError):
        return None


if __name__ == "__main__":
    main()
