"""STCH: mostly the task whose loss is largest."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

from mtl_plugins.registry import suggest
from mtl_plugins.weighting.base import Weighting, softmax


class STCH(Weighting):
    r"""Smooth Tchebycheff scalarisation (`Lin et al. 2024, eq. 5 <https://arxiv.org/abs/2402.19078>`_).

    The model descends :math:`\mu \log \sum_t \exp(\lambda_t (L_t - z_t) / \mu)` over the tasks
    taking part, whose gradient has the factors
    :math:`w_t = \lambda_t \operatorname{softmax}_t(\lambda (L - z) / \mu)`. For a small
    :math:`\mu` the task with the largest weighted distance to its ideal gets all.

    The distances should have one unit: give :math:`\lambda_t` as one over a usual size of the loss.

    Args:
        mu: Smoothness :math:`\mu`, in units of the weighted losses.
        preference: Factor :math:`\lambda_t` by task; None, or a task not named, is 1.
        ideal: Least value :math:`z_t` of each loss by task; None, or a task not named, is 0.
    """

    needs_losses = True

    def __init__(
        self,
        mu: float = 1.0,
        preference: Mapping[str, float] | None = None,
        ideal: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        if mu <= 0.0:
            raise ValueError(f"mu: expected more than 0, got {mu}")
        for key, value in (("preference", preference), ("ideal", ideal)):
            if value is not None and not isinstance(value, Mapping):
                raise TypeError(f"{key}: expected a dict by task, got {value!r}")
        if preference and min(preference.values()) < 0.0:
            raise ValueError(f"preference: expected numbers of at least 0, got {dict(preference)}")
        self.mu, self.preference, self.ideal = mu, preference, ideal

    def check(self, tasks: Collection[str]) -> None:
        for key, numbers in (("preference", self.preference), ("ideal", self.ideal)):
            for name in numbers or ():
                if name not in tasks:
                    raise KeyError(
                        f"weighting: STCH.{key}: no task is called {name!r}; "
                        + suggest(name, tasks)
                    )

    def weights(
        self, tasks: Collection[str], losses: Mapping[str, float] | None = None
    ) -> dict[str, float]:
        if losses is None:
            raise ValueError("STCH needs the losses of the step")
        factor = {t: (self.preference or {}).get(t, 1.0) for t in tasks}
        # The owner of the step deals with a loss that is not finite.
        scaled = {
            t: factor[t] * (losses[t] - (self.ideal or {}).get(t, 0.0)) / self.mu
            for t in tasks
            if math.isfinite(losses[t])
        }
        shares = softmax(scaled)
        return {t: factor[t] * shares.get(t, 0.0) for t in tasks}
