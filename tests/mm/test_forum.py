"""FORUM in MMEngine's runner: the batch of the step, its draws and its precision, once more."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from models import DETECTION_MASK, build_detector, mask_rcnn_config
from test_optim_wrapper import initial_state
from torch import Tensor, nn
from torch.testing import assert_close
from toy import TASKS, TwoTasks, make_data, make_runner, parameters

from mtl_plugins import MultiTaskBackward
from mtl_plugins.aggregation import FORUM
from mtl_plugins.mm.optim import MTLOptimWrapper
from mtl_plugins.tasks import TaskGroups

METHOD = {"type": "FORUM", "rho": 2.0}


def mtl(**options: Any) -> dict[str, Any]:
    return dict(dict(type="MTLOptimWrapper", tasks=TASKS, aggregator=METHOD), **options)


def losses_of(model: nn.Module, batch: Tensor, amp: bool = False) -> dict[str, Tensor]:
    with torch.autocast("cpu", torch.bfloat16) if amp else nullcontext():
        terms = model(batch)
        terms.pop("acc")
        terms["loss_cls"] = sum(terms["loss_cls"])
        terms["loss_mask"] = terms["loss_mask"].mean()
        return TaskGroups(TASKS)(terms)


def by_hand(accumulate: int, amp: bool) -> tuple[list[Tensor], dict[str, Any]]:
    model = TwoTasks()
    model.load_state_dict(initial_state())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    backward = MultiTaskBackward(
        model.parameters(), METHOD, tasks=list(TASKS), total_steps=6 // accumulate
    )
    backward.protect(model)
    data = [d["inputs"] for d in make_data()]
    for i in range(6):
        batch = torch.stack(data[2 * i : 2 * i + 2])
        last = (i + 1) % accumulate == 0
        again = lambda batch=batch: losses_of(model, batch, amp)  # noqa: E731
        backward(again(), aggregate=last, share=1.0 / accumulate, again=again)
        if last:
            optimizer.step()
            optimizer.zero_grad()
    return [p.detach() for p in model.parameters()], backward.aggregator.state_dict()


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("amp", [False, True])
def test_runner_trains_as_by_hand(accumulate: int, amp: bool, tmp_path: Path) -> None:
    kind = "AmpMTLOptimWrapper" if amp else "MTLOptimWrapper"
    runner = make_runner(tmp_path, mtl(type=kind, accumulative_counts=accumulate))
    runner.train()
    expected, state = by_hand(accumulate, amp)
    assert_close(parameters(runner), expected)
    learned = runner.optim_wrapper.multitask.aggregator.state_dict()["logits"]
    assert learned == pytest.approx(state["logits"]) and any(learned.values())


def test_a_run_continues(tmp_path: Path) -> None:
    straight = make_runner(tmp_path / "straight", mtl())
    straight.train()
    first = make_runner(tmp_path / "parts", mtl(), iters=3)
    first.train()
    second = make_runner(tmp_path / "parts", mtl(), resume=True)
    second.train()
    assert second.iter == 6
    states = [r.optim_wrapper.multitask.aggregator.state_dict() for r in (straight, second)]
    assert states[0]["step"] == states[1]["step"] == 6
    assert all(map(torch.equal, parameters(straight), parameters(second)))
    assert states[0] == states[1]


def test_the_steps_ahead_of_a_detector_are_plain_descent() -> None:
    """With the proposals that the step has drawn, and the buffers that a plain step leaves."""
    from mmdet.testing import demo_mm_inputs

    torch.manual_seed(0)
    model = build_detector(mask_rcnn_config(narrow=True)).train()
    twin, plain = copy.deepcopy(model), copy.deepcopy(model)
    batch = demo_mm_inputs(2, [[3, 64, 64]] * 2, num_items=[2, 2], num_classes=3, with_mask=True)
    method = {"type": "FORUM", "eta": 0.01, "steps": 3}
    found: list[float] = []
    seen: list[Any] = []
    real = FORUM.look_ahead

    def spy(self: FORUM, tasks: Any, losses_after: Any) -> None:
        real(self, tasks, losses_after)
        found.extend(self._ahead or [])

    for net in (model, plain):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
        wrapper = MTLOptimWrapper(
            optimizer, tasks=DETECTION_MASK, aggregator=method if net is model else "Sum"
        )
        torch.manual_seed(1)
        with patch.object(FORUM, "look_ahead", spy):
            net.train_step(copy.deepcopy(batch), wrapper)
        seen.append((torch.get_rng_state(), dict(net.named_buffers())))
    assert torch.equal(seen[0][0], seen[1][0])
    for name, buffer in seen[0][1].items():
        assert torch.equal(buffer, seen[1][1][name])

    def losses() -> list[Tensor]:
        torch.manual_seed(1)
        data = twin.data_preprocessor(copy.deepcopy(batch), True)
        _, terms = twin.parse_losses(twin(**data, mode="loss"))
        terms.pop("loss")
        named = {name: loss for name, loss in terms.items() if "loss" in name}
        return list(TaskGroups(DETECTION_MASK)(named).values())

    first = [loss.item() for loss in losses()]
    for _ in range(3):
        (0.5 * sum(losses())).backward()
        for p in twin.parameters():
            if p.grad is not None:
                p.data -= 0.01 * p.grad
                p.grad = None
    wanted = [loss.item() for loss in losses()]
    assert found == pytest.approx(wanted, rel=1e-5) and wanted != pytest.approx(first, rel=1e-3)


class NotTheirSum(TwoTasks):
    def parse_losses(self, losses: Any) -> Any:
        total, log = super().parse_losses(losses)
        return total + log["loss_mask"], log


def test_errors_name_the_key(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^optim_wrapper\.weighting: FAMO .* FORUM"):
        make_runner(tmp_path, mtl(weighting="FAMO")).train()
    with pytest.raises(ValueError, match=r"^optim_wrapper\.level: FORUM"):
        make_runner(tmp_path, mtl(level="feature", representation="trunk")).train()
    runner = make_runner(tmp_path, mtl(), model=NotTheirSum())
    with pytest.raises(ValueError, match=r"^optim_wrapper\.aggregator: FORUM .* not their sum"):
        runner.train()
