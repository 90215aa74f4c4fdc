"""Convert BDD100K's labels to COCO JSON, which MMDetection's data sets read.

    python tools/dataset_converters/bdd100k.py data/bdd100k --out data/bdd100k_derived

ROOT has BDD100K's official layout: images/100k/SPLIT with boxes in labels/det_20/det_SPLIT.json
("Detection 2020 Labels"; a list of frames, or an object with them as "frames"), images/10k/SPLIT
with masks in labels/sem_seg/masks/SPLIT. If the labels of one task are not there at all, the other
one is converted; --splits names the splits, if not both. Written are det_SPLIT.json, which has
the boxes, and sem_seg_SPLIT.json, which lists the images that have a mask. Categories are
BDD100K's ten of detection in all files; images are numbered from 1 by name.

Left out and counted: a label whose category is none of detection; a box without area, inverted or
incomplete; an image of images/10k without a mask; an image of images/100k that the label file
does not name. A frame without labels is an image without boxes. Boxes of what BDD100K ignores
("other vehicle", "other person", "trailer") or marks as a crowd have iscrowd 1: COCO's evaluation
passes over them, and so does the training of our SemanticDetector.

Nothing is written, and the exit code is 1, if: a folder or label file is missing or not readable;
a label file is not a list of named frames, names a frame twice or an image that is not there, or
is that of 2018; a mask has no image, another size than its image, or other values than the classes
0 to 18 and 255 (a colour map, for one).
"""

# The meaning of the format is taken from BDD100K's toolkit (bdd100k 1.0.1, its configs/det.toml and
# label/to_scalabel.py) and the reader below it (scalabel 0.3.1, label/transforms.py,
# label/to_coco.py). The packages themselves read no label file under pydantic 2.

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image

Json = dict[str, Any]

CATEGORIES = (
    *("pedestrian", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"),
    *("traffic light", "traffic sign"),
)
"""BDD100K's ten detection categories in the official order: COCO ids 1 to 10."""

_OTHER_NAMES = {
    "bike": "bicycle",
    "caravan": "car",
    "motor": "motorcycle",
    "person": "pedestrian",
    "van": "car",
}
_IGNORED = {"other person": "pedestrian", "other vehicle": "car", "trailer": "truck"}
"""Labels close to a category that are neither an example of the category nor background."""

_SPLITS = ("train", "val")
_SUFFIXES = (".jpg", ".jpeg")
_CLASSES, _UNLABELLED = 19, 255  # values of a mask
_OF_2018 = ("drivable area", "lane")
"""Categories of the labels of 2018 beside the detection categories."""

_NAMED = 3
"""Number of names that a message has of a longer list."""


class DataError(Exception):
    """Fault of the data that the user has to put right; the message names the file."""


def main(argv: Sequence[str] | None = None) -> None:
    """Convert the folder that the command line names."""
    description, _, details = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description,
        epilog=details,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("root", type=Path, metavar="ROOT", help="BDD100K's folder")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("data/bdd100k_derived"),
        help="folder to write to (default data/bdd100k_derived)",
    )
    parser.add_argument(
        "--splits", nargs="+", choices=_SPLITS, default=_SPLITS, help="to convert, if not both"
    )
    args = parser.parse_args(argv)
    try:
        files = convert(args.root, args.splits)
    except DataError as error:
        sys.exit(str(error))
    try:
        _save(args.out, files)
    except OSError as error:
        sys.exit(f"--out {args.out}: cannot write there: {error}")
    print(f"wrote {', '.join(files)} into {args.out}")


def convert(root: Path, splits: Sequence[str] = _SPLITS) -> dict[str, Json]:
    """Convert labels to COCO JSON, by file name: ``det_*.json``, ``sem_seg_*.json``.

    Numbers of images and boxes, and the labels that are left out, are printed.

    Args:
        root: Folder in BDD100K's layout.
        splits: Splits to convert.

    Raises:
        DataError: A file is missing or malformed, see this module's docstring.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; name the one with BDD100K's images/ and labels/")
    parts: dict[str, tuple[Path, Callable[[Path, str], Json]]] = {
        "det": (root / "labels/det_20", _detection),
        "sem_seg": (root / "labels/sem_seg/masks", _segmentation),
    }
    missing = [str(folder) for folder, _ in parts.values() if not folder.is_dir()]
    if len(missing) == len(parts):
        old = sorted((root / "labels").glob("**/bdd100k_labels_images_*.json"))
        hint = f". {_told_2020(old[0])}" if old else ""
        raise DataError(f"no labels: neither {' nor '.join(missing)} is a folder{hint}")
    files = {}
    for part, (folder, read) in parts.items():
        if str(folder) in missing:
            print(f"{folder}: no such folder; converting the other task only")
            continue
        for split in splits:
            files[f"{part}_{split}.json"] = read(root, split)
    return files


def _detection(root: Path, split: str) -> Json:
    file, folder = root / f"labels/det_20/det_{split}.json", root / f"images/100k/{split}"
    frames = _read_frames(file)
    present = _images(folder)
    absent = {name for name in frames if Path(name).stem not in present}
    _refuse(absent, f"{file}: names images that are not in {folder}")
    # The image of a frame a.jpg may be a.JPG.
    frames = {present[Path(name).stem]: labels for name, labels in frames.items()}
    images, annotations = [], []
    left_out: defaultdict[str, list[str]] = defaultdict(list)
    for image_id, (name, labels) in enumerate(sorted(frames.items()), start=1):
        images.append(_image(image_id, name, _size(folder / name)))
        for label in labels:
            try:
                annotation = _annotation(label)
            except ValueError as reason:
                left_out[str(reason)].append(name)
            else:
                numbers = {"id": len(annotations) + 1, "image_id": image_id}
                annotations.append(numbers | annotation)
    print(f"{file}: {len(images)} images, {len(annotations)} boxes")
    boxed = {annotation["image_id"] for annotation in annotations}
    if len(boxed) < len(images):
        empty = [image["file_name"] for image in images if image["id"] not in boxed]
        print(f"  images without boxes: {_few(empty)}")
    for reason, names in sorted(left_out.items()):
        print(f"  labels left out, {reason}: {_few(names)}")
    _tell_unlabelled(set(present.values()) - frames.keys(), folder)
    return _coco(images, annotations)


def _segmentation(root: Path, split: str) -> Json:
    mask_folder, folder = root / f"labels/sem_seg/masks/{split}", root / f"images/10k/{split}"
    masks, present = _files(mask_folder, (".png",)), _images(folder)
    _refuse(
        {masks[stem] for stem in masks.keys() - present.keys()},
        f"{mask_folder}: masks without an image in {folder}",
    )
    images, wrong, strange = [], [], []
    for image_id, (stem, mask) in enumerate(sorted(masks.items()), start=1):
        size = width, height = _size(folder / present[stem])
        found = _size(mask_folder / mask)
        if found != size:
            wrong.append(f"{mask} ({found[0]} x {found[1]}, the image {width} x {height})")
        elif problem := _values(mask_folder / mask):
            strange.append(f"{mask} ({problem})")
        images.append(_image(image_id, present[stem], size))
    _refuse(wrong, f"{mask_folder}: masks of another size than their images in {folder}")
    _refuse(
        strange,
        f"{mask_folder}: masks with other values than 0 to {_CLASSES - 1} and {_UNLABELLED}, which "
        'are those of "Semantic Segmentation" in labels/sem_seg/masks',
    )
    print(f"{mask_folder}: {len(images)} images")
    _tell_unlabelled({present[stem] for stem in present.keys() - masks.keys()}, folder)
    return _coco(images, [])


def _values(mask: Path) -> str | None:
    """Name the values of a mask that do not belong there, None if all do."""
    with Image.open(mask) as image:
        if image.mode != "L":
            return f"of the mode {image.mode}, not 8-bit grey"
        try:
            counts = image.histogram()
        except OSError as error:
            return f"cannot be read: {error}"
    strange = [v for v, n in enumerate(counts) if n and _CLASSES <= v != _UNLABELLED]
    return f"it has {', '.join(map(str, strange[:_NAMED]))}" if strange else None


def _told_2020(file: Path) -> str:
    return (
        f'{file} is of the labels of 2018; needed are "Detection 2020 Labels" of BDD100K\'s '
        "download page, whose boxes differ: labels/det_20/det_SPLIT.json"
    )


def _read_frames(file: Path) -> dict[str, list[Json]]:
    """Read the labels of each frame of a Scalabel file, by the frame's name."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise DataError(f"{file}: is not JSON: {error}") from None
    if isinstance(content, dict) and "frames" in content:
        content = content["frames"]
    if not isinstance(content, list):
        raise DataError(f"{file}: must be a list of frames, is a {type(content).__name__}")
    frames: dict[str, list[Json]] = {}
    for number, frame in enumerate(content):
        name = _mapping(frame).get("name")
        if not isinstance(name, str):
            raise DataError(f"{file}: frame {number} (from 0) has no 'name'")
        if name in frames:
            raise DataError(f"{file}: two frames are named {name}")
        labels = frame.get("labels") or []
        if not isinstance(labels, list):
            raise DataError(f"{file}: 'labels' of {name} must be a list, is {labels!r}")
        frames[name] = [_mapping(label) for label in labels]
    categories = {str(label.get("category")) for labels in frames.values() for label in labels}
    if categories.issuperset(_OF_2018):
        raise DataError(_told_2020(file))
    return frames


def _annotation(label: Json) -> Json:
    """Make COCO's record of a label, without ids.

    Raises:
        ValueError: The label is no detection; the message is the reason.
    """
    name = str(label.get("category"))
    category = (_OTHER_NAMES | _IGNORED).get(name, name)
    if category not in CATEGORIES:
        raise ValueError(f"category {name!r} is none of detection")
    attributes = _mapping(label.get("attributes"))
    x, y, width, height = _box(_mapping(label.get("box2d")))
    return {
        "category_id": CATEGORIES.index(category) + 1,
        "bbox": [x, y, width, height],
        "area": width * height,
        "iscrowd": int(
            name in _IGNORED or bool(attributes.get("crowd") or attributes.get("ignored"))
        ),
    }


def _box(box2d: Json) -> tuple[float, float, float, float]:
    """Read a box of Scalabel, whose corners are pixels inside: x, y, width, height (pixels).

    A box with both corners on one line would be a pixel wide by that rule. Labels were drawn by
    hand, where such a box is a slip of the mouse, and is taken as empty.
    """
    try:
        x1, y1, x2, y2 = (box2d[corner] for corner in ("x1", "y1", "x2", "y2"))
        proper = -math.inf < x1 < x2 < math.inf and -math.inf < y1 < y2 < math.inf
    except (KeyError, TypeError):
        raise ValueError("no 'box2d' with the numbers x1, y1, x2, y2") from None
    if not proper:
        raise ValueError("box without area")
    return x1, y1, x2 - x1 + 1, y2 - y1 + 1


def _image(image_id: int, name: str, size: tuple[int, int]) -> Json:
    width, height = size
    return {"id": image_id, "file_name": name, "width": width, "height": height}


def _coco(images: list[Json], annotations: list[Json]) -> Json:
    return {
        "info": {"description": "BDD100K in COCO's format"},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for i, name in enumerate(CATEGORIES, start=1)],
    }


def _images(folder: Path) -> dict[str, str]:
    return _files(folder, _SUFFIXES)


def _files(folder: Path, suffixes: Collection[str]) -> dict[str, str]:
    """List the files with some suffixes, in either case: names by stem."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    paths = sorted(folder.iterdir())
    return {path.stem: path.name for path in paths if path.suffix.lower() in suffixes}


def _size(path: Path) -> tuple[int, int]:
    """Read the width and height of an image (pixels) from its header."""
    try:
        with Image.open(path) as image:
            return image.size
    except OSError:
        raise DataError(f"{path}: is not a readable image") from None


def _refuse(names: Collection[str], problem: str) -> None:
    if names:
        raise DataError(f"{problem}: {_few(sorted(names))}")


def _tell_unlabelled(names: Collection[str], folder: Path) -> None:
    if names:
        print(f"  images of {folder} left out, without labels: {_few(sorted(names))}")


def _few(names: Iterable[str]) -> str:
    """Give the number of names, and the first different names."""
    names = list(names)
    different = list(dict.fromkeys(names))
    more = ", ..." if len(different) > _NAMED else ""
    return f"{len(names)} ({', '.join(different[:_NAMED])}{more})"


def _mapping(value: object) -> Json:
    """Return a JSON object as it is, anything else as an empty object."""
    return value if isinstance(value, dict) else {}


def _save(out: Path, files: dict[str, Json]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    # Write aside and move into place, so that a run that is stopped leaves no half a file.
    with TemporaryDirectory(dir=out, prefix=".unfinished-") as aside:
        for name, content in files.items():
            Path(aside, name).write_text(json.dumps(content), encoding="utf-8")
        for name in files:
            Path(aside, name).replace(out / name)


if __name__ == "__main__":
    main()
