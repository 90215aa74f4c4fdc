"""A framework whose training is a script of a few lines: runs in milliseconds, fails on demand."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

from mtl_plugins.compare import frameworks
from mtl_plugins.compare.engines import slurm
from mtl_plugins.compare.execute import execute
from mtl_plugins.compare.runs import Run, Status

SCRIPT = Path(__file__).with_name("toy_train.py")


class Toy:
    """Logs as MMEngine does; an option ``fail=1`` makes a run fail."""

    def train(self, run: Run) -> list[str]:
        return [sys.executable, str(SCRIPT), run.folder, run.name, str(run.seed), *run.options]

    def checkpoint(self, folder: Path) -> Path | None:
        path = folder / "checkpoint"
        return path if path.is_file() else None

    def test(self, run: Run) -> list[str] | None:
        return [sys.executable, str(SCRIPT), run.folder, "--test", *run.options]

    def test_metrics(self, folder: Path) -> dict[str, float] | None:
        path = folder / "test.json"
        return json.loads(path.read_text()) if path.is_file() else {}

    def draw(self, run: Run, out: Path) -> list[str]:
        return [sys.executable, "-c", "raise SystemExit('no pictures')"]


def toy_run(folder: Path, name: str = "sum", seed: int = 0, *options: str) -> Run:
    path = folder / name / str(seed)
    return Run(name, seed, str(path), "toy", "toy.py", name, options=options)


def write_log(folder: Path, records: list[Mapping[str, float]], start: str = "1") -> Path:
    """One start of a run, as MMEngine logs it."""
    path = folder / start / "vis_data" / "scalars.json"
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def done(run: Run, metrics: Mapping[str, float], records: list[Mapping[str, float]] | None = None):
    """Files of a run that is done."""
    records = records or [{"lr": 0.1, "loss": 1.0, "time": 0.5, "step": 1}]
    write_log(run.path, records)
    (run.path / "test.json").write_text(json.dumps(metrics))
    Status(state="done", trained=True, seconds=3.0).write(run.path)


def toy_execute(run: Run) -> str:
    """``execute`` on another machine, where no test has registered the toy."""
    frameworks.FRAMEWORKS["toy"] = Toy()
    return execute(run)


class ToyAgain(slurm.Again):
    """The job of a toy."""

    def __call__(self, run: Run) -> str:
        return toy_execute(run)
