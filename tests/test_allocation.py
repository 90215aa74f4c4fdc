"""The policy of STA and ISTA: properties from paper B, section 3."""

from __future__ import annotations

import copy
import pickle
import re
from collections import Counter
from itertools import count, islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtl_plugins.allocation import BatchTasks, TaskAllocation

tasks = st.integers(1, 7).map(lambda n: [f"task {i}" for i in range(n)])


@given(data=st.data(), tasks=tasks, gap=st.integers(1, 5), count=st.integers(0, 13))
def test_a_cycle_of_ista_gives_every_task_once(data, tasks, gap, count):
    per_sample = data.draw(st.integers(1, len(tasks)))
    allocation = TaskAllocation(tasks, per_sample, gap, seed=data.draw(st.integers(0, 9)))
    had: dict[tuple[int, int], list[str]] = {}
    turns: Counter[int] = Counter()
    for batch, number, turn in allocation.schedule(range(count), epoch=2):
        assert batch == number
        assert turn == turns[batch]
        turns[batch] += 1
        for example in range(4):
            got = allocation.tasks_of(example, number, turn, epoch=2)
            assert 1 <= len(got) <= per_sample
            had.setdefault((batch, example), []).extend(got)
    assert set(turns) == set(range(count))
    assert all(n == allocation.turns for n in turns.values())
    assert all(sorted(got) == sorted(tasks) for got in had.values())


@given(gap=st.integers(1, 6), groups=st.integers(1, 3), count=st.integers(2, 4))
def test_the_next_turn_comes_a_gap_later(gap, groups, count):
    allocation = TaskAllocation([str(i) for i in range(count)], gap=gap)
    steps: dict[int, list[int]] = {}
    for step, (batch, _, _) in enumerate(allocation.schedule(range(gap * groups))):
        steps.setdefault(batch, []).append(step)
    for found in steps.values():
        assert [b - a for a, b in zip(found, found[1:], strict=False)] == [gap] * (count - 1)


def test_gap_of_one_is_the_same_batch_again():
    allocation = TaskAllocation("abc", gap=1)
    batches = [batch for batch, _, _ in islice(allocation.schedule(iter(range(100))), 9)]
    assert batches == [0, 0, 0, 1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize("per_sample", [1, 2])
def test_shares_of_sta(per_sample):
    """Each task has a share of k / T of the examples; each pair of tasks as often as any other."""
    allocation = TaskAllocation("abcd", per_sample, seed=1)
    count = 6000
    drawn = [allocation.tasks_of(i % 8, i // 8, 0) for i in range(count)]
    assert allocation.turns == 1 and all(len(got) == per_sample for got in drawn)
    share = per_sample / 4
    error = 4.0 * (share * (1.0 - share) / count) ** 0.5
    for task in "abcd":
        assert sum(task in got for got in drawn) / count == pytest.approx(share, abs=error)
    sets = Counter(drawn)
    expected = count / (4 if per_sample == 1 else 6)
    assert all(n == pytest.approx(expected, rel=0.2) for n in sets.values())


def test_seed_epoch_batch_and_place_count():
    allocation = TaskAllocation("abcdefg", seed=1)
    reference = [allocation.tasks_of(i, 3, 0, 5) for i in range(20)]
    assert [TaskAllocation("abcdefg", seed=1).tasks_of(i, 3, 0, 5) for i in range(20)] == reference
    assert [TaskAllocation("abcdefg", seed=2).tasks_of(i, 3, 0, 5) for i in range(20)] != reference
    assert [allocation.tasks_of(i, 4, 0, 5) for i in range(20)] != reference
    assert [allocation.tasks_of(i, 3, 0, 6) for i in range(20)] != reference
    assert len(set(reference)) > 1


@given(gap=st.sampled_from([None, 1, 3]), stop=st.integers(0, 25))
def test_resume_continues_the_sequence(gap, stop):
    def batches():
        return iter(range(40))

    straight = list(TaskAllocation("abc", gap=gap, seed=4).schedule(batches(), epoch=1))
    first = TaskAllocation("abc", gap=gap, seed=4)
    before = list(islice(first.schedule(batches(), epoch=1), stop))
    second = TaskAllocation("abc", gap=gap, seed=0)
    second.load_state_dict(first.state_dict())
    epoch = second.state_dict()["epoch"]
    assert before + list(second.schedule(batches(), epoch or 1)) == straight
    assert second.seed == 4
    assert list(second.schedule(batches(), 1)) == straight  # the next time from the start


@given(gap=st.sampled_from([None, 1, 3]), stop=st.integers(0, 25))
def test_a_schedule_begins_in_the_middle(gap, stop):
    allocation = TaskAllocation("abc", gap=gap)
    straight = list(islice(allocation.schedule(count(), first=0), stop + 10))
    first, behind = allocation.position(stop)
    later = allocation.schedule(count(first), first=first)
    assert list(islice(later, behind, behind + 10)) == straight[stop:]
    assert first >= min(batch for batch, _, _ in straight[stop:]) - (gap or 1) + 1


@pytest.mark.parametrize(
    "options, message",
    [
        ({"tasks_per_sample": 0}, "tasks_per_sample: expected 1 to 2"),
        ({"tasks_per_sample": 3}, "tasks_per_sample: expected 1 to 2"),
        ({"tasks_per_sample": 1.0}, "tasks_per_sample: expected 1 to 2"),
        ({"gap": 0}, "gap: expected at least 1"),
        ({"tasks": "aba"}, "tasks: expected different names"),
    ],
)
def test_invalid_options(options, message):
    with pytest.raises(ValueError, match=message):
        TaskAllocation(**{"tasks": "ab"} | options)


@pytest.mark.parametrize(
    ("tasks", "per_sample", "remark"),
    [("ab", 1, None), ("ab", 2, "tasks_per_sample: .* 2 is all"), ("a", 1, "tasks: .* only one")],
)
def test_what_allocates_nothing_says_so(tasks, per_sample, remark):
    found = TaskAllocation(tasks, per_sample).remark
    assert found is None if remark is None else re.match(remark + ".*without task alloc", found)


def test_tasks_tell_from_which_they_were_drawn():
    tasks = TaskAllocation("abc").tasks_of(0, 0, 0)
    again = pickle.loads(pickle.dumps(copy.deepcopy(tasks)))
    assert again == tasks and len(tasks) == 1 and again.among == ("a", "b", "c")


def test_one_task_alone():
    """The single-task baseline: every example trains the task, in as many steps as without."""
    allocation = TaskAllocation(["a", "b", "c"], gap=1, only="b")
    steps = list(allocation.schedule("xyz"))
    assert [batch for batch, _, _ in steps] == ["x", "y", "z"]
    assert {allocation.tasks_of(i, n, t) for i in range(3) for _, n, t in steps} == {("b",)}
    assert allocation.tasks_of(0, 0, 0).among == ("a", "b", "c") and allocation.remark is None
    with pytest.raises(ValueError, match="only: no task is called 'd'; .*Valid: a, b, c"):
        TaskAllocation(["a", "b", "c"], only="d")


def test_some_examples_without_tasks_are_an_error():
    with pytest.raises(ValueError, match="of 2 examples of a batch, 1 have tasks"):
        BatchTasks().note([("a",), None])
