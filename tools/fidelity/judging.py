"""Rows of a comparison with options of their own, and verdicts on claims about the rows."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from mtl_plugins.compare.command import report
from mtl_plugins.compare.experiments import Experiment
from mtl_plugins.compare.plan import BASELINE, plan
from mtl_plugins.compare.report import numbers
from mtl_plugins.compare.results import Comparison
from mtl_plugins.compare.runs import Run
from mtl_plugins.compare.statistics import ALPHA, holm, paired_difference


class Row(NamedTuple):
    """Row of a table beside the plain sum.

    Attributes:
        method: Argument of ``--mtl``.
        options: ``KEY=VALUE`` over the options of the comparison.
    """

    method: str
    options: Sequence[str] = ()


class Claim(NamedTuple):
    """One row is better than another.

    Attributes:
        text: Claim in words, with its source.
        better: Name of a row.
        worse: Name of a row.
    """

    text: str
    better: str
    worse: str = BASELINE


def schedule(iters: int) -> list[str]:
    """Return the options of a short training: its length, a test at its end, no checkpoint."""
    return [
        f"train_cfg.max_iters={iters}",
        f"train_cfg.val_interval={iters}",
        "param_scheduler.0.end=5",
        f"param_scheduler.1.T_max={iters}",
        "default_hooks.checkpoint.interval=100000",
        "default_hooks.checkpoint.save_last=False",
    ]


def runs_of(
    experiment: Experiment, rows: Mapping[str, Row], seeds: int, work_dir: Path
) -> list[Run]:
    """List the runs of the plain sum and of each row, seed by seed."""
    runs = []
    for run in plan(experiment, [], seeds, work_dir):
        runs.append(run)
        for name, row in rows.items():
            folder = str(work_dir / name.replace(" ", "_") / str(run.seed))
            options = (*run.options, *row.options)
            runs.append(replace(run, name=name, method=row.method, folder=folder, options=options))
    return runs


def judge(comparison: Comparison, claims: Sequence[Claim]) -> list[str]:
    """Judge claims by Δm, paired by seed, with Holm's correction for all of them.

    Returns:
        ``"holds"``, ``"does not hold"``, or that it cannot be decided, for each claim.
    """
    if comparison.delta is None:
        print(f"\nNo claim can be judged: {comparison.why_no_delta}")
        return ["not decidable here"] * len(claims)
    differences = []
    for claim in claims:
        scores = [comparison.scores(name, comparison.delta) for name in claim[1:]]
        seeds = sorted(scores[0].keys() & scores[1].keys())
        pairs = [[one[seed] for seed in seeds] for one in scores]
        differences.append(paired_difference(*pairs, step=0.0))
    adjusted = holm([difference.p for difference in differences])
    verdicts = []
    print("\n| claim | difference in Δm, points | p (Holm) | verdict |\n|---|---|---|---|")
    for claim, difference, p in zip(claims, differences, adjusted, strict=True):
        if p <= ALPHA:
            verdict = "holds" if difference.mean > 0.0 else "does not hold"
        else:
            way = "as claimed" if difference.mean > 0.0 else "against it"
            verdict = f"not decidable here ({way})"
        verdicts.append(verdict)
        spread = f"{difference.mean:+.1f} ± {difference.standard_error:.1f}"
        print(f"| {claim.text} | {spread} | {p:.2g} | {verdict} |")
    return verdicts


def write(comparison: Comparison, folder: Path, words: Sequence[str]) -> None:
    """Write and print the report of a comparison, and its numbers as small JSON.

    Args:
        comparison: Results.
        folder: Folder to write to.
        words: Command line that made them.
    """
    command = shlex.join(words)
    report(comparison, folder, command)
    found = numbers(comparison, command)
    keys = ("method", "seed", "state", "metrics", "seconds")
    found["runs"] = [{key: run[key] for key in keys} for run in found["runs"]]
    del found["against_sum"], found["verdict"]
    path = folder / f"{Path(words[1]).stem}.json"
    path.write_text(json.dumps(found, ensure_ascii=False).replace('{"method"', '\n{"method"'))
    print(f"Numbers: {path}")
