"""Build methods from their configs, with errors for the person who edits a config."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from numbers import Real
from pkgutil import iter_modules
from types import ModuleType
from typing import Any, TypeVar, cast

from mtl_plugins.state import check_keys

T = TypeVar("T")
NUMBERS = ("int", "float", "int | None", "float | None")
"""Annotations, as text, of an argument that is a number."""


class Method:
    """Base of aggregators, weightings and regularisers: options, and perhaps a memory.

    Attributes:
        total_steps: Number of steps of the run, for methods with a schedule; set by the run, None
            if it is unknown.
        steps_per_epoch: Number of steps of an epoch; None for a run that counts iterations.
    """

    total_steps: int | None = None
    steps_per_epoch: int | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the state that has to survive a restart; empty for a method without memory."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned.

        Raises:
            ValueError: The state has other keys: another version wrote it, or another method.
        """
        check_keys(type(self).__name__, state, self.state_dict())

    def __repr__(self) -> str:
        options = ", ".join(f"{k}={v!r}" for k, v in vars(self).items() if k[0] != "_")
        return f"{type(self).__name__}({options})"


KINDS: dict[str, Mapping[str, type]] = {}
"""The registry behind each config key, to find a method that was given under a wrong key."""


def find_methods(package: str, path: Iterable[str], base: type[T]) -> dict[str, type[T]]:
    """Find the methods in the modules of a package: a method is a file, and nothing else lists it.

    A module's methods are the public classes that it defines, subclasses of ``base`` without an
    abstract method; a module with other such classes names its methods in ``__all__``.

    Args:
        package: Name of the package.
        path: ``__path__`` of the package.
        base: Class that all methods derive from.

    Returns:
        The class of each name, in the order of the modules.
    """
    found: dict[str, type[T]] = {}
    for info in iter_modules(path):
        module = import_module(f"{package}.{info.name}")
        for name in getattr(module, "__all__", None) or _defined_in(module, base):
            found[name] = getattr(module, name)
    return found


def _defined_in(module: ModuleType, base: type) -> list[str]:
    return [
        name
        for name, value in vars(module).items()
        if inspect.isclass(value)
        and value.__module__ == module.__name__
        and issubclass(value, base)
        and not (name.startswith("_") or inspect.isabstract(value))
    ]


def nearest(name: str, valid: Iterable[str]) -> str | None:
    """Return the valid name that is spelt most like ``name``; None if none is similar."""
    by_fold = {v.lower(): v for v in valid}
    near = difflib.get_close_matches(name.lower(), by_fold, n=1, cutoff=0.5)
    return by_fold[near[0]] if near else None


def suggest(name: str, valid: Iterable[str]) -> str:
    """List valid names for an error message: the nearest to ``name`` first, then all of them."""
    valid = list(valid)
    near = nearest(name, valid)
    hint = "" if near is None else f"did you mean {near!r}? "
    return f"{hint}Valid: {', '.join(valid) or 'none'}"


@contextmanager
def under(prefix: str, keys: Iterable[str]) -> Iterator[None]:
    """Have an error that begins with a config key begin with the whole key.

    Args:
        prefix: Part of the config that has the keys, such as ``"optim_wrapper"``.
        keys: Keys of that part, by which errors of the core begin.
    """
    try:
        yield
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        text = str(error.args[0]) if error.args else ""
        if re.match(rf"({'|'.join(map(re.escape, keys))})\b", text):
            error.args = (f"{prefix}.{text}", *error.args[1:])
        raise


def build(
    registry: Mapping[str, type[T]], cfg: str | Mapping[str, Any] | T, key: str, base: Any
) -> T:
    """Build an object from a name or ``dict(type=name, **arguments)``; return a ready one as is.

    Args:
        registry: Class of each name.
        cfg: Name, dict or ready object.
        key: Config key of ``cfg``, for the error message.
        base: Class that a ready object has to be an instance of.

    Raises:
        TypeError: ``cfg`` is none of the three, or an argument is unknown or missing.
        KeyError: No method has that name.
    """
    if isinstance(cfg, base):
        return cast(T, cfg)
    if isinstance(cfg, str):
        cfg = {"type": cfg}
    if not isinstance(cfg, Mapping) or "type" not in cfg:
        raise TypeError(
            f"{key}: expected a name or dict(type=name, ...), got {cfg!r}. "
            f"Valid names: {', '.join(registry)}"
        )
    arguments = dict(cfg)
    name = arguments.pop("type")
    if name not in registry:
        others = [other for other, methods in KINDS.items() if name in methods]
        hint = f"{name} is set as {others[0]}. Valid: {', '.join(registry)}" if others else None
        raise KeyError(
            f"{key}.type: no method is called {name!r}; {hint or suggest(str(name), registry)}"
        )
    valid = inspect.signature(registry[name]).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in valid.values())
    for argument in arguments:
        _check_number(f"{key}.{argument}", name, arguments[argument], valid.get(argument))
        if not takes_any and argument not in valid:
            raise TypeError(
                f"{key}: {name} takes no argument {argument!r}; {suggest(argument, valid)}"
            )
    for argument, parameter in valid.items():
        named = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        if named and parameter.default is parameter.empty and argument not in arguments:
            raise TypeError(f"{key}: {name} needs the argument {argument!r}, got {arguments}")
    try:
        return registry[name](**arguments)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{key}: {name}: {error}") from error


def _check_number(key: str, method: str, value: Any, parameter: inspect.Parameter | None) -> None:
    """Refuse text and the like where a method takes a number.

    Args:
        key: Config key of the argument, for the error message.
        method: Name of the method.
        value: Value in the config; None is left to the method.
        parameter: Parameter of the method's constructor, if there is one of this name.

    Raises:
        TypeError: The value is no number.
    """
    if parameter is None or value is None or parameter.annotation not in NUMBERS:
        return
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{key}: {method} takes a number, got {value!r}")
