"""A real Ray cluster of two nodes on this machine, of which one is lost in the middle."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from commands import ROOT
from ray.cluster_utils import Cluster
from toy_runs import toy_execute, toy_run

from mtl_plugins.compare.command import run_all
from mtl_plugins.compare.engines import ray as engine
from mtl_plugins.compare.logs import Log
from mtl_plugins.compare.runs import Status

SMALL = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}


@pytest.fixture(scope="module")
def cluster():
    """A head without CPUs, and two nodes that run one toy each."""
    paths = [str(ROOT), str(Path(__file__).parent)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(paths))
        patch.setattr(engine, "execute", toy_execute)
        cluster = Cluster(initialize_head=True, head_node_args={**SMALL, "num_cpus": 0})
        cluster.lost, _ = (cluster.add_node(**SMALL) for _ in range(2))
        yield cluster
        cluster.shutdown()


def test_results_are_copied_back_and_errors_are_results(cluster, tmp_path, capsys):
    engine.Ray(cluster.address, gpus_per_run=1).close()
    assert "no node of the cluster has 1 GPUs, the most is 0" in capsys.readouterr().out
    runs = [toy_run(tmp_path, "sum"), toy_run(tmp_path, "pcgrad", 0, "fail=1")]
    ray = engine.Ray(cluster.address, gpus_per_run=0, copy_back=True)
    run_all(runs, ray)
    assert [Status.read(r.path).state for r in runs] == ["done", "failed"]
    assert Log(runs[0].path).iteration == 20


def test_a_lost_node(cluster, tmp_path):
    runs = [toy_run(tmp_path, "sum", s, "sleep=0.1", "iterations=60") for s in range(2)]
    ray = engine.Ray(cluster.address, gpus_per_run=0)
    pending = [ray.submit(run) for run in runs]
    end = time.monotonic() + 60.0
    while not all((run.path / "checkpoint").is_file() for run in runs):
        assert time.monotonic() < end
        time.sleep(0.1)
    cluster.remove_node(cluster.lost, allow_graceful=False)
    try:
        assert [p.result() for p in pending] == ["", ""]
    finally:
        ray.close()
    assert [Status.read(r.path).state for r in runs] == ["done"] * 2
    assert sorted(Status.read(r.path).attempts for r in runs) == [1, 2]
    for run in runs:
        assert sorted(Log(run.path).training["loss"]) == list(range(1, 61))
