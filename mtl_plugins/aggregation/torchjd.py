"""Every aggregator and weighting of TorchJD, by its name there."""

from __future__ import annotations

import inspect
import logging
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from mtl_plugins.aggregation.base import Aggregator, GramianAggregator
from mtl_plugins.aggregation.solvers import Matrix, NotConverged, Vector
from mtl_plugins.draws import RandomMethod
from mtl_plugins.registry import suggest

__all__ = ["TorchJD"]  # the class that makes the others

logger = logging.getLogger(__name__)

CONSTANT = ("ConstantWeighting", "MeanWeighting", "SumWeighting")
TWO_BATCHES = ("MoDoWeighting", "SDMGradWeighting")
# No class of TorchJD says of these methods that they need no gradients.
BY_NUMBER_OR_GRAMIAN = (*CONSTANT, "RandomWeighting", *TWO_BATCHES)


class TorchJD(RandomMethod, Aggregator):
    """Any aggregator or weighting of `TorchJD <https://torchjd.org>`_ (``torchjd.aggregation``).

    A method that weighs gradients by their Gramian, or by their number alone, becomes a
    :class:`GramianAggregator`; others get the gradients themselves. Thresholds are TorchJD's own:
    many of its methods take gradients with a norm below 0.01 for zero.

    TorchJD's methods with a memory forget it, or fail, when the number of rows changes, and know
    rows by their position. Here every set of tasks that comes up has a memory of its own, which is
    part of the checkpoint; the memory of ``ExcessMTL`` is as large as the gradients. Options that
    are about a certain number of tasks are an error in a batch that lacks one, and the first row,
    which ``PCD`` treats apart, is that of the first task that is there.

    ``MoDoWeighting`` and ``SDMGradWeighting`` are made for the product ``J₁ J₂ᵀ`` of two
    independent batches and get ``J Jᵀ`` of one, which is biased by its noise; a warning says so.

    Args:
        name: Name of a class in ``torchjd.aggregation``.
        seed: Seed of the method's draws; None takes the seed of the run.
        **options: Arguments of the class. Lists become tensors; a weighting or projector among them
            is a name or ``dict(name=name, **arguments)``.

    Raises:
        ImportError: TorchJD, or another package that the method needs, is not installed.
        ValueError: TorchJD has no method of that name.
        TypeError: The method does not take an argument.

    Examples:
        >>> TorchJD("UPGradWeighting", pref_vector=[0.7, 0.3]).scale
        'mean'
        >>> TorchJD("CRMOGMWeighting", weighting=dict(name="CAGradWeighting", c=0.4)).scale
        'mean'
    """

    def __new__(cls, name: str = "", seed: int | None = None, **options: Any) -> TorchJD:
        if cls is not TorchJD:
            return super().__new__(cls)
        weighting = _gramian_weighting(_build(name, options, torch.empty(0)))
        kind = type(weighting).__name__
        if kind in TWO_BATCHES:
            logger.warning("TorchJD's %s is made for two batches a step, and gets one", name)
        if weighting is None:
            return super().__new__(JacobianTorchJD)
        return super().__new__(ConstantTorchJD if kind in CONSTANT else GramianTorchJD)

    def __init__(self, name: str, seed: int | None = None, **options: Any) -> None:
        super().__init__(seed)
        self.name = name
        self.options = options
        self._scale: Literal["sum", "mean"] | None = None
        self._peers: dict[tuple[int, ...], _Peer] = {}

    @property
    def scale(self) -> Literal["sum", "mean"]:  # type: ignore[override]
        """The nearer scale in a trial on equal rows, since options may change the scale."""
        self._scale = self._scale or self._try_scale()
        return self._scale

    def _try_scale(self) -> Literal["sum", "mean"]:
        # The options may fit one number of tasks alone.
        for count in (8, *range(2, 33)):
            try:
                total = self._factor(torch.ones(count, 1, dtype=torch.float64))
            except ValueError:
                continue
            return "sum" if total > (count + 1) / 2 else "mean"
        return "sum"

    @abstractmethod
    def _factor(self, ones: Tensor) -> float:
        """Return the update that a method without memory makes of rows ``[T, 1]`` of ones."""

    def _ask(self, matrix: Tensor, tasks: Sequence[int] | None) -> Tensor:
        """Apply the method to a Gramian or Jacobian.

        Raises:
            NotConverged: The method failed on the numbers.
            ValueError: The method takes no such number of tasks.
        """
        key = tuple(range(len(matrix)) if tasks is None else tasks)
        if key not in self._peers:
            self._peers[key] = _Peer(self.name, self.options, matrix)
        try:
            with _seeded(matrix.device, self.draw_seed()):
                answer = self._peers[key](matrix)
        except Exception as error:
            solver = torch.linalg.LinAlgError  # type: ignore[attr-defined]
            if isinstance(error, RuntimeError) and not isinstance(error, solver):
                raise
            # Solvers and checks of the options both raise ValueError; these numbers harm no solver.
            self._ask_anew(torch.eye(len(matrix), dtype=torch.float64))
            raise NotConverged(f"TorchJD's {self.name}: {error}") from error
        if not answer.isfinite().all():
            del self._peers[key]  # the memory may never be finite again
            raise NotConverged(f"TorchJD's {self.name} gives a number that is not finite")
        return answer

    def _ask_anew(self, matrix: Tensor) -> Tensor:
        try:
            with _seeded(matrix.device, 0):
                return _Peer(self.name, self.options, matrix)(matrix)
        except Exception as error:
            raise ValueError(
                f"TorchJD's {self.name} with these options does not take {len(matrix)} tasks "
                f"(some may have been absent): {error}"
            ) from error

    def state_dict(self) -> dict[str, Any]:
        memories = {tasks: peer.memory() for tasks, peer in self._peers.items()}
        return super().state_dict() | {
            "name": self.name,
            "memories": {tasks: memory for tasks, memory in memories.items() if memory[1]},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        if state["name"] != self.name:
            raise KeyError(
                f"the checkpoint was written with TorchJD's {state['name']}, this run uses "
                f"{self.name}"
            )
        self._peers = {}
        for tasks, (dtype, values) in state["memories"].items():
            self._peers[tasks] = _Peer(self.name, self.options, torch.empty(0, dtype=dtype))
            self._peers[tasks].remember(dtype, values)


class GramianTorchJD(TorchJD, GramianAggregator):
    """A method of TorchJD that needs the Gramian; made by :class:`TorchJD`."""

    def solve(
        self, gramian: Matrix, *, eps: float, losses: Tensor | None, tasks: Sequence[int]
    ) -> Vector:
        # TorchJD's tolerances go by the dtype: what is rounding must not look like a number.
        dtype = torch.float64 if eps <= torch.finfo(torch.float64).eps else torch.float32
        return self._ask(torch.tensor(gramian, dtype=dtype), tasks).tolist()

    def _factor(self, ones: Tensor) -> float:
        return float(self._ask_anew(ones @ ones.T).sum())


class ConstantTorchJD(GramianTorchJD):
    """A method of TorchJD with constant weights, for which a plain backward pass is enough."""

    needs_gradients = False


class JacobianTorchJD(TorchJD):
    """A method of TorchJD that needs the gradients themselves; made by :class:`TorchJD`.

    In a data-parallel run at the feature level, each rank aggregates the gradients of its own
    features.

    Attributes:
        fallbacks: Number of times that the method failed; the update is then the plain sum, or the
            mean for a mean-scaled method.
    """

    _fallbacks = 0

    @property
    def fallbacks(self) -> int:
        return self._fallbacks

    def __call__(self, jacobian: Tensor, tasks: Sequence[int] | None = None) -> Tensor:
        rows = jacobian.to(torch.promote_types(jacobian.dtype, torch.float32))
        if not torch.stack(rows.aminmax()).isfinite().all():
            # The step will be skipped, and must leave no trace in the memory.
            self.draw_seed()  # as other ranks do, whose features have finite gradients
            return rows.sum(dim=0).to(jacobian)
        try:
            return self._ask(rows, tasks).to(jacobian)
        except NotConverged as error:
            self._fallbacks += 1
            logger.warning("%s; this step takes the plain %s", error, self.scale)
            plain = rows.sum(dim=0) if self.scale == "sum" else rows.mean(dim=0)
            return plain.to(jacobian)

    def _factor(self, ones: Tensor) -> float:
        return float(self._ask_anew(ones))


class _Peer:
    """A TorchJD object, made anew when the matrix comes in another dtype or from another device.

    The memory is every number in the object that has changed since it was made: TorchJD keeps some
    numbers outside of buffers.
    """

    def __init__(self, name: str, options: Mapping[str, Any], like: Tensor) -> None:
        self._name, self._options = name, options
        self._make(like)

    def _make(self, like: Tensor) -> None:
        self._like = like.new_empty(0)
        method = _build(self._name, self._options, like)
        library = _library("aggregation")
        weighting = _gramian_weighting(method)
        if weighting is not None:
            method = weighting
        elif isinstance(method, library.Weighting):
            method = library.WeightedAggregator(method)
        self._method = method
        self._made_with = _numbers(method)

    def __call__(self, matrix: Tensor) -> Tensor:
        if (matrix.dtype, matrix.device) != (self._like.dtype, self._like.device):
            dtype, values = self.memory()
            self._make(matrix)
            self.remember(dtype, values)
        with torch.no_grad():
            return self._method(matrix)

    def memory(self) -> tuple[torch.dtype, dict[str, Any]]:
        """Return the dtype of the matrices at hand, and copies of the numbers in memory."""
        changed = {
            key: value
            for key, value in _numbers(self._method).items()
            if value is not self._made_with.get(key)
        }

        def copy(value: Any) -> Any:
            is_tensor = isinstance(value, Tensor) or _is_array(value)
            return torch.as_tensor(value).clone() if is_tensor else value

        return self._like.dtype, {key: copy(value) for key, value in changed.items()}

    def remember(self, dtype: torch.dtype, values: Mapping[str, Any]) -> None:
        """Take over what :meth:`memory` returned, except for devices."""

        def here(value: Any) -> Any:
            if isinstance(value, Tensor):
                kept = self._like.dtype if value.dtype == dtype else value.dtype
                return value.to(self._like.device, kept, copy=True)
            if isinstance(value, torch.device):
                return self._like.device
            return self._like.dtype if value == dtype else value

        for key, value in values.items():
            path, _, name = key.rpartition(".")
            is_array = _is_array(self._made_with.get(key))
            new = value.numpy(force=True) if is_array else tree_map(here, value)
            setattr(self._method.get_submodule(path), name, new)
        for module in self._method.modules():
            # Nash-MTL states a problem in the first step only.
            if values and hasattr(module, "_init_optim_problem"):
                module._init_optim_problem()


def _numbers(method: nn.Module) -> dict[str, Any]:
    """Collect all plain attributes of a module and its submodules, buffers or not."""
    return {
        f"{path}.{name}": value
        for path, module in method.named_modules()
        for name, value in (vars(module) | module._buffers).items()
        if isinstance(value, Tensor | int | float | tuple | None) or _is_array(value)
    }


def _is_array(value: Any) -> bool:
    return type(value).__module__ == "numpy"  # the core does not import NumPy


def _library(module: str) -> ModuleType:
    try:
        return import_module(f"torchjd.{module}")
    except ModuleNotFoundError as error:
        raise ImportError("TorchJD is not installed: pip install 'mtl-plugins[torchjd]'") from error


def _build(name: str, options: Mapping[str, Any], like: Tensor, module: str = "aggregation") -> Any:
    """Make an object of TorchJD.

    Args:
        name: Name of the class.
        options: Arguments of the class, as plain data.
        like: Tensor with the dtype and device for the object's tensors.
        module: Module of ``torchjd`` that has the class.
    """
    library = _library(module)
    exported = {n: getattr(library, n) for n in library.__all__}
    classes = {
        n: cls
        for n, cls in exported.items()
        if not inspect.isabstract(cls) and not issubclass(cls, Tensor)
    }
    if name not in classes:
        raise ValueError(f"name: TorchJD has nothing called {name!r}; {suggest(name, classes)}")
    valid = inspect.signature(classes[name]).parameters
    for option in options:
        if option not in valid:
            raise TypeError(
                f"TorchJD's {name} takes no argument {option!r}; {suggest(option, valid)}"
            )
    return classes[name](**{key: _option(key, value, like) for key, value in options.items()})


def _option(key: str, value: Any, like: Tensor) -> Any:
    nested = {"projector": "linalg"}.get(key, "aggregation" if key.endswith("weighting") else None)
    if nested and isinstance(value, str | Mapping):
        options = {"name": value} if isinstance(value, str) else dict(value)
        return _build(options.pop("name", ""), options, like, nested)
    if isinstance(value, Tensor | list | tuple):
        return torch.as_tensor(value, dtype=like.dtype, device=like.device)
    return value


def _gramian_weighting(method: nn.Module) -> nn.Module | None:
    """Return the weighting behind a method that needs only the Gramian; None for other methods."""
    library = _library("aggregation")
    if isinstance(method, library.GramianWeightedAggregator):
        return method.gramian_weighting
    weighting = method.weighting if isinstance(method, library.WeightedAggregator) else method
    inner = weighting
    while isinstance(inner, library.CRMOGMWeighting):
        inner = inner.weighting
    name = type(inner).__name__
    # A weighting by Gramian has an aggregator beside it, which says so.
    twin = getattr(library, name.removesuffix("Weighting"), library.Aggregator)
    by_gramian = issubclass(twin, library.GramianWeightedAggregator)
    return weighting if by_gramian or name in BY_NUMBER_OR_GRAMIAN else None


@contextmanager
def _seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Have torch's own generators start from a seed; give them their state back at the end."""
    on_cpu = device.type == "cpu"
    devices = [] if on_cpu else [device.index]
    with torch.random.fork_rng(devices, device_type="cuda" if on_cpu else device.type):
        # `torch.manual_seed` would seed all devices.
        torch.default_generator.manual_seed(seed)
        if not on_cpu:
            state = torch.Generator(device).manual_seed(seed).get_state()
            getattr(torch, device.type).set_rng_state(state, device)
        yield
