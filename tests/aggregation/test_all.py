"""What holds for every aggregator."""

import math
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import RANDOM, method
from strategies import jacobians, make_jacobian, seeds, tasks, well_scaled
from torch.testing import assert_close

from mtl_plugins.aggregation import (
    AGGREGATORS,
    Aggregator,
    GramianAggregator,
    build_aggregator,
)
from mtl_plugins.gradients import gramian_of
from mtl_plugins.registry import find_methods
from mtl_plugins.regularization import REGULARIZERS
from mtl_plugins.weighting import WEIGHTINGS

METHODS = [name for name in AGGREGATORS if name != "TorchJD"]  # whose methods have their own tests
GRAMIAN = [name for name in METHODS if issubclass(AGGREGATORS[name], GramianAggregator)]
DETERMINISTIC = sorted(set(METHODS) - set(RANDOM))
SUM_SCALED = [name for name in METHODS if AGGREGATORS[name].scale == "sum"]
every = pytest.mark.parametrize("name", METHODS)
every_gramian = pytest.mark.parametrize("name", GRAMIAN)


@every
def test_sum_or_mean_scale(name):
    g = torch.tensor([3.0, -4.0, 12.0], dtype=torch.float64)
    aggregator = build_aggregator(method(name))
    update = aggregator(g.repeat(5, 1))
    # Five mean-scaled methods have a documented factor of their own.
    own = {
        "CAGrad": 1.4 / 1.16,
        "NashMTL": 1.0 / g.norm().item(),
        "MCLGS": 1.0 + math.tanh(1.0),
        "FairGrad": 5.0 * (5.0 * g.square().sum().item()) ** (-2.0 / 3.0),  # T ‖g‖² w = w^(-1/2)
        "MoCo": 0.5,  # the running mean begins at 0
    }
    factor = own.get(name, 1.0)
    assert_close(update, g * (5.0 if aggregator.scale == "sum" else factor))


@pytest.mark.parametrize("name", SUM_SCALED)
def test_one_task_is_unchanged(name):
    g = torch.tensor([[3.0, -4.0, 12.0]])
    assert_close(build_aggregator(method(name))(g), g[0])


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_keeps_dtype(name, dtype):
    cfg = method(name)
    jacobian = make_jacobian("random", 3, 0).mul(1e-3).to(dtype)
    update = build_aggregator(cfg)(jacobian)
    assert update.dtype == dtype and update.shape == jacobian.shape[1:]
    exact = build_aggregator(cfg)(jacobian.double())
    assert_close(update.double(), exact, rtol=0.02, atol=0.01 * exact.abs().max().item())


@every_gramian
@given(jacobian=jacobians())
@settings(max_examples=25)
def test_update_is_the_weighted_sum(name, jacobian):
    weights = build_aggregator(method(name)).weights(jacobian @ jacobian.T)
    update = build_aggregator(method(name))(jacobian)
    assert_close(update, weights @ jacobian)


@pytest.mark.parametrize("name", DETERMINISTIC)
@given(data=st.data(), seed=seeds)
@settings(max_examples=25)
def test_permutation_of_tasks(name, data, seed):
    # Aligned-MTL drops what is rounding in G: norms 1e10 apart are beyond it by definition. With
    # GCond, of two tasks that are equally strong the first wins.
    among = {"AlignedMTL": well_scaled, "GCond": jacobians(st.just("random"))}
    jacobian = data.draw(among.get(name, jacobians()))
    order = torch.randperm(len(jacobian), generator=torch.Generator().manual_seed(seed))
    update = build_aggregator(method(name))(jacobian)
    permuted = build_aggregator(method(name))(jacobian[order])
    scale = jacobian.abs().max().item()
    assert_close(permuted, update, rtol=1e-6, atol=1e-9 * scale)


# The step of two methods has the unit of one over a squared gradient; the lengths that a third
# is used to begin at 1.
@pytest.mark.parametrize("name", [n for n in METHODS if n not in ("MoDo", "MoCo", "GCond")])
@given(
    jacobian=jacobians(st.sampled_from(["random", "conflicting", "duplicate"])),
    factor=st.sampled_from([1e-10, 1e-3, 0.5, 1e3, 1e10]),
)
@settings(max_examples=20)
def test_homogeneous(name, jacobian, factor):
    """Updates scale with a power of the gradients, for most methods the first."""
    cfg = method(name)
    one, other = build_aggregator(cfg)(jacobian), build_aggregator(cfg)(jacobian * factor)
    wanted = factor ** {"NashMTL": 0.0, "FairGrad": -1.0 / 3.0}.get(name, 1.0)
    assert_close(other, one * wanted, rtol=1e-6, atol=1e-9 * max(factor, wanted))


@every
@given(
    count=tasks, seed=seeds, dtype=st.sampled_from([torch.float32, torch.float64]), data=st.data()
)
@settings(max_examples=60)
def test_degenerate_gradients_give_finite_updates(name, count, seed, dtype, data):
    """Zero rows, opposite rows, a rank of 1 to 3, norms 1e20 to 1e40 apart, all at once."""
    rng = torch.Generator().manual_seed(seed)
    rank = data.draw(st.integers(1, 3))
    rows = torch.randn(count, rank, generator=rng, dtype=torch.float64)
    # Single precision cannot hold the ratio of 1e20 and 1e-20.
    reach = 20 if dtype == torch.float64 else 10
    rows *= 10.0 ** torch.randint(-reach, reach + 1, (count, 1), generator=rng).double()
    for t in data.draw(st.sets(st.integers(0, count - 1), max_size=3)):
        rows[t] = 0.0
    if data.draw(st.booleans()):
        rows[-1] = -rows[0]
    rows = rows.to(dtype)
    aggregator = build_aggregator(method(name))
    assert aggregator(rows).isfinite().all()
    if name in GRAMIAN:
        assert aggregator.weights(gramian_of(rows)).isfinite().all()


@every
def test_no_gradient_at_all(name):
    assert_close(build_aggregator(method(name))(torch.zeros(4, 6)), torch.zeros(6))


@every
def test_tasks_that_take_part_are_all_it_sees(name):
    """Among six tasks of which three are there, T is 3: as if there were no others."""
    jacobian = make_jacobian("conflicting", 3, 0)
    some, alone = (build_aggregator(method(name)) for _ in range(2))
    for step in range(3):
        update = some(jacobian * (step + 1), tasks=[4, 1, 3])
        assert_close(update, alone(jacobian * (step + 1)))
        if name in GRAMIAN and some.own_factors is not None:
            assert some.own_factors == alone.own_factors


@pytest.mark.parametrize("present", [[0, 1, 2, 3], [3, 1], [2]])
def test_mean_of_the_tasks_that_take_part(present):
    """MCLGS whose pacing has come to 0 is the mean, of the same tasks, their heads as well."""
    jacobian = make_jacobian("random", len(present), 0)
    expected = jacobian.sum(dim=0) / len(present)
    assert_close(build_aggregator("Mean")(jacobian, tasks=present), expected)
    curriculum = build_aggregator({"type": "MCLGS", "a0": 0.0, "total_steps": 1})
    assert_close(curriculum(jacobian, tasks=present), expected)
    assert curriculum.own_factors == [1 / len(present)] * len(present)


@every_gramian
def test_gradient_that_is_not_finite_is_refused(name):
    with pytest.raises(ValueError, match="not finite"):
        build_aggregator(method(name)).weights(torch.tensor([[1.0, torch.nan], [torch.nan, 1.0]]))


@pytest.mark.parametrize("name", [name for name in RANDOM if name in METHODS])
def test_state_continues_the_draws(name):
    jacobians = [make_jacobian("conflicting", 5, seed) for seed in range(4)]
    straight = build_aggregator({"type": name, "seed": 1})
    expected = [straight(jacobian) for jacobian in jacobians]
    first = build_aggregator({"type": name, "seed": 1})
    for jacobian in jacobians[:2]:
        first(jacobian)
    resumed = build_aggregator({"type": name, "seed": 2})
    resumed.load_state_dict(first.state_dict())
    for jacobian, update in zip(jacobians[2:], expected[2:], strict=True):
        assert torch.equal(resumed(jacobian), update)


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(KeyError, match="did you mean 'PCGrad'"):
        build_aggregator("pcgard")


def test_unknown_argument_names_the_valid_ones():
    with pytest.raises(TypeError, match="CAGrad takes no argument 'C'; did you mean 'c'"):
        build_aggregator({"type": "CAGrad", "C": 0.5})


def test_config_of_the_wrong_kind():
    with pytest.raises(TypeError, match="aggregator: expected a name"):
        build_aggregator(["PCGrad"])


@pytest.mark.parametrize(
    "cfg",
    [
        {"type": "CAGrad", "c": -1.0},
        {"type": "CAGrad", "rescale": 3},
        {"type": "MGDA", "normalization": "l1"},
        {"type": "NashMTL", "max_norm": -1.0},
        {"type": "NashMTL", "update_every": 0},
        {"type": "AlignedMTL", "scale_mode": "max"},
        {"type": "GradVac", "beta": 2.0},
        {"type": "GradDrop", "leak": -0.5},
        {"type": "GradDrop", "leak": [0.0, 1.5]},
        {"type": "FairGrad", "alpha": 0.0},
        {"type": "FairGrad", "max_norm": -1.0},
        {"type": "MoDo", "gamma": 0.0},
        {"type": "SDMGrad", "lam": -0.1},
        {"type": "SDMGrad", "steps": 0},
        {"type": "MoCo", "beta": 0.0},
        {"type": "DBMTL", "beta": 1.0},
        {"type": "ExcessMTL", "eta": 0.0},
        {"type": "GCond", "thresholds": [0.0, -0.5, -0.8]},
    ],
)
def test_invalid_value_names_key_and_method(cfg):
    with pytest.raises(ValueError, match=f"aggregator: {cfg['type']}: "):
        build_aggregator(cfg)


def test_state_of_another_method_is_refused():
    with pytest.raises(ValueError, match="with another method"):
        build_aggregator("GradVac").load_state_dict(build_aggregator("PCGrad").state_dict())


REGISTRIES = {"aggregation": AGGREGATORS, "weighting": WEIGHTINGS, "regularization": REGULARIZERS}
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("package", REGISTRIES)
def test_a_method_is_its_file_its_config_and_its_test(package):
    """Names the one that is missing: nothing else has to know of a method."""
    wrappers = [
        runpy.run_path(str(path))["optim_wrapper"]
        for path in (ROOT / "configs/_base_/mtl").glob("*.py")
    ]
    configured = {part["type"] for w in wrappers for part in w.values() if isinstance(part, dict)}
    tests = "".join(path.read_text() for path in (ROOT / "tests" / package).glob("test_*.py"))
    for name, cls in REGISTRIES[package].items():
        assert cls.__module__.startswith(f"mtl_plugins.{package}."), name
        assert name in configured, f"configs/_base_/mtl has no config of {name}"
        assert re.search(rf"\b{name}\b", tests), f"tests/{package} has no test of {name}"


def test_a_file_is_all_that_a_method_takes(tmp_path, monkeypatch):
    package = tmp_path / "extra_methods"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "mine.py").write_text(
        "from mtl_plugins.aggregation.base import GramianAggregator\n"
        "from mtl_plugins.aggregation.constant import Sum\n"  # of another module: not listed
        "class Abstract(GramianAggregator): pass\n"
        "class _Private(Sum): pass\n"
        "class Mine(Sum): pass\n"
    )
    (package / "several.py").write_text(
        "from mtl_plugins.aggregation.constant import Sum\n"
        "__all__ = ['One']\n"
        "class One(Sum): pass\n"
        "class Two(Sum): pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    found = find_methods("extra_methods", [str(package)], Aggregator)
    assert list(found) == ["Mine", "One"]
    assert_close(found["Mine"]()(torch.eye(2)), torch.ones(2))


def test_methods_can_be_imported_by_name():
    from mtl_plugins import aggregation, regularization, weighting

    for module, names in (
        (aggregation, "Sum Mean MGDA PCGrad GradVac GradDrop RGW CAGrad NashMTL AlignedMTL IMTLG"),
        (aggregation, "MCLGS UPGrad TorchJD"),
        (weighting, "Equal Fixed Uncertainty GradNorm IMTLL DWA RLW FAMO"),
        (regularization, "CosReg"),
    ):
        for name in names.split():
            assert getattr(module, name).__name__ == name and name in module.__all__


def test_import_needs_torch_only():
    """What `sys.modules` holds after it, in a process of its own."""
    code = (
        "import sys, mtl_plugins.aggregation, mtl_plugins.weighting, mtl_plugins.regularization\n"
        "found = {'torchjd', 'torchvision', 'mmengine', 'scipy', 'cvxpy'} & set(sys.modules)\n"
        "raise SystemExit(f'imported {found}' if found else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
