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


@pytest.fixture
def cluster(monkeypatch):
    paths = [str(ROOT), str(Path(__file__).parent)]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    monkeypatch.setattr(engine, "execute", toy_execute)
    cluster = Cluster(initialize_head=True, head_node_args={**SMALL, "num_cpus": 0})
    yield cluster
    cluster.shutdown()


def test_a_lost_node(cluster, tmp_path):
    first = cluster.add_node(**SMALL)
    runs = [toy_run(tmp_path, "sum", s, "sleep=0.1", "iterations=30") for s in range(2)]
    ray = engine.Ray(cluster.address, gpus_per_run=0)
    pending = [ray.submit(run) for run in runs]
    end = time.monotonic() + 60.0
    while not (runs[0].path / "checkpoint").is_file():
        assert time.monotonic() < end
        time.sleep(0.1)
    cluster.add_node(**SMALL)
    cluster.remove_node(first, allow_graceful=False)
    try:
        assert [p.result() for p in pending] == ["", ""]
    finally:
        ray.close()
    assert [Status.read(r.path).state for r in runs] == ["done"] * 2
    assert Status.read(runs[0].path).attempts == 2
    for run in runs:
        assert sorted(Log(run.path).training["loss"]) == list(range(1, 31))


def test_results_are_copied_back_and_errors_are_results(cluster, tmp_path, capsys):
    cluster.add_node(**SMALL)
    engine.Ray(cluster.address, gpus_per_run=1).close()
    assert "no node of the cluster has 1 GPUs, the most is 0" in capsys.readouterr().out
    runs = [toy_run(tmp_path, "sum"), toy_run(tmp_path, "pcgrad", 0, "fail=1")]
    ray = engine.Ray(cluster.address, gpus_per_run=0, copy_back=True)
    run_all(runs, ray)
    assert [Status.read(r.path).state for r in runs] == ["done", "failed"]
    assert Log(runs[0].path).iteration == 20
