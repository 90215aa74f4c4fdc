"""Data sets of dense prediction: several labels at every pixel of an image."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal

from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS

from mtl_plugins.mm.datasets import dense_classes as names
from mtl_plugins.mm.structures import FIELDS, IGNORED
from mtl_plugins.mm.transforms.dense import read_file
from mtl_plugins.mm.transforms.dense_files import TRAIN_IDS

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


@DATASETS.register_module()
class CityscapesDenseDataset(MTANCityscapesDataset):
    """Cityscapes in its official folders, with 7 or 19 classes and disparity.

    Args:
        classes: 19, or 7 for their categories; pixels of no evaluated class have no category.
        depth: ``"disparity"`` in pixels of the full image, ``"metres"``, or ``"mtan"`` for
            ``p / 65535`` of the PNG's value p.
        **kwargs: Arguments of :class:`DenseDataset`.
    """

    METAINFO = {"classes": names.CITYSCAPES_19, "palette": names.CITYSCAPES_19_COLOURS}
    splits = ("train", "val", "test", "train_extra")
    root_variable = "CITYSCAPES_ROOT"
    layout = (
        "  leftImg8bit/{train,val}/<city>/<name>_leftImg8bit.png\n"
        "  gtFine/{train,val}/<city>/<name>_gtFine_labelIds.png (or ..._labelTrainIds.png)\n"
        "  disparity/{train,val}/<city>/<name>_disparity.png, 16 bits"
    )

    def __init__(
        self,
        *args: Any,
        classes: Literal[7, 19] = 19,
        depth: Literal["disparity", "metres", "mtan"] = "disparity",
        **kwargs: Any,
    ) -> None:
        if depth not in ("disparity", "metres", "mtan"):
            raise ValueError(f"depth: {depth!r} is not 'disparity', 'metres' or 'mtan'")
        self.depth = depth
        self.depth_kind = "metric" if depth == "metres" else "inverse"
        super().__init__(*args, classes=classes, **kwargs)

    def image_paths(self) -> list[Path]:
        """Return the images of every city, sorted."""
        folder = self.root / "leftImg8bit" / self.split
        paths = sorted(folder.glob("*/*_leftImg8bit.png"))
        if not paths:
            raise self._missing(f"there is no <city>/<name>_leftImg8bit.png in {str(folder)!r}")
        return paths

    def label_files(self, image: Path) -> Files:
        """Return the label map and the disparity of an image."""
        city, stem = image.parent.name, image.name.removesuffix("_leftImg8bit.png")
        fine = self.root / "gtFine" / self.split / city / f"{stem}_gtFine_labelIds.png"
        trained = fine.with_name(f"{stem}_gtFine_labelTrainIds.png")
        table = [int(i) for i in TRAIN_IDS]
        if trained.is_file() and not fine.is_file():
            fine, table = trained, list(range(256))
        if self.classes == 7:
            table = [names.CATEGORIES[i] if i < 19 else IGNORED for i in table]
        classes = {"path": str(fine), "table": table}
        disparity = {
            "path": str(self.root / "disparity" / self.split / city / f"{stem}_disparity.png")
        }
        return {
            "sem_seg": {**classes, "read": "classes", "classes": self.classes},
            "depth": {**disparity, "read": "depth", "scale": 1 / 65535}
            if self.depth == "mtan"
            else {**disparity, "read": "disparity", "inverse": self.depth == "disparity"},
        }


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
