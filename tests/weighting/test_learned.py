"""What the weightings that learn a number a task have in common."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from mtl_plugins.weighting import LearnedWeighting


class Plain(LearnedWeighting):
    """Without a rule of its own."""

    initial = 0.5

    def weights(self, tasks, losses=None):
        return {task: self.number(task) for task in tasks}


steps = st.lists(
    st.dictionaries(st.sampled_from("abc"), st.floats(-1e3, 1e3), min_size=1), max_size=25
)


@given(steps, st.sampled_from([0.0, 0.01, 0.5]))
def test_descends_as_the_adam_of_torch(steps, weight_decay):
    weighting = Plain(lr=0.1, weight_decay=weight_decay)
    numbers = {t: torch.nn.Parameter(torch.tensor(0.5, dtype=torch.float64)) for t in "abc"}
    adam = torch.optim.Adam(numbers.values(), lr=0.1, weight_decay=weight_decay)
    for gradients in steps:
        weighting.descend(gradients)
        for task, number in numbers.items():  # None leaves number and moments of a task alone
            number.grad = torch.full_like(number, gradients[task]) if task in gradients else None
        adam.step()
    for task, number in numbers.items():
        assert_close(weighting.number(task), number.item(), rtol=1e-9, atol=1e-9)


def test_numbers_stay_within_their_bounds():
    class Bounded(Plain):
        bounds = (0.0, 1.0)

    weighting = Bounded(lr=0.3)
    for sign, end in ((1.0, 0.0), (-1.0, 1.0)):
        for _ in range(60):
            weighting.descend({"a": sign})
            assert 0.0 <= weighting.number("a") <= 1.0
        assert weighting.number("a") == end


def test_state_is_a_snapshot():
    weighting = Plain()
    weighting.descend({"a": 1.0})
    state = weighting.state_dict()
    number = weighting.number("a")
    weighting.descend({"a": 1.0, "b": 1.0})
    twin = Plain()
    for _ in range(2):  # nor does the twin change it
        twin.load_state_dict(state)
        assert twin.number("a") == number and twin.number("b") == 0.5
        twin.descend({"a": 1.0, "b": 1.0})
        assert twin.state_dict() == weighting.state_dict()


@pytest.mark.parametrize(
    ("option", "valid"), [("lr", "more than 0"), ("weight_decay", "at least 0")]
)
def test_negative_options_are_refused(option, valid):
    with pytest.raises(ValueError, match=f"{option}: expected {valid}, .*got -0.1"):
        Plain(**{option: -0.1})
