"""NYUv2 with 40 classes in the folders of the survey of dense tasks."""

from __future__ import annotations

from pathlib import Path

from mmseg.registry import DATASETS

from mtl_plugins.mm.datasets import dense_classes as names
from mtl_plugins.mm.datasets.dense.base import DenseDataset, Files


@DATASETS.register_module()
class NYUDMTDataset(DenseDataset):
    """NYUv2 with 40 classes, depth, normals and edges: ``NYUD_MT`` of the survey of dense tasks.

    The survey is `arXiv 2004.13379 <https://arxiv.org/abs/2004.13379>`_. Both common forms of the
    files are read: images in JPEG or PNG, edges and normals in npy or PNG.

    See :class:`DenseDataset` for the arguments.
    """

    METAINFO = {"classes": names.NYU_40, "palette": names.voc_colours(40, first=1)}
    available = ("sem_seg", "depth", "normals", "edges")
    root_variable = "NYUD_ROOT"
    depth_kind = "metric"
    layout = (
        "  gt_sets/{train,val}.txt     a name per line\n"
        "  images/<name>.jpg or .png\n"
        "  segmentation/<name>.png     40 classes from 1, 0 for none\n"
        "  depth/<name>.npy            metres, 0 for unknown\n"
        "  normals/<name>.npy or .png  unit vectors, or 255 * (n + 1) / 2\n"
        "  edge/<name>.npy or .png     0 and 1, or 0 and 255"
    )

    def image_paths(self) -> list[Path]:
        """Return the images that ``gt_sets/<split>.txt`` lists."""
        stems = self._listed(self.root / "gt_sets" / f"{self.split}.txt")
        return [Path(self._found_as("images", stem, "jpg", "png")) for stem in stems]

    def label_files(self, image: Path) -> Files:
        """Return the label files of an image's name, whichever form is there."""
        stem = image.stem
        classes = self._found_as("segmentation", stem, "png")
        return {
            "sem_seg": {"path": classes, "read": "classes", "classes": 40, "first": 1},
            "depth": {"path": self._found_as("depth", stem, "npy"), "read": "depth"},
            "normals": {
                "path": self._found_as("normals", stem, "npy", "png"),
                "read": "normals",
            },
            "edges": {"path": self._found_as("edge", stem, "npy", "png"), "read": "binary"},
        }

    def _found_as(self, folder: str, stem: str, *suffixes: str) -> str:
        return self._either(*(self.root / folder / f"{stem}.{suffix}" for suffix in suffixes))
