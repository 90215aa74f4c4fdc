"""One run: a method with a seed, its folder, and how far it is."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Run:
    """A training and test to be done, in words that travel to another machine.

    Attributes:
        name: Name of the column: a method, or ``single_<task>``.
        seed: Random seed.
        folder: Work directory of the run, absolute.
        framework: Key of :data:`~mtl_plugins.compare.frameworks.FRAMEWORKS`.
        config: Config to train.
        method: Argument of ``--mtl``; empty for the config as it is.
        options: ``KEY=VALUE`` over the config.
        task: The task that is trained alone; empty for all of them.
        modules: Modules to import before Detectron2's config is read.
        gpus: GPUs of the run; 0 leaves the choice to the framework.
        pictures: Number of images whose predictions are drawn.
        where: Working directory of the commands.
    """

    name: str
    seed: int
    folder: str
    framework: str
    config: str
    method: str
    options: tuple[str, ...] = ()
    task: str = ""
    modules: tuple[str, ...] = ()
    gpus: int = 0
    pictures: int = 0
    where: str = field(default_factory=os.getcwd)

    @property
    def path(self) -> Path:
        return Path(self.folder)

    def __str__(self) -> str:
        return f"{self.name}, seed {self.seed}"


def write_text(path: Path, text: str) -> None:
    """Write a file completely or not at all.

    Raises:
        OSError: The file cannot be written, such as on a full disk.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.unfinished")
    with unfinished.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


@dataclass
class Status:
    """State of a run, in the file ``run.json`` of its folder.

    Attributes:
        state: ``"new"``, ``"training"``, ``"testing"``, ``"done"`` or ``"failed"``.
        trained: Whether the training has come to its end.
        seconds: Seconds spent in training over all attempts.
        peak_bytes: Largest resident memory of the training process; 0 if unknown.
        attempts: Number of times that the training was started.
        error: End of the log of a failed run.
        host: Name of the machine.
        commands: Commands to repeat the run, in order.
    """

    state: str = "new"
    trained: bool = False
    seconds: float = 0.0
    peak_bytes: int = 0
    attempts: int = 0
    error: str = ""
    host: str = ""
    commands: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, folder: Path) -> Status:
        """Read the status of a folder; that of a new run if there is none."""
        try:
            values: Mapping[str, Any] = json.loads((folder / "run.json").read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return cls()
        known = cls.__dataclass_fields__
        return cls(**{name: value for name, value in values.items() if name in known})

    def write(self, folder: Path) -> None:
        """Write the status.

        Raises:
            OSError: The file cannot be written, such as on a full disk.
        """
        write_text(folder / "run.json", json.dumps(asdict(self), indent=1))
