"""Numbers of the report against the raw logs, and what is said of runs that lack something."""

from __future__ import annotations

import csv
import json
import math
import statistics

import pytest
from toy_runs import done, toy_run

from mtl_plugins.compare.columns import Column, choose
from mtl_plugins.compare.conflicts import conflicts
from mtl_plugins.compare.report import write_report
from mtl_plugins.compare.results import compare, found_metrics, read
from mtl_plugins.compare.runs import Status
from mtl_plugins.compare.tables import scores, tables
from mtl_plugins.compare.verdict import findings, sentences

TASKS = {"detection": ["loss_rpn_*", "loss_cls", "loss_bbox"], "mask": "loss_mask"}
BOX = {"sum": [0.301, 0.322, 0.310], "pcgrad": [0.312, 0.320, 0.335]}
MASK = {"sum": [0.201, 0.212, 0.207], "pcgrad": [0.212, 0.209, 0.221]}
ALONE = {"single_detection": [0.30, 0.31, 0.33], "single_mask": [0.20, 0.21, 0.19]}


def records(method: str, seed: int) -> list[dict[str, float]]:
    angles = {"sum": [95.0, 80.0, 100.0], "pcgrad": [85.0, 70.0, 60.0]}[method]
    return [
        {
            **{"lr": 0.1, "loss": 1.0, "time": 0.1 * (i + 1) + seed, "step": 10 * i + 10},
            "mtl/angle/detection|mask": angle,
            "mtl/gds": math.cos(math.radians(angle)),
        }
        for i, angle in enumerate(angles)
    ]


@pytest.fixture
def comparison(tmp_path):
    runs = []
    for seed in range(3):
        for name in ("sum", "pcgrad"):
            run = toy_run(tmp_path, name, seed)
            metrics = {"coco/bbox_mAP": BOX[name][seed], "coco/segm_mAP": MASK[name][seed]}
            done(run, {**metrics, "coco/bbox_mAP_50": 0.5, "time": 0.1}, records(name, seed))
            runs.append(run)
        for task, metric in (("detection", "bbox"), ("mask", "segm")):
            run = toy_run(tmp_path, f"single_{task}", seed)
            run = type(run)(**{**vars(run), "task": task})
            done(run, {f"coco/{metric}_mAP": ALONE[f"single_{task}"][seed]})
            runs.append(run)
    results = [read(run) for run in runs]
    return compare(results, choose(found_metrics(results), TASKS, []))


def test_table_equals_the_raw_logs(comparison):
    assert not comparison.problems
    assert comparison.columns == [
        Column("coco/bbox_mAP", "detection", False),
        Column("coco/segm_mAP", "mask", False),
    ]
    table = scores(comparison)
    rows = {row[0]: row[1:] for row in table.rows}
    for place, values in ((0, BOX), (1, MASK)):
        for method in ("sum", "pcgrad"):
            mean = statistics.fmean(values[method])
            error = statistics.stdev(values[method]) / math.sqrt(3)
            assert rows[method][place].startswith(f"{mean:.4g} ± {error:.2g}")
    box, mask = (statistics.fmean(values) for values in ALONE.values())
    deltas = [
        50 * ((b - box) / box + (m - mask) / mask)
        for b, m in zip(BOX["pcgrad"], MASK["pcgrad"], strict=True)
    ]
    assert rows["pcgrad"][2].startswith(f"{statistics.fmean(deltas):.4g} ± ")
    assert rows["tasks alone"][0].startswith(f"{box:.4g}")


def test_differences_equal_scipys_on_the_raw_logs(comparison):
    from scipy import stats

    found = {f.column.name: f for f in findings(comparison)}
    assert set(found) == {"coco/bbox_mAP", "coco/segm_mAP", "Δm"}
    expected = stats.ttest_rel(BOX["pcgrad"], BOX["sum"])
    assert found["coco/bbox_mAP"].difference.p == pytest.approx(expected.pvalue)
    assert not any(f.differs for f in found.values())
    assert any("no method differs from the plain sum" in s for s in sentences(comparison))
    shown = {table.title: table for table in tables(comparison)}["Differences from the plain sum"]
    (row,) = (row for row in shown.rows if row[1] == "coco/bbox_mAP")
    assert row[0] == "pcgrad" and row[2].startswith("+0.01133 ± ") and row[4] == "3"
    assert len(shown.rows) == 3 and all(len(said) < 300 for said in sentences(comparison))


def test_verdict_is_short_however_many_differences_there_are(tmp_path):
    results = []
    names = ["sum", *(f"method_{i}" for i in range(20))]
    for place, name in enumerate(names):
        for seed in range(3):
            run = toy_run(tmp_path, name, seed)
            values = {f"coco/{k}_mAP": 0.3 + 0.001 * ((7 * seed + place) % 5) for k in TASKS}
            done(run, {"coco/bbox_mAP": values["coco/mask_mAP"], "coco/segm_mAP": 0.2 + seed / 99})
            results.append(read(run))
    comparison = compare(results, choose(["coco/bbox_mAP", "coco/segm_mAP"], TASKS, []))
    assert sum(map(len, sentences(comparison))) < 500
    assert len(tables(comparison)[2].rows) == len(findings(comparison)) > 20


@pytest.mark.parametrize("name", ["loss", "mtl/loss/mask", "total_loss"])
def test_losses_that_are_not_finite_are_a_problem(name, tmp_path):
    """The scores of such a run may be finite all the same, of the weights of before."""
    runs = [toy_run(tmp_path, method) for method in ("sum", "pcgrad")]
    done(runs[0], {"coco/bbox_mAP": 0.3})
    losses = [1.0, math.nan, 0.5, math.inf]
    log = [{"lr": 0.1, "loss": 1.0, name: loss, "step": i} for i, loss in enumerate(losses, 1)]
    done(runs[1], {"coco/bbox_mAP": 0.3}, log)
    comparison = compare([read(run) for run in runs], choose(["coco/bbox_mAP"], TASKS, []))
    (problem,) = comparison.problems
    assert problem.startswith(f"{runs[1]}: diverged: 2 of 4 logged losses are not finite")
    assert "at iteration 2" in problem


def test_cost_and_conflicts_equal_the_raw_logs(comparison):
    by_title = {table.title: table for table in tables(comparison)}
    cost = {row[0]: row[1:] for row in by_title["Cost"].rows}
    # Median of 0.2 and 0.3, plus the seed; the first record is left out.
    assert cost["sum"][0].startswith("1.25 ± 0.58")
    matrix = by_title["Which tasks fight"].rows
    assert matrix[0] == ["detection", "", "67%"]
    cosines = [math.cos(math.radians(a)) for a in (95.0, 80.0, 100.0)]
    assert matrix[1] == ["mask", f"{statistics.fmean(cosines):+.3f}", ""]
    assert by_title["Do the measures predict the scores?"].rows[0] == ["coco/bbox_mAP", "1.00"]


def test_files_of_the_report(comparison, tmp_path):
    write_report(comparison, tmp_path, "mtl-compare x")
    page = (tmp_path / "report.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "")
    assert "<svg" in page and 'src="' not in page
    rows = list(csv.DictReader((tmp_path / "results.csv").open()))
    found = [float(r["coco/bbox_mAP"]) for r in rows if r["method"] == "pcgrad"]
    assert found == BOX["pcgrad"]
    data = json.loads((tmp_path / "results.json").read_text())
    assert data["verdict"] == sentences(comparison)
    assert "pcgrad" in (tmp_path / "report.md").read_text()


def test_a_real_difference_is_named(tmp_path):
    results = []
    for seed in range(6):
        noise = [0.0123, -0.0031, 0.0077, 0.0002, -0.0094, 0.0051][seed]
        for name, gain in (("sum", 0.0), ("pcgrad", 0.05), ("ista", -0.05)):
            run = toy_run(tmp_path, name, seed)
            done(run, {"coco/bbox_mAP": 0.3 + noise + gain + 0.0003 * seed * (gain > 0)})
            results.append(read(run))
    said = sentences(compare(results, choose(["coco/bbox_mAP"], TASKS, [])))
    assert said[0].startswith("pcgrad is better than the plain sum in coco/bbox_mAP")
    assert said[1].startswith("ista is worse than the plain sum in coco/bbox_mAP")


def test_one_seed_is_noise(tmp_path):
    results = []
    for name, value in (("sum", 0.3), ("pcgrad", 0.9)):
        run = toy_run(tmp_path, name)
        done(run, {"coco/bbox_mAP": value})
        results.append(read(run))
    (said,) = sentences(compare(results, choose(["coco/bbox_mAP"], TASKS, [])))
    assert said.startswith("One seed: no difference can be told from noise")


def test_a_metric_missing_in_one_run_leaves_the_others(tmp_path):
    runs = [toy_run(tmp_path, name, seed) for seed in range(2) for name in ("sum", "pcgrad")]
    for run in runs:
        done(run, {"coco/bbox_mAP": 0.3, "coco/segm_mAP": 0.2})
    (runs[1].path / "test.json").write_text(json.dumps({"coco/bbox_mAP": 0.3}))
    (runs[3].path / "test.json").write_text('{"coco/bbox_mAP": NaN, "coco/segm_mAP": 0.2}')
    results = [read(run) for run in runs]
    comparison = compare(results, choose(found_metrics(results), TASKS, []))
    assert len(comparison.problems) == 2
    assert "pcgrad, seed 0: has no finite coco/segm_mAP" in comparison.problems[0]
    box, mask = comparison.columns
    assert comparison.scores("pcgrad", box) == {0: 0.3}
    assert comparison.scores("pcgrad", mask) == {1: 0.2}
    assert comparison.scores("sum", box) == {0: 0.3, 1: 0.3}


def test_a_task_alone_with_other_metrics_says_so(tmp_path):
    runs = [toy_run(tmp_path, "sum"), toy_run(tmp_path, "single_mask")]
    runs[1] = type(runs[1])(**{**vars(runs[1]), "task": "mask"})
    done(runs[0], {"coco/bbox_mAP": 0.3, "coco/segm_mAP": 0.2})
    done(runs[1], {"seg/mIoU": 40.0})
    results = [read(run) for run in runs]
    comparison = compare(results, choose(found_metrics(results), TASKS, []))
    assert (
        "single_mask, seed 0: has no finite coco/segm_mAP (it has seg/mIoU)"
        in (comparison.problems[0])
    )
    assert comparison.delta is None and "no run of the baseline" in comparison.why_no_delta
    assert "There is no Δm" in scores(comparison).note


def test_a_baseline_of_zero_has_no_delta(tmp_path):
    runs = [toy_run(tmp_path, name) for name in ("sum", "pcgrad")]
    for run in runs:
        done(run, {"coco/bbox_mAP": 0.0})
    comparison = compare([read(r) for r in runs], choose(["coco/bbox_mAP"], TASKS, []))
    assert comparison.delta is None and "of the baseline is 0" in comparison.why_no_delta
    assert sentences(comparison)[0].startswith("coco/bbox_mAP is 0 in every run")


def test_an_iteration_without_a_task_is_no_conflict_and_no_agreement(tmp_path):
    run = toy_run(tmp_path, "ista")
    pair, loss = "mtl/angle/box|mask", "mtl/loss/mask"
    train = {"lr": 0.1, "time": 1.0}
    records = [
        {**train, pair: 90.0, loss: 0.0, "step": 1},
        {**train, pair: 120.0, loss: 0.5, "step": 2},
    ]
    done(run, {"coco/bbox_mAP": 0.1}, records)
    (found,) = conflicts([read(run)]).values()
    assert found.share == 1.0 and found.cosine == pytest.approx(-0.5)


def test_a_run_that_is_not_done_has_no_metrics(tmp_path):
    run = toy_run(tmp_path)
    done(run, {"coco/bbox_mAP": 0.3})
    Status(state="failed", error="train: exit code 1").write(run.path)
    result = read(run)
    assert not result.metrics and "failed. train: exit code 1" in result.problem


def finished(tmp_path, scores_of, losses_of=lambda name, seed: [2.0 + seed, 1.0]):
    """A comparison of runs with the metrics ``scores_of`` gives by name and seed."""
    results = []
    for seed in range(2):
        for name in ("sum", "pcgrad"):
            run = toy_run(tmp_path, name, seed)
            losses = enumerate(losses_of(name, seed), 1)
            log = [{"lr": 0.1, "loss": loss, "time": 0.1, "step": i} for i, loss in losses]
            done(run, scores_of(name, seed), log)
            results.append(read(run))
    return compare(results, choose(found_metrics(results), TASKS, []))


def test_a_metric_missing_in_the_first_run_keeps_its_column(tmp_path):
    def both(name, seed):
        found = {"coco/bbox_mAP": 0.3 + 0.1 * seed, "coco/segm_mAP": 0.2}
        return found if (name, seed) != ("sum", 0) else {"coco/bbox_mAP": 0.3}

    comparison = finished(tmp_path, both)
    assert [c.name for c in comparison.columns] == ["coco/bbox_mAP", "coco/segm_mAP"]
    assert "sum, seed 0: has no finite coco/segm_mAP" in comparison.problems[0]
    said = " ".join(sentences(comparison))
    assert "One seed in common with the plain sum, and so no test: 1 differences" in said
    assert "nan" not in said


def test_a_seed_without_effect_is_no_second_seed(tmp_path):
    """Two equal trainings have no spread, and would prove the smallest difference."""
    comparison = finished(
        tmp_path,
        lambda name, seed: {"coco/bbox_mAP": 0.31234567 if name == "sum" else 0.32345678},
        lambda name, seed: [2.0, 1.0],
    )
    assert all("trained exactly as" in problem for problem in comparison.problems)
    assert len(comparison.problems) == 2
    assert sentences(comparison)[0].startswith("One seed: no difference can be told from noise")


def test_a_method_without_a_seed_of_the_sum_is_named(tmp_path):
    comparison = finished(
        tmp_path, lambda name, seed: {"coco/bbox_mAP": 0.3 + 0.1 * seed} if name == "sum" else {}
    )
    said = sentences(comparison)
    assert said == ["No method can be compared with the plain sum: no seed of both is done."]


@pytest.mark.parametrize(
    ("name", "scale", "mark"),
    [("bbox/AP", 1.0, "–"), ("coco/bbox_mAP", 1.0, "↑"), ("seg/mIoU", 1.0, "–")],
)
def test_margin_is_in_the_unit_of_the_metric(name, scale, mark, tmp_path):
    """Half a percent is comparable, half of everything is not, however small the scores are."""
    comparison = finished(
        tmp_path, lambda method, seed: {name: scale * (0.6 + 0.1 * seed + 0.5 * (method != "sum"))}
    )
    row = next(row for row in scores(comparison).rows if row[0] == "pcgrad")
    assert mark in row[1]


def test_curves_are_of_runs_that_are_done_and_of_tasks_that_were_trained(tmp_path):
    run = toy_run(tmp_path, "ista")
    log = [
        {"lr": 0.1, "step": i, "mtl/loss/mask": loss, "mtl/loss/box": 1.0, "mtl/gds": gds}
        for i, (loss, gds) in enumerate([(0.5, 0.2), (0.0, 0.0), (0.4, 0.1)], 1)
    ]
    done(run, {"coco/bbox_mAP": 0.3}, log)
    result = read(run)
    assert result.curve("mtl/loss/mask") == {1: 0.5, 3: 0.4}
    assert result.curve("mtl/gds") == {1: 0.2, 3: 0.1}
    assert result.curve("mtl/loss/box") == {1: 1.0, 2: 1.0, 3: 1.0}
    assert result.done
    Status(state="running").write(run.path)
    assert not read(run).done
