"""The random generators of this process: what a resumed run has to continue with."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import torch


def random_states() -> dict[str, Any]:
    """Those of Python, NumPy, PyTorch and the current device.

    They are made of tensors and plain values, which ``torch.load`` reads without more ado.
    """
    import numpy as np  # which the frameworks have, and the core does not need

    state: Any = np.random.get_state()
    kind, key, *rest = state
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.tensor(key.astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "device": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def set_random_states(states: Mapping[str, Any]) -> None:
    """Restores what :func:`random_states` returned."""
    import numpy as np

    random.setstate(states["python"])
    kind, key, *rest = states["numpy"]
    np.random.set_state((kind, np.asarray(key, np.uint32), *rest))
    torch.set_rng_state(states["torch"].cpu())
    if states["device"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["device"].cpu())
