"""The length of an epoch, as a training tells it."""

from __future__ import annotations

import pytest
from toy import TASKS, make_data, make_runner

from mtl_plugins.compare.timing import EPOCH_LENGTH


@pytest.mark.parametrize(("by_epoch", "batch"), [(True, 2), (True, 5), (False, 2)])
def test_length_is_that_of_the_data_loader(by_epoch, batch, tmp_path):
    loop = {"by_epoch": True, "max_epochs": 1} if by_epoch else {"by_epoch": False, "max_iters": 2}
    data = {
        "batch_size": batch,
        "sampler": {"type": "DefaultSampler", "shuffle": False},
        "dataset": make_data(12),
    }
    wrapper = {"type": "MTLOptimWrapper", "tasks": TASKS}
    hook = {"type": "EpochLengthHook"}
    runner = make_runner(tmp_path, wrapper, [hook], train_cfg=loop, train_dataloader=data)
    runner.train()
    written = tmp_path / EPOCH_LENGTH
    assert written.exists() is by_epoch
    if by_epoch:
        assert int(written.read_text()) == -(-12 // batch) == runner.iter
