"""The states of this process's random generators, with which a resumed run continues."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import torch


def random_states() -> dict[str, Any]:
    """Return the states of the generators of Python, NumPy, PyTorch and the current device.

    The states are made of tensors and plain values, which ``torch.load`` reads with
    ``weights_only=True``.
    """
    import numpy as np  # a dependency of the frameworks, not of the core

    state: Any = np.random.get_state()
    kind, key, *rest = state
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.tensor(key.astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "device": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def set_random_states(states: Mapping[str, Any]) -> None:
    """Restore what :func:`random_states` returned."""
    import numpy as np

    random.setstate(states["python"])
    kind, key, *rest = states["numpy"]
    np.random.set_state((kind, np.asarray(key, np.uint32), *rest))
    torch.set_rng_state(states["torch"].cpu())
    if states["device"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["device"].cpu())
