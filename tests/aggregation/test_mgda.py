import pytest
import torch
import torchjd.aggregation
from hypothesis import given, settings
from strategies import jacobians, well_scaled
from torch.testing import assert_close

from mtl_plugins.aggregation import MGDA


@given(jacobian=jacobians())
@settings(max_examples=150)
def test_kkt_conditions(jacobian):
    """On the simplex, and no vertex lies on the near side of d: ``g_t · d ≥ ‖d‖²``."""
    gramian = jacobian @ jacobian.T
    w = MGDA().weights(gramian)
    assert (w >= 0).all()
    assert_close(w.sum(), torch.tensor(1.0, dtype=w.dtype))
    d = w @ jacobian
    units = jacobian / jacobian.norm(dim=1, keepdim=True)
    excess = units @ d - d.dot(d) / jacobian.norm(dim=1)
    shortest = jacobian.norm(dim=1).min()
    assert (excess >= -1e-7 * shortest).all()
    used = w * jacobian.norm(dim=1) > 1e-6 * shortest
    assert_close(excess[used], torch.zeros_like(excess[used]), rtol=0, atol=1e-6 * shortest.item())


@pytest.mark.parametrize("seed", range(20))
def test_two_tasks_by_brute_force(seed):
    torch.manual_seed(seed)
    jacobian = torch.randn(2, 3, dtype=torch.float64)
    share = torch.linspace(0, 1, 200_001, dtype=torch.float64)
    squared = ((share[:, None] * jacobian[0] + (1 - share[:, None]) * jacobian[1]) ** 2).sum(1)
    w = MGDA().weights(jacobian @ jacobian.T)
    assert_close(w[0], share[squared.argmin()], rtol=0, atol=1e-5)


@given(jacobian=well_scaled)
@settings(max_examples=50)
def test_at_least_as_good_as_torchjd(jacobian):
    gramian = jacobian @ jacobian.T
    ours = MGDA().weights(gramian)
    theirs = torchjd.aggregation.MGDAWeighting(epsilon=1e-9, max_iters=2000)(gramian)
    objective, bound = ours @ gramian @ ours, theirs @ gramian @ theirs
    assert objective <= bound * (1 + 1e-9) + 1e-12
    assert bound <= objective * 1.05 + 1e-3  # theirs ends near the same minimum


@pytest.mark.parametrize("normalization", ["none", "l2", "loss", "loss+"])
def test_normalization_divides_before_solving(normalization):
    torch.manual_seed(0)
    jacobian = torch.randn(4, 9, dtype=torch.float64) * torch.tensor([[1.0], [10.0], [0.1], [3.0]])
    losses = torch.tensor([0.5, 2.0, 7.0, 0.1], dtype=torch.float64)
    norms = jacobian.norm(dim=1)
    divisor = {
        "none": torch.ones_like(norms),
        "l2": norms,
        "loss": losses,
        "loss+": losses * norms,
    }[normalization]
    scaled = jacobian / divisor[:, None]
    expected = MGDA().weights(scaled @ scaled.T)
    actual = MGDA(normalization).weights(jacobian @ jacobian.T, losses=losses)
    assert_close(actual, expected)


def test_loss_normalization_needs_losses():
    with pytest.raises(ValueError, match="needs the loss values"):
        MGDA("loss").weights(torch.eye(2))


def test_zero_gradient_is_the_shortest():
    weights = MGDA().weights(torch.diag(torch.tensor([0.0, 1.0, 4.0])))
    assert_close(weights, torch.tensor([1.0, 0.0, 0.0]))


@pytest.mark.parametrize("normalization", ["none", "l2", "loss", "loss+"])
@given(jacobian=well_scaled)
@settings(max_examples=10)
def test_update_of_normalised_gradients(normalization, jacobian):
    """As LibMTL: MGDA of the normalised rows, from beginning to end."""
    losses = torch.linspace(0.5, 2.0, len(jacobian), dtype=torch.float64)
    norms = jacobian.norm(dim=1)
    divisor = {"none": norms**0, "l2": norms, "loss": losses, "loss+": losses * norms}
    rows = jacobian / divisor[normalization][:, None]
    weights = MGDA(normalization, "normalised").weights(jacobian @ jacobian.T, losses)
    assert_close(weights @ jacobian, MGDA()(rows), rtol=1e-6, atol=1e-7)
