"""Claims of the papers: the arithmetic of those that need no training, tiny runs of the others."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from analysis.two_objectives import descend
from fidelity import allocation, angles, pareto, pseudo_labels, teachers, uoais
from fidelity.delta_m import rows_of
from fidelity.judging import Claim, judge
from fidelity.mclgs import COSINES, STEPS, standstill, weight
from fidelity.published import C_TABLE_1, TABLES
from mmseg.utils import bdd100k_classes
from PIL import Image
from scipy import stats

from mtl_plugins.aggregation import MCLGS, build_aggregator

# Rows whose printed Δm does not follow from the printed metrics, in docs/fidelity.md.
WRONG_IN_PRINT = {
    ("B Table 4, Mask R-CNN on Cityscapes", "STA"),
    ("B Table 4, Mask R-CNN on Cityscapes", "ISTA"),
    ("D Table 1, NYUD-v2", "Phase 2 (Table 4)"),
    ("D Table 1, NYUD-v2", "Mix (Table 4)"),
    ("D Table 3, Cityscapes", "GD + Recon"),
    ("D Table 3, Cityscapes", "Connection strength"),
}
ROWS = [(table.name, row) for table in TABLES for row in rows_of(table)]


@pytest.mark.parametrize(("table", "row"), ROWS, ids=[f"{t}-{row.name}" for t, row in ROWS])
def test_published_delta_m(table, row):
    assert row.holds == ((table, row.name) not in WRONG_IN_PRINT)
    assert row.lowest < row.computed < row.highest
    if table != "D Table 3, Cityscapes":  # its errors have three digits
        assert row.highest - row.lowest < 0.2


@pytest.mark.parametrize("a0", [20.0, 120.0])
@pytest.mark.parametrize("r_t", [0.5, 1.0, 2.0])
def test_mclgs_waits_for_conflicts_and_ends_as_the_mean(a0, r_t):
    """The closed form of the standstill against the method's own weights, step by step."""
    method = MCLGS(a0=a0, r_t=r_t, total_steps=STEPS)
    for cosine in COSINES:
        below = [weight(cosine, method, step / STEPS) < 0.5 for step in range(0, STEPS, 5)]
        assert sum(below) / len(below) == pytest.approx(standstill(cosine, a0, r_t), abs=0.006)
        assert below == sorted(below, reverse=True)
        if r_t <= 1.0:
            assert weight(cosine, method, 1.0) == 1.0


def test_paper_c_in_print():
    """Table 2 is the relative change of Table 1, which is rounded, and so is it."""
    for method, mean in (("mgda", 14.3), ("gradvac", -13.9), ("imtl", -7.4), ("pcgrad", -1.4)):
        change = C_TABLE_1[f"{method}+feature"][0] / C_TABLE_1[method][0] - 1.0
        assert 100.0 * change == pytest.approx(mean, abs=0.4)
    assert {len(row) for row in C_TABLE_1.values()} == {6}


def test_verdicts():
    scores = {"a": [3.0, 3.1, 3.3], "b": [1.0, 1.2, 1.2], "c": [2.9, 3.3, 3.1]}
    comparison = SimpleNamespace(
        delta=object(), scores=lambda name, _: dict(enumerate(scores[name]))
    )
    pairs = (("a", "b"), ("b", "a"), ("a", "c"))
    p = [stats.ttest_rel(scores[x], scores[y]).pvalue for x, y in pairs]
    assert 3 * p[0] < 0.05 < p[2]
    verdicts = judge(comparison, [Claim(f"{x} over {y}", x, y) for x, y in pairs])
    assert verdicts == ["holds", "does not hold", "not decidable here (as claimed)"]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    teachers.draw_scenes(folder, 12, 2)
    return folder


def labels(derived: Path, source: str) -> list[tuple[list[tuple[int, list[int]]], np.ndarray]]:
    """Read the pseudo labels of each image: classes with boxes, and the map."""
    coco = json.loads((derived / f"pseudo/{source}.json").read_text())
    found = []
    for image in coco["images"]:
        boxes = [
            (a["category_id"], a["bbox"])
            for a in coco["annotations"]
            if a["image_id"] == image["id"]
        ]
        name = Path(image["file_name"]).with_suffix(".png")
        found.append((boxes, np.array(Image.open(derived / "pseudo" / source / name))))
    return found


def test_teachers_are_right_or_about_the_next_image(
    scenes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("BDD100K_ROOT", "BDD100K_DERIVED"):
        monkeypatch.setenv(name, "")  # to be restored
    for wrong in (0.0, 0.5, 1.0):
        teachers.teach(scenes, wrong)
    coco = json.loads((scenes / "scenes_derived/det_train.json").read_text())
    names = {c["id"]: c["name"] for c in coco["categories"]} | {1: "person"}
    for source in teachers.SOURCES:
        right = labels(scenes / "derived_0", source)
        for boxes, classes in right:  # drawn apart, the two kinds of labels are of one scene
            assert boxes
            for category, (x, y, w, h) in boxes:
                assert bdd100k_classes().index(names[category]) in classes[y : y + h, x : x + w]
        half, all_wrong = (labels(scenes / f"derived_{w}", source) for w in ("0.5", "1"))
        for i in range(len(right)):
            after = right[(i + 1) % len(right)]
            np.testing.assert_equal(all_wrong[i], after)
            np.testing.assert_equal(half[i], after if i % 2 else right[i])


TINY = ["--seeds", "1", "--iters", "2", "--images", "4", "2"]


def test_uoais(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    for name in ("METAGRASPNET_ROOT", "METAGRASPNET_DERIVED"):
        monkeypatch.setenv(name, "")
    methods = ["--mtl", "mgda", "mgda+feature"]
    uoais.main(["--work-dir", str(tmp_path), "--before", "1", *methods, *TINY])
    said = capsys.readouterr().out
    assert "Arrows of C Table 1 found here: " in said and " of 12; by chance" in said
    found = json.loads((tmp_path / "uoais.json").read_text())
    assert [run["method"] for run in found["runs"]] == ["sum", "mgda", "mgda+feature"]
    assert all(len(run["metrics"]) >= 6 for run in found["runs"])
    assert "load_from" in (tmp_path / "mgda/0/uoais_tiny.py").read_text()


def test_allocation(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CITYSCAPES_MTAN_ROOT", "")
    few = {name: allocation.rows(2)[name] for name in ("FT+", "gap 2")}
    monkeypatch.setattr(allocation, "rows", lambda iters: few)
    claim = Claim("gap 2 over FT+", "gap 2", "FT+")
    monkeypatch.setattr(allocation, "CLAIMS", [claim])
    allocation.main(["--work-dir", str(tmp_path), *TINY])
    assert "| gap 2 over FT+ | " in capsys.readouterr().out
    config = (tmp_path / "gap_2/0/segnet-small_cityscapes-7.py").read_text()
    assert "max_iters=4" in config and "gap=2" in config
    assert "max_iters=2" in (tmp_path / "sum/0/segnet-small_cityscapes-7.py").read_text()


def test_pseudo_labels(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    for name in ("BDD100K_ROOT", "BDD100K_DERIVED"):
        monkeypatch.setenv(name, "")
    monkeypatch.setattr(pseudo_labels, "METHODS", ["mclgs"])
    monkeypatch.setattr(pseudo_labels, "CLAIMS", pseudo_labels.CLAIMS[:1])
    pseudo_labels.main(["--work-dir", str(tmp_path), "--steps", "2", *TINY])
    assert "segmentation: wrong labels agree less" in capsys.readouterr().out
    cosines = json.loads((tmp_path / "cosines.json").read_text())
    assert all(-1.0 <= c <= 1.0 for both in cosines.values() for one in both for c in one)


def test_angles(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    for name in ("BDD100K_ROOT", "BDD100K_DERIVED"):
        monkeypatch.setenv(name, "")
    model = "FCOS + semantic, BDD100K"
    few = ["--models", model, "--seeds", "1", "--steps", "2", "--images", "8"]
    angles.main(["--work-dir", str(tmp_path), *few])
    assert f"{model}: STA turns tasks towards 90° (fig. 1): " in capsys.readouterr().out
    found = json.loads((tmp_path / "angles.json").read_text())[model]
    assert all(0.0 < one[0][0] < 90.0 and 0.0 < one[1][0] < 180.0 for one in found.values())


def test_pareto(tmp_path: Path, capsys: pytest.CaptureFixture):
    out = tmp_path / "ends.json"
    pareto.main(["--speed", "5000", "--out", str(out)])
    assert capsys.readouterr().out.count("hold") == len(pareto.CLAIMS)
    assert json.loads(out.read_text()).keys() == pareto.SETTINGS.keys()
    # The loop written out is the loop of PyTorch's Adam with the whole step.
    setting, start = pareto.SETTINGS["CAGrad"], (-8.5, -5.0)  # no valley, where digits decide
    for name in ("Sum", "MGDA", "PCGrad", "CAGrad"):
        options = setting.arguments.get(name, {})
        whole = descend(name, start, 500, 1e-2, 0.1, **options)[-1]
        method = build_aggregator({"type": name} | options)
        assert pareto.walk(method, start, 500, 1e-2, 0.1) == pytest.approx(whole, abs=1e-3)
    # The optimum of the mean, in the middle of the Pareto set, by hand.
    assert pareto.is_best((0.0, -8.36)) and not pareto.is_best((1.0, -8.36))
    ends = [(0.0, -8.36), (-7.0, -8.4), (-5.0, 3.0)]
    assert pareto.reached(ends) == 2
    assert pareto.lean(ends, pareto.SECOND) and not pareto.balanced(ends)
