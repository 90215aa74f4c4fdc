"""The part of a checkpoint that belongs to the method, in every framework."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from mtl_plugins.backward import MultiTaskBackward

KEY = "mtl"
"""Name of the method's part in the state of a trainer or optimizer wrapper."""

LOSSES_KEY = "mtl_losses"
"""Name of the part of :class:`~mtl_plugins.tasks.TaskGroups` there."""


class Resume(NamedTuple):
    """Takes the state of the method from a checkpoint, or says what else to do with it.

    Attributes:
        switch: Switch or config key that resumes a run, such as ``--resume``.
        weights: Config key by which a run starts from weights alone.
        writer: Name, in words, of what writes such checkpoints.
    """

    switch: str
    weights: str
    writer: str

    def take(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Return the part of the method.

        Args:
            state: State of the trainer or the optimizer wrapper.

        Raises:
            ValueError: The state has no part of the method.
        """
        if KEY not in state:
            raise ValueError(
                f"{self.switch}: the checkpoint was not written by {self.writer}. {self._otherwise}"
            )
        return state[KEY]

    def load(self, multitask: MultiTaskBackward, state: Mapping[str, Any]) -> None:
        """Restore the method.

        Args:
            multitask: Backward to be restored.
            state: State from :meth:`take`.

        Raises:
            KeyError, ValueError: The state was written by another method or for other tasks.
        """
        try:
            multitask.load_state_dict(state)
        except (KeyError, ValueError) as error:
            raise type(error)(f"{self.switch}: {error.args[0]}. {self._otherwise}") from error

    @property
    def _otherwise(self) -> str:
        return f"To start from its weights, set {self.weights} and leave {self.switch} off"
