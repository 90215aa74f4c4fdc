"""DTP against its formula."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtl_plugins import MultiTaskBackward
from mtl_plugins.weighting import DTP

accuracies = st.dictionaries(st.sampled_from("abc"), st.floats(0.02, 0.99), min_size=1)


@given(accuracies, st.floats(0.0, 3.0))
def test_first_weights_are_the_formula(k, gamma):
    weighting = DTP(gamma=gamma)
    weighting.tell(k)
    expected = {t: -((1.0 - x) ** gamma) * math.log(x) for t, x in k.items()}
    assert weighting.weights(k) == pytest.approx(expected)
    worst = min(k, key=k.__getitem__)
    assert weighting.weights(k)[worst] == max(weighting.weights(k).values())


def test_indicators_are_averaged_over_validations():
    weighting = DTP(gamma=0.0, momentum=0.25)
    mean = None
    for value in (0.2, 0.6, 0.4):
        weighting.tell({"a": value})
        mean = value if mean is None else 0.75 * mean + 0.25 * value
        assert weighting.weights("a")["a"] == pytest.approx(-math.log(mean))


def test_units():
    """40 percent is 0.4; of an error, the share of the best is."""
    weighting = DTP(gamma=1.0, best={"depth": 0.2})
    weighting.tell({"seg": 40.0, "depth": 0.5, "box": 0.4}, errors=["depth"], percent=["seg"])
    weights = weighting.weights(["seg", "depth", "box"])
    assert weights["seg"] == pytest.approx(-0.6 * math.log(0.4))
    assert weights["seg"] == pytest.approx(weights["box"]) == pytest.approx(weights["depth"])


def test_equal_before_the_first_validation_and_for_a_task_without_a_metric(caplog):
    weighting = DTP()
    assert weighting.weights("ab") == {"a": 1.0, "b": 1.0}
    weighting.tell({"a": 0.5, "b": math.nan, "c": -1.0})  # COCO's -1: no ground truth
    weights = weighting.weights("abc")
    assert weights["a"] == weights["b"] == weights["c"] == pytest.approx(-0.5 * math.log(0.5))
    assert "the indicator of the task 'b' is nan: left out" in caplog.text


def test_perfect_and_useless_tasks_have_finite_weights():
    weighting = DTP(floor=0.01)
    weighting.tell({"a": 0.0, "b": 1.0})
    assert weighting.weights("ab") == {"a": pytest.approx(-0.99 * math.log(0.01)), "b": 0.0}


@pytest.mark.parametrize(
    ("options", "told", "message"),
    [
        (
            {},
            ({"a": 40.0},),
            "that of the task 'a' is 40, and expected is at most 1; is it in perc",
        ),
        ({}, ({"a": 0.4}, ["a"]), "DTP.best: the indicator of the task 'a' is an error"),
        ({}, ({"x": 0.4},), "no task is called 'x'"),
        ({"best": {"a": 0.0}}, None, "best: expected numbers above 0"),
        ({"floor": 1.0}, None, "floor: expected a number in"),
        ({"momentum": 0.0}, None, "momentum: expected a number in"),
        ({"indicators": {"x": "coco/bbox_mAP"}}, None, "DTP.indicators: no task is called 'x'"),
    ],
)
def test_errors(options, told, message, trunk):
    with pytest.raises((KeyError, ValueError), match=message):
        backward = MultiTaskBackward(
            trunk.parameters(), weighting={"type": "DTP", **options}, tasks="abcd"
        )
        backward.tell(*told)


def test_other_weightings_do_not_listen(trunk):
    backward = MultiTaskBackward(trunk.parameters(), weighting="Equal", tasks="abcd")
    with pytest.raises(ValueError, match="weighting: Equal does not go by indicators"):
        backward.tell({"a": 0.5})


def test_the_step_has_the_weights_and_the_checkpoint_the_means(trunk, x):
    cfg = {"type": "DTP", "gamma": 0.0}
    backward = MultiTaskBackward(trunk.parameters(), weighting=cfg, tasks="abcd")
    backward.tell({"a": 0.1, "b": 0.5, "c": 0.5, "d": 0.9})
    backward(trunk(x))
    expected = [-math.log(k) for k in (0.1, 0.5, 0.5, 0.9)]
    assert backward.last.weights.tolist() == pytest.approx(expected)
    resumed = MultiTaskBackward(trunk.parameters(), weighting=cfg, tasks="abcd")
    resumed.load_state_dict(backward.state_dict())
    trunk.zero_grad()
    resumed(trunk(x))
    assert resumed.last.weights.tolist() == backward.last.weights.tolist()
