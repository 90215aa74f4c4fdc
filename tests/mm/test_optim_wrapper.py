"""MTLOptimWrapper in a real Runner."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.model import MMFullyShardedDataParallel
from mmengine.optim import OptimWrapper
from models import (
    DETECTION_MASK,
    ORDINARY,
    build_detector,
    detector_losses,
    mask_rcnn_config,
    method,
)
from torch.testing import assert_close
from toy import TASKS, TwoTasks, make_data, make_runner, parameters

from mtl_plugins import MultiTaskBackward
from mtl_plugins.mm.optim import MTLOptimWrapper
from mtl_plugins.mm.optim.model import Replay
from mtl_plugins.tasks import TaskGroups
from mtl_plugins.weighting import DWA, FAMO


def mtl(aggregator="MGDA", **options):
    cfg = method(aggregator)
    return dict(type="MTLOptimWrapper", tasks=TASKS, aggregator=cfg, **options)


def train(tmp_path, optim_wrapper, **overrides):
    runner = make_runner(tmp_path, optim_wrapper, **overrides)
    runner.train()
    return parameters(runner)


def by_hand(aggregator, iters=6, accumulate=1, max_norm=None, milestone=None, mask_lr=1.0):
    """The same training without MMEngine."""
    torch.manual_seed(0)
    model = TwoTasks()
    model.load_state_dict(initial_state())
    groups = [dict(params=[p], lr=0.1) for n, p in model.named_parameters() if "mask" not in n]
    groups += [dict(params=[p], lr=0.1 * mask_lr) for p in model.mask.parameters()]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    backward = MultiTaskBackward(model.parameters(), aggregator)
    data = [d["inputs"] for d in make_data()]
    for i in range(iters):
        batch = torch.stack([data[(2 * i) % 12], data[(2 * i + 1) % 12]])
        terms = model(batch)
        terms.pop("acc")
        terms["loss_cls"] = sum(terms["loss_cls"])
        terms["loss_mask"] = terms["loss_mask"].mean()
        losses = {k: v / accumulate for k, v in TaskGroups(TASKS)(terms).items()}
        backward(losses, aggregate=(i + 1) % accumulate == 0)
        if (i + 1) % accumulate == 0:
            if max_norm:
                torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
            optimizer.step()
            optimizer.zero_grad()
        if i + 1 == milestone:
            for group in optimizer.param_groups:
                group["lr"] *= 0.1
    return [p.detach() for p in model.parameters()]


def initial_state():
    """The weights that the runner's seed gives."""
    runner = make_runner("/tmp", dict(type="OptimWrapper"))
    return copy.deepcopy(runner.model.state_dict())


@pytest.mark.parametrize("name", ORDINARY)
def test_runner_trains_as_by_hand(name, tmp_path):
    cfg = mtl(name)
    assert_close(train(tmp_path, cfg), by_hand(cfg["aggregator"]))


@pytest.mark.parametrize(
    ("options", "overrides", "expected"),
    [
        (dict(clip_grad=dict(max_norm=0.05)), {}, dict(max_norm=0.05)),
        (dict(accumulative_counts=3), {}, dict(accumulate=3)),
        (
            dict(paramwise_cfg=dict(custom_keys={"mask": dict(lr_mult=0.2)})),
            {},
            dict(mask_lr=0.2),
        ),
        (
            {},
            dict(param_scheduler=dict(type="MultiStepLR", milestones=[3], by_epoch=False)),
            dict(milestone=3),
        ),
    ],
    ids=["clip_grad", "accumulation", "paramwise_cfg", "schedule"],
)
def test_options_of_mmengine_keep_working(options, overrides, expected, tmp_path):
    assert_close(train(tmp_path, mtl(**options), **overrides), by_hand("MGDA", **expected))


def test_sum_equals_the_optim_wrapper_bitwise(tmp_path):
    plain = train(tmp_path / "a", dict(type="OptimWrapper"))
    ours = train(tmp_path / "b", mtl("Sum"))
    assert all(torch.equal(p, q) for p, q in zip(plain, ours, strict=True))


def test_sum_equals_the_optim_wrapper_bitwise_on_a_detector():
    from mmdet.testing import demo_mm_inputs

    torch.manual_seed(0)
    detectors = [build_detector(mask_rcnn_config(narrow=True))]
    detectors.append(copy.deepcopy(detectors[0]))
    wrappers = [
        cls(torch.optim.AdamW(model.parameters(), lr=1e-3), clip_grad=dict(max_norm=10))
        for cls, model in zip((OptimWrapper, MTLOptimWrapper), detectors, strict=True)
    ]
    for step in range(10):
        for model, wrapper in zip(detectors, wrappers, strict=True):
            batch = demo_mm_inputs(
                2, [[3, 64, 64]] * 2, num_items=[2, 2], num_classes=3, with_mask=True
            )
            torch.manual_seed(step)
            model.train_step(batch, wrapper)
    for p, q in zip(*(model.parameters() for model in detectors), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("names", [("loss",), ("loss", "loss_aux")])
def test_a_loss_called_loss_counts(names):
    """MMEngine's own entry of that name is the sum; a model's must not get lost behind it."""

    class Plain(TwoTasks):
        def forward(self, inputs, mode="tensor"):
            terms = list(super().forward(inputs, mode).values())[1:3]
            return dict(zip(names, terms, strict=False))

    models = [Plain()]
    models.append(copy.deepcopy(models[0]))
    for model, cls in zip(models, (OptimWrapper, MTLOptimWrapper), strict=True):
        wrapper = cls(torch.optim.SGD(model.parameters(), lr=0.1))
        model.train_step(dict(inputs=[torch.ones(4)]), wrapper)
    for p, q in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(p, q)


def test_level_of_layers_finds_its_module(tmp_path):
    runner = make_runner(tmp_path, mtl("PCGrad", level="layers", layers="trunk"))
    runner.train()
    assert runner.optim_wrapper.multitask.last.gramian is not None


def test_feature_level_finds_its_module(tmp_path):
    runner = make_runner(tmp_path, mtl("PCGrad", level="feature", representation="trunk"))
    runner.train()
    step = runner.optim_wrapper.multitask.last
    assert step.tasks == ("box", "mask")
    assert step.gramian.shape == (2, 2)


def test_a_module_called_representation_is_not_taken_for_a_path():
    class Net(TwoTasks):
        def __init__(self, **parts):
            super().__init__()
            self.representation = torch.nn.Linear(6, 6)
            self.add_module("neck", parts.get("neck"))
            self.with_neck = "neck" in parts

    def attach(model):
        wrapper = MTLOptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1), level="feature")
        wrapper.attach(model)

    attach(Net(neck=torch.nn.Linear(6, 6)))
    with pytest.raises(ValueError, match="optim_wrapper.representation: .*needs the path"):
        attach(Net())


@pytest.mark.parametrize("name", ORDINARY)
def test_bfloat16_trains_on_a_cpu(name, tmp_path):
    cfg = mtl(name) | dict(type="AmpMTLOptimWrapper")
    runner = make_runner(tmp_path, cfg)
    dtypes = []
    runner.model.box.register_forward_hook(lambda *args: dtypes.append(args[2].dtype))
    runner.train()
    assert set(dtypes) == {torch.bfloat16}
    exact = train(tmp_path / "exact", cfg | dict(type="MTLOptimWrapper"))
    assert_close(parameters(runner), exact, rtol=0.1, atol=0.05)


def amp_runner(work_dir, scaler, **overrides):
    """Steps as fp16 makes them, with a real scaler, on a CPU for want of a GPU."""
    cfg = mtl("MGDA", clip_grad=dict(max_norm=0.05)) | dict(type="AmpMTLOptimWrapper")
    runner = make_runner(work_dir, cfg, **overrides)
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    runner.optim_wrapper.loss_scaler = scaler
    return runner


def test_loss_scaler(tmp_path):
    """Steps are as without it."""
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    runner = amp_runner(tmp_path / "a", scaler)
    runner.train()
    assert scaler.get_scale() == 1024.0
    plain = amp_runner(tmp_path / "b", torch.amp.GradScaler("cpu", enabled=False))
    plain.train()
    assert_close(parameters(runner), parameters(plain))


def test_overflow_lowers_the_scale_and_names_the_task(tmp_path):
    """Of the scaled gradient, while every loss is finite; when the scale is low, it goes on."""
    runner = amp_runner(tmp_path, torch.amp.GradScaler("cpu", init_scale=2.0**121), iters=4)
    runner.model.mask.register_full_backward_hook(lambda _, grads, __: (grads[0] * 2.0**10,))
    scales, states = [], [parameters(runner)]

    class Spy(Hook):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            scales.append(runner.optim_wrapper.loss_scaler.get_scale())
            states.append(parameters(runner))

    runner.register_hook(Spy())
    runner.train()
    moved = [not torch.equal(a[0], b[0]) for a, b in pairwise(states)]
    assert moved[0] is False
    assert moved[-1] is True
    skipped = moved.index(True)
    assert scales == [2.0 ** (121 - min(i + 1, skipped)) for i in range(4)]
    (log,) = tmp_path.rglob("*.log")
    text = log.read_text()
    assert text.count("the gradient of task 'mask' is not finite") == skipped
    assert "task 'box'" not in text


def nan_at(step: int, loss: str, monkeypatch) -> None:
    """Plants it in a loss of the model."""
    forward, calls = TwoTasks.forward, []

    def broken(self, inputs, mode="tensor"):
        losses = forward(self, inputs, mode)
        calls.append(mode)
        if len(calls) == step:
            losses[loss] = losses[loss] * torch.nan
        return losses

    monkeypatch.setattr(TwoTasks, "forward", broken)


@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize("name", ORDINARY)
def test_nan_in_one_loss_skips_the_step(name, amp, tmp_path, monkeypatch):
    """The run goes on, the step leaves every parameter as it was, the log names the task."""
    nan_at(3, "loss_mask", monkeypatch)
    cfg = mtl(name, clip_grad=dict(max_norm=10.0))
    if amp:
        cfg["type"] = "AmpMTLOptimWrapper"
    states = []

    class Spy(Hook):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            states.append(parameters(runner))

    runner = make_runner(tmp_path, cfg, [dict(type="TaskInterferenceHook", interval=1)])
    runner.register_hook(Spy())
    runner.train()
    assert len(states) == 6
    same = [all(torch.equal(p, q) for p, q in zip(a, b, strict=True)) for a, b in pairwise(states)]
    assert same == [False, True, False, False, False]
    assert all(p.isfinite().all() for p in states[-1])
    (log,) = tmp_path.rglob("*.log")
    assert "step skipped: the loss of task 'mask' is nan; 1 in a row" in log.read_text()


def test_nan_can_be_an_error(tmp_path, monkeypatch):
    nan_at(3, "loss_mask", monkeypatch)
    with pytest.raises(FloatingPointError, match="the loss of task 'mask' is nan"):
        train(tmp_path, mtl(on_nonfinite="raise"))


@pytest.mark.parametrize(
    "options", [dict(low_memory=True), dict(gramian="sketch"), dict(weights_every=3)]
)
def test_options_of_the_core(options, tmp_path):
    runner = make_runner(tmp_path, mtl(**options))
    runner.train()
    plain = train(tmp_path / "plain", mtl())
    equal = torch.allclose(runner.model.trunk[0].weight, plain[0], atol=1e-6)
    assert equal == ("weights_every" not in options)


def steps_of(tmp_path, aggregator, **options):
    """Paces that MCLGS takes in a run, one a call."""
    overrides = {
        key: options.pop(key) for key in ("train_cfg", "train_dataloader") if key in options
    }
    runner = make_runner(tmp_path, mtl(aggregator, **options), **overrides)
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    seen = []
    mclgs = runner.optim_wrapper._options["aggregator"]
    pace = mclgs.pace
    mclgs.pace = lambda step: seen.append(pace(step)) or seen[-1]
    mclgs.total_steps = None
    runner.train()
    return seen


@pytest.mark.parametrize(
    "options, steps",
    [
        ({}, 6),
        ({"accumulative_counts": 3}, 2),
        ({"accumulative_counts": 4}, 2),
        ({"accumulative_counts": 3, "low_memory": True}, 6),
        ({"accumulative_counts": 3, "gramian": "sketch"}, 6),
        ({"weights_every": 2}, 3),
    ],
)
def test_mclgs_learns_the_length_of_the_run(options, steps, tmp_path):
    """Linear from 1, and at the end of the run at half of it."""
    seen = steps_of(tmp_path, "MCLGS", **options)
    assert seen == pytest.approx([1.0 - t / (2.0 * steps) for t in range(steps)])


def by_epochs(**dwa):
    return dict(
        optim_wrapper=mtl("Sum", weighting={"type": "DWA", **dwa}),
        train_cfg=dict(by_epoch=True, max_epochs=4),
        train_dataloader=dict(
            batch_size=2, sampler=dict(type="DefaultSampler", shuffle=False), dataset=make_data()
        ),
    )


def test_dwa_learns_the_length_of_an_epoch(tmp_path):
    """The weights change after every epoch from the third on."""
    runner = make_runner(tmp_path, **by_epochs())
    seen = []
    update = DWA.update

    def spy(self, *args):
        seen.append(runner.optim_wrapper.multitask.last.weights[0].item())
        update(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DWA, "update", spy)
        runner.train()
    assert seen[:12] == [1.0] * 12
    assert len(set(seen[12:18])) == len(set(seen[18:])) == 1
    assert len({1.0, seen[12], seen[18]}) == 3


def test_dwa_has_a_window_where_there_are_no_epochs(tmp_path):
    runner = make_runner(tmp_path, mtl("Sum", weighting="DWA"), iters=4)
    runner.train()
    assert runner.optim_wrapper.multitask.last.weights.tolist() != [1.0, 1.0]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_famo_sees_the_same_batch_after_the_step(accumulate, tmp_path):
    runner = make_runner(
        tmp_path, mtl("Sum", weighting="FAMO", accumulative_counts=accumulate), iters=4
    )
    told = []

    def spy(self, losses, new_losses):
        parts = []
        for i in range(runner.iter + 1 - accumulate, runner.iter + 1):
            batch = torch.stack([make_data()[(2 * i + k) % 12]["inputs"] for k in range(2)])
            with torch.no_grad():
                terms = runner.model(batch, mode="loss")
            parts.append((sum(terms["loss_cls"]) + terms["loss_reg"], terms["loss_mask"].mean()))
        expected = [sum(values).item() / accumulate for values in zip(*parts, strict=True)]
        told.append((list(new_losses.values()), expected, list(losses.values())))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FAMO, "update_after", spy)
        runner.train()
    assert len(told) == 4 // accumulate
    for new, expected, old in told:
        assert new == pytest.approx(expected)
        assert new != pytest.approx(old)


def test_replay_changes_nothing_and_draws_the_same(detector):
    """A detector samples proposals; in training mode its batch norms count."""
    model = copy.deepcopy(detector).train()
    replay = Replay(model)
    losses = detector_losses(model)
    state, buffers = torch.get_rng_state(), copy.deepcopy(dict(model.named_buffers()))
    (again,) = replay.losses()
    assert again.keys() == losses.keys()
    for name, loss in losses.items():
        assert_close(again[name], loss, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), state)
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, buffers[name])
    assert all(p.grad is None for p in model.parameters())
    assert replay.losses() == []


def test_cosreg_trains_a_detector(detector):
    model = copy.deepcopy(detector)
    wrapper = MTLOptimWrapper(
        torch.optim.SGD(model.parameters(), lr=0.01),
        tasks=DETECTION_MASK,
        regularizer=dict(type="CosReg", weight=0.5),
    )
    with wrapper.optim_context(model):
        losses = detector_losses(model)
    wrapper.update_params(sum(losses.values()))
    assert 0.0 < wrapper.multitask.last.penalty < 0.5


def test_resume_continues_the_method(tmp_path):
    """GradVac remembers targets and draws: six steps are three, a restart, and three."""
    straight = train(tmp_path / "a", mtl("GradVac"))
    train(tmp_path / "b", mtl("GradVac"), iters=3)
    runner = make_runner(tmp_path / "b", mtl("GradVac"), resume=True)
    runner.train()
    assert runner.iter == 6
    assert all(torch.equal(p, q) for p, q in zip(parameters(runner), straight, strict=True))


class TestErrors:
    @pytest.mark.parametrize(
        ("optim_wrapper", "error", "message"),
        [
            (mtl("PCGard"), KeyError, "did you mean 'PCGrad'"),
            (mtl() | dict(tasks=dict(box="loss_*", mask="loss_mask")), KeyError, "claimed by"),
            (mtl() | dict(tasks=dict(box=TASKS["box"])), KeyError, "no task claims .*loss_mask"),
            (mtl() | dict(tasks=TASKS | dict(x="loss_msk")), KeyError, "did you mean 'loss_mask'"),
            (mtl(level="feature", representation="truk"), ValueError, "did you mean 'trunk'"),
            (
                mtl(level="feature"),
                ValueError,
                "optim_wrapper.representation: .*needs the path .*trunk, box, mask",
            ),
            (
                mtl("MGDA", level="layers", layers="truk"),
                ValueError,
                "layers: the model has no module .truk",
            ),
            (mtl("MGDA", level="layers"), ValueError, "layers: level='layers' needs the module"),
            (mtl(level="features"), ValueError, "level: expected one of"),
            (mtl(sync="exakt"), ValueError, "sync: expected one of"),
            (mtl(weights_evry=2), TypeError, "weights_evry"),
            (mtl(regularizer="CosRg"), KeyError, "regularizer.type.*did you mean 'CosReg'"),
            (
                mtl(weighting=dict(type="Fixed", weights=dict(box=1.0, mask=1.0, msk=2.0))),
                KeyError,
                "weighting.weights: no task is called 'msk'; did you mean 'mask'",
            ),
            (mtl("MCLGS", level="feature", representation="trunk"), ValueError, "level: MCLGS"),
            (mtl(weighting="Equl"), KeyError, "weighting.type.*did you mean 'Equal'"),
        ],
    )
    def test_before_the_first_step(self, optim_wrapper, error, message, tmp_path):
        runner = make_runner(tmp_path, optim_wrapper)
        before = parameters(runner)
        with pytest.raises(error, match=message):
            runner.train()
        assert all(torch.equal(p, q) for p, q in zip(before, parameters(runner), strict=True))

    @pytest.mark.parametrize(
        ("written", "resumed", "message"),
        [
            (mtl("PCGrad"), mtl("MGDA"), "written with PCGrad, this run uses MGDA"),
            (dict(type="OptimWrapper"), mtl("MGDA"), "not written by MTLOptimWrapper"),
        ],
    )
    def test_checkpoint_of_another_method(self, written, resumed, message, tmp_path):
        train(tmp_path, written, iters=2)
        with pytest.raises(ValueError, match=message):
            train(tmp_path, resumed, resume=True)

    def test_sharded_model(self, tmp_path):
        store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
        try:
            model = MMFullyShardedDataParallel(TwoTasks(), device_id="cpu")
            wrapper = MTLOptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))
            with pytest.raises(TypeError, match="model_wrapper_cfg: FSDP leaves no rank"):
                wrapper.attach(model)
        finally:
            torch.distributed.destroy_process_group()

    def test_update_without_terms(self, tmp_path):
        model = TwoTasks()
        wrapper = MTLOptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))
        with pytest.raises(RuntimeError, match="needs the single losses"):
            wrapper.update_params(torch.ones((), requires_grad=True))
