"""Commands of each framework, and where its runs leave what."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Protocol

from mtl_plugins.compare.runs import Run


class Framework(Protocol):
    """Commands of a framework as lists of arguments, and places of files in a run's folder."""

    def train(self, run: Run) -> list[str]:
        """Return the command that trains, or goes on from the last checkpoint."""

    def checkpoint(self, folder: Path) -> Path | None:
        """Find the last complete checkpoint; None if there is none."""

    def test(self, run: Run) -> list[str] | None:
        """Return the command that tests; None if the training ends with a test."""

    def test_metrics(self, folder: Path) -> dict[str, float] | None:
        """Read the metrics of the test; None if the log of the training has them."""

    def draw(self, run: Run, out: Path) -> list[str]:
        """Return the command that draws the predictions on the first images of the test set."""


class OpenMMLab:
    """MMEngine's runner, with the commands ``mtl-train`` and ``mtl-test``."""

    def train(self, run: Run) -> list[str]:
        python = [sys.executable]
        if run.gpus > 1:
            processes = ["--standalone", f"--nproc_per_node={run.gpus}"]
            python += ["-m", "torch.distributed.run", *processes]
        command = [*python, "-m", "mtl_plugins.mm.train", run.config, "--work-dir", run.folder]
        if run.method:
            command += ["--mtl", run.method]
        if run.gpus > 1:
            command += ["--launcher", "pytorch"]
        if self.checkpoint(run.path):  # without one, --resume would drop the config's load_from
            command += ["--resume"]
        return [*command, "--cfg-options", *run.options, f"randomness.seed={run.seed}"]

    def checkpoint(self, folder: Path) -> Path | None:
        try:
            last = Path((folder / "last_checkpoint").read_text().strip())
        except FileNotFoundError:
            return None
        moved = folder / last.name
        return moved if moved.is_file() else last if last.is_file() else None

    def test(self, run: Run) -> list[str] | None:
        return self._test(run, run.path / "test", [])

    def test_metrics(self, folder: Path) -> dict[str, float] | None:
        files = sorted(f for f in (folder / "test").glob("*/*.json") if f.stem == f.parent.name)
        return json.loads(files[-1].read_text()) if files else None

    def draw(self, run: Run, out: Path) -> list[str]:
        first = ["--cfg-options", f"test_dataloader.dataset.indices={run.pictures}"]
        # A relative folder is one of the run in MMDetection, and of the shell in MMSegmentation.
        return self._test(run, out, ["--show-dir", str(out / "predictions"), *first])

    def _test(self, run: Run, out: Path, arguments: list[str]) -> list[str]:
        checkpoint = self.checkpoint(run.path)
        configs = sorted(run.path.glob("*.py"))
        if checkpoint is None or not configs:
            raise FileNotFoundError(f"{run.folder}: no checkpoint or no config to test")
        # The config that the training wrote has the method and all options in it.
        command = [sys.executable, "-m", "mtl_plugins.mm.test", str(configs[0]), str(checkpoint)]
        return [*command, "--work-dir", str(out), *arguments]


class Detectron2:
    """Detectron2's trainer, with the command ``mtl-train-net``."""

    def train(self, run: Run) -> list[str]:
        resume = ["--resume"] if self.checkpoint(run.path) else []
        gpus = ["--num-gpus", str(run.gpus), "--dist-url", "auto"] if run.gpus > 1 else []
        return self._command("mtl_plugins.d2.train_net", run, [*resume, *gpus], run.folder)

    def checkpoint(self, folder: Path) -> Path | None:
        try:
            last = folder / (folder / "last_checkpoint").read_text().strip()
        except FileNotFoundError:
            return None
        return last if last.is_file() else None

    def test(self, run: Run) -> list[str] | None:
        return None  # DefaultTrainer evaluates after the last iteration

    def test_metrics(self, folder: Path) -> dict[str, float] | None:
        return None

    def draw(self, run: Run, out: Path) -> list[str]:
        options = ["MODEL.WEIGHTS", str(self.checkpoint(run.path))]
        images = ["--images", str(run.pictures)]
        return self._command("mtl_plugins.d2.draw", run, images, str(out)) + options

    def _command(self, module: str, run: Run, arguments: list[str], out: str) -> list[str]:
        imports = [word for name in run.modules for word in ("--import", name)]
        options = [word for option in run.options for word in option.split("=", 1)]
        command = [sys.executable, "-m", module, *imports, *arguments]
        command += ["--config-file", run.config]
        if run.method:
            command += ["--mtl", run.method]
        command += options
        return [*command, "SEED", str(run.seed), "OUTPUT_DIR", out]


FRAMEWORKS: dict[str, Framework] = {"openmmlab": OpenMMLab(), "detectron2": Detectron2()}
