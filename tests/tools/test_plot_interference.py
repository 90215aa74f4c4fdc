"""The plots of task interference: what is read, what is computed, and what the page says."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from analysis.plot_interference import main
from interference.curves import correlation_of_trends, relative, thin
from interference.panels import ANGLES, CURVES
from interference.picture import draw
from interference.reading import labels, read_curves
from interference.training import draw_losses, draw_priorities, draw_trends
from matplotlib.colors import to_hex
from matplotlib.image import imread

from mtl_plugins.compare.figures import smooth

Record = dict[str, Any]


def write(run: Path, records: Iterable[Record], start: str = "20260101_000000") -> Path:
    """One start of a run, as MMEngine logs it: between the hook's lines there are others."""
    file = run / start / "vis_data" / "scalars.json"
    file.parent.mkdir(parents=True)
    lines = [json.dumps(r) + "\n" + json.dumps({"loss": 1.0, "step": r["step"]}) for r in records]
    file.write_text("\n".join(lines) + "\n")
    return file


def record(step: int, tasks: Iterable[str] = ("box", "mask"), value: float = 0.5) -> Record:
    """All that the hook may write."""
    tasks = list(tasks)
    measures = {f"mtl/{name}": value for name in ("gds", "gms", "fd")}
    for task in tasks:
        measures |= {f"mtl/loss/{task}": 2.0 * value, f"mtl/weight/{task}": 4.0 * value}
    angles = {f"mtl/angle/{a}|{b}": 80.0 for a, b in combinations(tasks, 2)}
    return {**measures, **angles, "mtl/fallbacks": 1, "step": step}


def curve(values: Iterable[float], interval: int = 1) -> tuple[np.ndarray, np.ndarray]:
    array = np.array(list(values), dtype=float)
    return interval * np.arange(1, len(array) + 1), array


class Page(HTMLParser):
    """What a page refers to, and the cells of its tables."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.rows: list[list[str]] = []
        self.cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [v or "" for k, v in attrs if k.split(":")[-1] in ("href", "src")]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.cell = True

    def handle_endtag(self, tag: str) -> None:
        self.cell = self.cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self.cell:
            self.rows[-1][-1] += data


class TestSmooth:
    def test_a_constant_stays(self):
        np.testing.assert_allclose(smooth(np.full(73, -1.7)), -1.7)

    def test_a_line_stays_where_the_window_fits(self):
        values = np.linspace(3.0, -5.0, 200)
        np.testing.assert_allclose(smooth(values)[10:-10], values[10:-10])

    @pytest.mark.parametrize("length", [20, 75, 400])
    def test_a_peak_spreads_over_a_tenth(self, length):
        smoothed = smooth(np.eye(length)[length // 2])
        assert smoothed.sum() == pytest.approx(1.0)
        assert abs(np.count_nonzero(smoothed) - length / 10) <= 1
        assert np.ptp(smoothed[smoothed > 0]) == pytest.approx(0.0, abs=1e-12)

    def test_few_values_stay_as_they_are(self):
        np.testing.assert_array_equal(smooth(np.array([1.0, 5.0, -2.0])), [1.0, 5.0, -2.0])

    def test_a_gap_stays_and_does_not_spread(self):
        values = np.ones(100)
        values[40] = np.nan
        np.testing.assert_allclose(smooth(values), values)


class TestRelative:
    noise = np.random.default_rng(0).uniform(1.0, 2.0, 100)

    @pytest.mark.parametrize(("ratio", "same"), [(False, 0.0), (True, 1.0)])
    def test_to_itself(self, ratio, same):
        steps, values = curve(self.noise)
        _, found = relative((steps, smooth(values)), (steps, values), ratio)
        np.testing.assert_allclose(found, same, atol=1e-12)

    def test_other_iterations_are_interpolated_over_the_common_range(self):
        run = np.array([5, 10, 25, 40, 45]), np.full(5, 60.0)
        baseline = np.array([10, 20, 30, 40]), np.array([10.0, 20.0, 30.0, 40.0])
        _, difference = relative(run, baseline, ratio=False)
        _, ratio = relative(run, baseline, ratio=True)
        np.testing.assert_allclose(difference, [np.nan, 50.0, 35.0, 20.0, np.nan])
        np.testing.assert_allclose(ratio, [np.nan, 6.0, 2.4, 1.5, np.nan])

    def test_the_baseline_is_smoothed_and_the_run_is_not(self):
        steps, values = curve(self.noise)
        _, found = relative((steps, values), (steps, values), ratio=False)
        np.testing.assert_allclose(found, values - smooth(values))

    def test_gaps(self):
        run = np.array([1, 2, 3]), np.array([5.0, np.nan, 5.0])
        baseline = np.array([1, 2, 3]), np.array([1.0, 2.0, 0.0])
        _, found = relative(run, baseline, ratio=True)
        np.testing.assert_array_equal(found, [5.0, np.nan, np.nan])


class TestRead:
    def test_steps_and_values_of_known_scalars(self, tmp_path):
        write(tmp_path, [record(10, value=0.25), record(20, value=0.75)])
        curves = read_curves(tmp_path)
        assert set(curves) == set(record(1)) - {"step", "mtl/fallbacks"}
        assert [x.tolist() for x in curves["mtl/gds"]] == [[10, 20], [0.25, 0.75]]
        assert [x.tolist() for x in curves["mtl/loss/mask"]] == [[10, 20], [0.5, 1.5]]

    def test_resumes_follow_each_other_and_the_later_one_wins(self, tmp_path):
        """The first was killed at 50 and resumed from 20, that one at 40 and resumed from 30."""
        for start, steps in enumerate([(10, 20, 30, 40, 50), (30, 40), (35,)]):
            records = [{"mtl/gds": float(start), "step": step} for step in steps]
            write(tmp_path, records, f"2026010{start + 1}_000000")
        steps, values = read_curves(tmp_path)["mtl/gds"]
        assert steps.tolist() == [10, 20, 30, 35]
        assert values.tolist() == [0.0, 0.0, 1.0, 2.0]

    def test_detectron2_goes_on_in_one_file_and_counts_from_0(self, tmp_path):
        """Killed after 60 iterations and resumed from the checkpoint of 30."""
        steps = (19, 39, 59, 39, 49)
        lines = [{"mtl/gds": float(i), "iteration": step} for i, step in enumerate(steps)]
        lines.insert(2, {"bbox/AP": math.nan, "iteration": 40})
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / "metrics.json").write_text(text)
        steps, values = read_curves(tmp_path)["mtl/gds"]
        assert steps.tolist() == [20, 40, 50]
        assert values.tolist() == [0.0, 3.0, 4.0]

    def test_a_start_without_scalars_of_the_hook_changes_nothing(self, tmp_path):
        write(tmp_path, [record(10)])
        other = tmp_path / "20260102_000000" / "vis_data" / "scalars.json"
        other.parent.mkdir(parents=True)
        other.write_text('{"coco/bbox_mAP": 0.3, "step": 0}\n')
        assert read_curves(tmp_path)["mtl/gds"][0].tolist() == [10]

    def test_what_a_kill_left_of_the_last_line_is_skipped(self, tmp_path):
        file = write(tmp_path, [record(10), record(20)])
        file.write_text(file.read_text() + json.dumps(record(30))[:-20])
        assert read_curves(tmp_path)["mtl/gds"][0].tolist() == [10, 20]

    def test_another_broken_line_is_an_error(self, tmp_path):
        file = write(tmp_path, [record(10), record(20)])
        file.write_text('{"mtl/gds": 0.\n' + file.read_text())
        with pytest.raises(SystemExit, match=r"scalars.json, line 1: expected JSON"):
            read_curves(tmp_path)

    def test_what_is_not_finite_is_a_gap(self, tmp_path):
        values = [0.5, math.nan, math.inf, 0.25]
        records = [{"mtl/gds": v, "mtl/fd": math.nan, "step": i} for i, v in enumerate(values)]
        write(tmp_path, records)
        curves = read_curves(tmp_path)
        np.testing.assert_array_equal(curves["mtl/gds"][1], [0.5, np.nan, np.nan, 0.25])
        assert "mtl/fd" not in curves

    def test_no_log(self, tmp_path):
        with pytest.raises(SystemExit, match=f"{tmp_path}: no .*scalars.json in it"):
            read_curves(tmp_path)

    def test_no_scalars_of_the_hook(self, tmp_path):
        write(tmp_path, [{"loss_cls": 1.0, "mtl/fallbacks": 2, "step": 10}])
        with pytest.raises(SystemExit, match=f"{tmp_path}: no mtl/ scalars .*TaskInterferenceHook"):
            read_curves(tmp_path)


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        (["work/a", "work/b/"], ["a", "b"]),
        (["x/run", "y/run", "y/other"], ["x/run", "y/run", "other"]),
        (["x/r50/run", "y/r50/run", "z/run"], ["x/r50/run", "y/r50/run", "z/run"]),
        (["x/run", "x/../y/run"], ["x/run", "y/run"]),
    ],
)
def test_labels_are_as_long_as_it_takes(runs, expected):
    assert labels([Path(run) for run in runs]) == expected


def test_a_thin_curve_keeps_its_shape_and_its_end():
    steps, values = curve(np.linspace(0.0, 1.0, 12345))
    thin_steps, thin_values = thin((steps, values))
    assert 100 < len(thin_steps) <= 200
    assert (thin_steps[-1], thin_values[-1]) == (steps[-1], values[-1])
    np.testing.assert_array_equal(np.interp(thin_steps, steps, values), thin_values)
    assert np.ptp(np.diff(thin_steps)) == 0


class TestCorrelationOfTrends:
    line = np.linspace(1.0, 0.0, 100)

    @pytest.mark.parametrize(("factor", "expected"), [(3.0, 1.0), (-0.5, -1.0)])
    def test_two_lines(self, factor, expected):
        steps, found = correlation_of_trends(curve(self.line), curve(factor * self.line + 2.0))
        assert steps.tolist() == list(range(1, 101))
        there = np.isfinite(found)
        assert there.sum() == 80  # half a window is missing at each end
        np.testing.assert_allclose(found[there], expected)

    def test_window_by_window(self):
        """Each value is Pearson's of the smoothed curves in the fifth around it."""
        a, b = np.random.default_rng(0).normal(size=(2, 50)).cumsum(1)
        _, found = correlation_of_trends(curve(a), curve(b))
        for i in (10, 25, 40):
            x, y = (smooth(values)[i - 5 : i + 6] for values in (a, b))
            x, y = x - x.mean(), y - y.mean()
            expected = (x * y).sum() / math.sqrt((x**2).sum() * (y**2).sum())
            assert found[i] == pytest.approx(expected)

    def test_common_iterations_gaps_and_what_does_not_move(self):
        a = np.array([2, 4, 6, 8]), np.array([1.0, 2.0, 3.0, 4.0])
        b = np.array([4, 6, 8, 9]), np.array([1.0, 2.0, 4.0, 9.0])
        steps, found = correlation_of_trends(a, b)
        assert steps.tolist() == [4, 6, 8] and found[1] == pytest.approx(0.98198, abs=1e-5)
        _, still = correlation_of_trends(a, (a[0], np.ones(4)))
        assert np.isnan(still).all()
        _, gap = correlation_of_trends(a, (a[0], np.array([1.0, np.nan, 2.0, 3.0])))
        assert np.isnan(gap).all()


class TestTraining:
    """The pictures of paper D."""

    def test_losses_at_the_end_and_their_mean(self, tmp_path):
        def run(a: float, b: float) -> dict[str, Any]:
            ends = {"mtl/loss/a": a, "mtl/loss/b": b}
            return {name: curve([9.0] * 18 + [end, end]) for name, end in ends.items()}

        more = {"mtl/loss/a": curve([5.0])}
        figure = draw_losses(
            {"x": run(1.0, 3.0), "y": run(2.0, 2.5), "z": more}, tmp_path / "x.png"
        )
        heights = {
            axis.get_title(): [bar.get_height() for bar in axis.patches] for axis in figure.axes
        }
        assert heights == {"a": [1.0, 2.0, 5.0], "b": [3.0, 2.5], "mean of the tasks": [2.0, 2.25]}
        assert [text.get_text() for text in figure.legends[0].get_texts()] == ["x", "y", "z"]

    def test_trends_of_each_pair(self, tmp_path):
        down, up = np.linspace(1, 0, 60), np.linspace(0, 1, 60)
        losses = {"a": down, "b": 2 * down, "c": up}
        run = {f"mtl/loss/{task}": curve(values) for task, values in losses.items()}
        (axis,) = draw_trends({"x": run}, tmp_path / "x.png").axes
        *lines, zero = axis.lines
        ends = [float(np.nanmean(line.get_ydata())) for line in lines]
        np.testing.assert_allclose(ends, [1.0, -1.0, -1.0])
        texts = [text.get_text() for text in axis.figure.legends[0].get_texts()]
        assert texts == ["x", "a and b", "a and c", "b and c"]

    def test_priorities_are_stacked_to_all_channels(self, tmp_path):
        shares = {"a": np.linspace(0.2, 0.4, 30), "b": np.linspace(0.8, 0.6, 30)}
        run = {f"mtl/top_channels/{task}": curve(values) for task, values in shares.items()}
        runs = {"x": run, "y": {"mtl/gds": curve([0.1])}, "z": run}
        figure = draw_priorities(runs, tmp_path / "x.png")
        assert [axis.get_title() for axis in figure.axes] == ["x", "z"]
        for axis in figure.axes:
            tops = [area.get_paths()[0].vertices[:, 1].max() for area in axis.collections]
            np.testing.assert_allclose(tops, [40.0, 100.0], atol=2.0)

    @pytest.mark.parametrize(
        "name", ["top_channels_{}", "mtl/top_channels_{}", "mtl/top_channels/{}"]
    )
    def test_priorities_in_a_log(self, name, tmp_path):
        shares = {name.format(task): value for task, value in (("a", 0.25), ("my_b", 0.75))}
        write(tmp_path / "run", [record(i) | shares for i in range(1, 9)])
        curves = read_curves(tmp_path / "run")
        assert curves["mtl/top_channels/a"][1].tolist() == [0.25] * 8
        assert curves["mtl/top_channels/my_b"][1].tolist() == [0.75] * 8
        main([str(tmp_path / "run"), "--out", str(tmp_path / "x.png")])
        names = {path.name for path in tmp_path.glob("x*")}
        pictures = {"x.png", "x-losses.png", "x-trends.png", "x-priorities.png"}
        assert names == pictures | {"x.html"}
        page = (tmp_path / "x.html").read_text(encoding="utf-8")
        assert page.count("<svg") == 4 and "Do the losses fall together?" in page

    def test_only_what_there_is(self, tmp_path, capsys):
        write(tmp_path / "one", [{"mtl/loss/a": 1.0, "step": 1}])
        main([str(tmp_path / "one"), "--out", str(tmp_path / "x.png")])
        assert {p.name for p in tmp_path.glob("x*")} == {"x.png", "x-losses.png", "x.html"}
        assert "x-losses.png and " in capsys.readouterr().out
        write(tmp_path / "two", [{"mtl/gds": 1.0, "step": 1}])
        main([str(tmp_path / "two"), "--out", str(tmp_path / "y.png")])
        assert {p.name for p in tmp_path.glob("y*")} == {"y.png", "y.html"}


class TestPicture:
    def test_only_panels_with_data_three_in_a_row(self, tmp_path):
        curves = {panel.scalars: curve([0.1, 0.2]) for panel in CURVES[:3]}
        curves |= {"mtl/loss/a": curve([1.0]), "mtl/angle/a|b": curve([80.0])}
        figure = draw({"run": {"mtl/gds": curve([0.1])}, "other": curves}, tmp_path / "x.png")
        titles = [axis.get_title() for axis in figure.axes]
        assert titles == [panel.title for panel in (*CURVES[:4], ANGLES)]
        assert len({round(axis.get_position().y0, 3) for axis in figure.axes}) == 2
        picture = imread(tmp_path / "x.png")
        assert picture.shape[0] > 300 and picture.shape[1] > 600 and np.ptp(picture[..., :3]) > 0.5

    def test_the_baseline_is_a_dashed_line(self, tmp_path):
        runs = {
            "sum": {"mtl/gms": curve([0.5] * 9), "mtl/loss/a": curve([2.0] * 9)},
            "new": {"mtl/gms": curve([0.7] * 9), "mtl/loss/a": curve([3.0] * 9)},
        }
        figure = draw(runs, tmp_path / "x.png", baseline="sum")
        for axis, base, value in zip(figure.axes, (0.0, 1.0), (0.2, 1.5), strict=True):
            dashed, smoothed, logged = axis.lines
            assert dashed.get_linestyle() == "--"
            np.testing.assert_allclose(dashed.get_ydata(), base)
            np.testing.assert_allclose(smoothed.get_ydata(), value)
            np.testing.assert_allclose(logged.get_ydata(), value)
            assert logged.get_alpha() < 0.5 and logged.zorder < smoothed.zorder
            assert dashed.get_color() != smoothed.get_color() == logged.get_color()
            assert "baseline" in axis.get_ylabel()

    def test_a_panel_that_the_baseline_lacks_is_drawn_as_it_is(self, tmp_path):
        runs = {"sum": {"mtl/gds": curve([0.1])}, "new": {"mtl/fd": curve([0.4] * 9)}}
        gds, fd = draw(runs, tmp_path / "x.png", baseline="sum").axes
        assert "baseline" in gds.get_ylabel() and "baseline" not in fd.get_ylabel()
        np.testing.assert_allclose(fd.lines[0].get_ydata(), 0.4)

    def test_angles_of_all_pairs_are_one_density_a_run(self, tmp_path):
        pairs = {"mtl/angle/a|b": curve([10.0] * 3), "mtl/angle/a|c": curve([170.0, np.nan])}
        runs = {"sum": pairs, "new": {"mtl/angle/a|b": curve([91.0])}}
        (axis,) = draw(runs, tmp_path / "x.png", baseline="sum").axes
        assert axis.get_xlim() == (0.0, 180.0)
        assert [line.get_xdata()[0] for line in axis.lines] == [90.0]
        outlines = {to_hex(patch.get_edgecolor()): patch.get_xy() for patch in axis.patches}
        assert len(outlines) == 2
        areas = []
        for x, y in (outline.T for outline in outlines.values()):
            width, height = np.diff(x), y[1:]
            low = (width * height)[x[1:] <= 90.0].sum()
            areas.append((low, (width * height).sum()))
        np.testing.assert_allclose(sorted(areas), [(0.0, 1.0), (0.75, 1.0)], atol=1e-9)

    def test_one_legend_beside_the_panels_for_ten_runs_and_seven_tasks(self, tmp_path):
        tasks = [f"task {i}" for i in range(7)]
        runs = {
            f"work_dirs/run {i}": {f"mtl/loss/{task}": curve([1.0, i]) for task in tasks}
            for i in range(10)
        }
        figure = draw(runs, tmp_path / "x.png")
        (legend,) = figure.legends
        texts = [text.get_text() for text in legend.get_texts()]
        assert set(runs) | set(tasks) <= set(texts)
        lines = dict(zip(texts, legend.get_lines(), strict=True))
        assert len({lines[run].get_color() for run in runs}) == 10
        # get_linestyle calls every dash pattern "--"
        styles = {str((lines[task].get_linestyle(), lines[task]._dash_pattern)) for task in tasks}
        assert len(styles) == 7
        box = legend.get_window_extent()
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1
        assert not any(axis.get_tightbbox().overlaps(box) for axis in figure.axes)
        assert all(axis.get_legend() is None for axis in figure.axes)

    def test_more_runs_than_colours(self, tmp_path):
        runs = {f"run {i}": {"mtl/gds": curve([0.1, i])} for i in range(12)}
        (axis,) = draw(runs, tmp_path / "x.png").axes
        assert len({to_hex(line.get_color()) for line in axis.lines}) == 12


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def page(root: Path) -> str:
    """Means of the last tenth, GDS: 0.25 of the baseline, 0.375 of the other run."""
    base = [record(i, value=0.25 if i > 18 else -1.0) for i in range(1, 21)]
    other = [record(i, ["box", "mask", "<depth>"], 0.375) for i in range(1, 21)]
    write(root / "sum", base)
    write(root / "a<b>", other)
    out = root / "plots" / "tasks.png"
    runs = [str(root / name) for name in ("sum", "a<b>")]
    main([*runs, "--baseline", "sum", "--out", str(out)])
    assert imread(out).ndim == 3
    return out.with_suffix(".html").read_text(encoding="utf-8")


class TestCommand:
    def test_the_page_needs_nothing_but_itself(self, page):
        found = Page(page)
        assert "svg" in found.tags and not found.tags & {"script", "link", "iframe"}
        assert found.links  # marks and clips of the picture
        assert all(link.startswith(("#", "data:image/png;base64,")) for link in found.links)
        assert "@import" not in page
        assert not re.search(r"url\((?!#)", page)
        outside = {url for url in re.findall(r"https?://[^\"<\s]+", page) if "w3.org" not in url}
        assert not outside
        assert len(page) < 1_000_000

    def test_the_picture_keeps_its_text(self, page):
        for text in ("iteration", ANGLES.title, "sum (baseline)", "a&lt;b&gt;", "&lt;depth&gt;"):
            assert re.search(f"<text[^>]*>{re.escape(text)}</text>", page), text

    def test_numbers(self, page):
        rows = {row[0]: row[1:] for row in Page(page).rows}
        assert [name.split()[1] for name in rows["measure"]] == ["sum", "a<b>"]

        def numbers(cell: str) -> list[float]:
            return [float(x) for x in re.findall(r"[-+]?\d[\d.e+-]*", cell)]

        base, other = rows["Gradient direction similarity (GDS)"]
        assert numbers(base) == [0.25] and numbers(other) == [0.375, 0.125]
        base, other = rows["Task losses: mask"]
        assert numbers(base) == [0.5] and numbers(other) == [0.75, 0.25]
        base, other = rows["Task weights: box"]
        assert numbers(base) == [1.0] and numbers(other) == [1.5, 0.5]
        base, other = rows["Task losses: <depth>"]
        assert numbers(base) == [] and numbers(other) == [0.75]
        base, other = rows[ANGLES.title]
        assert numbers(base) == [80.0] and numbers(other) == [80.0, 0.0]

    def test_runs_and_their_folders(self, page, root):
        rows = Page(page).rows
        assert any("sum (baseline)" in row[0] and row[1] == str(root / "sum") for row in rows)
        assert any("a<b>" in row[0] and row[1:] == [str(root / "a<b>"), "1 – 20"] for row in rows)

    def test_every_panel_is_explained_and_no_other(self, page, tmp_path):
        assert all(panel.reading in page for panel in (*CURVES, ANGLES))
        # The baseline has no third task.
        assert page.count("which is the dashed line at 0") == 3
        assert page.count("Drawn as it is, because sum lacks some of it") == 2
        write(tmp_path / "few", [{"mtl/gds": 0.5, "step": 1}])
        main([str(tmp_path / "few"), "--out", str(tmp_path / "few.png")])
        page = (tmp_path / "few.html").read_text(encoding="utf-8")
        assert [panel.scalars for panel in (*CURVES, ANGLES) if panel.reading in page] == [
            "mtl/gds"
        ]
        assert "baseline" not in page

    def test_a_long_training_gives_a_small_page(self, tmp_path):
        rng = np.random.default_rng(0)
        for run in "abcd":
            records = (record(i, value=value) for i, value in enumerate(rng.uniform(size=2000)))
            write(tmp_path / run, records)
        main([*(str(tmp_path / run) for run in "abcd"), "--out", str(tmp_path / "x.png")])
        assert (tmp_path / "x.html").stat().st_size < 1_000_000

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["a", "b", "--baseline", "c"], "--baseline: no run is called 'c'; .* 'a', 'b'"),
            (["a", "x/../a"], "RUN: .* is given twice"),
            (["a", "nowhere"], "nowhere: no .*scalars.json"),
            (["a", "--out", "plot.pdf"], r"--out: .* \.png, got 'plot.pdf'"),
            (["a", "b", "--baseline", "a"], "'a' has the iterations 1 to 2 and 'b' 7 to 8"),
        ],
    )
    def test_bad_input(self, arguments, message, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        write(tmp_path / "a", [record(1), record(2)])
        write(tmp_path / "b", [record(7), record(8)])
        with pytest.raises(SystemExit, match=message):
            main(arguments)
        assert not list(tmp_path.glob("*.png")) and not list(tmp_path.glob("*.html"))
