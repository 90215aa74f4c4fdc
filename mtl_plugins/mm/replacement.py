"""Function in place of a method of one object; copies of the object keep the method."""

from __future__ import annotations

from collections.abc import Callable
from functools import update_wrapper
from typing import Any


class Replacement:
    """Stand-in for a method of one object; a copy or a pickle of the object has the method.

    Args:
        method: Bound method.
        function: Function to call in place of the method.

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
