"""Data sets of dense prediction: each layout from its files to the batch, and faults of files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dense_files
import numpy as np
import pytest
import torch
from dense_files import HEIGHT, WIDTH, Truth
from mmseg.registry import DATASETS

import mtl_plugins.mm.transforms  # noqa: F401
from mtl_plugins.mm.datasets import (
    CityscapesDenseDataset,
    MTANCityscapesDataset,
    MTANNYUv2Dataset,
    NYUDMTDataset,
    PASCALMTDataset,
)
from mtl_plugins.mm.structures import FIELDS

PIPELINE = [{"type": "mmseg.LoadMultiTask"}, {"type": "mmseg.PackMultiTaskInputs"}]


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
