"""PASCAL-Context in the folders of the survey of dense tasks."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from mmseg.registry import DATASETS

from mtl_plugins.mm.datasets import dense_classes as names
from mtl_plugins.mm.datasets.dense.base import DenseDataset, Files
from mtl_plugins.mm.transforms.dense import read_file


@DATASETS.register_module()
class PASCALMTDataset(DenseDataset):
    """PASCAL-Context with classes, parts, normals, saliency and edges: the survey's ``PASCAL_MT``.

    Normals and saliency are distilled from other networks. Normals are known where the class in
    PASCAL-Context is one that NYUv2 has. An image without persons has no label for parts; for
    ``fields=['human_parts']`` only images with persons are listed.

    Args:
        db_info: Folder with ``context_classes.json`` and ``nyu_classes.json``, needed for normals;
            relative to ``data_root``. The survey's code brings it, as ``data/db_info``.
        **kwargs: Arguments of :class:`DenseDataset`.
    """

    METAINFO = {
        "classes": names.PASCAL_21,
        "palette": names.voc_colours(21),
        "human_parts_classes": names.HUMAN_PARTS,
        "human_parts_palette": names.voc_colours(7),
    }
    available = ("sem_seg", "human_parts", "normals", "edges", "saliency")
    root_variable = "PASCAL_ROOT"
    layout = (
        "  ImageSets/Context/{train,val}.txt  a name per line\n"
        "  JPEGImages/<name>.jpg\n"
        "  semseg/VOC12/<name>.png, or else semseg/pascal-context/<name>.png\n"
        "  pascal-context/trainval/<name>.mat\n"
        "  human_parts/<name>.mat\n"
        "  normals_distill/<name>.png         255 * (n + 1) / 2\n"
        "  sal_distill/<name>.png             0 to 255\n"
        "  db_info/{context,nyu}_classes.json the survey's; or give their folder as db_info"
    )

    def __init__(self, *args: Any, db_info: str = "db_info", **kwargs: Any) -> None:
        self.db_info = db_info
        self._normal_classes: list[int] | None = None
        super().__init__(*args, **kwargs)

    def image_paths(self) -> list[Path]:
        """Return the images that ``ImageSets/Context/<split>.txt`` lists."""
        stems = self._listed(self.root / "ImageSets" / "Context" / f"{self.split}.txt")
        if self.fields == ("human_parts",):
            stems = [stem for stem in stems if self._has_parts(stem)]
        return [self.root / "JPEGImages" / f"{stem}.jpg" for stem in stems]

    def label_files(self, image: Path) -> Files:
        """Return the label files of an image's name."""
        stem = image.stem
        semseg = (
            self.root / "semseg" / part / f"{stem}.png" for part in ("VOC12", "pascal-context")
        )
        context = str(self.root / "pascal-context" / "trainval" / f"{stem}.mat")
        files: Files = {
            "sem_seg": {"path": self._either(*semseg), "read": "classes", "classes": 21},
            "human_parts": {
                "path": str(self.root / "human_parts" / f"{stem}.mat"),
                "read": "parts",
            },
            "edges": {"path": context, "read": "context_edges"},
            "saliency": {
                "path": str(self.root / "sal_distill" / f"{stem}.png"),
                "read": "saliency",
            },
        }
        if "normals" in self.fields:
            files["normals"] = {
                "path": str(self.root / "normals_distill" / f"{stem}.png"),
                "read": "normals",
                "only": context,
                "classes": self._classes_with_normals(),
            }
        return files

    def _classes_with_normals(self) -> list[int]:
        """Return PASCAL-Context's numbers of the classes that NYUv2 has, and of ``tvmonitor``."""
        if self._normal_classes is None:
            context, nyu = (self._json(f"{name}_classes.json") for name in ("context", "nyu"))
            shared = {*nyu, "tvmonitor"} - {"unknown"}
            self._normal_classes = sorted(int(n) for name, n in context.items() if name in shared)
        return self._normal_classes

    def _json(self, name: str) -> Any:
        path = self.root / self.db_info / name
        if not path.is_file():
            raise self._missing(f"there is no {str(path)!r}, which normals need")
        try:
            return json.loads(path.read_text("utf-8"))
        except ValueError as error:
            raise ValueError(f"{path}: is not JSON: {error}") from error

    def _has_parts(self, stem: str) -> bool:
        """Tell whether an image has a person with parts."""
        path = self.root / "human_parts" / f"{stem}.mat"
        if not path.is_file():
            raise self._missing(f"there is no {str(path)!r}")
        return _parts_in(str(path), path.stat().st_mtime_ns)


@cache
def _parts_in(path: str, changed: int) -> bool:
    """Tell whether a file has a person with parts; ``changed`` is the time of the file."""
    return read_file("human_parts", {"path": path, "read": "parts"}) is not None
