"""What holds for every weighting."""

import io
import math
import runpy
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtl_plugins.weighting import WEIGHTINGS, Weighting, build_weighting

TASKS = ("a", "b", "c", "d")
OPTIONS = {
    "Fixed": {"weights": dict.fromkeys(TASKS, 0.5)},
    "DWA": {"window": 2},
    "RLW": {"seed": 1},
    "Achievement": {"potential": dict.fromkeys(TASKS, 0.5)},
}
UNNAMED = ("Fixed", "DWA", "Achievement")  # which need options
CONFIGS = Path(__file__).parents[2] / "configs/_base_/mtl"
every = pytest.mark.parametrize("name", WEIGHTINGS)


def build(name):
    return build_weighting({"type": name} | OPTIONS.get(name, {}))


def take_step(weighting, losses, norms, new_losses):
    """Every method is told what it might need; what it does not need it leaves alone."""
    weights = weighting.weights(losses, losses)
    if weighting.needs_indicators:
        weighting.tell({task: min(norm, 1.0) for task, norm in norms.items()})
    weighting.update(losses, norms)
    weighting.update_after(losses, new_losses)
    return weights


def random_steps(count, seed):
    """Losses, norms and new losses of random subsets of the tasks, in random order."""
    rng = torch.Generator().manual_seed(seed)
    for _ in range(count):
        order = torch.randperm(4, generator=rng)[: int(torch.randint(1, 5, (), generator=rng))]
        tasks = [TASKS[i] for i in order]
        numbers = (torch.rand(3, len(tasks), generator=rng, dtype=torch.float64) + 0.01).tolist()
        yield tuple(dict(zip(tasks, row, strict=True)) for row in numbers)


@pytest.mark.parametrize("name", [name for name in WEIGHTINGS if name not in UNNAMED])
def test_builds_from_its_name(name):
    weighting = build_weighting(name)
    assert isinstance(weighting, Weighting) and type(weighting).__name__ == name
    weighting.check(TASKS)
    weights = weighting.weights(TASKS, dict.fromkeys(TASKS, 1.0))
    assert list(weights) == list(TASKS)


@every
def test_state_continues_bit_by_bit(name):
    steps = list(random_steps(24, seed=0))
    straight, first = build(name), build(name)
    for step in steps[:11]:
        take_step(straight, *step)
        take_step(first, *step)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    resumed = build_weighting({"type": name} | OPTIONS.get(name, {}) | seed_of(name, 2))
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for step in steps[11:]:
        assert take_step(resumed, *step) == take_step(straight, *step)


def seed_of(name, seed):
    return {"seed": seed} if name == "RLW" else {}


@every
def test_state_of_another_method_is_refused(name):
    with pytest.raises(ValueError, match=f"the state of {name} in the checkpoint .*'weight'"):
        build(name).load_state_dict({"weight": 1.0})


@pytest.mark.parametrize("name", [name for name in WEIGHTINGS if name != "RLW"])
def test_order_of_tasks_does_not_matter(name):
    one, other = build(name), build(name)
    for step in random_steps(20, seed=1):
        weights = take_step(one, *step)
        reversed_step = [dict(reversed(part.items())) for part in step]
        assert take_step(other, *reversed_step) == pytest.approx(weights, rel=1e-9)


@pytest.mark.parametrize("name", [name for name in WEIGHTINGS if name != "RLW"])
def test_asking_for_weights_changes_none(name):
    """Of several micro-batches each asks, and one update follows."""
    one, other = build(name), build(name)
    for step in random_steps(8, seed=2):
        one.weights(TASKS, dict.fromkeys(TASKS, 3.0))
        assert take_step(one, *step) == take_step(other, *step)


@pytest.mark.parametrize("name", ["Uncertainty", "GradNorm", "IMTLL", "FAMO"])
def test_new_task_starts_as_the_others_did(name):
    weighting, fresh = build(name), build(name)
    for _ in range(5):
        take_step(weighting, *({"a": x, "b": y} for x, y in ((0.5, 2.0), (1.0, 3.0), (0.4, 1.9))))
    assert weighting.number("c") == fresh.number("a") != weighting.number("a")


# Up to what single precision holds.
extreme = st.sampled_from([0.0, 1e-38, 1e-20, 1e-3, 1.0, 1e3, 1e20, 3e38])


@every
@given(data=st.data())
@settings(max_examples=40)
def test_extreme_losses_and_norms_give_finite_weights(name, data):
    weighting = build(name)
    signs = (
        (1.0,) if name in ("FAMO", "GLS", "Log", "Achievement") else (1.0, -1.0)
    )  # which refuse others
    for _ in range(data.draw(st.integers(1, 10))):
        tasks = data.draw(st.lists(st.sampled_from(TASKS), unique=True, min_size=1))
        repeats = data.draw(st.sampled_from([1, 40]))
        losses = {t: data.draw(st.sampled_from(signs)) * data.draw(extreme) for t in tasks}
        norms, new_losses = ({t: data.draw(extreme) for t in tasks} for _ in range(2))
        for _ in range(repeats):
            take_step(weighting, losses, norms, new_losses)
        weights = weighting.weights(TASKS, losses | dict.fromkeys(set(TASKS) - set(tasks), 1.0))
        assert all(math.isfinite(w) and w >= 0.0 for w in weights.values())
        assert torch.tensor(list(weights.values()), dtype=torch.float32).isfinite().all()


@every
def test_no_task_at_all(name):
    weighting = build(name)
    assert take_step(weighting, {}, {}, {}) == {}


def test_every_weighting_has_a_config_that_builds():
    wrappers = [runpy.run_path(str(path))["optim_wrapper"] for path in CONFIGS.glob("*.py")]
    built = {type(build_weighting(w["weighting"])).__name__ for w in wrappers if "weighting" in w}
    assert built == WEIGHTINGS.keys()


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(KeyError, match=r"weighting\.type: .*did you mean 'GradNorm'"):
        build_weighting("GradNrom")


def test_unknown_argument_names_the_valid_ones():
    with pytest.raises(TypeError, match="DWA takes no argument 'windows'; did you mean 'window'"):
        build_weighting({"type": "DWA", "windows": 5})
