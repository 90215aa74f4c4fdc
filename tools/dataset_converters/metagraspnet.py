"""Turn MetaGraspNet's published folders into COCO-style files with UOAIS's amodal annotations.

    python tools/dataset_converters/metagraspnet.py ROOT --out ROOT/annotations

writes train.json and val.json. Scenes are looked for at any depth of ROOT, also behind symbolic
links. If ROOT has folders train/ and val/, they are the split; MetaGraspNet itself has none, and
without these folders the scenes whose name ends in 9, one in ten, make up val. A viewpoint that
lacks a file or a key, or whose arrays do not fit its image, is reported and left out.

Files that are read, for viewpoint N in a folder scene*/:

N_rgb.png     the image
N.npz         depth: [H, W], centimetres, NaN or 0 where nothing was measured;
              instances_objects: [H, W], number from 1 of the visible object, 0 elsewhere;
              seg_masks_single, else occlusion_objects: [n, H, W], the whole of each object, also
              where something hides it, in the order of these numbers; or its hidden part alone
N_amodal.npz  if it is there, as in real scenes, the masks come from it alone:
              amodal_bitmaps_full_size_instances: [n, 2, H, W], visible and hidden part

Content that is written: one category, "object", for the paper's heads tell objects from background
only (section 3, L_rcls and L_cls). An image has file_name and depth_file_name, relative to ROOT;
the latter names the npz with the array depth. An annotation has

segmentation   the whole object, hidden or not (RLE), with its bbox (x, y, w, h) and area
visible_mask   RLE, with visible_bbox
occluded_mask  RLE, the rest of segmentation
occluded_rate  share of occluded_mask in segmentation, 0 to 1

An object without a visible pixel is left out and counted: nothing could detect it.

The files are COCO JSON, with one annotation a line. The annotations_at of an image is the first
byte and the number of bytes of its annotations in the file: MetaGraspNetDataset reads those of one
image when it needs them, since all of them would not fit into memory.

Where these facts come from:

- File names, keys and the order of the two bitmaps: Scripts/visualize_2d.py of the repository
  maximiliangilles/MetaGraspNet, which outlines seg_masks_single (else occlusion_objects) under the
  title "amodal segmentation". Numbers from 1 without gaps: Scripts/visualize_layout.py.
  Centimetres, and NaN in depth: Scripts/colored_pcl.py, for both parts of the data.
- In a real scene, only viewpoint 3 has an N_amodal.npz: the sample scenes in dataset_real/ there.
- N_scene.hdf5 is not read: boxes follow from the masks, and real scenes lack them there (issue 19
  of that repository); if classes were wanted, instances_semantic has them.
- Keys of images and annotations: gist-ailab/uoais, adet/data/uoais.py and, for visible_bbox,
  wisdom.py. That segmentation is the amodal mask: adet/data/detection_utils.py, and
  adet/evaluation/amodalvisible_evaluation.py, which puts visible_mask in its place to score the
  visible ones. Nothing there drops hidden objects; whether UOAIS's own files have any is not known.

None of MetaGraspNet's data was at hand. Not verified are the dtypes, and that the masks are whole
objects in the order of the numbers. The converter tests the latter on every viewpoint, and tells
hidden parts from whole objects: what is visible of an object does not overlap its hidden part.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

Json = dict[str, Any]

Size = tuple[int, int]
"""Height and width (pixels)."""

Masks = tuple[np.ndarray, np.ndarray]
"""Visible and amodal mask of an object, bool ``[H, W]``; the first lies inside the second."""

CATEGORIES = [{"id": 1, "name": "object"}]

_SPLITS = ("train", "val")
_VIEWPOINT_FILE = re.compile(r"(\d+)(_rgb\.png|(_amodal)?\.npz)")
_MASKS_KEYS = "occlusion_objects or seg_masks_single"  # the last of the two that a file has
_LOOKED_FOR = (
    f"scene*/N_rgb.png with N.npz (depth; instances_objects and {_MASKS_KEYS}, unless there is "
    "N_amodal.npz with amodal_bitmaps_full_size_instances)"
)
_INFO = {
    "description": "MetaGraspNet with UOAIS's amodal annotations",
    "depth": "array 'depth' of depth_file_name: [H, W], centimetres, NaN or 0 if not measured",
}


class UnusableError(Exception):
    """Reason why a viewpoint cannot be used; the text names the file."""


@dataclass
class Tally:
    """Counts of the viewpoints and objects of a split."""

    images: int = 0
    objects: int = 0
    skipped: int = 0
    hidden: int = 0

    def __str__(self) -> str:
        return (
            f"{self.images} images, {self.objects} objects; skipped: {self.skipped} viewpoints, "
            f"{self.hidden} objects without a visible pixel"
        )


def main(argv: Sequence[str] | None = None) -> None:
    """Convert the folder of the command line, or exit with one error and leave --out as it was."""
    parser = _parser()
    args = parser.parse_args(argv)
    if not args.root.is_dir():
        parser.error(f"ROOT {args.root}: there is no such folder")
    if args.scenes:
        found = _find(args.root)
        for scene in args.scenes:
            if not _of_scenes(found, args.root, [scene]):
                parser.error(
                    f"--scenes {scene}: ROOT {args.root} has no such folder with viewpoints"
                )
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        # Write aside and move into place when complete, so that a run that is stopped leaves
        # the earlier files.
        with tempfile.TemporaryDirectory(dir=args.out, prefix=".metagraspnet-") as aside:
            for split in args.splits:
                viewpoints, where = _viewpoints(args.root, split)
                if args.scenes:
                    viewpoints = _of_scenes(viewpoints, args.root, args.scenes)
                    where += f" {', '.join(args.scenes)}, and there"
                viewpoints = viewpoints[:: args.every][: args.limit]
                with _worker_map(args.workers) as work:
                    tally = _write(Path(aside) / f"{split}.json", args.root, viewpoints, work)
                print(f"{split}.json: {tally}")
                if not tally.images:
                    sys.exit(f"no usable viewpoint for {split}.json: looked {where}, {_LOOKED_FOR}")
            for split in args.splits:
                os.replace(Path(aside) / f"{split}.json", args.out / f"{split}.json")
    except OSError as error:
        sys.exit(f"--out {args.out}: cannot write there: {error}")


def _parser() -> argparse.ArgumentParser:
    description, _, details = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description,
        epilog=details,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        fromfile_prefix_chars="@",
    )
    parser.add_argument("root", type=Path, metavar="ROOT", help="folder with the scenes")
    parser.add_argument("--out", type=Path, required=True, help="folder for the two files")
    parser.add_argument(
        "--splits", nargs="+", choices=_SPLITS, default=_SPLITS, help="of the files, if not both"
    )
    parser.add_argument(
        "--scenes",
        nargs="+",
        metavar="SCENE",
        help="convert only these: names of folders, or their paths below ROOT; @FILE for those in "
        "a file, one a line",
    )
    parser.add_argument("--every", type=_count, default=1, help="of so many viewpoints take one")
    parser.add_argument("--limit", type=_count, help="most viewpoints of a split")
    parser.add_argument("--workers", type=_count, default=1, help="processes that read")
    return parser


def _viewpoints(root: Path, split: str) -> tuple[list[Path], str]:
    """Find the viewpoints ``scene*/N`` of a split in natural order, and say where they lie."""
    if any((root / name).is_dir() for name in _SPLITS):
        return _find(root / split), f"in {root / split} for"
    viewpoints = [
        viewpoint
        for viewpoint in _find(root)
        if viewpoint.parent.name.endswith("9") == (split == "val")
    ]
    ending = "" if split == "val" else "not "
    return viewpoints, f"in {root} for scenes whose name does {ending}end in 9"


def _find(folder: Path) -> list[Path]:
    # Any file makes a viewpoint known, so that a viewpoint without an image is reported.
    found = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        here = os.path.realpath(place) + os.sep
        # A link to a folder above would make the walk endless.
        folders[:] = [
            name
            for name in folders
            if not here.startswith(os.path.realpath(os.path.join(place, name)) + os.sep)
        ]
        if os.path.basename(place).startswith("scene"):
            matches = filter(None, map(_VIEWPOINT_FILE.fullmatch, names))
            found |= {Path(place, match[1]) for match in matches}
    # Sort scene2 before scene10, on every file system.
    return sorted(found, key=lambda path: re.sub(r"\d+", lambda n: n[0].zfill(12), path.as_posix()))


def _of_scenes(viewpoints: Iterable[Path], root: Path, scenes: Sequence[str]) -> list[Path]:
    """Choose the viewpoints of some scenes, given by name or by path below the root."""
    chosen = {scene.strip().rstrip("/") for scene in scenes}
    return [
        viewpoint
        for viewpoint in viewpoints
        if chosen & {viewpoint.parent.name, viewpoint.parent.relative_to(root).as_posix()}
    ]


@contextmanager
def _worker_map(workers: int) -> Iterator[Callable[..., Iterable[Any]]]:
    """Give a ``map`` that keeps the order, over so many processes."""
    if workers == 1:
        yield map
        return
    with Pool(workers) as pool:
        yield pool.imap


def _convert(viewpoint: Path) -> tuple[Size, list[Json | None]] | str:
    """Read the size and annotations (None: hidden) of a viewpoint, or the reason to skip it."""
    try:
        size, objects = _read(viewpoint)
    except UnusableError as error:
        return str(error)
    return size, [_annotation(*masks) if masks[0].any() else None for masks in objects]


def _write(
    path: Path, root: Path, viewpoints: Sequence[Path], work: Callable[..., Iterable[Any]]
) -> Tally:
    """Write a COCO-style file of the usable viewpoints, one in memory at a time."""
    tally = Tally()
    images: list[Json] = []
    with path.open("wb") as file:
        head = json.dumps({"info": _INFO, "categories": CATEGORIES})
        file.write(f'{head[:-1]}, "annotations": ['.encode())
        for viewpoint, found in zip(viewpoints, work(_convert, viewpoints), strict=True):
            if isinstance(found, str):
                print(f"skipped {found}", file=sys.stderr)
                tally.skipped += 1
                continue
            size, objects = found
            tally.images += 1
            tally.hidden += objects.count(None)
            lines = []
            for annotation in filter(None, objects):
                tally.objects += 1
                record = {"id": tally.objects, "image_id": tally.images}
                lines.append(json.dumps(record | annotation))
            text = ",\n".join(lines).encode()
            if text:
                file.write(b",\n" if tally.objects > len(lines) else b"\n")
            at = [file.tell(), len(text)]
            file.write(text)
            images.append({**_image(root, viewpoint, tally.images, size), "annotations_at": at})
        file.write(f'\n], "images": {json.dumps(images)}}}\n'.encode())
    return tally


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 on")
    return int(text)


def _image(root: Path, viewpoint: Path, number: int, size: Size) -> Json:
    rgb, npz = _file(viewpoint, "_rgb.png"), _file(viewpoint, ".npz")
    return {
        "id": number,
        "file_name": rgb.relative_to(root).as_posix(),
        "depth_file_name": npz.relative_to(root).as_posix(),
        "height": size[0],
        "width": size[1],
    }


def _annotation(visible: np.ndarray, amodal: np.ndarray) -> Json:
    """Make an annotation with UOAIS's keys, without ids."""
    hidden = amodal & ~visible
    visible_rle, amodal_rle = _rle(visible), _rle(amodal)
    return {
        "category_id": 1,
        "iscrowd": 0,
        "bbox": coco_mask.toBbox(amodal_rle).tolist(),
        "area": int(amodal.sum()),
        "segmentation": amodal_rle,
        "visible_bbox": coco_mask.toBbox(visible_rle).tolist(),
        "visible_mask": visible_rle,
        "occluded_mask": _rle(hidden),
        "occluded_rate": float(hidden.sum() / amodal.sum()),
    }


def _rle(mask: np.ndarray) -> Json:
    encoded = coco_mask.encode(np.asfortranarray(mask).view(np.uint8))
    return {**encoded, "counts": encoded["counts"].decode("ascii")}


def _read(viewpoint: Path) -> tuple[Size, list[Masks]]:
    """Read the size and objects of a viewpoint.

    Raises:
        UnusableError: A file or a key is missing, cannot be read, or does not fit the image.
    """
    size = _image_size(_file(viewpoint, "_rgb.png"))
    npz = _file(viewpoint, ".npz")
    amodal_npz = _file(viewpoint, "_amodal.npz")
    if amodal_npz.exists():
        _load(npz, {"depth": size})
        (bitmaps,) = _load(amodal_npz, {"amodal_bitmaps_full_size_instances": (None, 2, *size)})
        return size, [(visible, visible | hidden) for visible, hidden in bitmaps > 0]
    _, numbers, masks = _load(
        npz, {"depth": size, "instances_objects": size, _MASKS_KEYS: (None, *size)}
    )
    return size, _synthetic_masks(npz, numbers, [np.asfortranarray(mask > 0) for mask in masks])


def _synthetic_masks(npz: Path, numbers: np.ndarray, masks: list[np.ndarray]) -> list[Masks]:
    """Join the map of visible objects with their whole masks, bool ``[H, W]``."""
    numbers = np.asfortranarray(np.nan_to_num(numbers))  # in the memory order of an RLE
    if numbers.min() < 0 or numbers.max() > len(masks) or (numbers % 1).any():
        raise UnusableError(
            f"{npz}: instances_objects has numbers from {numbers.min():g} to {numbers.max():g}, "
            f"not 0 to {len(masks)}, the number of masks in {_MASKS_KEYS}"
        )
    visible = [numbers == number for number in range(1, len(masks) + 1)]
    seen = np.count_nonzero(numbers)
    # Entry [n, m] counts the pixels of the object n that lie in the mask m.
    at = numbers.astype(np.intp)
    shared = np.array(
        [np.bincount(at[mask], minlength=len(masks) + 1)[1:] for mask in masks], int
    ).T.reshape(len(masks), len(masks))
    covered = int(shared.trace())
    # Half, not all, since the edges of the two may differ by a pixel. Masks in another order share
    # far less. Hidden parts alone share next to nothing, and lie in other objects only in part.
    if 2 * covered < seen and (20 * covered > seen or 2 * shared.max(1).sum() >= seen):
        raise UnusableError(
            f"{npz}: the masks of {_MASKS_KEYS} cover {covered / seen:.0%} of the objects of the "
            "same number in instances_objects: they are ordered otherwise, or neither whole "
            "objects nor hidden parts"
        )
    return [(one, one | mask) for one, mask in zip(visible, masks, strict=True)]


def _image_size(path: Path) -> Size:
    try:
        with Image.open(path) as image:
            image.verify()
            return image.height, image.width
    except FileNotFoundError:
        raise UnusableError(f"{path}: is missing") from None
    except (OSError, SyntaxError) as error:
        raise UnusableError(f"{path}: is no image: {error}") from error


def _load(path: Path, wanted: dict[str, tuple[int | None, ...]]) -> list[np.ndarray]:
    """Load the arrays of an npz.

    Args:
        path: File of the npz.
        wanted: Shape of each key, ``None`` for any length; a key may be ``"this or that"``.

    Raises:
        UnusableError: The file is missing, cannot be read, lacks a key or has another shape.
    """
    try:
        with np.load(path) as file:
            arrays = []
            for key, shape in wanted.items():
                names = [name for name in key.split(" or ") if name in file]
                if not names:
                    found = ", ".join(file.files) or "nothing"
                    raise UnusableError(f"{path}: has no {key}; found: {found}")
                array = file[names[-1]]
                fits = len(array.shape) == len(shape) and all(
                    length in (None, actual)
                    for length, actual in zip(shape, array.shape, strict=True)
                )
                if not fits:
                    expected = str(shape).replace("None", "any")
                    raise UnusableError(
                        f"{path}: {names[-1]} has the shape {array.shape}, not {expected}"
                    )
                arrays.append(array)
            return arrays
    except FileNotFoundError:
        raise UnusableError(f"{path}: is missing") from None
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise UnusableError(f"{path}: cannot be read: {error}") from error


def _file(viewpoint: Path, ending: str) -> Path:
    return viewpoint.with_name(viewpoint.name + ending)


if __name__ == "__main__":
    main()
