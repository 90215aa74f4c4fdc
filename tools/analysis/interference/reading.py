"""Logs of MMEngine and Detectron2, as curves."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from .curves import Curves
from .panels import PANELS, PRIORITIES, TOP, names_of


def labels(runs: Sequence[Path]) -> list[str]:
    """Name the runs by their folders, with as many folders above as tell the runs apart.

    Raises:
        SystemExit: A run is given twice.
    """
    parts = [Path(os.path.abspath(run)).parts for run in runs]
    found = []
    for run, own in zip(runs, parts, strict=True):
        if parts.count(own) > 1:
            raise SystemExit(f"RUN: {run} is given twice")
        ends = (own[-length:] for length in range(1, len(own) + 1))
        end = next(e for e in ends if sum(other[-len(e) :] == e for other in parts) == 1)
        found.append(str(Path(*end)))
    return found


def scalars_files(run: Path) -> list[Path]:
    """Find the scalar logs of a work directory, oldest first.

    MMEngine begins a new log at each start and resume, Detectron2 goes on with the old one.

    Raises:
        SystemExit: There is no log.
    """
    files = sorted(run.glob("*/vis_data/scalars.json")) or list(run.glob("metrics.json"))
    if not files:
        raise SystemExit(
            f"{run}: no */vis_data/scalars.json in it and no metrics.json; is it the work_dir (in "
            "Detectron2, OUTPUT_DIR) of a run?"
        )
    return files


def scalars_file(run: Path) -> Path:
    """Find the newest scalar log of a work directory."""
    return scalars_files(run)[-1]


def read_records(file: Path) -> list[tuple[int, dict[str, float]]]:
    """Read the iterations of a log, each with the scalars that the hook wrote.

    Raises:
        SystemExit: A line is no JSON; only the last may be cut short, by a kill.
    """
    records = []
    lines = file.read_text(errors="replace").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise SystemExit(f"{file}, line {number}: expected JSON, found {error}") from None
            continue
        scalars = {name: value for name, value in record.items() if name.startswith("mtl/")}
        # ConnectionStrength's, for each task.
        for name in [name for name in record if TOP in name]:
            scalars[f"mtl/{TOP}/{name.split(TOP)[1][1:]}"] = record[name]
        if scalars:
            # Detectron2 counts from 0.
            step = record["step"] if "step" in record else record["iteration"] + 1
            records.append((step, scalars))
    return records


def read_curves(run: Path) -> Curves:
    """Read the curve of every scalar of the hook, through all resumes of the run.

    Raises:
        SystemExit: There is no log, or the hook wrote nothing to it.
    """
    points: dict[str, dict[int, float]] = {}
    last = -1
    for step, scalars in chain.from_iterable(map(read_records, scalars_files(run))):
        if step <= last:
            # Drop the steps after the checkpoint that the run was resumed from.
            points = {
                name: {s: value for s, value in curve.items() if s < step}
                for name, curve in points.items()
            }
        for name, value in scalars.items():
            points.setdefault(name, {})[step] = value
        last = step
    curves = {}
    for name in [name for panel in (*PANELS, PRIORITIES) for name in names_of(panel, points)]:
        curve = sorted(points[name].items())
        steps, values = np.array(curve, dtype=float).reshape(-1, 2).T
        there = np.isfinite(values)
        if there.any():
            curves[name] = steps.astype(int), np.where(there, values, np.nan)
    if not curves:
        raise SystemExit(
            f"{run}: no mtl/ scalars in it; add TaskInterferenceHook to custom_hooks "
            "(in Detectron2, set MTL.MONITOR.INTERVAL)"
        )
    return curves


def span(curves: Curves) -> tuple[int, int]:
    """Find the first and the last iteration."""
    steps = np.concatenate([steps for steps, _ in curves.values()])
    return int(steps.min()), int(steps.max())
