"""Losses on their way to the CPU. Ranks: see the tests in two processes."""

from __future__ import annotations

import torch

from mtl_plugins.report import Report


def test_losses_of_the_tasks_that_take_part():
    losses = {"a": torch.tensor(2.0), "c": torch.tensor([3.0], dtype=torch.float64)}
    report = Report(losses, ["a", "b", "c"], torch.device("cpu"), changed=True, share=0.25)
    assert report.losses == {"a": 2.0, "c": 3.0}
    assert report.changed and report.share == 0.25
    assert not Report({}, ["a"], torch.device("cpu"), changed=False).changed


def test_report_keeps_no_graph_and_no_tensor_of_the_batch():
    loss = torch.ones((), requires_grad=True) * 2.0
    report = Report({"a": loss}, ["a"], torch.device("cpu"), changed=False)
    with torch.no_grad():
        loss.zero_()
    assert report.losses == {"a": 2.0}
