"""The options of a step, checked where they are set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from torch import nn

from mtl_plugins.aggregation import Aggregator, GramianAggregator

Level = Literal["parameter", "feature"]
Sync = Literal["exact", "gramian"]
OnNonfinite = Literal["skip", "raise"]


@dataclass(frozen=True)
class Options:
    """Options of :class:`~mtl_plugins.MultiTaskBackward` that are plain values of a config.

    Args:
        level: Gradients that are aggregated. ``"parameter"``: those of the shared parameters, at
            the cost of one backward pass through the shared part a task; ``"feature"``: those of
            the representation, from which the layers before it are then run back once.
        sync: Values that a data-parallel run averages over the ranks before it aggregates.
            ``"exact"``: the gradient of every task, so that the weights are those of the whole
            batch. ``"gramian"``: the ``T × T`` inner products of the gradients, and afterwards one
            gradient: ``T`` times less traffic, but each rank's inner products have the noise of its
            own batch in them. At the feature level the choice makes no difference.
        low_memory: Whether to take the Gramian without keeping the ``T`` gradients of the shared
            parameters, and then to run the weighted sum back: ``T + 1`` passes through the shared
            part instead of ``T``, and twice through the heads. Every micro-batch is aggregated by
            itself. Activation checkpointing excludes the option; with several ranks the option
            needs ``sync="gramian"``, and where a rank lacks a task no synchronised batch norm.
        weights_every: Number of steps from one choice of the weights to the next; the steps in
            between are plain ones with one backward pass. A task without a gradient at a choice
            takes the mean weight of the others until the next choice.
        on_nonfinite: Reaction to a loss or gradient that is NaN or infinite. ``"skip"``: every
            ``.grad`` is dropped, so that the optimizer changes nothing (with a loss scaler: becomes
            NaN, so that the scaler skips the step and lowers its scale). ``"raise"``: an error.
            Checked are the losses, and the gradients of what the tasks share where the method takes
            gradients.
        max_skips: Number of skipped steps in a row that is an error. A loss scaler needs about 16
            to come down from its first scale.

    Raises:
        ValueError: A value is not valid.
    """

    level: Level = "parameter"
    sync: Sync = "exact"
    low_memory: bool = False
    weights_every: int = 1
    on_nonfinite: OnNonfinite = "skip"
    max_skips: int = 20

    def __post_init__(self) -> None:
        for key, valid in (("level", Level), ("sync", Sync), ("on_nonfinite", OnNonfinite)):
            value = getattr(self, key)
            if value not in get_args(valid):
                raise ValueError(f"{key}: expected one of {get_args(valid)}, got {value!r}")
        for key in ("weights_every", "max_skips"):
            value = getattr(self, key)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{key}: expected an integer of at least 1, got {value!r}")
        if not isinstance(self.low_memory, bool):
            raise ValueError(f"low_memory: expected True or False, got {self.low_memory!r}")

    def check(self, aggregator: Aggregator, representation: nn.Module | None) -> None:
        """Check that the options go with each other, the method and the representation.

        Raises:
            ValueError: Two options exclude each other.
            TypeError: The representation is no module.
        """
        if (self.level == "feature") != (representation is not None):
            raise ValueError(
                f"representation: level={self.level!r} "
                + ("needs the module" if self.level == "feature" else "takes no module")
                + " whose output the tasks share"
            )
        if representation is not None and not isinstance(representation, nn.Module):
            raise TypeError(
                f"representation: expected a module, got {type(representation).__name__} "
                f"({representation!r})"
            )
        saving = {"low_memory": self.low_memory, "weights_every": self.weights_every > 1}
        by_weights = saving | {"sync='gramian'": self.sync == "gramian"}
        for key in [key for key, used in by_weights.items() if used]:
            if not isinstance(aggregator, GramianAggregator):
                raise ValueError(
                    f"{key} needs an aggregator that weighs the gradients, and "
                    f"{type(aggregator).__name__} combines them in another way"
                )
            if key in saving and self.level == "feature":
                raise ValueError(
                    f"{key} is for level='parameter': at the feature level a step costs about as "
                    "much as a plain one anyway"
                )
        if not aggregator.of_parameters and self.level == "parameter":
            raise ValueError(
                f"level: {type(aggregator).__name__} is about the features that tasks share; use "
                "level='feature'"
            )
        if not aggregator.of_features and self.level == "feature":
            raise ValueError(
                f"level: {type(aggregator).__name__} is about the parameters of layers; use "
                "level='parameter'"
            )
        if aggregator.scales_own and self.level == "feature":
            raise ValueError(
                f"level: {type(aggregator).__name__} weighs what a task has alone too, which "
                "level='feature' leaves as it is; use level='parameter'"
            )
