"""Data sets of dense prediction: each layout from its files to the batch, and faults of files."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path
from typing import Any

import dense
import dense_files
import numpy as np
import pytest
import torch
from dense_files import HEIGHT, WIDTH, Truth
from mmengine.config import ConfigDict
from mmengine.runner import Runner
from mmseg.registry import DATASETS, MODELS
from PIL import Image

import mtl_plugins.mm.models  # noqa: F401
from mtl_plugins.mm.data_check import data_problem, unlabelled_task
from mtl_plugins.mm.datasets import (
    CityscapesDenseDataset,
    MTANCityscapesDataset,
    MTANNYUv2Dataset,
    NYUDMTDataset,
    PASCALMTDataset,
)
from mtl_plugins.mm.structures import FIELDS
from mtl_plugins.mm.test import main
from mtl_plugins.mm.thinning import thin
from mtl_plugins.mm.transforms.dense_files import PARTS, read_array, read_classes, stretches

PIPELINE = [{"type": "LoadMultiTask"}, {"type": "PackMultiTaskInputs"}]

pytestmark = pytest.mark.usefixtures("mmseg_scope")


def build(kind: type, root: Path, **options: Any) -> Any:
    config = {"type": kind.__name__, "data_root": str(root), "pipeline": PIPELINE, **options}
    return DATASETS.build(config)


def packed(item: dict[str, Any]) -> dict[str, np.ndarray]:
    """Labels by field in the shapes of files; also checks those of the contract."""
    labels = {}
    for name, field in FIELDS.items():
        if field.truth in item["data_samples"]:
            data = item["data_samples"].get(field.truth).data
            assert tuple(data.shape) == (field.channels, HEIGHT, WIDTH)
            dtype = {"classes": torch.int64, "binary": torch.uint8}.get(field.kind, torch.float32)
            assert data.dtype == dtype
            labels[name] = data.permute(1, 2, 0).numpy() if name == "normals" else data[0].numpy()
    return labels


def agree(found: dict[str, np.ndarray], wanted: Truth, tolerance: float = 1e-6) -> None:
    for name, label in found.items():
        np.testing.assert_allclose(label, wanted[name], atol=tolerance, err_msg=name)


# --- layouts ------------------------------------------------------------------------------------


def test_mtan_nyuv2(tmp_path: Path) -> None:
    drawn = dense_files.mtan(tmp_path)
    dataset = build(MTANNYUv2Dataset, tmp_path, split="val")
    assert len(dataset) == 11
    for item, wanted in zip(dataset, drawn, strict=True):
        labels = packed(item)
        assert set(labels) == {"sem_seg", "depth", "normals"}
        agree(labels, wanted)
        assert item["inputs"].dtype == torch.float32
        colours = item["inputs"].flip(0).permute(1, 2, 0).numpy()
        np.testing.assert_allclose(colours, wanted["img"] / np.float32(255), atol=1e-6)


def test_fields_of_one_task(tmp_path: Path) -> None:
    dense_files.mtan(tmp_path)
    (tmp_path / "train" / "normal" / "3.npy").unlink()
    dataset = build(MTANNYUv2Dataset, tmp_path, fields=["depth", "sem_seg"])
    assert set(packed(dataset[3])) == {"sem_seg", "depth"}
    with pytest.raises(ValueError, match=r"fields: \['edges'\].*sem_seg, depth, normals"):
        build(MTANNYUv2Dataset, tmp_path, fields=["edges"])
    with pytest.raises(ValueError, match="split: 'valid' is not one of 'train', 'val'"):
        build(MTANNYUv2Dataset, tmp_path, split="valid")


@pytest.mark.parametrize("classes", [7, 19])
@pytest.mark.parametrize("renamed", [False, True])
def test_mtan_cityscapes(tmp_path: Path, classes: int, renamed: bool) -> None:
    folder = "label" if renamed else f"label_{classes}"
    drawn = dense_files.mtan(tmp_path, classes, count=2, folder=folder)
    dataset = build(MTANCityscapesDataset, tmp_path, classes=classes)
    assert len(dataset.metainfo["classes"]) == len(dataset.metainfo["palette"]) == classes
    assert dataset.metainfo["label_map"] is None
    agree(packed(dataset[1]), drawn[1])
    assert dataset.get_data_info(0)["depth_kind"] == "inverse"


@pytest.mark.parametrize("png", [False, True])
def test_nyud_in_both_forms(tmp_path: Path, png: bool) -> None:
    drawn = dense_files.nyud(tmp_path, png)
    dataset = build(NYUDMTDataset, tmp_path)
    assert len(dataset) == 2 and len(dataset.metainfo["classes"]) == 40
    for item, wanted in zip(dataset, drawn.values(), strict=True):
        labels = packed(item)
        assert set(labels) == {"sem_seg", "depth", "normals", "edges"}
        agree(labels, wanted, tolerance=0.01 if png else 1e-6)  # 8 bits of a normal
        length = np.linalg.norm(labels["normals"], axis=2)
        known = wanted["normals"].any(2)
        np.testing.assert_allclose(length, known, atol=1e-6)


def test_pascal(tmp_path: Path) -> None:
    drawn = dense_files.pascal(tmp_path)
    dataset = build(PASCALMTDataset, tmp_path)
    first, second = (packed(item) for item in dataset)
    assert "human_parts" not in second  # no person
    parts = np.zeros((HEIGHT, WIDTH), int)
    parts[0:2, 5:7], parts[4:8, 4:6], parts[7, 7:9], parts[2:4, 4:8] = 1, 6, 6, 2
    np.testing.assert_array_equal(first.pop("human_parts"), parts)
    for labels, wanted in zip((first, second), drawn.values(), strict=True):
        edges = labels.pop("edges")
        # The map's segments meet between columns 5 and 6, rows 4 and 5, and rows 6 and 7.
        assert set(np.unique(edges)) == {0, 1}
        assert (edges[1:4, 5:7].sum(1) == 1).all() and not edges[:4, :5].any()
        assert not edges[:5, 7:].any() and (edges[6:8, 8:-1].sum(0) == 1).all()
        wanted["normals"][:, 6:] = 0  # sky, which NYUv2 lacks
        wanted["normals"][7] = 0  # unknown
        agree(labels, wanted, tolerance=0.01)


def test_pascal_for_parts_alone_lists_images_with_persons(tmp_path: Path) -> None:
    dense_files.pascal(tmp_path)
    dataset = build(PASCALMTDataset, tmp_path, fields=["human_parts"])
    assert len(dataset) == 1
    assert Path(dataset.get_data_info(0)["img_path"]).stem == "2008_000002"
    path = tmp_path / "human_parts" / "2008_000003.mat"
    dense_files.save_mat(path, {"anno": 3})
    with pytest.raises(ValueError, match=re.escape(f"{path}: human_parts ")):
        build(PASCALMTDataset, tmp_path, fields=["human_parts"])
    dense_files.save_mat(path, {"anno": dense_files.parts(person=False)})
    (tmp_path / "ImageSets" / "Context" / "train.txt").write_text("2008_000003\n")
    with pytest.raises(FileNotFoundError, match="'train' has no image with the labels human_parts"):
        build(PASCALMTDataset, tmp_path, fields=["human_parts"])


@pytest.mark.parametrize("train_ids", [False, True])
def test_cityscapes(tmp_path: Path, train_ids: bool) -> None:
    from cityscapesscripts.helpers.labels import id2label

    ids, values = dense_files.cityscapes(tmp_path, train_ids)
    labels = packed(build(CityscapesDenseDataset, tmp_path, split="val")[0])
    np.testing.assert_array_equal(labels["sem_seg"], dense_files.official_train_ids(ids))
    disparity = (values.astype(float) - 1) / 256
    disparity[0, 0] = 0
    np.testing.assert_allclose(labels["depth"], disparity, rtol=1e-6)

    seven = build(CityscapesDenseDataset, tmp_path, classes=7, depth="mtan")
    labels = packed(seven[0])
    categories = [
        id2label[i].categoryId - 1 if id2label[i].trainId < 19 else 255 for i in range(34)
    ]
    categories[0] = 255
    np.testing.assert_array_equal(labels["sem_seg"], np.array(categories)[ids])
    np.testing.assert_allclose(labels["depth"], values / 65535, rtol=1e-6)
    assert seven.metainfo["classes"][5] == "human"

    metres = packed(build(CityscapesDenseDataset, tmp_path, depth="metres")[0])["depth"]
    assert metres[0, :2].tolist() == [0, 0]  # unknown, and at infinity
    assert metres[0, 2] == pytest.approx(0.22 * 2262)  # a disparity of one pixel


# --- thinning -----------------------------------------------------------------------------------


def picture(text: str) -> np.ndarray:
    return np.array([[c == "#" for c in line] for line in text.split()])


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_classes_in_few_bits_are_those_that_are_stored(tmp_path: Path, bits: int) -> None:
    """Decoders stretch grey values, so that 1 of one bit is 255, which would be no class."""
    values = np.arange(35).reshape(5, 7) % 2**bits
    path = tmp_path / "map.png"
    path.write_bytes(dense_files.grey_png(values, bits))
    assert (read_classes(str(path), 40) == values).all()
    assert read_array(str(path)).max() == (255 if bits < 8 else 34)  # as a shade of grey
    assert stretches(str(path)) is (bits < 8)
    if bits == 1:
        Image.fromarray(values.astype(bool)).save(path)
        assert (read_classes(str(path), 2) == values).all()
        palette = Image.fromarray(values.astype(np.uint8), "P")
        palette.putpalette([9, 9, 9, 200, 0, 0])
        palette.save(path, bits=1)
        assert (read_classes(str(path), 2) == values).all() and not stretches(str(path))


def test_thinning_gives_scikit_image_s_published_example() -> None:
    block = picture(".#..... ..###.. ..###.. ..###.. ..###.. ..###.. .......")
    thinned = picture(".#..... ..#.... ...#... ...#... ...#... ....... .......")
    np.testing.assert_array_equal(thin(block), thinned)


def test_every_part_of_a_person_has_a_class() -> None:
    """The survey's six parts: head, torso, upper and lower arms, upper and lower legs."""
    classes = {
        1: "hair head lear rear lebrow rebrow leye reye mouth nose",
        2: "neck torso",
        3: "luarm ruarm",
        4: "llarm rlarm lhand rhand",
        5: "luleg ruleg",
        6: "llleg rlleg lfoot rfoot",
    }
    assert {name: n for n, words in classes.items() for name in words.split()} == PARTS


# --- malformed files ----------------------------------------------------------------------------


def nan(array: np.ndarray) -> np.ndarray:
    array[3, 3] = np.nan
    return array


def first(value: float) -> Any:
    def changed(array: np.ndarray) -> np.ndarray:
        array[3, 3] = value
        return array

    return changed


@pytest.mark.parametrize(
    ("folder", "change", "words"),
    [
        ("label", first(13), "sem_seg has the class 13; the classes are 0 to 12"),
        ("label", first(-2), "sem_seg has the class -2"),
        ("label", first(0.5), "sem_seg has values that are no whole numbers"),
        ("label", nan, "sem_seg has values that are no whole numbers"),
        ("label", lambda array: array[:, :-1], "sem_seg has the size 11 x 8, its image .* 12 x 8"),
        ("label", lambda array: array.T, "sem_seg has the size 8 x 12, its image .* 12 x 8"),
        ("label", lambda array: array[None], r"sem_seg has the shape \(1, 8, 12\)"),
        ("label", lambda array: array.astype(object), "sem_seg "),
        ("label", lambda array: array.astype(str), "sem_seg holds <U"),
        ("depth", first(-0.5), "depth has a negative depth, -0.5"),
        ("depth", lambda array: array[1:], "depth has the size 12 x 7"),
        ("normal", lambda array: array * 127, "normals has normals that are not of unit length"),
        ("normal", lambda array: array * 0.8, "normals has normals that are not of unit length"),
        ("normal", first(2), "normals has normals that are not of unit length"),
        ("normal", nan, "normals has normals that are not finite"),
        ("normal", lambda array: array.transpose(2, 0, 1), r"normals has the shape \(3, 8, 12\)"),
        ("image", lambda array: array.transpose(2, 0, 1), r"img has the shape \(3, 8, 12\)"),
        ("image", nan, "img has values that are not finite"),
    ],
)
def test_malformed_npy(tmp_path: Path, folder: str, change: Any, words: str) -> None:
    dense_files.mtan(tmp_path, count=2)
    path = tmp_path / "train" / folder / "1.npy"
    np.save(path, change(np.load(path)))
    dataset = build(MTANNYUv2Dataset, tmp_path)
    packed(dataset[0])
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}: {words}"):
        dataset[1]
    # Before the first step of training, the same is said with the key of the config.
    config = {"type": "MTANNYUv2Dataset", "data_root": str(tmp_path), "pipeline": PIPELINE}
    problem = data_problem({"train_dataloader": {"dataset": config}})
    assert problem is not None and problem.startswith("train_dataloader.dataset: ")
    assert re.search(f"{re.escape(str(path))}: {words}", problem)


def test_tolerated_npy(tmp_path: Path) -> None:
    """Depth that is no number is unknown, and a few interpolated normals get unit length."""
    drawn = dense_files.mtan(tmp_path, count=1)[0]
    for folder, change in (("depth", nan), ("label", first(255))):
        path = tmp_path / "train" / folder / "0.npy"
        np.save(path, change(np.load(path)))
    path = tmp_path / "train" / "normal" / "0.npy"
    normals = np.load(path)
    normals[3, 3] *= 0.6  # between two unit vectors
    normals[3, 4] *= 0.01  # nearly cancelled
    drawn["normals"][3, 5] = normals[3, 5] = np.sqrt([0.5, 0.5, 0]) * [1, -1, 0]  # the sum is 0
    np.save(path, normals)
    labels = packed(build(MTANNYUv2Dataset, tmp_path)[0])
    assert labels["depth"][3, 3] == 0 and labels["sem_seg"][3, 3] == 255
    drawn["depth"][3, 3], drawn["sem_seg"][3, 3], drawn["normals"][3, 4] = 0, 255, 0
    agree(labels, drawn)


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        (
            "segmentation/0002.png",
            np.full((8, 12), 41, np.uint8),
            "the class 41; .* 1 to 40, and 0",
        ),
        ("segmentation/0002.png", np.zeros((8, 12, 3), np.uint8), r"the shape \(8, 12, 3\)"),
        ("edge/0002.png", np.eye(8, 12, dtype=np.uint8), "at most 1; expected are 8 bits"),
        ("images/0002.png", b"no image", "img "),
        ("normals/0002.png", np.full((8, 12, 3), 255, np.uint8), "not of unit length"),
        ("depth/0002.npy", b"", "depth "),
    ],
)
def test_malformed_image(tmp_path: Path, file: str, content: Any, words: str) -> None:
    dense_files.nyud(tmp_path, png=True)
    if isinstance(content, bytes):
        (tmp_path / file).write_bytes(content)
    else:
        dense_files.save(tmp_path / file, content)
    with pytest.raises(ValueError, match=f"{re.escape(str(tmp_path / file))}: .*{words}"):
        build(NYUDMTDataset, tmp_path)[1]


@pytest.mark.parametrize(
    ("file", "content"),
    [("human_parts", {"anno": 3}), ("human_parts", {"parts": 3}), ("pascal-context/trainval", {})],
)
def test_malformed_mat(tmp_path: Path, file: str, content: Any) -> None:
    dense_files.pascal(tmp_path)
    path = tmp_path / file / "2008_000002.mat"
    dense_files.save_mat(path, content)
    with pytest.raises(ValueError, match=re.escape(str(path))):
        build(PASCALMTDataset, tmp_path, fields=["edges", "sem_seg", "human_parts"])[0]


# --- layouts with gaps --------------------------------------------------------------------------


WRITERS: dict[type, Any] = {
    MTANNYUv2Dataset: dense_files.mtan,
    MTANCityscapesDataset: lambda root: dense_files.mtan(root, 7, folder="label_7"),
    CityscapesDenseDataset: dense_files.cityscapes,
    NYUDMTDataset: lambda root: dense_files.nyud(root, png=True),
    PASCALMTDataset: dense_files.pascal,
}


@pytest.mark.parametrize("kind", WRITERS)
def test_every_missing_file_is_named_before_training(tmp_path: Path, kind: type) -> None:
    WRITERS[kind](tmp_path)
    config = {"type": f"mmseg.{kind.__name__}", "data_root": str(tmp_path), "pipeline": PIPELINE}
    loader = {"train_dataloader": {"dataset": config}}
    assert data_problem(loader) is None
    variable = kind.root_variable  # type: ignore[attr-defined]
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    files = {name for name in files if "val" not in Path(name).parts and "val.txt" not in name}
    for name in sorted(files):
        path, aside = tmp_path / name, tmp_path / "aside"
        path.rename(aside)
        problem = data_problem(loader)
        aside.rename(path)
        # Without one of MTAN's images there are fewer, with PASCAL's semseg in either folder.
        if kind in (MTANNYUv2Dataset, MTANCityscapesDataset) and name.endswith("image/10.npy"):
            assert problem is None
            continue
        if kind is CityscapesDenseDataset and "leftImg8bit" in name:
            assert "there is no <city>/<name>_leftImg8bit.png" in str(problem)
            continue
        assert problem is not None, name
        assert problem.startswith("train_dataloader.dataset.data_root: ")
        assert variable in problem and "{train,val}" in problem
        # Where one of two names would do, the first is named.
        either = name.startswith(("images", "edge", "normals/", "gtFine", "semseg"))
        assert (Path(name).name.split("_gtFine")[0].split(".")[0] if either else name) in problem
    config["data_root"] = str(tmp_path / "elsewhere")
    problem = data_problem(loader)
    assert problem is not None and "there is no folder" in problem and variable in problem
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        DATASETS.build(config)


def test_pipelines_that_move_only_the_image_are_refused(tmp_path: Path) -> None:
    dense_files.mtan(tmp_path, count=1)
    for step in (
        {"type": "RandomFlip", "prob": 0.5},
        {"type": "mmseg.RandomCrop", "crop_size": (4, 4)},
        {"type": "RandomApply", "transforms": [{"type": "Resize", "scale": (4, 4)}]},
        {"type": "PackSegInputs"},
    ):
        pipeline = [PIPELINE[0], {"type": "PhotoMetricDistortion"}, step]
        name = "Resize" if "transforms" in step else str(step["type"]).split(".")[-1]
        with pytest.raises(ValueError, match=rf"pipeline\[2\].*: {name} knows neither normals"):
            build(MTANNYUv2Dataset, tmp_path, pipeline=pipeline)
        config = {"type": "MTANNYUv2Dataset", "data_root": str(tmp_path), "pipeline": pipeline}
        problem = data_problem({"val_dataloader": {"dataset": config}})
        assert problem is not None and problem.startswith("val_dataloader.dataset: pipeline[2]")
    # The image alone may be resized before its labels are loaded; these stay as stored.
    pipeline = [
        {"type": "LoadMultiTask", "labels": False},
        {"type": "Resize", "scale": (6, 4)},
        {"type": "LoadMultiTask", "image": False},
        {"type": "PackMultiTaskInputs"},
    ]
    item = build(MTANNYUv2Dataset, tmp_path, pipeline=pipeline)[0]
    assert tuple(item["inputs"].shape) == (3, 4, 6)
    assert set(packed(item)) == {"sem_seg", "depth", "normals"}


def test_mmsegmentation_may_load_the_image(tmp_path: Path) -> None:
    drawn = dense_files.nyud(tmp_path, png=True)
    pipeline = [
        {"type": "LoadImageFromFile"},
        {"type": "LoadMultiTask", "image": False},
        {"type": "PhotoMetricDistortion"},
        {"type": "MTResize", "scale": (2 * WIDTH, 2 * HEIGHT)},
        {"type": "PackMultiTaskInputs"},
    ]
    item = build(NYUDMTDataset, tmp_path, pipeline=pipeline)[0]
    assert tuple(item["inputs"].shape) == (3, 2 * HEIGHT, 2 * WIDTH)
    labels = item["data_samples"].gt_sem_seg.data[0].numpy()
    np.testing.assert_array_equal(labels, drawn["0001"]["sem_seg"].repeat(2, 0).repeat(2, 1))


def test_a_wrong_option_is_named_with_its_key(tmp_path: Path) -> None:
    dense_files.mtan(tmp_path, count=1)
    config = {"type": "MTANCityscapesDataset", "data_root": str(tmp_path), "pipeline": PIPELINE}
    for option, words in (
        ({"classes": 8}, "classes: 8 is not 7 or 19"),
        ({"metainfo": {"classes": ("road",)}}, "metainfo.classes: "),
        ({"splitt": "val"}, ".*unexpected keyword argument 'splitt'"),
        ({"fields": "depth"}, "fields: 'depth' is not a list of labels"),
    ):
        problem = data_problem({"train_dataloader": {"dataset": {**config, **option}}})
        assert problem is not None and re.match(f"train_dataloader.dataset: {words}", problem)


def test_colour_jitter_of_floating_point_images_is_named(tmp_path: Path) -> None:
    dense_files.mtan(tmp_path, count=1)
    pipeline = [PIPELINE[0], {"type": "PhotoMetricDistortion"}, PIPELINE[1]]
    config = {"type": "MTANNYUv2Dataset", "data_root": str(tmp_path), "pipeline": pipeline}
    problem = data_problem({"train_dataloader": {"dataset": config}})
    assert problem is not None
    assert problem.startswith("train_dataloader.dataset.pipeline: PhotoMetricDistortion takes")
    path = tmp_path / "train" / "image" / "0.npy"
    np.save(path, (255 * np.load(path)).astype(np.uint8))
    assert data_problem({"train_dataloader": {"dataset": config}}) is None


def test_fewer_classes(tmp_path: Path) -> None:
    drawn = dense_files.mtan(tmp_path, count=1)[0]["sem_seg"]
    dataset = build(MTANNYUv2Dataset, tmp_path, metainfo={"classes": ("chair", "bed")})
    wanted = np.full_like(drawn, 255)
    wanted[drawn == 3], wanted[drawn == 0] = 0, 1
    np.testing.assert_array_equal(packed(dataset[0])["sem_seg"], wanted)
    assert len(dataset.metainfo["palette"]) == 2


# --- as a user runs it --------------------------------------------------------------------------


def test_the_command_names_the_missing_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dense_files.pascal(tmp_path)
    tool = Path(__file__).parents[2] / "tools" / "check_dense_data.py"
    monkeypatch.setattr(sys, "argv", [str(tool), "--layout", "pascal", str(tmp_path)])
    runpy.run_path(str(tool), run_name="__main__")
    assert "val: every file is there" in capsys.readouterr().out
    (tmp_path / "sal_distill" / "2008_000003.png").unlink()
    with pytest.raises(SystemExit, match="train.data_root: .*sal_distill/2008_000003.png"):
        runpy.run_path(str(tool), run_name="__main__")


def test_mmsegmentation_trains_and_tests_on_it(tmp_path: Path) -> None:
    """MMSegmentation's own segmentor and metric take the data set as it is."""
    dense_files.mtan(tmp_path / "data", count=4)
    sizes = {"type": "MTResize", "scale": (24, 16)}
    train = [PIPELINE[0], {"type": "MTRandomScaleCrop"}, {"type": "MTRandomFlip", "prob": 0.5}]
    train += [sizes, PIPELINE[1]]
    test = [{"type": "LoadMultiTask", "labels": False}, sizes]
    test += [{"type": "LoadMultiTask", "image": False}, PIPELINE[1]]

    def loader(split: str, pipeline: list[Any]) -> dict[str, Any]:
        dataset = {"type": "MTANNYUv2Dataset", "data_root": str(tmp_path / "data"), "split": split}
        return {
            "batch_size": 2,
            "num_workers": 0,
            "sampler": {"type": "DefaultSampler", "shuffle": False},
            "dataset": {**dataset, "pipeline": pipeline},
        }

    first_stage = {"type": "ResNetV1c", "num_stages": 1, "out_indices": (0,)}
    first_stage |= {"strides": (1,), "dilations": (1,), "norm_cfg": {"type": "BN"}}
    head = {
        "type": "FCNHead",
        "in_index": 0,
        "in_channels": 8,
        "channels": 8,
        "num_convs": 1,
        "num_classes": 13,
    }
    runner = Runner(
        model={
            "type": "EncoderDecoder",
            "data_preprocessor": {"type": "SegDataPreProcessor", "size_divisor": 8},
            "backbone": {**first_stage, "depth": 18, "base_channels": 8, "stem_channels": 8},
            "decode_head": {**head, "norm_cfg": {"type": "BN"}},
            "test_cfg": ConfigDict(mode="whole"),
        },
        work_dir=str(tmp_path / "work"),
        train_dataloader=loader("train", train),
        val_dataloader=loader("val", test),
        train_cfg={"by_epoch": True, "max_epochs": 1},
        val_cfg={},
        val_evaluator={"type": "IoUMetric"},
        optim_wrapper={"optimizer": {"type": "SGD", "lr": 0.01}},
        default_scope="mmseg",
        experiment_name="dense",
    )
    runner.train()
    assert runner.iter == 2
    measured = runner.val_loop.run()
    assert 0 < measured["aAcc"] <= 100


@pytest.mark.parametrize(
    "setting",
    [
        {"reduce_zero_label": True},
        {"ignore_index": 0},
        {"ann_file": "some.txt"},
        {"img_suffix": ".png"},
        {"seg_map_suffix": "_ids.png"},
        {"data_prefix": {"img_path": "images"}},
        {"backend_args": {"backend": "http"}},
    ],
)
def test_an_argument_that_the_layout_would_ignore_is_refused(
    tmp_path: Path, setting: dict[str, Any]
) -> None:
    dense_files.nyud(tmp_path, png=False)
    with pytest.raises(ValueError, match=f"{next(iter(setting))}: .* has no effect on NYUD"):
        build(NYUDMTDataset, tmp_path, **setting)
    assert len(build(NYUDMTDataset, tmp_path, reduce_zero_label=False, ignore_index=255)) == 2


def test_a_selection_of_classes_maps_semantic_segmentation_alone(tmp_path: Path) -> None:
    dense_files.nyud(tmp_path, png=False)
    whole = build(NYUDMTDataset, tmp_path)
    names = whole.metainfo["classes"]
    some = build(NYUDMTDataset, tmp_path, metainfo={"classes": [names[7], names[2]]})
    truth = whole[0]["data_samples"].gt_sem_seg.data
    expected = torch.full_like(truth, 255)
    expected[truth == 7], expected[truth == 2] = 0, 1
    assert torch.equal(some[0]["data_samples"].gt_sem_seg.data, expected)
    root = tmp_path / "pascal"
    root.mkdir()
    dense_files.pascal(root)
    with pytest.raises(ValueError, match=r"metainfo\.human_parts_classes: .*'head'"):
        build(PASCALMTDataset, root, metainfo={"human_parts_classes": ("head", "rest")})


def test_labels_lie_over_the_stored_pixels_of_a_jpeg(tmp_path: Path) -> None:
    """An orientation from the camera would turn the image, but not its labels."""
    dense_files.nyud(tmp_path, png=False)
    path = tmp_path / "images" / "0001.jpg"
    image = Image.open(path)
    orientation = image.getexif()
    orientation[0x0112] = 3  # upside down
    image.save(path, exif=orientation, quality=100, subsampling=0)
    stored = np.array(Image.open(path)).astype(int)  # Pillow does not turn

    def off(image: torch.Tensor, truth: np.ndarray) -> float:
        return float(np.abs(image.numpy()[::-1].transpose(1, 2, 0).astype(int) - truth).mean())

    data = build(NYUDMTDataset, tmp_path)
    assert off(data[0]["inputs"], stored) < 2 < off(data[0]["inputs"], stored[::-1, ::-1])
    unlabelled = data.pipeline({"img_path": str(path)})["inputs"]
    assert off(unlabelled, stored[::-1, ::-1]) < 2


def test_padding_of_a_test_pipeline_is_told_to_the_model(tmp_path: Path) -> None:
    dense_files.nyud(tmp_path, png=False)
    pads = [{"type": "MTPad", "size": (HEIGHT + 1, WIDTH)}, {"type": "MTPad", "size": (HEIGHT, 20)}]
    image, labels = {"type": "LoadMultiTask", "labels": False}, PIPELINE[0] | {"image": False}
    data = build(NYUDMTDataset, tmp_path, pipeline=[image, *pads, labels, PIPELINE[1]])
    item = data[0]
    assert item["inputs"].shape[1:] == (HEIGHT + 1, 20)
    assert item["data_samples"].padding_size == [0, 20 - WIDTH, 0, 1]
    assert item["data_samples"].gt_depth_map.data.shape[1:] == (HEIGHT, WIDTH)


def test_a_head_without_labels_in_any_data_set_is_named(tmp_path: Path) -> None:
    dense_files.nyud(tmp_path, png=False)
    model = MODELS.build(dense.config("seg", "depth", "normals"))
    one = {"type": "NYUDMTDataset", "data_root": str(tmp_path), "pipeline": PIPELINE}
    sets = [one | {"fields": [name]} for name in ("sem_seg", "depth")]
    both = {"type": "ConcatDataset", "datasets": sets}
    joined = DATASETS.build({"type": "RepeatDataset", "dataset": both, "times": 2})
    problem = unlabelled_task(model, joined, "train_dataloader.dataset")
    assert problem is not None and problem.startswith("model.heads.normals: nothing would train it")
    assert "has no 'normals', but depth, sem_seg" in problem
    whole = DATASETS.build({"type": "ConcatDataset", "datasets": [sets[0], one]})
    assert unlabelled_task(model, whole, "train_dataloader.dataset") is None
    assert unlabelled_task(model, [0], "train_dataloader.dataset") is None


def test_a_run_stops_before_a_head_stays_untrained(tmp_path: Path) -> None:
    dense_files.nyud(tmp_path, png=False)
    dataset = {"type": "NYUDMTDataset", "data_root": str(tmp_path), "pipeline": PIPELINE}
    runner = Runner(
        model=dense.config("depth", "normals"),
        work_dir=str(tmp_path / "work"),
        train_dataloader={
            "batch_size": 2,
            "sampler": {"type": "InfiniteSampler"},
            "dataset": dataset | {"fields": ["depth"]},
        },
        train_cfg={"type": "IterBasedTrainLoop", "max_iters": 1},
        optim_wrapper={
            "type": "MTLOptimWrapper",
            "tasks": {"depth": "depth.*", "normals": "normals.*"},
            "aggregator": {"type": "Sum"},
            "optimizer": {"type": "SGD", "lr": 0.01},
        },
        default_scope="mmseg",
        experiment_name="unlabelled_head",
    )
    with pytest.raises(ValueError, match=r"^model\.heads\.normals: nothing would train it"):
        runner.train()


def test_the_test_script_says_that_it_saves_for_one_metric_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MMSegmentation's script would end in a TypeError about indices of a list."""
    config = tmp_path / "config.py"
    metrics = "test_evaluator = [dict(type='DenseIoUMetric'), dict(type='DenseDepthMetric')]"
    config.write_text(f"default_scope = 'mmseg'\n{metrics}\n", "utf-8")
    monkeypatch.setattr(sys, "argv", ["mtl-test", str(config), "some.pth", "--out", "folder"])
    with pytest.raises(SystemExit, match="--out: .*DumpResults"):
        main()
