"""The keys of a state in a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def check_keys(owner: str, state: Mapping[Any, Any], expected: Iterable[Any]) -> None:
    """Refuse the state of another version, or of something else, before any of it is restored.

    Args:
        owner: Name, in words, of the part of the checkpoint.
        state: State found in the checkpoint.
        expected: Keys that this version writes.

    Raises:
        ValueError: Keys are missing, or there are others.
    """
    expected = list(expected)
    lacks = [key for key in expected if key not in state]
    others = [key for key in state if key not in expected]
    if lacks or others:
        found = [f"lacks {lacks}"] * bool(lacks) + [f"has {others} besides"] * bool(others)
        raise ValueError(
            f"the state of {owner} in the checkpoint {' and '.join(found)}; expected {expected}. "
            "It was written by another version of mtl-plugins, or with another method"
        )
