"""The runs that a comparison wants, and which of them an earlier call has done."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from mtl_plugins.compare.experiments import Experiment
from mtl_plugins.compare.runs import Run, write_text
from mtl_plugins.registry import suggest

BASELINE = "sum"
SINGLE = "single_"


def plan(
    experiment: Experiment,
    methods: Sequence[str],
    seeds: int,
    work_dir: Path,
    single: bool = False,
    gpus: int = 0,
    pictures: int = 0,
    more: Mapping[str, Sequence[str]] | None = None,
) -> list[Run]:
    """List the runs, seed by seed, so that an early end leaves whole rows of the table.

    Args:
        experiment: The config.
        methods: Methods beside the plain sum.
        seeds: Number of seeds, from 0 on.
        work_dir: Folder that gets ``<method>/<seed>``.
        single: Whether each task is trained alone, too.
        gpus: GPUs of a run.
        pictures: Number of images that are drawn, by the runs of seed 0.
        more: Options of a method beside those of the experiment.

    Raises:
        SystemExit: Tasks are to be trained alone, and the config names none, or others.
    """
    if single and not experiment.tasks:
        raise SystemExit(
            "--single-task: the config names no tasks: optim_wrapper.tasks (MTL.TASKS) says which "
            "losses make which"
        )
    unknown = [task for task in experiment.single if task not in experiment.tasks]
    if single and unknown:
        raise SystemExit(
            f"compare.single_task.{unknown[0]}: no task is called {unknown[0]!r}; "
            f"{suggest(unknown[0], experiment.tasks)}"
        )
    wanted: dict[str, tuple[str, str, tuple[str, ...], str]] = {}
    for task in experiment.tasks if single else ():
        wanted[f"{SINGLE}{task}"] = (*experiment.alone(task), task)
    for method in dict.fromkeys([BASELINE, *methods]):
        wanted[method] = (experiment.config, method, (), "")
    runs = []
    for seed in range(seeds):
        for name, (config, method, options, task) in wanted.items():
            own = config in experiment.single.values()
            options = (*experiment.options, *options, *(more or {}).get(name, ()))
            runs.append(
                Run(
                    name=name,
                    seed=seed,
                    folder=str(work_dir / name / str(seed)),
                    framework=experiment.framework,
                    config=config,
                    method=method,
                    options=tuple(options),
                    task=task,
                    modules=experiment.modules,
                    gpus=gpus,
                    pictures=pictures if seed == 0 and not (own or task) else 0,
                )
            )
    return runs


def check_settings(work_dir: Path, settings: Mapping[str, str], note: bool = True) -> None:
    """Compare the settings with those of an earlier call, and note those of the first.

    Args:
        work_dir: Folder of the runs.
        settings: Every setting by its key.
        note: Whether to note settings that are the first; a dry run leaves the folder free.

    Raises:
        SystemExit: The runs in the folder were trained with other settings.
    """
    path = work_dir / "settings.json"
    if not path.is_file():
        if note:
            write_text(path, json.dumps(dict(settings), indent=1, sort_keys=True))
        return
    before = json.loads(path.read_text())
    changed = sorted(k for k in {*before, *settings} if before.get(k) != settings.get(k))
    if changed:
        few = ", ".join(
            f"{key} was {before.get(key, 'not set')} and is {settings.get(key, 'not set')}"
            for key in changed[:3]
        )
        more = f", and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise SystemExit(
            f"--work-dir: the runs in {work_dir} have other settings than asked for: {few}{more}. "
            "Runs of different settings are not comparable; name another folder"
        )
