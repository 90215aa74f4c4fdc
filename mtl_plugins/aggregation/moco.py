"""MoCo: MGDA on running means of the gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mtl_plugins.aggregation.base import Aggregator
from mtl_plugins.aggregation.memory import RowMemory, Shares, in_single
from mtl_plugins.gradients import combine, gramian_of
from mtl_plugins.transfer import send


class MoCo(Aggregator):
    r"""Multi-objective gradient correction (Fernando et al. 2023, algorithm 1).

    Paper: `OpenReview dLAYGdKTi2 <https://openreview.net/forum?id=dLAYGdKTi2>`_.

    In step :math:`k = 1, 2, \dots`, from :math:`y = 0` and :math:`\lambda = 1 / T`,

    .. math:: y_t \leftarrow y_t - \beta_k (y_t - g_t), \qquad
              \lambda \leftarrow \operatorname{softmax}(\lambda - \gamma_k (Y Y^\top + \rho I)
              \lambda), \qquad d = Y^\top \lambda

    with :math:`\beta_k = \beta / k^{\sigma_\beta}` and :math:`\gamma_k = \gamma /
    k^{\sigma_\gamma}`. The authors' code, as LibMTL has it, differs from the paper in the softmax
    (the paper projects onto the simplex) and in taking :math:`L_t g_t / \|g_t\|` for
    :math:`g_t`; we follow it. The running means, :math:`T` times the shared parameters, are part of
    the checkpoint.

    Args:
        beta: Step size :math:`\beta` of the running means.
        beta_sigma: Decay :math:`\sigma_\beta`.
        gamma: Step size :math:`\gamma` of the weights.
        gamma_sigma: Decay :math:`\sigma_\gamma`.
        rho: Regularisation :math:`\rho`.
        normalise: Whether each gradient is scaled to the size of its loss, as in the code; False
            takes the gradients as they are, as in the paper.
    """

    scale = "mean"
    needs_losses = True
    remembers_rows = True
    of_features = False

    def __init__(
        self,
        beta: float = 0.5,
        beta_sigma: float = 0.5,
        gamma: float = 0.1,
        gamma_sigma: float = 0.5,
        rho: float = 0.0,
        normalise: bool = True,
    ) -> None:
        if not 0.0 < beta <= 1.0 or gamma < 0.0:
            raise ValueError(f"0 < beta <= 1 and gamma >= 0, got {beta} and {gamma}")
        if min(beta_sigma, gamma_sigma, rho) < 0.0:
            raise ValueError("beta_sigma, gamma_sigma and rho are not negative")
        self.beta, self.beta_sigma = beta, beta_sigma
        self.gamma, self.gamma_sigma = gamma, gamma_sigma
        self.rho = rho
        self.normalise = normalise
        self._step = 0
        self._means = RowMemory()
        self._shares = Shares()

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {
            "step": self._step,
            "means": self._means.state_dict(),
            "shares": self._shares.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._step = state["step"]
        self._means.load_state_dict(state["means"])
        self._shares.load_state_dict(state["shares"])

    def on_parameters(
        self,
        jacobian: Tensor,
        parameters: Sequence[Tensor],
        tasks: Sequence[int] | None = None,
        losses: Tensor | None = None,
    ) -> Tensor:
        return self(jacobian, tasks, losses)

    def __call__(
        self,
        jacobian: Tensor,
        tasks: Sequence[int] | None = None,
        losses: Tensor | None = None,
    ) -> Tensor:
        tasks = range(len(jacobian)) if tasks is None else tasks
        rows = in_single(jacobian)
        if self.normalise:
            if losses is None:
                raise ValueError("normalise=True needs the loss values")
            norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True, dtype=torch.float64)
            # A negative loss must not turn it round.
            wanted = send(losses, norms.device, norms.dtype).abs()[:, None]
            rows = rows * torch.where(norms > 0.0, wanted / norms, 0.0).to(rows)
        self._step += 1
        means = self._means.get(tasks, rows)
        means += self.beta / self._step**self.beta_sigma * (rows - means)
        self._means.keep(tasks, means)
        shares = torch.tensor(self._shares.of(tasks), dtype=torch.float64)
        slope = gramian_of(means).double() @ shares + self.rho * shares
        shares = (shares - self.gamma / self._step**self.gamma_sigma * slope).softmax(dim=0)
        self._shares.keep(tasks, shares.tolist())
        return combine(shares, means).to(jacobian)
