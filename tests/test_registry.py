"""Methods from configs: what is built, and which one error a mistake in a config gets."""

from __future__ import annotations

import re
from typing import Any

import pytest

from mtl_plugins.registry import Method, build, suggest


class Plain(Method):
    """Takes two arguments, one of which it checks."""

    def __init__(self, c: float = 0.5, rescale: int = 1) -> None:
        if c < 0.0:
            raise ValueError(f"c: expected at least 0, got {c}")
        self.c, self.rescale = c, rescale
        self._hidden = "not an option"


class Needy(Method):
    def __init__(self, length: int) -> None:
        self.length = length


class Anything(Method):
    def __init__(self, **options: Any) -> None:
        self.options = options


class Remembers(Method):
    def __init__(self) -> None:
        self.seen = 0

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"seen": self.seen}

    def load_state_dict(self, state: Any) -> None:
        super().load_state_dict(state)
        self.seen = state["seen"]


REGISTRY = {cls.__name__: cls for cls in (Plain, Needy, Anything, Remembers)}


def built(cfg: Any) -> Any:
    return build(REGISTRY, cfg, "optim_wrapper.method", Method)


@pytest.mark.parametrize(
    ("cfg", "cls", "options"),
    [
        ("Plain", Plain, {"c": 0.5, "rescale": 1}),
        ({"type": "Plain"}, Plain, {"c": 0.5, "rescale": 1}),
        ({"type": "Plain", "c": 2.0}, Plain, {"c": 2.0, "rescale": 1}),
        ({"type": "Needy", "length": 3}, Needy, {"length": 3}),
        ({"type": "Anything", "x": 1, "y": [2]}, Anything, {"options": {"x": 1, "y": [2]}}),
    ],
)
def test_name_or_dict(cfg, cls, options):
    before = dict(cfg) if isinstance(cfg, dict) else cfg
    method = built(cfg)
    assert type(method) is cls
    assert {k: getattr(method, k) for k in options} == options
    assert cfg == before  # the config goes on to the next run


def test_ready_object_is_returned_as_it_is():
    method = Plain(3.0)
    assert built(method) is method


@pytest.mark.parametrize("cfg", [None, 3, ["Plain"], {}, {"name": "Plain"}, Plain, object()])
def test_config_of_another_kind(cfg):
    with pytest.raises(TypeError) as error:
        built(cfg)
    message = str(error.value)
    assert message.startswith("optim_wrapper.method: expected a name or dict(type=name, ...)")
    assert repr(cfg) in message
    assert message.endswith("Valid names: Plain, Needy, Anything, Remembers")


@pytest.mark.parametrize(
    ("cfg", "error", "message"),
    [
        ("Plane", KeyError, "optim_wrapper.method.type: no method is called 'Plane'; did you mean "
         "'Plain'? Valid: Plain, Needy, Anything, Remembers"),
        ("xyz", KeyError, "optim_wrapper.method.type: no method is called 'xyz'; Valid: Plain, "),
        ({"type": "Plain", "C": 1.0}, TypeError, "optim_wrapper.method: Plain takes no argument "
         "'C'; did you mean 'c'? Valid: c, rescale"),
        ("Needy", TypeError, "optim_wrapper.method: Needy needs the argument 'length', got {}"),
        ({"type": "Plain", "c": -1.0}, ValueError, "optim_wrapper.method: Plain: c: expected at "
         "least 0, got -1.0"),
    ],
)  # fmt: skip
def test_mistakes_are_named_by_their_key(cfg, error, message):
    with pytest.raises(error, match=re.escape(message)):
        built(cfg)


@pytest.mark.parametrize(
    ("name", "valid", "words"),
    [
        ("PCGARD", ["MGDA", "PCGrad"], "did you mean 'PCGrad'? Valid: MGDA, PCGrad"),
        ("zzzz", ["MGDA", "PCGrad"], "Valid: MGDA, PCGrad"),
        ("anything", [], "Valid: none"),
    ],
)
def test_suggestions(name, valid, words):
    assert suggest(name, valid) == words
    assert suggest(name, iter(valid)) == words


def test_repr_shows_the_options():
    assert repr(Plain(2.0)) == "Plain(c=2.0, rescale=1)"


def test_state():
    assert Plain().state_dict() == {}
    Plain().load_state_dict({})
    first, second = Remembers(), Remembers()
    first.seen = 7
    second.load_state_dict(first.state_dict())
    assert second.seen == 7


@pytest.mark.parametrize(
    ("method", "state"),
    [(Plain(), {"seen": 1}), (Remembers(), {}), (Remembers(), {"seen": 1, "more": 2})],
)
def test_state_of_another_method(method, state):
    with pytest.raises(ValueError, match="with another method") as error:
        method.load_state_dict(state)
    assert type(method).__name__ in str(error.value) and "seen" in str(error.value)
