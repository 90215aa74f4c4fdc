"""Losses behind the scalar that a training step wants trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mmengine.model import BaseModel
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from mtl_plugins.mm.replacement import Replacement
from mtl_plugins.terms import Besides, make_up


@dataclass(frozen=True)
class _Call:
    """One call of ``parse_losses``.

    Attributes:
        total: Loss that the call returned.
        terms: Losses by name, each a scalar, or a number for a constant.
        raw: Everything that the model returned, by name.
        operations: Operations that made total and terms, in this order.
    """

    total: Any
    terms: Mapping[str, Any]
    raw: Mapping[str, Any]
    operations: list[Any]

    @property
    def untrained(self) -> set[str]:
        return self.raw.keys() - self.terms.keys()

    def parts(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors that carry gradients to the model, with the names of their losses."""
        for name, value in (*self.terms.items(), *self.raw.items()):
            for part in tree_leaves(value):
                if isinstance(part, Tensor) and part.requires_grad:
                    yield name, part


class ParsedLosses(Replacement):
    """Stand-in for ``parse_losses`` of a model, which remembers the losses of each call.

    Args:
        model: Model that has the method.

    Attributes:
        log: Scalars to log that the last call returned.
        sums: True if the method is MMEngine's, which sums all that has ``"loss"`` in its name.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model.parse_losses, self._parse)
        self.sums = getattr(model.parse_losses, "__func__", None) is BaseModel.parse_losses
        self._model = model
        self._calls: list[_Call] = []
        self.log: dict[str, Any] = {}
        self._used = False  # calls were trained: the next call belongs to another step

    @classmethod
    def of(cls, model: nn.Module) -> ParsedLosses:
        """Return the stand-in of a model, which all optimizer wrappers of the model share.

        Raises:
            TypeError: The model has no ``parse_losses``.
        """
        if not hasattr(model, "parse_losses"):
            raise TypeError(
                f"optim_wrapper: {type(model).__name__} has no parse_losses() to learn the single "
                "losses from. Call optim_context() with the model that has, an mmengine.BaseModel"
            )
        if not isinstance(model.parse_losses, cls):
            model.parse_losses = cls(model)
        return model.parse_losses

    def _parse(self, losses: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if self._used:
            self._calls, self._used = [], False
        raw = dict(losses)
        total, log_vars = self._method(losses)
        self.log = log_vars
        # MMEngine adds the sum as "loss", unless the model has a loss of that name.
        terms = {k: v for k, v in log_vars.items() if "loss" in k and k in raw}
        self._calls.append(_Call(total, terms, raw, _operations(total, terms)))
        return total, log_vars

    def behind(self, loss: Any, optimizer: Optimizer) -> tuple[dict[str, Any], set[str]]:
        """Find the losses that ``loss`` trains.

        Args:
            loss: Scalar, made from what ``parse_losses`` returned since the last step.
            optimizer: Optimizer of the parameters to train.

        Returns:
            Scalar losses by name, each times its factor in ``loss``, 0.0 for a loss that is not
            trained; and the names of all else that the model returned.

        Raises:
            RuntimeError: ``loss`` does not come from ``parse_losses``, or not from it alone.
        """
        if not self._calls:
            raise RuntimeError(
                "optim_wrapper needs the single losses: call update_params() with what "
                "model.parse_losses() returned, inside a train_step that uses optim_context()"
            )
        self._used = True
        call = self._call_of(loss)
        if call is not None:
            self._calls = [other for other in self._calls if other is not call]
            return dict(call.terms), call.untrained
        untrained = {name for call in self._calls for name in call.untrained}
        return self._take_apart(loss, optimizer), untrained

    def is_sum(self, loss: Any) -> bool:
        """Tell whether ``loss`` is the sum of the losses, as MMEngine's method returned it."""
        return self._call_of(loss) is not None

    def _call_of(self, loss: Any) -> _Call | None:
        for call in self._calls if self.sums else ():
            unchanged = call.operations == _operations(call.total, call.terms)
            if loss is call.total and unchanged:
                return call
        return None

    def _take_apart(self, loss: Any, optimizer: Optimizer) -> dict[str, Any]:
        losses: dict[str, Any] = {name: 0.0 for call in self._calls for name in call.terms}
        if not isinstance(loss, Tensor) or not loss.requires_grad:
            return losses
        for call in self._calls:
            if call.operations[1:] != _operations(call.total, call.terms)[1:]:
                raise RuntimeError(
                    "update_params: a loss in the log_vars of parse_losses() was changed in place, "
                    "and what it was before cannot be trained any more; change a copy of it"
                )
        parts = {id(part): (name, part) for call in self._calls for name, part in call.parts()}
        names = [name for name, _ in parts.values()]
        made = make_up(loss, [part for _, part in parts.values()])
        for (name, part), factor in zip(parts.values(), made.factors, strict=True):
            if factor is not None:
                losses[name] = losses.get(name, 0.0) + (factor * part).sum()
        self._refuse(made.besides, optimizer, names)
        for leaf, gradient, weighs in made.besides:
            if weighs:  # adds 0, with the gradient that a learned weight has past the losses
                own = (gradient * (leaf - leaf.detach())).sum()
                losses[names[weighs[0]]] = losses[names[weighs[0]]] + own
        return losses

    def _refuse(self, found: list[Besides], optimizer: Optimizer, losses: list[str]) -> None:
        """Raise an error if a parameter to train belongs to no loss."""
        trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
        names = {id(p): name for name, p in self._model.named_parameters()}
        lost = [
            names.get(id(leaf), f"a parameter {tuple(leaf.shape)}")
            for leaf, _, weighs in found
            if not weighs and id(leaf) in trained
        ]
        if lost:
            more = f" and {len(lost) - 3} more" if len(lost) > 3 else ""
            raise RuntimeError(
                f"update_params: the loss reaches {', '.join(lost[:3])}{more} by none of "
                f"the losses that parse_losses() got, {sorted(set(losses))}: for no task. Add the "
                "missing one to the dict that parse_losses() gets, with 'loss' in its name, and "
                "give it a task in optim_wrapper.tasks"
            )


def _operations(total: Any, terms: Mapping[str, Any]) -> list[Any]:
    return [getattr(each, "grad_fn", None) for each in (total, *terms.values())]
