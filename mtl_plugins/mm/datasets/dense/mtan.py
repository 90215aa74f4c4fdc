"""NYUv2 and Cityscapes in the npy folders of MTAN's authors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from mmseg.registry import DATASETS

from mtl_plugins.mm.datasets import dense_classes as names
from mtl_plugins.mm.datasets.dense.base import DenseDataset, Files


class _MTANDataset(DenseDataset):
    """Folders of npy files, numbered from 0 as in `MTAN <https://arxiv.org/abs/1803.10704>`_."""

    def image_paths(self) -> list[Path]:
        """Return ``<split>/image/<i>.npy`` for i from 0 to their number less 1."""
        folder = self.root / self.split / "image"
        count = len(list(folder.glob("*.npy")))
        if not count:
            raise self._missing(f"there is no npy in {str(folder)!r}")
        return [folder / f"{i}.npy" for i in range(count)]

    def _npy(self, image: Path, folder: str) -> str:
        return str(image.parent.parent / folder / image.name)


@DATASETS.register_module()
class MTANNYUv2Dataset(_MTANDataset):
    """NYUv2 with 13 classes, depth in metres and normals, as MTAN's authors share it.

    The images have 288 x 384 pixels. The split ``val`` (654 images) is the one that the papers
    test on, ``train`` has 795.

    See :class:`DenseDataset` for the arguments.

    Examples:
        >>> # In a config: for the segmentation alone, without depth and normals
        >>> train = dict(
        ...     type='MTANNYUv2Dataset', data_root='data/nyuv2', split='train', fields=['sem_seg'])
    """

    METAINFO = {"classes": names.NYU_13, "palette": names.voc_colours(13, first=1)}
    available = ("sem_seg", "depth", "normals")
    root_variable = "NYUV2_ROOT"
    depth_kind = "metric"
    layout = (
        "  {train,val}/image/<i>.npy   height x width x 3, for i from 0 on without gaps\n"
        "  {train,val}/label/<i>.npy   13 classes from 0, -1 for none\n"
        "  {train,val}/depth/<i>.npy   metres, 0 for unknown\n"
        "  {train,val}/normal/<i>.npy  height x width x 3, unit vectors, zeros for unknown"
    )

    def label_files(self, image: Path) -> Files:
        """Return the npy files of an image's number."""
        return {
            "sem_seg": {"path": self._npy(image, "label"), "read": "classes", "classes": 13},
            "depth": {"path": self._npy(image, "depth"), "read": "depth"},
            "normals": {"path": self._npy(image, "normal"), "read": "normals"},
        }


@DATASETS.register_module()
class MTANCityscapesDataset(_MTANDataset):
    """Cityscapes with 7 or 19 classes and inverse depth, as MTAN's authors share it.

    The images have 128 x 256 pixels, or 256 x 512. Depth is ``p / 65535`` for the value p of
    Cityscapes' disparity, hence from 0 (unknown) to about 0.5, and grows as a thing comes nearer.

    Args:
        classes: 7 or 19. Labels are in ``label_7`` or ``label_19``, or else in ``label``.
        **kwargs: Arguments of :class:`DenseDataset`.
    """

    METAINFO = {"classes": names.CITYSCAPES_7, "palette": names.CITYSCAPES_7_COLOURS}
    available = ("sem_seg", "depth")
    root_variable = "CITYSCAPES_MTAN_ROOT"
    depth_kind = "inverse"
    layout = (
        "  {train,val}/image/<i>.npy    height x width x 3, for i from 0 on without gaps\n"
        "  {train,val}/label_7/<i>.npy  classes from 0, -1 for none; or label_19, or label\n"
        "  {train,val}/depth/<i>.npy    inverse depth, 0 for unknown"
    )

    def __init__(self, *args: Any, classes: Literal[7, 19] = 7, **kwargs: Any) -> None:
        self.classes = classes
        super().__init__(*args, **_cityscapes(classes, kwargs))

    @classmethod
    def get_label_map(cls, new_classes: Sequence[str] | None = None) -> None:
        """Return None: the files are read as the 7 or 19 classes."""

    def label_files(self, image: Path) -> Files:
        """Return the npy files of an image's number."""
        paths = [self._npy(image, folder) for folder in (f"label_{self.classes}", "label")]
        path = self._either(*map(Path, paths))
        return {
            "sem_seg": {"path": path, "read": "classes", "classes": self.classes},
            "depth": {"path": self._npy(image, "depth"), "read": "depth"},
        }


def _cityscapes(classes: int, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments with the names and colours of 7 or 19 classes."""
    of = {
        7: (names.CITYSCAPES_7, names.CITYSCAPES_7_COLOURS),
        19: (names.CITYSCAPES_19, names.CITYSCAPES_19_COLOURS),
    }
    if classes not in of:
        raise ValueError(f"classes: {classes!r} is not 7 or 19")
    given = dict(kwargs.get("metainfo") or {})
    if "classes" in given:
        raise ValueError("metainfo.classes: the names of Cityscapes follow from classes=7 or 19")
    named = {"classes": of[classes][0], "palette": of[classes][1]}
    return {**kwargs, "metainfo": {**named, **given}}
