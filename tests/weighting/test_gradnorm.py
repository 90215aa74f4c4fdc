import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from mtl_plugins.weighting import GradNorm

TASKS = ("a", "b", "c")


class TwoLayers(nn.Module):
    """A shared layer and a head for each task, whose losses differ in scale."""

    def __init__(self):
        super().__init__()
        self.shared = nn.Linear(6, 5)
        self.heads = nn.ModuleList(nn.Linear(5, 2) for _ in TASKS)

    def forward(self, x, y):
        features = self.shared(x).tanh()
        return [(1 + t) * (h(features) - y).square().mean() for t, h in enumerate(self.heads)]


@given(seed=st.integers(0, 2**31), alpha=st.sampled_from([0.0, 0.5, 1.5, 3.0]))
@settings(max_examples=25)
def test_gradient_is_that_of_the_l1_objective(seed, alpha):
    torch.manual_seed(seed)
    model, weighting = TwoLayers().double(), GradNorm(alpha=alpha, lr=0.1)
    x, y = torch.randn(8, 6, dtype=torch.float64), torch.randn(8, 2, dtype=torch.float64)
    sgd = torch.optim.SGD(model.parameters(), lr=0.2)
    first = None
    for _ in range(6):
        losses = model(x, y)
        values = torch.stack(losses).detach()
        first = values if first is None else first
        names = dict(zip(TASKS, range(3), strict=True))
        w = torch.tensor([weighting.number(t) for t in TASKS], dtype=torch.float64)
        w.requires_grad_()

        shared = model.shared.weight
        weighted = [w[t] * losses[t] for t in names.values()]
        norms = torch.stack(
            [torch.autograd.grad(loss, shared, create_graph=True)[0].norm() for loss in weighted]
        )
        rate = (values / first) / (values / first).mean()
        target = (norms.mean() * rate**alpha).detach()
        (expected,) = torch.autograd.grad((norms - target).abs().sum(), w, retain_graph=True)

        raw = {
            t: torch.autograd.grad(losses[i], shared, retain_graph=True)[0].norm().item()
            for t, i in names.items()
        }
        told = dict(zip(TASKS, values.tolist(), strict=True))
        # Equal rates leave a single difference of rounding size, whose sign means nothing.
        clear = ((norms - target).abs() > 1e-9 * norms).tolist()
        gradient = weighting.gradient(told, raw)
        for t, i in names.items():
            if clear[i]:
                assert_close(gradient[t], expected[i].item())

        weighting.update(told, raw)
        sgd.zero_grad()
        sum(weighting.weights([t])[t] * losses[i] for t, i in names.items()).backward()
        sgd.step()


def test_equalises_the_norms_when_losses_fall_alike():
    norms = {"a": 1.0, "b": 4.0, "c": 0.5}
    weighting = GradNorm(lr=0.002)
    for step in range(3000):
        fallen = 0.999**step
        weighting.update({"a": 2.0 * fallen, "b": 0.1 * fallen, "c": 50.0 * fallen}, norms)
    lengths = [w * norms[t] for t, w in weighting.weights(TASKS).items()]
    inverse = sum(1.0 / n for n in norms.values())
    assert lengths == pytest.approx([3.0 / inverse] * 3, rel=0.03)


def test_the_task_that_lags_gets_more():
    equal, preferring = GradNorm(alpha=0.0, lr=0.01), GradNorm(alpha=1.5, lr=0.01)
    for step in range(300):
        losses = {"fast": 0.98**step, "slow": 0.999**step}
        for weighting in (equal, preferring):
            weighting.update(losses, {"fast": 1.0, "slow": 1.0})
    assert equal.weights(["fast", "slow"]) == pytest.approx({"fast": 1.0, "slow": 1.0}, abs=0.05)
    weights = preferring.weights(["fast", "slow"])
    assert weights["slow"] > 1.5 and weights["fast"] < 0.5


@given(st.data())
@settings(max_examples=30)
def test_all_weights_known_sum_to_their_number(data):
    """Whoever takes part, and new tasks come in; the absent keep what they have."""
    weighting, known = GradNorm(lr=0.3), set()
    positive = st.floats(1e-3, 1e3)
    for _ in range(12):
        present = data.draw(st.dictionaries(st.sampled_from("abcdef"), positive, min_size=1))
        norms = {t: data.draw(positive) for t in present}
        before = weighting.weights(known)
        weighting.update(present, norms)
        known |= present.keys()
        after = weighting.weights(known)
        assert sum(after.values()) == pytest.approx(len(known))
        assert min(after.values()) > 0.0
        for t in before.keys() - present.keys():
            assert after[t] == before[t]


def test_task_without_a_gradient_has_no_say():
    weighting, twin = GradNorm(), GradNorm()
    for other in (weighting, twin):
        other.update({"a": 1.0, "b": 2.0, "c": 1.0}, {"a": 1.0, "b": 3.0, "c": 2.0})
    weighting.update({"a": 0.5, "b": 1.5, "c": 0.0}, {"a": 1.0, "b": 3.0, "c": 0.0})
    twin.update({"a": 0.5, "b": 1.5}, {"a": 1.0, "b": 3.0})
    assert weighting.state_dict() == twin.state_dict()


def test_first_loss_is_the_first_that_measures():
    """After a first batch without an example, the next one counts."""
    weighting, twin = GradNorm(), GradNorm()
    weighting.update({"a": 0.0}, {"a": 0.0})
    norms = {"a": 1.0, "b": 2.0}
    for losses in ({"a": 4.0, "b": 1.0}, {"a": 1.0, "b": 1.0}):
        for other in (weighting, twin):
            other.update(losses, norms)
    assert weighting.weights("ab") == twin.weights("ab")


def test_negative_alpha_is_refused():
    with pytest.raises(ValueError, match="alpha: expected at least 0"):
        GradNorm(alpha=-1.0)
