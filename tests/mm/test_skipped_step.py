"""A NaN in an image: the step that MMEngine's runner makes changes no weight and no buffer."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from mmengine.hooks import Hook
from torch import nn
from toy import TASKS, TwoTasks, make_data, make_runner

from mtl_plugins.mm.optim import MTLOptimWrapper


class Normed(TwoTasks):
    """With running statistics, which a NaN would spoil for ever."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk[1] = nn.BatchNorm1d(6)


class States(Hook):
    """Keeps the state of the model after each iteration."""

    def __init__(self) -> None:
        self.found: list[dict[str, torch.Tensor]] = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.found.append(copy.deepcopy(runner.model.state_dict()))


@pytest.mark.parametrize("wrapper", ["MTLOptimWrapper", "AmpMTLOptimWrapper"])
@pytest.mark.parametrize("aggregator", ["Sum", "MGDA"])
def test_nan_in_an_image(wrapper, aggregator, tmp_path):
    data = make_data()
    data[4]["inputs"][0] = torch.nan  # of the third batch
    runner = make_runner(
        tmp_path,
        dict(type=wrapper, tasks=TASKS, aggregator=aggregator),
        model=Normed(),
        train_dataloader=dict(
            batch_size=2, sampler=dict(type="InfiniteSampler", shuffle=False), dataset=data
        ),
    )
    states = States()
    runner.register_hook(states)
    runner.train()
    same = [all(torch.equal(a[k], b[k]) for k in a) for a, b in pairwise(states.found)]
    assert same == [False, True, False, False, False]
    assert all(value.isfinite().all() for value in states.found[-1].values())


def test_static_graph_is_named_by_its_key():
    model = TwoTasks()
    wrapper = MTLOptimWrapper(
        torch.optim.SGD(model.parameters(), lr=0.1), tasks=TASKS, aggregator="MGDA"
    )
    model.static_graph = True
    with pytest.raises(ValueError, match="model_wrapper_cfg.static_graph: .*set it to False"):
        wrapper.attach(model)


def test_layer_that_joins_the_optimizer_is_aggregated():
    """As hooks thaw it: the runs with the layer there from the start and later agree from then."""
    gradients = []
    for late in (True, False):
        torch.manual_seed(0)
        model = TwoTasks()
        layer = list(model.trunk[0].parameters())
        rest = [p for p in model.parameters() if all(p is not q for q in layer)]
        model.trunk[0].requires_grad_(not late)
        optimizer = torch.optim.SGD(rest if late else [*rest, *layer], lr=0.0)
        wrapper = MTLOptimWrapper(optimizer, tasks=TASKS, aggregator="MGDA")
        wrapper.initialize_count_status(model, 0, 3)
        for _ in range(2):
            if late and wrapper.multitask.last is not None:
                model.trunk[0].requires_grad_(True)
                optimizer.add_param_group({"params": layer})
            with wrapper.optim_context(model):
                loss, _ = model.parse_losses(model(torch.ones(2, 4), mode="loss"))
            wrapper.backward(loss)
            gradients.append([p.grad.clone() for p in layer] if layer[0].grad is not None else [])
            wrapper.step()
            wrapper.zero_grad()
    late_step, whole_step = gradients[1], gradients[3]
    assert gradients[0] == []
    for a, b in zip(late_step, whole_step, strict=True):
        torch.testing.assert_close(a, b)


def test_detector_that_met_the_wrapper_can_be_saved(detector, tmp_path):
    model = copy.deepcopy(detector)
    wrapper = MTLOptimWrapper(
        torch.optim.SGD(model.parameters(), lr=0.1),
        aggregator="MGDA",
        level="feature",
        representation="neck",
    )
    wrapper.attach(model)
    torch.save(model, tmp_path / "model.pth")
    loaded = torch.load(tmp_path / "model.pth", weights_only=False)
    for (name, a), b in zip(model.named_parameters(), loaded.parameters(), strict=True):
        assert torch.equal(a, b), name
