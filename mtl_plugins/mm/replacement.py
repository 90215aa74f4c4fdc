"""A function in place of a method of one object, which copies of the object do not have."""

from __future__ import annotations

from collections.abc import Callable
from functools import update_wrapper
from typing import Any


class Replacement:
    """Stands in for a method of one object, while a copy or a pickle of the object has the method.

    Args:
        method: The bound method.
        function: What to call in its place.

    Examples:
        >>> model.parse_losses = Replacement(model.parse_losses, listen)
    """

    def __init__(self, method: Callable[..., Any], function: Callable[..., Any]) -> None:
        update_wrapper(self, function, updated=())
        self._method = method
        self._function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._function(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return _unchanged, (self._method,)


def _unchanged(method: Callable[..., Any]) -> Callable[..., Any]:
    return method
