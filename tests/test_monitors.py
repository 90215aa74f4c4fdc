import math

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from mtl_plugins.monitors import (
    feature_disentanglement,
    gradient_direction_similarity,
    gradient_magnitude_similarity,
)

shapes = st.tuples(st.integers(2, 8), st.integers(2, 30), st.integers(0, 10_000))


def rows(shape):
    tasks, width, seed = shape
    return torch.randn(tasks, width, generator=torch.Generator().manual_seed(seed)).double()


@given(shapes)
def test_gds_is_the_mean_cosine(shape):
    g = rows(shape)
    cosines = [
        torch.nn.functional.cosine_similarity(g[i], g[j], dim=0)
        for i in range(len(g))
        for j in range(len(g))
        if i != j
    ]
    assert_close(gradient_direction_similarity(g @ g.T), torch.stack(cosines).mean())


@given(shapes)
def test_gms_is_the_mean_magnitude_similarity(shape):
    g = rows(shape)
    n = g.norm(dim=1)
    pairs = [
        2 * n[i] * n[j] / (n[i] ** 2 + n[j] ** 2)
        for i in range(len(g))
        for j in range(len(g))
        if i != j
    ]
    assert_close(gradient_magnitude_similarity(g @ g.T), torch.stack(pairs).mean())


def test_extreme_norms():
    g = torch.diag(torch.tensor([1e-18, 1e18]))
    g[1, 0] = 1e18
    gramian = (g.double() @ g.T.double()).float()
    assert_close(gradient_direction_similarity(gramian), torch.tensor(0.5**0.5))
    assert_close(gradient_magnitude_similarity(gramian), torch.tensor(2e-36 / 2**0.5))


def test_zero_gradients():
    gramian = torch.diag(torch.tensor([1.0, 0.0, 0.0]))
    assert gradient_direction_similarity(gramian) == 0.0
    assert_close(gradient_magnitude_similarity(gramian), torch.tensor(1 / 3))


@given(shapes)
def test_fd_against_a_loop(shape):
    g = rows(shape)
    g[:, 0] = 0.0  # no task cares: left out
    entropies = []
    for j in range(1, g.shape[1]):
        p = g[:, j].abs() / g[:, j].abs().sum()
        entropies.append(-sum(q * math.log(q) for q in p.tolist()))
    expected = sum(entropies) / len(entropies)
    assert_close(feature_disentanglement(g).item(), expected)
    assert_close(feature_disentanglement(1e-200 * g).item(), expected)


def test_fd_bounds():
    assert feature_disentanglement(torch.eye(4)) == 0.0
    assert_close(feature_disentanglement(torch.ones(4, 3, 5)), torch.tensor(math.log(4)))
