"""Label the training images of a config with teachers, where that config reads pseudo labels.

    python tools/pseudo_label.py CONFIG --det DET_CONFIG CHECKPOINT --seg SEG_CONFIG CHECKPOINT

Each data set of CONFIG's train_dataloader that names a pseudo_ann_file gets a COCO file of boxes
there, and each one with a data_prefix.pseudo_seg gets a PNG an image there: the class of each
pixel, 255 where the teacher is not sure. A run that was stopped goes on where it was, and ends with
the same files.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.utils import ProgressBar
from torch import nn
from torch.utils.data import DataLoader

import mtl_plugins.mm  # noqa: F401  # first, since mmdet.apis needs mmcv's operators
from mtl_plugins.mm.data_check import missing_data, open_datasets

# isort: split
from mmdet.apis import init_detector
from mmdet.registry import DATASETS
from mmdet.structures import DetDataSample
from mmengine.dataset import pseudo_collate

from mtl_plugins.mm.datasets import PartialDataset


class Boxes:
    """COCO file of boxes; until it is complete, a file beside it has a line for each image.

    Args:
        path: COCO file to write.
        settings: Values on which the labels depend.

    Raises:
        SystemExit: The place holds labels with other settings.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self._path, self._settings = path, settings
        self._lines = path.with_name(path.name + ".lines")
        self._complete = path.is_file()
        self._boxes: dict[int, list[dict[str, Any]]] = {}
        if self._complete:
            _check(path, json.loads(path.read_text()).get("info"), settings)
        elif self._lines.is_file():
            first, *rest = self._lines.read_text().split("\n")
            _check(self._lines, json.loads(first or "null"), settings)
            # The last line is cut short if the run was stopped while writing it.
            self._boxes = dict(json.loads(line) for line in rest[:-1])
        if not self._complete:
            _write(self._lines, _as_lines([settings, *self._boxes.items()]))

    def done(self, image: Mapping[str, Any]) -> bool:
        """Check whether an image, a record of COCO's, is labelled."""
        return self._complete or image["id"] in self._boxes

    def add(self, images: Sequence[Mapping[str, Any]], samples: Sequence[DetDataSample]) -> None:
        """Add the teacher's predictions for some images."""
        score = self._settings["score"]
        new = {i["id"]: _boxes(s, score) for i, s in zip(images, samples, strict=True)}
        self._boxes |= new
        with self._lines.open("a") as file:
            file.write(_as_lines(new.items()))

    def finish(self, coco: Mapping[str, Any]) -> None:
        """Complete the labels, with the COCO file that lists all images."""
        if not self._complete:
            self._write_coco(coco)
        self._lines.unlink(missing_ok=True)

    def _write_coco(self, coco: Mapping[str, Any]) -> None:
        categories = [category["id"] for category in coco["categories"]]
        annotations = [
            {
                **box,
                "category_id": categories[box["category_id"]],
                "image_id": image["id"],
                "iscrowd": 0,
            }
            for image in coco["images"]
            for box in self._boxes[image["id"]]
        ]
        for number, annotation in enumerate(annotations, start=1):
            annotation["id"] = number
        _write(self._path, json.dumps({**coco, "info": self._settings, "annotations": annotations}))


class Maps:
    """Folder with a PNG for each image, under another name until it is complete.

    Args:
        folder: Folder of the PNGs.
        settings: Values on which the labels depend.

    Raises:
        SystemExit: The place holds labels with other settings.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self._folder, self._unfinished = folder, folder.with_name(f"{folder.name}.unfinished")
        self._complete = folder.is_dir()
        known = (folder if self._complete else self._unfinished) / "settings.json"
        if self._complete or known.is_file():
            found = json.loads(known.read_text()) if known.is_file() else None
            _check(known.parent, found, settings)
        else:
            _write(known, json.dumps(settings))

    def done(self, image: Mapping[str, Any]) -> bool:
        return self._complete or self._path(image).is_file()

    def add(self, images: Sequence[Mapping[str, Any]], samples: Sequence[DetDataSample]) -> None:
        for image, sample in zip(images, samples, strict=True):
            classes = sample.pred_sem_seg.sem_seg[0].byte().cpu().numpy()
            ok, png = cv2.imencode(".png", classes)
            assert ok
            _write(self._path(image), png.tobytes())

    def finish(self, coco: Mapping[str, Any]) -> None:
        if not self._complete:
            self._unfinished.rename(self._folder)

    def _path(self, image: Mapping[str, Any]) -> Path:
        return (self._unfinished / image["file_name"]).with_suffix(".png")


def main(argv: Sequence[str] | None = None) -> None:
    args = _parser().parse_args(argv)
    given = {"config": [args.config], "--det": args.det or (), "--seg": args.seg or ()}
    for option, files in given.items():
        for file in files:
            if not Path(file).is_file():
                raise SystemExit(f"{option}: there is no file {file!r}")
    cfg = Config.fromfile(args.config)
    jobs = list(_jobs(cfg, args))
    if not jobs:
        raise SystemExit(
            f"{args.config}: no data set of train_dataloader has what the teachers given label: "
            "a pseudo_ann_file for --det, a data_prefix.pseudo_seg for --seg"
        )
    if problem := missing_data(cfg, pseudo=False):
        raise SystemExit(problem)
    for kind, source, target in jobs:
        config, checkpoint = getattr(args, kind)
        print(f"{config} labels the images of {source['ann_file']} in {target}", flush=True)
        teacher = _teacher(config, checkpoint, args)
        dataset = _images(source, teacher, kind)
        settings = {
            "teacher": _digest(checkpoint),
            "images": _digest(dataset.ann_file),
            "batch_size": args.batch_size,
        }
        if kind == "det":
            labels = Boxes(target, settings | {"score": args.score_thr, "nms": args.nms_thr})
        else:
            labels = Maps(target, settings | {"probability": args.seg_thr})
        _label(dataset, teacher, labels, args)


def _parser() -> argparse.ArgumentParser:
    description, _, details = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description,
        epilog=details,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", help="the training config that reads the labels")
    teacher = {"nargs": 2, "metavar": ("CONFIG", "CHECKPOINT")}
    parser.add_argument("--det", **teacher, help="a detector, for boxes")
    parser.add_argument("--seg", **teacher, help="a SemanticDetector, for semantic maps")
    parser.add_argument("--score-thr", type=float, default=0.3, help="of boxes (default 0.3)")
    parser.add_argument("--nms-thr", type=float, default=0.2, help="IoU of boxes (default 0.2)")
    parser.add_argument(
        "--seg-thr", type=float, default=0.8, help="probability of a pixel (default 0.8)"
    )
    parser.add_argument("--batch-size", type=int, default=8, help="images at a time (default 8)")
    parser.add_argument("--workers", type=int, default=2, help="that load images (default 2)")
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu")
    return parser


def _jobs(cfg: Config, args: argparse.Namespace) -> Iterator[tuple[str, Any, Path]]:
    """Yield the jobs: ``"det"`` or ``"seg"``, the config of the data set, the path to write."""
    for _, dataset in open_datasets("train_dataloader.dataset", cfg.train_dataloader.dataset):
        root = Path(dataset.get("data_root") or ".")
        boxes, maps = dataset.get("pseudo_ann_file"), dataset.data_prefix.get("pseudo_seg")
        if args.det and boxes:
            yield "det", dataset, root / boxes
        if args.seg and maps:
            yield "seg", dataset, root / maps


def _teacher(config: str, checkpoint: str, args: argparse.Namespace) -> nn.Module:
    """Load a model that predicts only what is certain enough to be a label."""
    cfg = Config.fromfile(config)
    init_default_scope(cfg.get("default_scope", "mmdet"))
    boxes = cfg.model.test_cfg.get("rcnn", cfg.model.test_cfg)
    boxes.score_thr = args.score_thr
    boxes.setdefault("nms", {"type": "nms"})["iou_threshold"] = args.nms_thr
    cfg.model.test_cfg.seg_threshold = args.seg_thr
    return init_detector(cfg, checkpoint, palette="random", device=args.device)


def _images(source: Mapping[str, Any], teacher: nn.Module, kind: str) -> PartialDataset:
    """Build the data set of all images of a config, with the teacher's own test pipeline."""
    tested = teacher.cfg.test_dataloader.dataset
    _, own = next(open_datasets("test_dataloader.dataset", tested))
    dataset = DATASETS.build(
        {
            **source,
            "boxes": False,
            "pseudo_ann_file": None,
            "data_prefix": {"img": source["data_prefix"]["img"]},
            "indices": None,
            "pipeline": own["pipeline"],
            "test_mode": True,
        }
    )
    classes = "classes" if kind == "det" else "seg_classes"
    known = tuple(teacher.dataset_meta.get(classes, ()))
    wanted = tuple(dataset.metainfo.get(classes, ()))
    if known != wanted:
        raise SystemExit(
            f"--{kind}: the teacher knows the classes {known}, the data set has {wanted}"
        )
    return dataset


def _label(
    dataset: PartialDataset, teacher: nn.Module, labels: Boxes | Maps, args: argparse.Namespace
) -> None:
    """Label the images of a data set that are not labelled yet."""
    coco = json.loads(Path(dataset.ann_file).read_text())
    images = {image["id"]: image for image in coco["images"]}
    order = [images[dataset.get_data_info(i)["img_id"]] for i in range(len(dataset))]
    numbers = range(len(order))
    # The batches are always the same, since predictions depend, in the last digits, on the padding.
    batches = [numbers[i : i + args.batch_size] for i in numbers[:: args.batch_size]]
    todo = [batch for batch in batches if not all(labels.done(order[i]) for i in batch)]
    loader = DataLoader(
        dataset, batch_sampler=todo, num_workers=args.workers, collate_fn=pseudo_collate
    )
    if todo:
        progress = ProgressBar(len(todo))
    for batch, data in zip(todo, loader, strict=True):
        with torch.inference_mode():
            samples = teacher.test_step(data)
        labels.add([order[i] for i in batch], samples)
        progress.update()
    print(flush=True)
    known = [category for category in coco["categories"] if category["id"] in dataset.cat_ids]
    labels.finish({**coco, "images": order, "categories": known})


def _boxes(sample: DetDataSample, score_thr: float) -> list[dict[str, Any]]:
    """Make COCO's annotations of an image, with the number of a class in place of its id."""
    found = sample.pred_instances.cpu()
    # FCOS applies test_cfg.score_thr to the class alone, and multiplies by centerness later.
    found = found[found.scores >= score_thr]
    boxes = found.bboxes.clone()
    boxes[:, 2:] -= boxes[:, :2]
    return [
        {"bbox": box, "area": box[2] * box[3], "score": score, "category_id": label}
        for box, score, label in zip(
            boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True
        )
    ]


def _as_lines(items: Iterable[Any]) -> str:
    return "".join(f"{json.dumps(item)}\n" for item in items)


def _digest(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]


def _check(place: Path, found: Any, settings: Mapping[str, Any]) -> None:
    if found != settings:
        raise SystemExit(
            f"{place} has labels with other settings, {found}; these are {dict(settings)}. "
            "Remove it, or name another place in the config"
        )


def _write(path: Path, content: str | bytes) -> None:
    """Write a file that is there as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.part")
    aside.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(aside, path)


if __name__ == "__main__":
    main()
