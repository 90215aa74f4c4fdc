"""Base of the data sets of dense prediction: the files of a folder, found and checked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from mmseg.datasets import BaseSegDataset

from mtl_plugins.mm.structures import FIELDS, IGNORED

Files = dict[str, dict[str, Any]]
"""Label files of an image by field: ``path``, ``read`` (the kind of file), and its options."""

# Transforms of OpenMMLab that move no pixel. All others would move the image without its labels.
_STAYING = {
    *("LoadImageFromFile", "LoadMultiTask", "PackMultiTaskInputs", "PhotoMetricDistortion"),
    *("CLAHE", "RGB2Gray", "Rerange", "AdjustGamma", "RandomGrayscale", "Normalize"),
    *("RandomApply", "RandomChoice", "Compose", "LoadImageFromNDArray"),
}

# Arguments of BaseSegDataset for other layouts, and the values without effect.
_FIXED = {"ann_file": "", "img_suffix": ".jpg", "seg_map_suffix": ".png", "data_prefix": {}} | {
    "reduce_zero_label": False,
    "ignore_index": IGNORED,
    "backend_args": None,
}


class DenseDataset(BaseSegDataset):
    """Images with several labels per pixel, of a folder whose layout a subclass knows.

    Args:
        data_root: Folder of the data set.
        split: Name of the part of the data set, as its folder or list calls it.
        fields: Names of the labels to use, of those in ``available``; None for all.
        check: Whether to make sure that every file is there. About a second per ten thousand files.
        **kwargs: Other arguments of ``BaseSegDataset``, such as ``pipeline`` and ``metainfo``.

    Attributes:
        available: Names of the labels that the data set has.
        layout: Description of the folder, for messages.
        root_variable: Environment variable from which our configs read ``data_root``.
        depth_kind: ``"metric"`` or ``"inverse"``, by which transforms scale depth; None without
            depth.

    Raises:
        ValueError: ``split`` or ``fields`` names something that the data set lacks, an argument of
            ``BaseSegDataset`` contradicts the layout, or a transform of the pipeline moves the
            image without all of its labels.
        FileNotFoundError: A folder, list or file is missing.
    """

    available: ClassVar[tuple[str, ...]]
    splits: ClassVar[tuple[str, ...]] = ("train", "val")
    layout: ClassVar[str]
    root_variable: ClassVar[str]
    depth_kind: str | None = None

    def __init__(
        self,
        data_root: str,
        split: str = "train",
        fields: Sequence[str] | None = None,
        check: bool = True,
        **kwargs: Any,
    ) -> None:
        if split not in self.splits:
            raise ValueError(f"split: {split!r} is not one of {', '.join(map(repr, self.splits))}")
        fields = self.available if fields is None else fields
        unknown = [name for name in fields if name not in self.available]
        if isinstance(fields, str) or unknown or not fields:
            raise ValueError(
                f"fields: {fields!r} is not a list of labels of {type(self).__name__}, which has "
                f"{', '.join(self.available)}"
            )
        for name, own in _FIXED.items():
            if kwargs.get(name, own) != own:
                raise ValueError(
                    f"{name}: {kwargs[name]!r} has no effect on {type(self).__name__}, whose files "
                    f"follow from data_root and split, with {IGNORED} for unknown classes; leave "
                    "it out"
                )
        for name, own in self.METAINFO.items():
            given = (kwargs.get("metainfo") or {}).get(name, own)
            if name.endswith("_classes") and tuple(given) != tuple(own):
                raise ValueError(
                    f"metainfo.{name}: {type(self).__name__} has {tuple(own)}, got {given!r}; only "
                    "'classes' can be a selection"
                )
        self.split = split
        self.fields = tuple(name for name in FIELDS if name in fields)
        self.check = check
        self.root = Path(data_root or ".")
        super().__init__(data_root=data_root, **{"data_prefix": {}, **kwargs})
        _no_moves(self.pipeline.transforms, "pipeline")

    def image_paths(self) -> list[Path]:
        """Return the path of each image, in order, whether it is there or not.

        Raises:
            FileNotFoundError: There is no list of images, or no image.
        """
        raise NotImplementedError

    def label_files(self, image: Path) -> Files:
        """Return the label files of an image, at least those of ``fields``.

        Args:
            image: Path of the image.
        """
        raise NotImplementedError

    def layout_problem(self) -> str | None:
        """Look for missing files of the data set.

        Returns:
            Words that name what is missing, the layout and the environment variable; None if all
            is there.
        """
        try:
            self._found()
        except FileNotFoundError as error:
            return str(error)
        return None

    def load_data_list(self) -> list[dict[str, Any]]:
        """Return the paths of every image and its labels, see :class:`DenseDataset`."""
        infos = []
        for image, files in self._found():
            info: dict[str, Any] = {
                "img_path": str(image),
                "label_files": files,
                "label_map": self.label_map,
                "reduce_zero_label": False,
                "seg_fields": [],
                "depth_kind": self.depth_kind,
            }
            if "sem_seg" in files:
                info["seg_map_path"] = files["sem_seg"]["path"]
            infos.append(info)
        return infos

    def _found(self) -> list[tuple[Path, Files]]:
        """Return images and their label files, all of which exist."""
        if not self.root.is_dir():
            raise self._missing(f"there is no folder {str(self.root)!r}")
        found, missing = [], []
        for image in self.image_paths():
            every = self.label_files(image)
            files = {name: every[name] for name in self.fields if name in every}
            found.append((image, files))
            if self.check:
                needed = [
                    file[key] for file in files.values() for key in ("path", "only") if key in file
                ]
                missing += [path for path in map(Path, [image, *needed]) if not path.is_file()]
        if not found:
            raise self._missing(
                f"the split {self.split!r} has no image with the labels {', '.join(self.fields)}"
            )
        if missing:
            raise self._missing(
                f"{len(missing)} files of the split {self.split!r} are missing, the first is "
                f"{str(missing[0])!r}"
            )
        return found

    def _missing(self, what: str) -> FileNotFoundError:
        return FileNotFoundError(
            f"{what}. {type(self).__name__} expects in data_root ({self.root_variable} in our "
            f"configs):\n{self.layout}"
        )

    def _listed(self, path: Path) -> list[str]:
        """Return the lines of a file that are not blank."""
        if not path.is_file():
            raise self._missing(f"there is no list {str(path)!r}")
        return [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]

    def _either(self, *paths: Path) -> str:
        """Return the first path that exists, or else the first."""
        return str(next((path for path in paths if path.is_file()), paths[0]))


def _no_moves(transforms: Iterable[Any], key: str, loaded: bool = False) -> bool:
    """Refuse transforms of OpenMMLab that move the image's pixels without those of all labels.

    Args:
        transforms: Built transforms.
        key: Config key of ``transforms``.
        loaded: Whether the labels are loaded by then.

    Returns:
        Whether the labels are loaded after the transforms.
    """
    for i, transform in enumerate(transforms):
        name, home = type(transform).__name__, type(transform).__module__
        at = f"{key}[{i}]"
        if name == "LoadMultiTask":
            loaded |= transform.labels
        elif loaded and home.startswith(("mmcv.", "mmseg.", "mmdet.")) and name not in _STAYING:
            raise ValueError(
                f"{at}: {name} knows neither normals, parts nor saliency, and fills depth with "
                "255; valid are the MT... transforms of mtl_plugins.mm.transforms"
            )
        inner = getattr(transform, "transforms", None)
        inner = getattr(inner, "transforms", inner)  # a Compose
        if isinstance(inner, (list, tuple)):
            loaded = _no_moves(inner, f"{at}.transforms", loaded)
    return loaded
