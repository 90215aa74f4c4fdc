"""Write a few tiny images in the layout of each data set of dense prediction."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any
from zlib import compress, crc32

import numpy as np
from PIL import Image
from scipy.io import savemat

HEIGHT, WIDTH = 8, 12
Truth = dict[str, np.ndarray]
"""Labels of an image in our conventions, and ``img``, red, green, blue."""


def truth(seed: int, classes: int, levels: int | None = None) -> Truth:
    """Draw random labels, each with unknown pixels; normals of 8 bits where ``levels`` is 255."""
    draw = np.random.default_rng(seed)
    shape = (HEIGHT, WIDTH)
    sem_seg = draw.integers(0, classes, shape).astype(np.uint8)
    sem_seg[0, :4] = 255
    depth = draw.uniform(0.5, 9, shape).astype(np.float32)
    depth[1, :4] = 0
    normals = draw.normal(size=(*shape, 3))
    normals /= np.linalg.norm(normals, axis=2, keepdims=True)
    normals[2, :4] = 0
    return {
        "img": draw.integers(0, 256, (*shape, 3)).astype(np.uint8),
        "sem_seg": sem_seg,
        "depth": depth,
        "normals": normals.astype(np.float32),
        "edges": draw.integers(0, 2, shape).astype(np.uint8),
        "saliency": draw.integers(0, 2, shape).astype(np.uint8),
    }


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".jpg":
        Image.fromarray(array).save(path, quality=100, subsampling=0)
    else:
        Image.fromarray(array).save(path)


def eight_bits(normals: np.ndarray) -> np.ndarray:
    coded = np.round(255 * (normals + 1) / 2).astype(np.uint8)
    coded[2, :2] = 0  # of the unknown ones, some are black and others as near to zero as can be
    return coded


def mtan(root: Path, classes: int = 13, count: int = 11, folder: str = "label") -> list[Truth]:
    """More than ten images, since 10 comes before 2 where names are sorted as words."""
    drawn = [truth(i, classes) for i in range(count)]
    for split in ("train", "val"):
        for i, image in enumerate(drawn):
            labels = image["sem_seg"].astype(np.float64)
            labels[labels == 255] = -1
            at = root / split
            save(at / "image" / f"{i}.npy", image["img"].astype(np.float64) / 255)
            save(at / folder / f"{i}.npy", labels)
            save(at / "depth" / f"{i}.npy", image["depth"][..., None].astype(np.float64))
            if classes == 13:
                save(at / "normal" / f"{i}.npy", image["normals"].astype(np.float64))
    return drawn


def nyud(root: Path, png: bool, count: int = 2) -> dict[str, Truth]:
    drawn = {f"{i:04d}": truth(i, 40) for i in range(1, count + 1)}
    (root / "gt_sets").mkdir(parents=True)
    for split in ("train", "val"):
        (root / "gt_sets" / f"{split}.txt").write_text("\n".join(drawn) + "\n", "utf-8")
    for name, image in drawn.items():
        save(root / "images" / f"{name}.{'png' if png else 'jpg'}", image["img"])
        labels = image["sem_seg"]
        save(root / "segmentation" / f"{name}.png", np.where(labels == 255, 0, labels + 1))
        save(root / "depth" / f"{name}.npy", image["depth"])
        if png:
            save(root / "normals" / f"{name}.png", eight_bits(image["normals"]))
            save(root / "edge" / f"{name}.png", image["edges"] * 255)
        else:
            save(root / "normals" / f"{name}.npy", image["normals"])
            save(root / "edge" / f"{name}.npy", image["edges"].astype(np.float32))
    return drawn


def pascal(root: Path) -> dict[str, Truth]:
    """Two images: the first with a person, and with a map of VOC 2012; both are in every split."""
    drawn = {name: truth(i, 21) for i, name in enumerate(["2008_000002", "2008_000003"])}
    (root / "ImageSets" / "Context").mkdir(parents=True)
    (root / "db_info").mkdir()
    classes = {"wall": 1, "chair": 2, "unknown": 3, "sky": 4, "tvmonitor": 5}
    (root / "db_info" / "context_classes.json").write_text(json.dumps(classes), "utf-8")
    nyu = {"wall": 1, "chair": 2, "unknown": 3, "toilet": 4}
    (root / "db_info" / "nyu_classes.json").write_text(json.dumps(nyu), "utf-8")
    for split in ("train", "val"):
        (root / "ImageSets" / "Context" / f"{split}.txt").write_text("\n".join(drawn), "utf-8")
    for i, (name, image) in enumerate(drawn.items()):
        save(root / "JPEGImages" / f"{name}.jpg", image["img"])
        labels = Image.fromarray(image["sem_seg"], mode="P")
        labels.putpalette([value for value in range(256) for _ in range(3)])
        path = root / "semseg" / ("VOC12", "pascal-context")[i] / f"{name}.png"
        path.parent.mkdir(parents=True)
        labels.save(path)
        context = np.ones((HEIGHT, WIDTH), np.uint16)
        context[:, 6:] = 4
        context[5:, :6] = 5
        context[7, :] = 3
        save_mat(root / "pascal-context" / "trainval" / f"{name}.mat", {"LabelMap": context})
        save_mat(root / "human_parts" / f"{name}.mat", {"anno": parts(person=i == 0)})
        save(root / "normals_distill" / f"{name}.png", eight_bits(image["normals"]))
        save(root / "sal_distill" / f"{name}.png", image["saliency"] * 200 + 20)
    return drawn


def parts(person: bool) -> dict[str, Any]:
    """A horse whose parts do not count, and a person with a head, a left and a right leg."""

    def mask(rows: slice, columns: slice) -> np.ndarray:
        drawn = np.zeros((HEIGHT, WIDTH), np.uint8)
        drawn[rows, columns] = 1
        return drawn

    def thing(name: str, number: int, which: dict[str, np.ndarray]) -> tuple[Any, ...]:
        each = np.empty((1, len(which)), [("part_name", object), ("mask", object)])
        for i, part in enumerate(which.items()):
            each[0, i] = part
        whole = np.maximum.reduce(list(which.values()))
        return name, number, whole, each

    horse = thing("horse", 13, {"head": mask(slice(0, 8), slice(0, 2))})
    human = {
        "head": mask(slice(0, 2), slice(5, 7)),
        "llleg": mask(slice(4, 8), slice(4, 6)),
        "rfoot": mask(slice(7, 8), slice(7, 9)),
        "torso": mask(slice(2, 4), slice(4, 8)),
    }
    things = [horse, thing("person", 15, human)] if person else [horse]
    fields = [(name, object) for name in ("class", "class_ind", "mask", "parts")]
    objects = np.empty((1, len(things)), fields)
    for i, one in enumerate(things):
        objects[0, i] = one
    return {"imname": "an image", "objects": objects}


def save_mat(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, content)


def cityscapes(root: Path, train_ids: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """One image per split.

    Returns:
        The ids of labels, 0 to 33, and the disparity PNG's values.
    """
    draw = np.random.default_rng(3)
    ids = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(np.uint8) % 34
    values = draw.integers(256, 32258, (HEIGHT, WIDTH)).astype(np.uint16)
    values[0, :3] = (0, 1, 257)
    for split in ("train", "val"):
        stem = "aachen_000000_000019"
        image = draw.integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8)
        save(root / "leftImg8bit" / split / "aachen" / f"{stem}_leftImg8bit.png", image)
        kind = "labelTrainIds" if train_ids else "labelIds"
        at = root / "gtFine" / split / "aachen" / f"{stem}_gtFine_{kind}.png"
        save(at, official_train_ids(ids) if train_ids else ids)
        save(root / "disparity" / split / "aachen" / f"{stem}_disparity.png", values)
    return ids, values


def official_train_ids(ids: np.ndarray) -> np.ndarray:
    from cityscapesscripts.helpers.labels import id2label

    table = np.array([id2label[i].trainId for i in range(34)])
    return table[ids].astype(np.uint8)


def grey_png(values: np.ndarray, bits: int) -> bytes:
    """A PNG of grey values ``[H, W]`` of 1, 2, 4 or 8 bits, which Pillow does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc32(kind + data))

    digits = (values[..., None] >> np.arange(bits)[::-1] & 1).reshape(len(values), -1)
    lines = np.packbits(digits.astype(np.uint8), axis=1)
    size = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, 0, 0, 0, 0)
    data = compress(b"".join(b"\0" + line.tobytes() for line in lines))
    start = b"\x89PNG\r\n\x1a\n"
    return start + chunk(b"IHDR", size) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
