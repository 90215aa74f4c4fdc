"""The random numbers of a method, against generators of PyTorch that are seeded by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from two_processes import work

from mtl_plugins.draws import RandomMethod


def by_hand(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def numbers(generator: torch.Generator, count: int = 4) -> Tensor:
    return torch.rand(count, generator=generator)


def find(rank: int) -> dict[str, Any]:
    """Other seeds on each rank; a method that is resumed has a state of its own on each."""
    torch.manual_seed(40 + rank)
    found = {"own": numbers(RandomMethod(10 + rank).generator())}
    found["run"] = numbers(RandomMethod().generator())
    method = RandomMethod(20 + rank)
    found["seeds"] = [method.draw_seed() for _ in range(3)]
    later = RandomMethod(30 + rank)
    later.load_state_dict(method.state_dict())
    found["resumed"] = numbers(later.generator())
    found["straight"] = numbers(method.generator())
    return found


def test_all_ranks_draw_what_the_seed_of_the_first_gives(ranks):
    twenty = by_hand(20)
    seeds = [int(torch.randint(2**62, (), generator=twenty)) for _ in range(3)]
    rest = numbers(twenty)
    for rank in ranks:
        assert torch.equal(rank["own"], numbers(by_hand(10)))
        assert torch.equal(rank["run"], numbers(by_hand(40)))
        assert rank["seeds"] == seeds
        assert torch.equal(rank["straight"], rest)
        assert torch.equal(rank["resumed"], rest)


@pytest.mark.parametrize("seed", [0, 3, 2**40])
def test_own_seed(seed):
    assert torch.equal(numbers(RandomMethod(seed).generator()), numbers(by_hand(seed)))


def test_without_a_seed_that_of_the_run():
    torch.manual_seed(5)
    torch.rand(3)  # the seed counts, not the state
    assert torch.equal(numbers(RandomMethod().generator()), numbers(by_hand(5)))


def test_run_keeps_its_random_numbers():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    method = RandomMethod(1)
    method.generator()
    method.draw_seed()
    assert torch.equal(torch.rand(4), expected)


def test_draws_go_on():
    """The generator is seeded once, not at each call."""
    method, expected = RandomMethod(7), by_hand(7)
    for _ in range(3):
        assert torch.equal(numbers(method.generator()), numbers(expected))


def test_seeds_for_elsewhere_differ_and_fit():
    method = RandomMethod(7)
    seeds = [method.draw_seed() for _ in range(50)]
    assert len(set(seeds)) == 50
    assert all(0 <= seed < 2**62 for seed in seeds)
    torch.Generator().manual_seed(max(seeds))  # which refuses what is too large


@pytest.mark.parametrize("before", [0, 3])
def test_state_continues_before_and_after_the_first_draw(before):
    straight, expected = RandomMethod(7), by_hand(7)
    for _ in range(before):
        numbers(straight.generator()), numbers(expected)
    state = straight.state_dict()
    numbers(straight.generator())  # does not reach what was saved
    resumed = RandomMethod(8)
    numbers(resumed.generator())
    resumed.load_state_dict(state)
    assert torch.equal(numbers(resumed.generator()), numbers(expected))


def test_state_without_a_generator():
    with pytest.raises(ValueError, match=r"the state of RandomMethod .* lacks \['generator'\]"):
        RandomMethod(1).load_state_dict({})


if __name__ == "__main__":
    work(find)
