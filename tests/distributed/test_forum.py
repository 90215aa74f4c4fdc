"""FORUM in two processes over gloo, against one process with the whole batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aggregation.test_forum import TASKS, Shared, batches, setting
from torch import Tensor
from torch.testing import assert_close
from two_processes import results_of_two, work

SETTINGS: dict[str, dict[str, Any]] = {
    "exact": {},
    "gramian": {"sync": "gramian"},
    "low memory": {"sync": "gramian", "low_memory": True},
}


def losses_of(model: Shared, x: Tensor, rank: int | None, step: int) -> dict[str, Tensor]:
    """Of a rank that lacks the last task once; in one process, half of that task's loss is left."""
    losses = model(x)
    if step == 1 and rank is None:
        losses["c"] = model(x[:8])["c"] / 2
    if step == 1 and rank == 1:
        del losses["c"]
    return losses


def train(rank: int | None, **options: Any) -> dict[str, Any]:
    model, optimizer, backward = setting(steps_per_epoch=2, **options)
    for step, batch in enumerate(batches(4)):
        x = batch if rank is None else batch.chunk(2)[rank]
        losses = lambda m=model, x=x, s=step: losses_of(m, x, rank, s)  # noqa: E731
        optimizer.zero_grad()
        backward(losses(), again=losses)
        optimizer.step()
    assert backward.last.tasks == tuple(TASKS)
    return {
        "parameters": [p.detach() for p in model.parameters()],
        "logits": list(backward.aggregator.state_dict()["logits"].values()),
        "weights": backward.last.weights,
    }


def on_rank(rank: int) -> dict[str, Any]:
    return {name: train(rank, **options) for name, options in SETTINGS.items()}


def test_two_ranks_learn_what_one_process_learns(tmp_path: Path) -> None:
    first, second = results_of_two(__file__, tmp_path / "found")
    for name in SETTINGS:  # all ranks the same
        assert_close(first[name], second[name], rtol=0.0, atol=0.0)
    assert_close(first["exact"], train(None), rtol=1e-6, atol=1e-9)


if __name__ == "__main__":
    work(on_rank)
