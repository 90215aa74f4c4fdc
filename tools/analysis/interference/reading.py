"""Logs of MMEngine and Detectron2, as curves."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mtl_plugins.compare.logs import Log, LogError

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


def read_curves(run: Path) -> Curves:
    """Read the curve of every scalar of the hook, through all resumes of the run.

    Raises:
        SystemExit: There is no log, or the hook wrote nothing to it.
    """
    try:
        points = Log(run).training
    except LogError as error:
        raise SystemExit(str(error)) from error
    # ConnectionStrength's, for each task.
    for name in [name for name in points if TOP in name]:
        points[f"mtl/{TOP}/{name.split(TOP)[1][1:]}"] = points[name]
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
