"""Compare methods on a config over seeds: runs, table, report and verdict in one command.

    mtl-compare CONFIG --mtl pcgrad mgda+feature ista --seeds 3 --single-task --work-dir W

Another call with the same folder runs what is new, failed or was interrupted, and nothing else.
"""

from __future__ import annotations

import argparse
import ast
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from mtl_plugins.compare.columns import choose
from mtl_plugins.compare.engines import Engine
from mtl_plugins.compare.execute import in_words
from mtl_plugins.compare.experiments import Experiment, load
from mtl_plugins.compare.plan import BASELINE, check_settings, plan
from mtl_plugins.compare.progress import Progress
from mtl_plugins.compare.results import Comparison, compare, found_metrics, read
from mtl_plugins.compare.runs import Run, Status
from mtl_plugins.compare.schedule import length, stretched
from mtl_plugins.compare.timing import Timing, measure
from mtl_plugins.extras import require
from mtl_plugins.metrics import Convention

POLL = 0.5
"""Seconds between two looks at the runs."""
KEPT = "the results of runs that are done are kept, the same command goes on"


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("config", help="config of OpenMMLab, or .yaml of Detectron2")
    add("--mtl", nargs="+", metavar="NAME", default=[], help="methods, as mtl-train --mtl")
    add("--seeds", type=int, default=3, help="number of seeds, 0 and on (default: %(default)s)")
    add("--work-dir", type=Path, required=True, help="folder of runs and report")
    add("--single-task", action="store_true", help="train each task alone too, as base of Δm")
    add("--equal-time", action="store_true", help="as much time as the sum, not as many iterations")
    add("--cfg-options", nargs="+", metavar="KEY=VALUE", default=[], help="over the config")
    add("--import", dest="modules", action="append", default=[], help="module, for Detectron2")
    add("--metrics", nargs="+", metavar="NAME[=TASK:high|low]", default=[], help="columns")
    add("--convention", choices=get_args(Convention), default="gain", help="of Δm: D, A or B's")
    add("--pictures", type=int, default=4, metavar="N", help="images drawn (default: %(default)s)")
    add("--dry-run", action="store_true", help="print plan, time and disk, and run nothing")
    add("--report-only", action="store_true", help="report on what is there, and run nothing")
    add("--engine", choices=["local", "ray", "slurm"], default="local")
    add("--jobs", type=int, help="runs at a time (local; default: one each GPU, else 1)")
    add("--gpus-per-run", type=int, default=1, help="GPUs of a run, where there are any")
    add("--cpus-per-run", type=int, default=1, help="CPUs of a run (ray)")
    add("--address", default="auto", help="address of the Ray cluster (default: %(default)s)")
    add("--copy-back", action="store_true", help="the folder is not shared with Ray's nodes")
    add("--slurm", nargs="+", metavar="KEY=VALUE", default=[], help="as slurm_partition=gpu")
    args = parser.parse_args(arguments)
    least = {"seeds": 1, "jobs": 1, "gpus_per_run": 0, "cpus_per_run": 0, "pictures": 0}
    for name, number in least.items():
        if (given := getattr(args, name)) is not None and given < number:
            key = name.replace("_", "-")
            raise SystemExit(f"--{key}: expected at least {number}, got {given}")
    args.work_dir = args.work_dir.resolve()
    return args


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line.

    Raises:
        SystemExit: The command line or the config is at fault, with a message; or, with code 1
            after the report is written, some run failed or lacks a metric.
    """
    require("mtl-compare", "matplotlib", "scipy", extra="compare")
    arguments = sys.argv[1:] if arguments is None else arguments
    args = parse_args(arguments)
    experiment = load(args.config, [BASELINE, *args.mtl], args.cfg_options, args.modules)
    try:
        settings = experiment.settings | {"--equal-time": repr(args.equal_time)}
        check_settings(args.work_dir, settings, note=not args.dry_run)
        gpus = args.gpus_per_run if _has_gpus(args) else 0
        choices: dict[str, Any] = {"single": args.single_task, "gpus": gpus}
        choices["pictures"] = args.pictures
        runs = plan(experiment, args.mtl, args.seeds, args.work_dir, **choices)
        if args.equal_time and not args.report_only:
            choices["more"] = _equal_time(experiment, runs, args.work_dir)
        if args.dry_run:
            print(describe(experiment, runs, args.work_dir, args.equal_time))
            return
        runs = plan(experiment, args.mtl, args.seeds, args.work_dir, **choices)
        if not args.report_only:
            run_all(runs, _engine(args))
        command = shlex.join(["mtl-compare", *arguments])
        comparison = conclude(experiment, runs, args.metrics, args.convention)
        report(comparison, args.work_dir, command)
    except OSError as error:
        raise SystemExit(f"{in_words(error, args.work_dir)}; {KEPT}") from error
    except KeyboardInterrupt:
        raise SystemExit(f"interrupted; {KEPT}") from None
    if comparison.problems:
        raise SystemExit(1)


def _has_gpus(args: argparse.Namespace) -> bool:
    import torch

    return args.engine != "local" or torch.cuda.is_available()


def _engine(args: argparse.Namespace) -> Engine:
    if args.engine == "ray":
        from mtl_plugins.compare.engines.ray import Ray

        return Ray(args.address, args.gpus_per_run, args.cpus_per_run, args.copy_back)
    if args.engine == "slurm":
        from mtl_plugins.compare.engines.slurm import Slurm

        folder = args.work_dir / "slurm"
        return Slurm(folder, args.gpus_per_run, dict(map(_parameter, args.slurm)))
    from mtl_plugins.compare.engines.local import Local, visible_gpus

    return Local(args.jobs, visible_gpus(), args.gpus_per_run)


def _parameter(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals:
        raise SystemExit(f"--slurm: expected KEY=VALUE, got {text!r}")
    try:
        return key, ast.literal_eval(value)
    except (SyntaxError, ValueError):
        return key, value


def run_all(runs: Sequence[Run], engine: Engine) -> None:
    """Run what is not done, and show how far it is; a run that fails leaves the others alone."""
    todo = [run for run in runs if Status.read(run.path).state != "done"]
    done = len(runs) - len(todo)
    print(f"{len(runs)} runs: {done} done, {len(todo)} to do", flush=True)
    try:
        pending = {run: engine.submit(run) for run in todo}
        with Progress(todo) as progress:
            while pending:
                for run in [run for run, future in pending.items() if future.done()]:
                    if error := pending.pop(run).result():
                        print(f"{run}: {error}", flush=True)
                progress.update()
                time.sleep(POLL)
    finally:
        engine.close()


def conclude(
    experiment: Experiment, runs: Sequence[Run], wanted: Sequence[str], convention: Convention
) -> Comparison:
    """Read the results of the runs."""
    results = [read(run) for run in runs]
    found = found_metrics(results)
    if not found:
        problems = "\n".join(r.problem for r in results if r.problem)
        raise SystemExit(f"{problems}\nno run is done: there is nothing to compare")
    columns = choose(found, experiment.tasks, wanted or experiment.metrics)
    return compare(results, columns, convention)


def report(comparison: Comparison, folder: Path, command: str) -> None:
    """Write the report, and print the table and the verdict."""
    from mtl_plugins.compare.report import write_report
    from mtl_plugins.compare.tables import as_text, cost, scores
    from mtl_plugins.compare.verdict import sentences

    write_report(comparison, folder, command)
    for table in (scores(comparison), cost(comparison)):
        print(f"\n{as_text(table)}")
    print("", *sentences(comparison), sep="\n")
    if comparison.problems:
        print("\nProblems:", *comparison.problems, sep="\n")
    print(f"\nReport: {folder / 'report.html'}")


def _equal_time(
    experiment: Experiment, runs: Sequence[Run], work_dir: Path
) -> dict[str, list[str]]:
    """Time a few iterations of each method, and stretch its schedule to the plain sum's time."""
    before, unit = length(experiment)
    found: dict[str, float] = {}  # seconds of an iteration, or of an epoch
    for run in (run for run in runs if run.seed == 0 and not run.task):
        timing = _timed(experiment, run, work_dir)
        found[run.name] = timing.seconds * (timing.per_epoch if unit == "epochs" else 1)
        if not found[run.name]:
            raise SystemExit(
                f"--equal-time: {run.name} does not train:\n{timing.error}"
                if timing.error
                else "--equal-time: the training does not say how many iterations an epoch has; "
                "its train_cfg must be by epochs of EpochBasedTrainLoop, or give max_iters"
            )
    more = {}
    for name, seconds in found.items():
        if name != BASELINE:
            times = seconds / found[BASELINE]
            after = max(1, round(before / times))
            print(
                f"{name}: {after} {unit} of {times:.3g} × the sum's time, of which there are "
                f"{before}; in all {after * times / before:.2f} × the sum's time",
                flush=True,
            )
            more[name] = stretched(experiment, 1.0 / times)
    return more


def _timed(experiment: Experiment, run: Run, work_dir: Path) -> Timing:
    return measure(run, experiment.settings, work_dir / "timings")


def describe(
    experiment: Experiment, runs: Sequence[Run], work_dir: Path, equal_time: bool = False
) -> str:
    """Return the plan in words: states, an estimate of time from a few iterations, and disk."""
    width = max(len(run.name) for run in runs) + 2
    lines = [f"{'run':{width}}{'seeds':>6}{'done':>6}{'s/iter':>9}{'hours':>8}{'GB':>7}"]
    total, unit = length(experiment)

    def hours(timing: Timing) -> float:
        return timing.seconds * total * (timing.per_epoch if unit == "epochs" else 1) / 3600.0

    all_hours = size = 0.0
    for name in dict.fromkeys(run.name for run in runs):
        mine = [run for run in runs if run.name == name]
        todo = [run for run in mine if Status.read(run.path).state != "done"]
        timing = like = _timed(experiment, mine[0], work_dir) if todo else Timing()
        if todo and equal_time and not mine[0].task:
            base = next(run for run in runs if run.name == BASELINE)
            like = _timed(experiment, base, work_dir)
        need, disk = len(todo) * hours(like), len(todo) * timing.checkpoint / 1e9
        all_hours, size = all_hours + need, size + disk
        seconds = f"{timing.seconds:.3f}" if timing.seconds else "-"
        known = f"{need:.2f}" if need or not todo else "?"
        row = (
            f"{name:{width}}{len(mine):6}{len(mine) - len(todo):6}{seconds:>9}{known:>8}{disk:7.2f}"
        )
        lines += [row, *([f"{name} does not train:\n{timing.error}"] if timing.error else [])]
    parent = next(p for p in (work_dir, *work_dir.parents) if p.exists())
    free = shutil.disk_usage(parent).free / 1e9
    lines += [
        f"{all_hours:.2f} hours of training one after the other, without tests",
        f"{size:.2f} GB for a checkpoint of each run, {free:.1f} GB free",
    ]
    return "\n".join(lines)
