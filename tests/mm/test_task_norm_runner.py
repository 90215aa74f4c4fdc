"""Task-specific norms and steps in turn through the Runner, against loops written by hand."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from algorithm_1 import algorithm_1
from dense import BACKBONE, HEIGHT, WIDTH, config, images, sample
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.runner.checkpoint import load_state_dict
from mmseg.registry import MODELS
from torch import Tensor, nn
from torch.testing import assert_close

import mtl_plugins.mm.models  # noqa: F401
from mtl_plugins.connection_strength import shares, top_tasks
from mtl_plugins.task_norm import TaskBatchNorm, fold_task_norm, task_norm

TASKS = ("seg", "depth", "normals")
PREPROCESSOR = {"type": "MultiTaskDataPreProcessor", "mean": [120.0] * 3, "std": [60.0] * 3}
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "SGD": {"type": "SGD", "lr": 0.05, "momentum": 0.9, "weight_decay": 0.01},
    "Adam": {"type": "Adam", "lr": 0.003, "weight_decay": 0.01},
}

pytestmark = pytest.mark.usefixtures("mmseg_scope")


def model_config(**options: Any) -> dict[str, Any]:
    return config(*TASKS, data_preprocessor=PREPROCESSOR, task_norm={}) | options


class Data(torch.utils.data.Dataset):
    """Eight images with all labels; ``missing``: those that the first two lack."""

    metainfo = {"classes": tuple("abcd")}

    def __init__(self, missing: str = "") -> None:
        generator = torch.get_rng_state()
        torch.manual_seed(5)
        names = {"sem_seg", "depth", "normals"}
        self.made = [
            {
                "inputs": torch.randint(256, (3, HEIGHT, WIDTH), dtype=torch.uint8),
                "data_samples": sample(*(names - {missing} if i < 2 else names), img_path=f"{i}"),
            }
            for i in range(8)
        ]
        torch.set_rng_state(generator)

    def __len__(self) -> int:
        return len(self.made)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return deepcopy(self.made[index])


def make_runner(
    work_dir: Path, aggregator: Any, model: Any = None, missing: str = "", **options: Any
) -> Runner:
    run = {
        key: options.pop(key) for key in ("train_cfg", "resume", "custom_hooks") & options.keys()
    }
    return Runner(
        model=deepcopy(model or model_config()),
        work_dir=str(work_dir),
        train_dataloader={
            "batch_size": 2,
            "sampler": {"type": "DefaultSampler", "shuffle": False},
            "dataset": Data(missing),
            "collate_fn": {"type": "pseudo_collate"},
        },
        optim_wrapper={
            "type": "MTLOptimWrapper",
            "optimizer": OPTIMIZERS["SGD"],
            "tasks": {task: f"{task}.*" for task in TASKS},
            "aggregator": aggregator,
            **options,
        },
        param_scheduler={"type": "MultiStepLR", "milestones": [2], "by_epoch": False},
        default_hooks={"checkpoint": None, "logger": {"type": "LoggerHook", "interval": 1}},
        log_level="WARNING",
        default_scope="mmseg",
        experiment_name=uuid.uuid4().hex,
        randomness={"seed": 0},
        **{"train_cfg": {"by_epoch": False, "max_iters": 4}} | run,
    )


def by_hand(
    update: Callable[[Any, torch.optim.Optimizer, dict[str, Any]], None], optimizer: dict[str, Any]
) -> Any:
    """Train for four batches by a function of the model, the optimizer and the batch."""
    runner = make_runner(Path("/tmp"), "Sum", optimizer=deepcopy(optimizer))
    model = runner.model.train()
    model.init_weights()
    arguments = {key: value for key, value in optimizer.items() if key != "type"}
    sgd = getattr(torch.optim, optimizer["type"])(model.parameters(), **arguments)
    data = Data()
    for i in range(4):
        for group in sgd.param_groups:
            group["lr"] = arguments["lr"] * (1.0 if i < 2 else 0.1)
        batch = {
            key: [data[j][key] for j in (2 * i % 8, 2 * i % 8 + 1)]
            for key in ("inputs", "data_samples")
        }
        update(model, sgd, model.data_preprocessor(batch, True))
    return model


def loss_of(model: Any, data: dict[str, Any], task: str) -> Tensor:
    """The loss of a task from a pass of its own, of its parts alone."""
    with task_norm(model).of(task):
        x = model.backbone(data["inputs"])
        losses = model.heads[task].loss(x, data["data_samples"], None)
    return sum(value for name, value in losses.items() if "loss" in name)


def one_by_one(model: Any, optimizer: torch.optim.Optimizer, data: dict[str, Any]) -> None:
    for task in TASKS:
        optimizer.zero_grad(set_to_none=True)
        loss_of(model, data, task).backward()
        optimizer.step()


def phase_2(model: Any, optimizer: torch.optim.Optimizer, data: dict[str, Any]) -> None:
    params = list(model.parameters())
    losses = [loss_of(model, data, task) for task in TASKS]
    rows = [torch.autograd.grad(loss, params, allow_unused=True) for loss in losses]
    layers = {
        id(norm.conv.weight): norm for norm in model.modules() if isinstance(norm, TaskBatchNorm)
    }
    for p, *grads in zip(params, *rows, strict=True):
        found = [g for g in grads if g is not None]
        p.grad = sum(found) if found else None
        if id(p) in layers and len(found) == len(TASKS):
            top = top_tasks(shares(layers[id(p)])).tolist()
            p.grad = algorithm_1(found, top).to(p)
    optimizer.step()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("method", ["Sequential", {"type": "ConnectionStrength", "phase": 1}])
def test_phase_1_is_a_loop_of_steps_bit_by_bit(method: Any, optimizer: str, tmp_path: Path) -> None:
    runner = make_runner(tmp_path, method, optimizer=deepcopy(OPTIMIZERS[optimizer]))
    runner.train()
    expected = by_hand(one_by_one, OPTIMIZERS[optimizer])
    pairs = zip(runner.model.state_dict().items(), expected.state_dict().values(), strict=True)
    for name, (found, want) in ((n, (f, w)) for (n, f), w in pairs):
        assert torch.equal(found, want), name
    counts = [m.num_batches_tracked for m in runner.model.modules() if hasattr(m, "running_var")]
    assert set(map(int, counts)) == {4}
    assert runner.iter == 4 and runner.optim_wrapper.get_lr()["lr"][0] < 0.01
    log = [
        json.loads(line) for line in (tmp_path / runner.timestamp / "vis_data/scalars.json").open()
    ]
    names = {"seg.loss_ce", "depth.loss_depth", "normals.loss_normals"}
    for line in log:
        assert_close(line["loss"], sum(line[name] for name in names), rtol=1e-5, atol=1e-5)
    assert len(log) == 4
    # MMEngine's schedulers warn if they did not see the steps.
    assert runner.optim_wrapper._global_step == 4 * len(TASKS) - 1


def test_phase_2_is_algorithm_1(tmp_path: Path) -> None:
    runner = make_runner(tmp_path, {"type": "ConnectionStrength", "phase": 2})
    runner.train()
    expected = by_hand(phase_2, OPTIMIZERS["SGD"])
    assert_close(dict(runner.model.state_dict()), dict(expected.state_dict()))
    plain = make_runner(tmp_path, "Sum")
    plain.train()
    difference = runner.model.backbone.conv1.weight - plain.model.backbone.conv1.weight
    assert difference.abs().max() > 1e-6


def test_the_plain_wrapper_and_sum_train_the_same(tmp_path: Path) -> None:
    ours = make_runner(tmp_path, "Sum")
    ours.train()
    theirs = make_runner(tmp_path, "Sum")
    theirs.optim_wrapper = {"type": "OptimWrapper", "optimizer": OPTIMIZERS["SGD"]}
    theirs.train()
    pairs = zip(ours.model.parameters(), theirs.model.parameters(), strict=True)
    assert all(torch.equal(p, q) for p, q in pairs)


@pytest.mark.parametrize("draw", ["epoch", "step"])
def test_a_resumed_run_is_the_uninterrupted_one(draw: str, tmp_path: Path) -> None:
    method = {"type": "ConnectionStrength", "draw": draw, "seed": 1}
    cfg = {"train_cfg": {"by_epoch": True, "max_epochs": 3}}

    class Keep(Hook):
        """Saves in the middle of the second epoch, and notes the phases."""

        def __init__(self) -> None:
            self.phases: list[bool] = []

        def before_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
            self.phases.append(runner.optim_wrapper.multitask.in_turn)

    whole, keep = make_runner(tmp_path / "whole", method, **cfg, custom_hooks=[hook := Keep()]), {}
    train_step = whole.model.train_step

    def spy(*args: Any, **kwargs: Any) -> Any:
        result = train_step(*args, **kwargs)
        if len(hook.phases) == 6:
            keep["model"] = deepcopy(whole.model.state_dict())
            keep["optimizer"] = deepcopy(whole.optim_wrapper.state_dict())
        return result

    whole.model.train_step = spy
    whole.train()
    assert set(hook.phases) == {True, False}
    again = make_runner(tmp_path / "again", method, **cfg)
    wrapper = again.build_optim_wrapper(again.optim_wrapper)
    wrapper.initialize_count_status(again.model, 6, 12)
    wrapper.multitask.steps_per_epoch = 4
    again.model.load_state_dict(keep["model"])
    wrapper.load_state_dict(keep["optimizer"])
    phases = []
    again.model.train()
    data = Data()
    for i in range(6, 12):
        phases.append(wrapper.multitask.in_turn)
        batch = {k: [data[j][k] for j in (2 * i % 8, 2 * i % 8 + 1)] for k in data[0]}
        again.model.train_step(batch, wrapper)
    assert phases == hook.phases[6:]
    pairs = zip(again.model.state_dict().values(), whole.model.state_dict().values(), strict=True)
    assert all(torch.equal(p, q) for p, q in pairs)


def test_a_task_without_labels_takes_no_step(tmp_path: Path) -> None:
    runner = make_runner(tmp_path, "Sequential", optional_losses=["depth.*"])
    model = runner.model.train()
    wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    before = deepcopy(model.state_dict())
    data = Data("depth")  # in none of the first two images
    model.train_step({k: [data[0][k], data[1][k]] for k in data[0]}, wrapper)
    after = model.state_dict()
    assert wrapper.multitask.last.tasks == ("seg", "normals")
    trained = [n for n, p in model.named_parameters() if not torch.equal(before[n], after[n])]
    assert {t for t in TASKS for n in trained if f"{t}." in n} == {"seg", "normals"}


def test_a_nan_skips_the_step_of_its_task_alone(tmp_path: Path) -> None:
    runner = make_runner(tmp_path, "Sequential")
    model = runner.model.train()
    wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    before = deepcopy(model.state_dict())
    head = model.heads["depth"]
    real = head.loss
    head.loss = lambda *args: {name: loss * float("nan") for name, loss in real(*args).items()}
    data = Data()
    model.train_step({k: [data[0][k], data[1][k]] for k in data[0]}, wrapper)
    after = model.state_dict()
    assert wrapper.multitask.last.nonfinite == ("depth",)
    for name, value in after.items():
        assert value.isfinite().all(), name
        if ".depth." in name:
            assert torch.equal(value, before[name]), name
    changed = {
        t for n in after for t in TASKS if f".{t}." in n and not torch.equal(after[n], before[n])
    }
    assert changed == {"seg", "normals"}


def test_heads_of_other_tasks_are_not_computed(tmp_path: Path) -> None:
    runner = make_runner(tmp_path, "Sequential", model=model_config(task_norm=None))
    model, calls = runner.model.train(), []
    for task, head in model.heads.items():
        head.register_forward_hook(lambda *_, task=task: calls.append(task))
    model.backbone.register_forward_hook(lambda *_: calls.append("trunk"))
    wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    data = Data()
    model.train_step({k: [data[0][k], data[1][k]] for k in data[0]}, wrapper)
    assert calls == [name for task in TASKS for name in ("trunk", task)]


def test_prediction_is_that_of_each_tasks_plain_network() -> None:
    model = MODELS.build(model_config())
    for _ in range(3):
        for loss in model.train().loss(images() * 2, [sample(), sample()]).values():
            assert loss.isfinite()
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight)
    inputs = images()
    found = model.eval()._forward(inputs)
    predicted = model.predict(inputs)
    for task in TASKS:
        plain = fold_task_norm(model.backbone, task)
        want = model.heads[task](plain(inputs))
        assert_close(found[task], want)
    assert {"pred_sem_seg", "pred_depth_map", "pred_normal_map"} <= set(predicted[0].keys())


def test_a_folded_model_computes_its_task_alone() -> None:
    model = MODELS.build(model_config()).eval()
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight)
    inputs, passes = images(), []
    folded = fold_task_norm(model, "depth")
    folded.backbone.register_forward_hook(lambda *_: passes.append(1))
    found = folded._forward(inputs)
    assert list(found) == ["depth"] and len(passes) == 1
    assert_close(found["depth"], model._forward(inputs)["depth"], rtol=0, atol=1e-6)
    assert set(folded.predict(inputs)[0].keys()) == {"pred_depth_map"}
    assert (
        folded.state_dict().keys() == MODELS.build(model_config(task_norm=None)).state_dict().keys()
    )
    assert list(model._forward(inputs)) == list(TASKS)


def test_norms_of_each_task_do_not_load_into_a_plain_model() -> None:
    state = MODELS.build(model_config()).state_dict()
    with pytest.raises(ValueError, match="^model.task_norm: the checkpoint has 'backbone.bn1'"):
        load_state_dict(MODELS.build(model_config(task_norm=None)), state)


def test_plain_weights_load_into_all_copies_and_options_reach_them(tmp_path: Path) -> None:
    plain = MODELS.build(model_config(task_norm=None))
    model = MODELS.build(model_config())
    load_state_dict(model, plain.state_dict(), strict=True)
    copies = {"norm_decay_mult": 0.0}
    runner = make_runner(tmp_path, "Sum", paramwise_cfg=copies)
    wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    decay = {id(p): g["weight_decay"] for g in wrapper.param_groups for p in g["params"]}
    norms = [n for n in runner.model.modules() if isinstance(n, nn.BatchNorm2d)]
    assert len(norms) >= 20 * len(TASKS)
    assert all(decay[id(p)] == 0.0 for n in norms for p in n.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"aggregator": "ConnectionStrength", "model": model_config(task_norm=None)}, "task_norm"),
        ({"aggregator": "Sequential", "accumulative_counts": 2}, "accumulative_counts"),
        ({"aggregator": "Sequential", "tasks": None}, "tasks: Sequential"),
        ({"aggregator": "Sequential", "weighting": "GLS"}, "weighting: GLS"),
        ({"aggregator": "Sequential", "weighting": "FAMO"}, "weighting: FAMO"),
        ({"aggregator": "Sequential", "regularizer": "CosReg"}, "regularizer: CosReg"),
        ({"aggregator": "Sequential", "level": "feature"}, "level: Sequential"),
        ({"aggregator": "ConnectionStrength", "sync": "gramian"}, "sync='gramian'"),
        ({"aggregator": "ConnectionStrength", "weights_every": 2}, "weights_every"),
        (
            {"aggregator": "ConnectionStrength", "tasks": {"a": ["seg.*"], "b": ["depth.*"]}},
            "tasks: ConnectionStrength",
        ),
        ({"aggregator": "Sum", "model": model_config(task_norm={"module": []})}, "modules"),
        (
            {"aggregator": "Sum", "model": model_config(backbone=BACKBONE | {"with_cp": True})},
            "with_cp=True",
        ),
        ({"aggregator": "Sum", "model": model_config(task_norm={"modules": ["nek"]})}, "backbone"),
    ],
)
def test_what_does_not_fit_is_an_error_before_the_first_step(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises((ValueError, RuntimeError), match=message):
        make_runner(tmp_path, **options).train()


def test_mixed_precision_clipping_and_allocation_go_with_steps_in_turn(tmp_path: Path) -> None:
    runner = make_runner(
        tmp_path, "Sequential", type="AmpMTLOptimWrapper", clip_grad={"max_norm": 1}
    )
    runner.train()
    assert all(p.isfinite().all() for p in runner.model.parameters())
    # An image that has one task alone trains that task alone, in its turn.
    runner = make_runner(tmp_path, "Sequential")
    model = runner.model.train()
    wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    data, seen = Data(), []
    first, second = data[0], data[1]
    first["data_samples"].set_metainfo({"tasks": ("seg", "normals")})
    second["data_samples"].set_metainfo({"tasks": ("seg",)})
    for task, head in model.heads.items():
        real = head.loss

        def loss(x: Any, samples: Any, cfg: Any, task: str = task, real: Any = real) -> Any:
            seen.append((task, [s.metainfo["img_path"] for s in samples]))
            return real(x, samples, cfg)

        head.loss = loss
    model.train_step({k: [first[k], second[k]] for k in first}, wrapper)
    assert seen == [("seg", ["0", "1"]), ("normals", ["0"])]
    assert wrapper.multitask.last.tasks == ("seg", "normals")


def test_the_hook_logs_shares_of_channels(tmp_path: Path) -> None:
    hook = {"type": "TaskInterferenceHook", "interval": 2}
    runner = make_runner(tmp_path, "ConnectionStrength", custom_hooks=[hook])
    runner.train()
    path = tmp_path / runner.timestamp / "vis_data/scalars.json"
    log = [json.loads(line) for line in path.open()]
    shares = [
        {t: line[f"mtl/top_channels_{t}"] for t in TASKS} for line in log if "mtl/loss/seg" in line
    ]
    assert len(shares) == 2
    for found in shares:
        assert abs(sum(found.values()) - 1.0) < 1e-6


def test_ema_and_copies_keep_their_own_norms() -> None:
    model = MODELS.build(model_config()).eval()
    copied = deepcopy(model)
    for part in copied.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.constant_(part.weight, 0.5)
    inputs = images()
    found, others = copied._forward(inputs), model._forward(inputs)
    for task in TASKS:
        want = copied.heads[task](fold_task_norm(copied.backbone, task)(inputs))
        assert_close(found[task], want)
        assert not torch.allclose(found[task], others[task])
    assert all(n.conv in list(copied.modules()) for n in task_norm(copied).norms.values())


def test_the_first_task_may_be_absent(tmp_path: Path) -> None:
    runner = make_runner(tmp_path, "Sequential")
    model = runner.model.train()
    wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    data = Data("sem_seg")
    log = model.train_step({k: [data[0][k], data[1][k]] for k in data[0]}, wrapper)
    assert wrapper.multitask.last.tasks == ("depth", "normals")
    assert_close(log["loss"], log["depth.loss_depth"] + log["normals.loss_normals"])


def test_synchronised_norms_come_after_the_conversion() -> None:
    from mmengine.model import convert_sync_batchnorm

    model = MODELS.build(model_config()).eval()
    inputs = images()
    before = model._forward(inputs)
    model = convert_sync_batchnorm(model, "torch")
    synchronised = [m for m in model.backbone.modules() if isinstance(m, nn.SyncBatchNorm)]
    assert len(synchronised) == 20 * len(TASKS)
    assert_close(model.eval()._forward(inputs), before)
