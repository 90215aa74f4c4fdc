"""The hook that counts conflicts by layer, in real runs, killed and resumed ones too."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from test_optim_wrapper import mtl
from toy import make_runner, parameters

from mtl_plugins.gradients import TaskRows
from mtl_plugins.layer_conflicts import FILE, LayerConflicts

HOOK = dict(type="LayerConflictHook")
LAYERS = {"trunk.0", "trunk.2"}


def record(folder: Any) -> dict[str, Any]:
    return json.loads((folder / FILE).read_text())


def by_hand(tmp_path, iters: int = 6) -> dict[str, int]:
    """Cosines by torch.autograd before every step of the same run without the hook."""
    runner = make_runner(tmp_path, mtl("Sum"), iters=iters)
    counts = dict.fromkeys(LAYERS, 0)
    plain = runner.model.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        losses = plain(*args, **kwargs)
        box = sum(losses["loss_cls"]) + losses["loss_reg"]
        for name in counts:
            params = list(runner.model.get_submodule(name).parameters())
            grads = [
                torch.cat([g.flatten() for g in torch.autograd.grad(x, params, retain_graph=True)])
                for x in (box, losses["loss_mask"].mean())
            ]
            counts[name] += int(grads[0] @ grads[1] < 0)
        return losses

    runner.model.forward = forward
    runner.train()
    return counts


@pytest.mark.parametrize("aggregator", ["Sum"])
def test_record_is_that_by_hand(aggregator, tmp_path):
    make_runner(tmp_path / "a", mtl(aggregator), [HOOK]).train()
    found = record(tmp_path / "a")
    expected = by_hand(tmp_path / "b")
    assert found.pop("scores") == expected and sum(expected.values()) > 0
    assert found == {"tasks": ["box", "mask"], "threshold": 0.0, "steps": 6}


@pytest.mark.parametrize(
    ("method", "options"),
    [("Sum", {}), ("PCGrad", {}), ("MGDA", dict(accumulative_counts=2)), ("Sum", dict(amp=True))],
)
def test_training_does_not_change_by_a_bit(method, options, tmp_path):
    wrapper = mtl(method, **{k: v for k, v in options.items() if k != "amp"})
    if "amp" in options:
        wrapper["type"] = "AmpMTLOptimWrapper"
    # Beside the other hook, which asks for gradients of its own on some iterations.
    hooks = [HOOK, dict(type="TaskInterferenceHook", interval=2, monitors=[])]
    watched = make_runner(tmp_path / "a", dict(wrapper), hooks)
    watched.train()
    plain = make_runner(tmp_path / "b", dict(wrapper))
    plain.train()
    for p, q in zip(parameters(watched), parameters(plain), strict=True):
        assert torch.equal(p, q)
    steps = 6 // options.get("accumulative_counts", 1)
    assert record(tmp_path / "a")["steps"] == steps


def test_resumed_run_counts_on(tmp_path):
    make_runner(tmp_path / "whole", mtl("Sum"), [HOOK]).train()
    make_runner(tmp_path / "parts", mtl("Sum"), [HOOK], iters=3).train()
    assert record(tmp_path / "parts")["steps"] == 3
    # The data loader begins anew, without our checkpoint hook's states for it.
    again = make_runner(tmp_path / "parts", mtl("Sum"), [HOOK], resume=True)
    again.train()
    assert record(tmp_path / "parts")["steps"] == 6
    assert record(tmp_path / "parts") == record(tmp_path / "whole")


def test_weights_of_another_run_bring_no_counts(tmp_path):
    make_runner(tmp_path / "first", mtl("Sum"), [HOOK], iters=3).train()
    start = str(tmp_path / "first" / "iter_3.pth")
    make_runner(tmp_path / "second", mtl("Sum"), [HOOK], load_from=start).train()
    assert record(tmp_path / "second")["steps"] == 6


def test_every_second_step(tmp_path):
    make_runner(tmp_path, mtl("PCGrad"), [dict(HOOK, interval=2)]).train()
    assert record(tmp_path)["steps"] == 3


@pytest.mark.parametrize(
    ("wrapper", "hook", "error", "message"),
    [
        (dict(type="OptimWrapper"), {}, TypeError, "custom_hooks: LayerConflictHook needs"),
        (mtl(), dict(threshold=2.0), ValueError, "LayerConflictHook.threshold: expected a cosine"),
        (mtl("MGDA", low_memory=True), {}, ValueError, "optim_wrapper.low_memory: conflicts"),
        (mtl("MGDA", gramian="sketch"), {}, ValueError, "optim_wrapper.gramian: conflicts"),
        (
            mtl("MGDA", level="feature", representation="trunk"),
            {},
            ValueError,
            "optim_wrapper.level: conflicts",
        ),
    ],
)
def test_refused(wrapper, hook, error, message, tmp_path):
    runner = make_runner(tmp_path, wrapper, [HOOK | hook])
    with pytest.raises(error, match=f"^{message}"):
        runner.train()


def test_interval_is_a_number(tmp_path):
    with pytest.raises(ValueError, match="LayerConflictHook.interval: expected an integer"):
        make_runner(tmp_path, mtl(), [dict(HOOK, interval=0)])


def test_names_are_those_of_the_bare_model():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    conflicts = LayerConflicts(model)
    rows = TaskRows(list(model[0].parameters()), 2, torch.device("cpu"))
    rows.matrix().normal_()
    conflicts.add(rows, averaged=True)
    assert list(conflicts.scores()) == ["0"]
