"""Runs on a Ray cluster."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mtl_plugins.compare.execute import execute
from mtl_plugins.compare.runs import Run
from mtl_plugins.extras import require

RETRIES = 5
LARGE = (".pth", ".pkl")


class Ray:
    """Engine that makes each run a task of a Ray cluster.

    A run whose node is lost starts again elsewhere, from its last checkpoint where the work
    directory is shared.

    Args:
        address: Address of the cluster; ``"auto"`` for the one that this machine belongs to.
        gpus_per_run: GPUs that a run gets.
        cpus_per_run: CPUs that a run gets.
        copy_back: Whether nodes have no access to the work directory: a run works in a temporary
            folder of its node, and its results, without checkpoints, come back at the end.

    Raises:
        ModuleNotFoundError: Ray is not installed.
        ConnectionError: There is no cluster at the address.
    """

    def __init__(
        self, address: str, gpus_per_run: int, cpus_per_run: int = 1, copy_back: bool = False
    ) -> None:
        require("--engine ray", "ray", extra="compare")
        import ray

        self._ray: Any = ray
        path = os.environ.get("PYTHONPATH")
        env = {"env_vars": {"PYTHONPATH": path}} if path else {}
        ray.init(address=address, runtime_env=env, log_to_driver=False)
        there = max((node["Resources"].get("GPU", 0) for node in ray.nodes()), default=0)
        if there < gpus_per_run:
            print(
                f"--gpus-per-run: no node of the cluster has {gpus_per_run} GPUs, the most is "
                f"{there:g}; runs wait until one has. Without GPUs: --gpus-per-run 0",
                flush=True,
            )
        self._copy_back = copy_back
        self._with = (execute,) if copy_back else ()
        # An error of the run itself is a result, so that only a lost node is a reason to retry.
        self._task = ray.remote(_away if copy_back else execute).options(
            num_gpus=gpus_per_run, num_cpus=cpus_per_run, max_retries=RETRIES
        )

    def submit(self, run: Run) -> _Task:
        return _Task(
            self._ray, self._task.remote(run, *self._with), run if self._copy_back else None
        )

    def close(self) -> None:
        self._ray.shutdown()


class _Task:
    """A task of Ray's; with ``unpack``, its result is a packed folder."""

    def __init__(self, ray: Any, reference: Any, unpack: Run | None) -> None:
        self._ray, self._reference, self._unpack = ray, reference, unpack

    def done(self) -> bool:
        return bool(self._ray.wait([self._reference], timeout=0)[0])

    def result(self) -> str:
        try:
            found = self._ray.get(self._reference)
        except self._ray.exceptions.RayError as error:
            return f"Ray: {type(error).__name__}: {str(error).strip().splitlines()[-1]}"
        if self._unpack is None:
            return str(found)
        message, packed = found
        self._unpack.path.mkdir(parents=True, exist_ok=True)
        with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
            tar.extractall(self._unpack.path, filter="data")
        return str(message)


def _away(run: Run, do: Callable[[Run], str]) -> tuple[str, bytes]:
    """Do a run in a folder of this node; return its error, and its small files in a tar."""
    # A new folder, lest a run of earlier settings in the same place counts as done.
    with TemporaryDirectory(prefix="mtl-compare-") as name:
        folder = Path(name)
        message = do(replace(run, folder=name))
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
            for path in sorted(folder.rglob("*")):
                if path.is_file() and path.suffix not in LARGE:
                    tar.add(path, arcname=str(path.relative_to(folder)))
    return message, buffer.getvalue()
