"""GradDrop against loops over tasks, coordinates and examples, and against TorchJD."""

import pytest
import torch
import torchjd.aggregation
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import jacobians, make_jacobian, seeds
from torch.testing import assert_close

from mtl_plugins.aggregation import GradDrop, graddrop


def draws(aggregator, *shapes):
    """What the next call of ``aggregator`` draws."""
    generator = torch.Generator().manual_seed(aggregator.draw_seed())
    return [torch.rand(shape, generator=generator) for shape in shapes]


def passes(signals, u):
    """For each task, whether its gradient passes at one location; None if it has no sign."""
    total = sum(map(abs, signals))
    positive = total > 0.0 and u < 0.5 * (1.0 + sum(signals) / total)
    return [None if s == 0.0 else (s > 0.0) == positive for s in signals]


@given(jacobian=jacobians(), seed=seeds, leak=st.sampled_from([0.0, 0.3, 1.0]))
@settings(max_examples=60)
def test_agrees_with_a_loop_over_coordinates(jacobian, seed, leak):
    (u,) = draws(GradDrop(seed=seed), jacobian.shape[1])
    expected = []
    for column, u_j in zip(jacobian.T.tolist(), u.tolist(), strict=True):
        kept = passes(column, u_j)
        expected.append(sum(g if k else leak * g for g, k in zip(column, kept, strict=True)))
    actual = GradDrop(leak, seed=seed)(jacobian)
    scale = jacobian.abs().max().item()
    assert_close(actual, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-12 * scale)


def test_expectation():
    """The positive gradients pass with probability P, the negative ones with 1 - P."""
    column = [0.5, 2.0, -1.0, 0.0, -0.25]
    up, down = 2.5, -1.25
    purity = 0.5 * (1.0 + (up + down) / (up - down))
    count = 400_000
    update = GradDrop(seed=0)(torch.tensor(column)[:, None].expand(-1, count))
    assert set(update.tolist()) == {up, down}
    # 5 standard deviations
    deviation = (up - down) * (purity * (1.0 - purity) / count) ** 0.5
    expected = purity * up + (1.0 - purity) * down
    assert update.mean().item() == pytest.approx(expected, abs=5 * deviation)


@given(jacobian=jacobians(), seed=seeds)
@settings(max_examples=30)
def test_agrees_with_torchjd(jacobian, seed):
    theirs = torchjd.aggregation.GradDrop(leak=torch.linspace(0.0, 1.0, len(jacobian)).double())
    (u,) = draws(GradDrop(seed=seed), jacobian.shape[1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "rand", lambda *_, **__: u.double())
        expected = theirs(jacobian)
    actual = GradDrop(theirs.leak.tolist(), seed=seed)(jacobian)
    assert_close(actual, expected, rtol=1e-9, atol=1e-12 * jacobian.abs().max().item())


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_where_all_agree_nothing_changes(sign):
    jacobian = make_jacobian("badly scaled", 6, 0).abs() * sign
    for seed in range(200):
        assert_close(GradDrop(seed=seed)(jacobian), jacobian.sum(dim=0))


@given(jacobian=jacobians(), seed=seeds)
@settings(max_examples=20)
def test_leak_of_one_is_the_sum(jacobian, seed):
    scale = jacobian.abs().max().item()
    assert_close(GradDrop(1.0, seed)(jacobian), jacobian.sum(dim=0), rtol=1e-9, atol=1e-12 * scale)


def test_leaks_belong_to_tasks_not_to_rows():
    jacobian = make_jacobian("conflicting", 3, 0)
    pair = jacobian[[0, 2]]
    update = GradDrop([0.1, 0.5, 0.9], seed=1)(pair, tasks=[0, 2])
    assert_close(update, GradDrop([0.1, 0.9], seed=1)(pair))
    with pytest.raises(ValueError, match="leak has 2 numbers for 3 tasks"):
        GradDrop([0.1, 0.5])(pair, tasks=[0, 2])


def test_chunks_do_not_matter(monkeypatch):
    jacobian = make_jacobian("random", 4, 0).repeat(1, 9)
    expected = GradDrop(0.2, seed=0)(jacobian)
    monkeypatch.setattr(graddrop, "CPU_CHUNK", 7)
    assert_close(GradDrop(0.2, seed=0)(jacobian), expected)


@pytest.mark.parametrize("magnitude", [1e-20, 1e20, 1e37])
def test_magnitude_does_not_matter(magnitude):
    jacobian = make_jacobian("random", 4, 0).clamp(-1.0, 1.0).float()
    update = GradDrop(seed=0)(jacobian * magnitude)
    assert_close(update / magnitude, GradDrop(seed=0)(jacobian))


def test_half_precision_is_computed_in_single():
    jacobian = make_jacobian("random", 3, 0).half()
    update = GradDrop(seed=0)(jacobian)
    assert torch.equal(update, GradDrop(seed=0)(jacobian.float()).half())


def test_new_draws_at_every_call():
    aggregator = GradDrop(seed=0)
    jacobian = make_jacobian("conflicting", 4, 0).repeat(1, 9)
    assert not torch.equal(aggregator(jacobian), aggregator(jacobian))


class TestFeatures:
    SHAPES = [(3, 2, 4, 5), (3, 7), (3,)]

    def features(self, seed=0):
        """With zeros, as after a ReLU, one of them in every example; and in several formats."""
        rng = torch.Generator().manual_seed(seed)
        features = [torch.randn(s, generator=rng, dtype=torch.float64).relu() for s in self.SHAPES]
        features[0] -= 0.5 * torch.rand(self.SHAPES[0], generator=rng) * (features[0] > 0)
        features[0][:, 0, 1, 2] = 0.0
        features[0] = features[0].contiguous(memory_format=torch.channels_last)
        return features

    def rows(self, tasks=4, seed=1):
        """The gradients of each feature, and all of them in the order they have in memory."""
        rng = torch.Generator().manual_seed(seed)
        each = [
            torch.randn(tasks, *s, generator=rng, dtype=torch.float64).round(decimals=1)
            for s in self.SHAPES
        ]
        return each, torch.cat(
            [each[0].movedim(2, -1).flatten(1), *(g.flatten(1) for g in each[1:])], 1
        )

    @pytest.mark.parametrize("leak", [0.0, 0.4])
    def test_agrees_with_a_loop_over_locations(self, leak):
        features = self.features()
        each, jacobian = self.rows()
        u_each = draws(GradDrop(seed=5), *(s[1:] for s in self.SHAPES))
        expected = []
        for z, grads, u in zip(features, each, u_each, strict=True):
            z, update = z.reshape(len(z), -1), torch.zeros(len(z), z[0].numel()).double()
            grads, u = grads.reshape(len(grads), *z.reshape(len(z), -1).shape), u.flatten()
            for j in range(z.shape[1]):
                signals = [
                    sum(z[n, j].sign().item() * g[n, j].item() for n in range(len(z)))
                    for g in grads
                ]
                for g, kept in zip(grads, passes(signals, u[j].item()), strict=True):
                    update[:, j] += g[:, j] * (leak if kept is False else 1.0)
            expected.append(update)
        actual = GradDrop(leak, seed=5).on_features(jacobian, features)
        first = actual[: features[0].numel()].view(3, 4, 5, 2).movedim(-1, 1)
        rest = actual[features[0].numel() :].split([z.numel() for z in features[1:]])
        for found, update in zip([first, *rest], expected, strict=True):
            assert_close(found.reshape(3, -1), update)

    def test_the_batch_decides_together(self):
        """Example 2 pulls task 1 the other way, but is in the minority."""
        z = torch.tensor([[1.0], [2.0], [3.0]])
        jacobian = torch.tensor([[1.0, 1.0, -1.0], [-0.5, -0.5, -0.5]])
        seen = {tuple(GradDrop(seed=s).on_features(jacobian, [z]).tolist()) for s in range(40)}
        assert seen == {tuple(row) for row in jacobian.tolist()}

    def test_the_sign_of_the_features_counts(self):
        """Both tasks want the first example's feature away from zero, by different gradients."""
        z = torch.tensor([[1.0], [-1.0]])
        jacobian = torch.tensor([[-1.0, 0.0], [0.0, 1.0]])
        for seed in range(40):
            update = GradDrop(seed=seed).on_features(jacobian, [z])
            assert_close(update, jacobian.sum(dim=0))

    def test_features_that_are_all_zero_get_the_sum(self):
        jacobian = make_jacobian("conflicting", 3, 0).float()
        update = GradDrop(seed=0).on_features(jacobian, [torch.zeros(2, jacobian.shape[1] // 2)])
        assert_close(update, jacobian.sum(dim=0))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision(self, dtype):
        features = [z.to(dtype) for z in self.features()]
        jacobian = self.rows()[1].to(dtype)
        update = GradDrop(seed=0).on_features(jacobian, features)
        assert update.dtype == dtype
        exact = GradDrop(seed=0).on_features(jacobian.float(), [z.float() for z in features])
        assert torch.equal(update, exact.to(dtype))
