"""The options of a step, checked where they are set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from torch import nn

from mtl_plugins.aggregation import Aggregator, GramianAggregator

Level = Literal["parameter", "feature", "layers"]
Heads = Literal["own", "weighted"]
Scale = Literal["own", "sum", "mean"]
Sync = Literal["exact", "gramian", "sketch"]
Gramian = Literal["exact", "sketch"]
OnNonfinite = Literal["skip", "raise"]

SKETCH_ROWS = 64
"""Default of ``sketch_rows``."""


@dataclass(frozen=True)
class Options:
    """Options of :class:`~mtl_plugins.MultiTaskBackward` that are plain values of a config.

    Args:
        level: Gradients that are aggregated. ``"parameter"``: those of the shared parameters, at
            the cost of one backward pass through the shared part a task; ``"feature"``: those of
            the representation, from which the layers before it are then run back once;
            ``"layers"``: those of some shared layers, whose weights then apply to all that is
            shared, in one pass. Every micro-batch is aggregated by itself there.
        heads: Weight of the gradient of what a task has alone. ``"own"``: 1, unless the method says
            otherwise; ``"weighted"``: that of the task's gradient in the update of what is shared,
            as where a weighted sum of the losses is run back.
        scale: Scale of the update of what is shared. ``"own"``: the method's; ``"sum"``: a
            mean-scaled method is multiplied by the number of tasks that take part; ``"mean"``: a
            sum-scaled method is divided by it.
        sync: Values that a data-parallel run averages over the ranks before it aggregates.
            ``"exact"``: the gradient of every task, so that the weights are those of the whole
            batch. ``"gramian"``: the ``T × T`` inner products of the gradients, and afterwards one
            gradient: ``T`` times less traffic, but each rank's inner products have the noise of its
            own batch in them. ``"sketch"``, with ``gramian="sketch"``: the sketches, which are
            small, and whose inner products are about the gradients of the whole batch. At the
            feature level the choice makes no difference.
        low_memory: Whether to take the Gramian without keeping the ``T`` gradients of the shared
            parameters, and then to run the weighted sum back: ``T + 1`` passes through the shared
            part instead of ``T``, and twice through the heads. Every micro-batch is aggregated by
            itself. Activation checkpointing excludes the option; with several ranks the option
            needs ``sync="gramian"``, and where a rank lacks a task no synchronised batch norm.
        gramian: Way to the inner products of the task gradients. ``"exact"``: the gradients are
            taken. ``"sketch"``: unbiased estimates from gradients of the activations and a few
            random projections, see :class:`~mtl_plugins.sketch.Sketcher`, and then the weighted sum
            is run back: about ``0.45 T + 1`` passes through the shared part instead of ``T``, and
            twice through the heads. Every micro-batch is aggregated by itself. Activation
            checkpointing excludes the option; with several ranks the option needs
            ``sync="sketch"`` or ``"gramian"``.
        sketch_rows: Number of random rows for each layer, with ``gramian="sketch"``: the error of
            an inner product falls with the root of it, and a layer with at most so many weights an
            output channel is taken exactly.
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
    heads: Heads = "own"
    scale: Scale = "own"
    sync: Sync = "exact"
    low_memory: bool = False
    gramian: Gramian = "exact"
    sketch_rows: int = SKETCH_ROWS
    weights_every: int = 1
    on_nonfinite: OnNonfinite = "skip"
    max_skips: int = 20

    def __post_init__(self) -> None:
        for key, valid in (
            ("level", Level),
            ("heads", Heads),
            ("scale", Scale),
            ("sync", Sync),
            ("gramian", Gramian),
            ("on_nonfinite", OnNonfinite),
        ):
            value = getattr(self, key)
            if value not in get_args(valid):
                raise ValueError(f"{key}: expected one of {get_args(valid)}, got {value!r}")
        for key, least in (("sketch_rows", 2), ("weights_every", 1), ("max_skips", 1)):
            value = getattr(self, key)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{key}: expected an integer of at least {least}, got {value!r}")
        if not isinstance(self.low_memory, bool):
            raise ValueError(f"low_memory: expected True or False, got {self.low_memory!r}")
        if self.gramian != "sketch":
            for key, given in (
                ("sync", self.sync == "sketch"),
                ("sketch_rows", self.sketch_rows != SKETCH_ROWS),
            ):
                if given:
                    raise ValueError(f"{key}: {getattr(self, key)!r} is for gramian='sketch'")
        if self.gramian == "sketch" and self.low_memory:
            raise ValueError(
                "low_memory: is a way to the exact Gramian, and gramian='sketch' keeps no "
                "gradients either; use one of the two"
            )

    @property
    def weighs_each_call(self) -> bool:
        """Whether every micro-batch is aggregated by itself, before the gradients add up."""
        return self.low_memory or self.gramian == "sketch" or self.level == "layers"

    def check(
        self,
        aggregator: Aggregator,
        representation: nn.Module | None,
        layers: nn.Module | None = None,
    ) -> None:
        """Check that the options go with each other, the method and the representation.

        Raises:
            ValueError: Two options exclude each other.
            TypeError: The representation is no module, or the layers are none.
        """
        for key, module, level, whose in (
            ("representation", representation, "feature", "output the tasks share"),
            ("layers", layers, "layers", "gradients decide"),
        ):
            if (self.level == level) != (module is not None):
                needs = "needs the" if self.level == level else "takes no"
                raise ValueError(f"{key}: level={self.level!r} {needs} module whose {whose}")
            if module is not None and not isinstance(module, nn.Module):
                raise TypeError(
                    f"{key}: expected a module, got {type(module).__name__} ({module!r})"
                )
        saving = {
            "low_memory": self.low_memory,
            "gramian='sketch'": self.gramian == "sketch",
            "weights_every": self.weights_every > 1,
        }
        by_weights = saving | {
            "sync='gramian'": self.sync == "gramian",
            "level='layers'": self.level == "layers",
            "heads='weighted'": self.heads == "weighted",
        }
        for key in ("low_memory", "gramian='sketch'"):
            if self.level == "layers" and saving[key]:
                raise ValueError(
                    f"{key} is for level='parameter': at the level of layers a step keeps little"
                )
        if self.heads == "weighted" and self.level == "feature":
            raise ValueError(
                "heads: level='feature' leaves what a task has alone as it is; heads='weighted' "
                "needs level='parameter' or 'layers'"
            )
        if not aggregator.needs_gradients and (self.heads, self.scale) != ("own", "own"):
            raise ValueError(
                f"{'heads' if self.heads != 'own' else 'scale'}: is for methods that take the "
                f"gradients of the tasks; {type(aggregator).__name__} is 'Sum' or 'Mean', heads "
                "included"
            )
        if aggregator.takes_turns and self.scale != "own":
            raise ValueError(
                f"scale: {type(aggregator).__name__} takes a step of the optimizer for each task, "
                "which is at no scale of the sum or the mean"
            )
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
        if not aggregator.of_parameters and self.level != "feature":
            raise ValueError(
                f"level: {type(aggregator).__name__} is about the features that tasks share; use "
                "level='feature'"
            )
        if not aggregator.of_features and self.level == "feature":
            reason = (
                "keeps gradients from step to step, and those of features are of other images "
                "each time"
                if aggregator.remembers_rows
                else "is about parameters, and level='feature' has the gradients of features"
            )
            raise ValueError(f"level: {type(aggregator).__name__} {reason}; use level='parameter'")
        if aggregator.scales_own and self.level == "feature":
            raise ValueError(
                f"level: {type(aggregator).__name__} weighs what a task has alone too, which "
                "level='feature' leaves as it is; use level='parameter'"
            )
