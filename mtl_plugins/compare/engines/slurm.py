"""Runs as jobs under Slurm, through submitit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtl_plugins.compare.execute import execute
from mtl_plugins.compare.runs import Run
from mtl_plugins.extras import require


class Again:
    """The function of a job, which goes on from its checkpoint after preemption or time-out."""

    def __call__(self, run: Run) -> str:
        return execute(run)

    def checkpoint(self, run: Run) -> Any:
        """Return the submission that takes the place of an interrupted one."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, run)

    __submitit_checkpoint__ = checkpoint  # the name in later versions of submitit


class Slurm:
    """Engine that submits a job for each run; the work directory has to be shared.

    Args:
        folder: Folder for the files of jobs.
        gpus_per_run: GPUs of a job.
        parameters: Parameters of submitit's executor, such as ``slurm_partition``.

    Raises:
        ModuleNotFoundError: submitit is not installed.
        SystemExit: A parameter is not known to submitit.
    """

    def __init__(self, folder: Path, gpus_per_run: int, parameters: Mapping[str, Any]) -> None:
        require("--engine slurm", "submitit", extra="compare")
        import submitit

        self._error: Any = submitit.core.utils.UncompletedJobError
        self._executor: Any = submitit.AutoExecutor(
            folder=folder / "%j", cluster="slurm", slurm_max_num_timeout=20
        )
        given = {"name": "mtl-compare", **parameters}
        if gpus_per_run:
            given.setdefault("gpus_per_node", gpus_per_run)
        try:
            self._executor.update_parameters(**given)
        except (NameError, TypeError, ValueError) as error:
            raise SystemExit(f"--slurm: {error}") from error
        self._jobs: list[Any] = []

    def submit(self, run: Run) -> _Job:
        job = self._executor.submit(Again(), run)
        self._jobs.append(job)
        return _Job(job, self._error)

    def close(self) -> None:
        for job in self._jobs:
            if not job.done():
                job.cancel()


class _Job:
    def __init__(self, job: Any, error: Any) -> None:
        self._job, self._error = job, error

    def done(self) -> bool:
        return bool(self._job.done())

    def result(self) -> str:
        try:
            return str(self._job.result())
        except self._error as error:
            return f"Slurm: job {self._job.job_id}: {str(error).strip().splitlines()[-1]}"
