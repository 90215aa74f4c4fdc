"""Every method of TorchJD by its name, against TorchJD called without us."""

import copy
import inspect
import io
import sys

import pytest
import torch
import torchjd.aggregation
from strategies import make_jacobian
from torch.testing import assert_close
from torchjd.linalg import QuadprogProjector

from mtl_plugins import MultiTaskBackward
from mtl_plugins.aggregation import GramianAggregator, build_aggregator
from mtl_plugins.aggregation.torchjd import ConstantTorchJD, GramianTorchJD, JacobianTorchJD

T = 4
PREFERENCE = [0.1, 0.2, 0.3, 0.4]
OPTIONS = {
    "AlignedMTL": {"pref_vector": PREFERENCE, "scale_mode": "median"},
    "CAGrad": {"c": 0.4},
    "Constant": {"weights": PREFERENCE},
    "ConFIG": {"pref_vector": PREFERENCE},
    "CRMOGMWeighting": {"weighting": {"name": "CAGradWeighting", "c": 0.4}, "alpha": 0.5},
    "DualProj": {"pref_vector": PREFERENCE},
    "FairGrad": {"alpha": 1.0},
    "GradDrop": {"leak": PREFERENCE},
    "GramianWeightedAggregator": {"gramian_weighting": "GradVacWeighting"},
    "Krum": {"n_byzantine": 1},
    "NashMTL": {"n_tasks": T, "update_weights_every": 2},
    "PCD": {"tau": [0.1, 0.2, 0.3]},
    "SDMGradWeighting": {"pref_vector": PREFERENCE},
    "TrimmedMean": {"trim_number": 1},
    "UPGrad": {"projector": {"name": "QuadprogProjector", "reg_eps": 1e-6}},
    "WeightedAggregator": {"weighting": "RandomWeighting"},
}
# Those that do not take plain data.
BY_HAND = {
    "CRMOGMWeighting": lambda: torchjd.aggregation.CRMOGMWeighting(
        torchjd.aggregation.CAGradWeighting(0.4), alpha=0.5
    ),
    "GramianWeightedAggregator": lambda: torchjd.aggregation.GramianWeightedAggregator(
        torchjd.aggregation.GradVacWeighting()
    ),
    "UPGrad": lambda: torchjd.aggregation.UPGrad(projector=QuadprogProjector(reg_eps=1e-6)),
    "UPGradWeighting": lambda: torchjd.aggregation.UPGradWeighting(
        projector=QuadprogProjector(reg_eps=1e-6)
    ),
    "WeightedAggregator": lambda: torchjd.aggregation.WeightedAggregator(
        torchjd.aggregation.RandomWeighting()
    ),
}
JACOBIAN = {"ConFIG", "ExcessMTL", "ExcessMTLWeighting", "GradDrop", "NashMTL", "TrimmedMean"}
CONSTANT = {"Constant", "ConstantWeighting", "Mean", "MeanWeighting", "Sum", "SumWeighting"}
SUM_SCALED = {"ConFIG", "GradDrop", "GradVac", "GradVacWeighting", "GramianWeightedAggregator"}
SUM_SCALED |= {"PCGrad", "PCGradWeighting", "Sum", "SumWeighting"}
STATEFUL = {"CRMOGMWeighting", "ExcessMTL", "ExcessMTLWeighting", "GradVac", "GradVacWeighting"}
STATEFUL |= {"GramianWeightedAggregator", "MoDoWeighting", "NashMTL", "PCD", "PCDWeighting"}
STATEFUL |= {"SDMGradWeighting"}

NAMES = [
    name
    for name in torchjd.aggregation.__all__
    if not inspect.isabstract(getattr(torchjd.aggregation, name))
]
every = pytest.mark.parametrize("name", NAMES)
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def options(name):
    return OPTIONS.get(name, OPTIONS.get(name.removesuffix("Weighting"), {}))


def ours(name, **more):
    return build_aggregator({"type": "TorchJD", "name": name, "seed": 0} | options(name) | more)


def theirs(name, dtype):
    if name in BY_HAND:
        return BY_HAND[name]()
    plain = {
        key: torch.tensor(value, dtype=dtype) if isinstance(value, list) else value
        for key, value in options(name).items()
    }
    return getattr(torchjd.aggregation, name)(**plain)


def update_of(method, jacobian):
    """What a method of TorchJD makes of a Jacobian."""
    if isinstance(method, torchjd.aggregation.Aggregator):
        return method(jacobian)
    by_number = torchjd.aggregation.MeanWeighting, torchjd.aggregation.ExcessMTLWeighting
    return method(jacobian if isinstance(method, by_number) else jacobian @ jacobian.T) @ jacobian


def jacobians(dtype=torch.float64, steps=5):
    return [make_jacobian("conflicting", T, seed).to(dtype) for seed in range(steps)]


@every
@every_dtype
def test_agrees_with_torchjd_over_several_steps(name, dtype):
    method, aggregator, twin = theirs(name, dtype), ours(name), ours(name)
    for jacobian in jacobians(dtype):
        torch.manual_seed(twin.draw_seed())
        with torch.no_grad():
            expected = update_of(method, jacobian)
        # CVXPY's solvers stop early.
        loose = {"rtol": 1e-3, "atol": 1e-4} if "CAGrad" in name or "CRMOGM" in name else {}
        assert_close(aggregator(jacobian), expected, **loose)
    assert getattr(aggregator, "fallbacks", 0) == 0


@every
def test_kind_and_scale(name):
    aggregator = ours(name)
    assert isinstance(aggregator, JacobianTorchJD) == (name in JACOBIAN)
    assert isinstance(aggregator, GramianAggregator) == (name not in JACOBIAN)
    assert isinstance(aggregator, ConstantTorchJD) == (name in CONSTANT)
    assert aggregator.needs_gradients == (name not in CONSTANT)
    assert aggregator.scale == ("sum" if name in SUM_SCALED else "mean")


@every
def test_state_continues(name):
    """And is not touched by steps after it was taken."""
    straight, first = ours(name), ours(name)
    expected = [straight(jacobian) for jacobian in jacobians()]
    for jacobian in jacobians()[:2]:
        first(jacobian)
    file = io.BytesIO()
    state = first.state_dict()
    torch.save(copy.deepcopy(state), file)
    first(jacobians()[4])
    file.seek(0)
    for held in (state, torch.load(file, weights_only=True)):
        resumed = ours(name, seed=1)
        resumed(jacobians()[3])
        resumed.load_state_dict(held)
        for jacobian, update in zip(jacobians()[2:], expected[2:], strict=True):
            assert torch.equal(resumed(jacobian), update)
    assert bool(state["memories"]) == (name in STATEFUL)


@pytest.mark.parametrize("name", sorted(STATEFUL))
def test_memory_follows_to_another_dtype(name):
    """As when a checkpoint is read before it is known where the gradients are."""
    straight, moved = ours(name), ours(name)
    for jacobian in jacobians(torch.float32)[:3]:
        straight(jacobian)
        moved(jacobian)
    jacobian = jacobians(torch.float32)[3]
    tolerance = {"rtol": 1e-3, "atol": 1e-3}
    assert_close(moved(jacobian.double()).float(), straight(jacobian), **tolerance)


@every
def test_run_keeps_its_random_numbers(name):
    torch.manual_seed(3)
    expected = torch.rand(5)
    torch.manual_seed(3)
    aggregator = ours(name)
    aggregator(jacobians()[0])
    assert aggregator.scale
    assert torch.equal(torch.rand(5), expected)


@every
def test_keeps_dtype_and_no_graph(name):
    jacobian = jacobians(torch.bfloat16)[0].requires_grad_(name in JACOBIAN)
    update = ours(name)(jacobian)
    assert update.dtype == torch.bfloat16 and not update.requires_grad


@every
def test_no_gradient_at_all(name):
    assert_close(ours(name)(torch.zeros(T, 6)), torch.zeros(6))


@pytest.mark.parametrize("name", sorted(JACOBIAN))
def test_gradient_that_is_not_finite_leaves_no_trace(name):
    aggregator, twin = ours(name), ours(name)
    first, second, third = jacobians(steps=3)
    assert torch.equal(aggregator(first), twin(first))
    assert not aggregator(second * torch.nan).isfinite().any()
    twin.draw_seed()  # that of the skipped step
    assert torch.equal(aggregator(third), twin(third))


def test_every_set_of_tasks_has_a_memory_of_its_own():
    jacobian = jacobians()[0]
    aggregator = ours("GradVac")
    for step in range(3):
        aggregator(jacobian)
        for pair in ([0, 2], [1, 3]):
            aggregator(jacobian[pair] * (step + 1), tasks=pair)
    assert set(aggregator.state_dict()["memories"]) == {(0, 1, 2, 3), (0, 2), (1, 3)}
    # Two rows have one order, and TorchJD alone agrees.
    pair = torchjd.aggregation.GradVac()
    for step in range(3):
        pair(jacobian[[0, 2]] * (step + 1))
    assert_close(aggregator(jacobian[[0, 2]], tasks=[0, 2]), pair(jacobian[[0, 2]]))


class TestFailures:
    @pytest.mark.parametrize("kind", [GramianTorchJD, JacobianTorchJD])
    def test_solver(self, kind, monkeypatch, caplog):
        """Numbers that a solver cannot cope with are no reason to end the run."""
        name = "IMTLG" if kind is GramianTorchJD else "ConFIG"

        def fails(matrix):
            raise torch.linalg.LinAlgError("no convergence")

        aggregator, jacobian = ours(name), jacobians()[0]
        assert isinstance(aggregator, kind) and aggregator.scale
        monkeypatch.setattr(torch.linalg, "pinv", fails)
        monkeypatch.setattr(type(aggregator), "_ask_anew", lambda *_: None)
        plain = jacobian.sum(dim=0) if aggregator.scale == "sum" else jacobian.mean(dim=0)
        assert_close(aggregator(jacobian), plain)
        assert aggregator.fallbacks == 1
        assert f"TorchJD's {name}: no convergence; this step takes the plain" in caplog.text

    @pytest.mark.parametrize(
        "name", ["Constant", "UPGrad", "Krum", "NashMTL", "TrimmedMean", "GradDrop", "PCD"]
    )
    def test_number_of_tasks_that_the_options_are_not_for(self, name):
        more = {"pref_vector": PREFERENCE} if name == "UPGrad" else {}
        aggregator = ours(name, **more)
        aggregator(jacobians()[0])
        with pytest.raises(ValueError, match=f"TorchJD's {name} .* does not take 2 tasks"):
            aggregator(jacobians()[0][:2])


class TestConfig:
    def test_unknown_name(self):
        with pytest.raises(ValueError, match="aggregator: TorchJD: name: .* mean 'UPGrad'"):
            ours("UpGrad")

    def test_abstract_name(self):
        with pytest.raises(ValueError, match="nothing called 'Weighting'"):
            ours("Weighting")

    def test_no_name(self):
        with pytest.raises(ValueError, match="aggregator: TorchJD: name: "):
            build_aggregator("TorchJD")

    def test_unknown_argument(self):
        with pytest.raises(TypeError, match="CAGrad takes no argument 'C'; did you mean 'c'"):
            ours("CAGrad", C=0.5)

    def test_missing_argument(self):
        with pytest.raises(TypeError, match="aggregator: TorchJD: .* 'n_byzantine'"):
            build_aggregator({"type": "TorchJD", "name": "Krum"})

    def test_invalid_value(self):
        with pytest.raises(ValueError, match="aggregator: TorchJD: .*beta"):
            ours("GradVac", beta=2.0)

    def test_unknown_name_inside(self):
        with pytest.raises(ValueError, match="did you mean 'UPGradWeighting'"):
            ours("CRMOGMWeighting", weighting={"name": "UPGradWeight"})

    def test_state_of_another_method(self):
        with pytest.raises(KeyError, match="written with TorchJD's UPGrad, this run uses MGDA"):
            ours("MGDA").load_state_dict(ours("UPGrad").state_dict())

    def test_without_torchjd(self, monkeypatch):
        for module in [m for m in sys.modules if m.split(".")[0] == "torchjd"]:
            monkeypatch.delitem(sys.modules, module)
        monkeypatch.setattr(sys, "path", [])
        monkeypatch.setattr(sys, "meta_path", [])
        with pytest.raises(ImportError, match=r"pip install 'mtl-plugins\[torchjd\]'"):
            ours("UPGrad")

    @pytest.mark.parametrize("name", ["MoDoWeighting", "SDMGradWeighting"])
    def test_methods_for_two_batches_warn(self, name, caplog):
        ours(name)
        assert f"TorchJD's {name} is made for two batches" in caplog.text


class TestBackward:
    def grads(self, trunk, x, cfg, **more):
        model = copy.deepcopy(trunk)
        backward = MultiTaskBackward(model.parameters(), aggregator=cfg, **more)
        backward(model(x))
        return [p.grad for p in model.parameters()], backward

    @pytest.mark.parametrize("more", [{}, {"low_memory": True}, {"weights_every": 2}])
    def test_upgrad_is_our_upgrad(self, trunk, x, more):
        cfg = {
            "type": "TorchJD",
            "name": "UPGradWeighting",
            "projector": {"name": "QuadprogProjector", "norm_eps": 1e-12, "reg_eps": 1e-9},
        }
        grads, _ = self.grads(trunk, x, cfg, **more)
        expected, _ = self.grads(trunk, x, "UPGrad", **more)
        assert_close(grads, expected, rtol=1e-5, atol=1e-6)

    def test_constant_weights_take_one_pass(self, trunk, x):
        grads, backward = self.grads(trunk, x, {"type": "TorchJD", "name": "Mean"})
        expected, _ = self.grads(trunk, x, "Mean")
        assert_close(grads, expected)
        assert backward.last.gramian is None

    def test_gradients_themselves(self, trunk, x):
        grads, backward = self.grads(trunk, x, {"type": "TorchJD", "name": "ConFIG"})
        assert all(g is None or g.isfinite().all() for g in grads)
        assert backward.last.weights is None
