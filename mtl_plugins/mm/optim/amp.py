"""MMEngine's optimizer wrapper in mixed precision, on any device."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.device import get_device
from mmengine.optim import AmpOptimWrapper, OptimWrapper

from mtl_plugins.precision import cpu_precision, scaler_for


class AnyDeviceAmpOptimWrapper(AmpOptimWrapper):
    """MMEngine's wrapper, also on a CPU, which MMEngine refuses: bfloat16, without loss scaling."""

    def __init__(
        self,
        loss_scale: Any = "dynamic",
        dtype: str | torch.dtype | None = None,
        use_fsdp: bool = False,
        **kwargs: Any,
    ) -> None:
        if get_device() != "cpu":
            super().__init__(loss_scale, dtype, use_fsdp, **kwargs)
            return
        OptimWrapper.__init__(self, **kwargs)
        self.cast_dtype = cpu_precision(dtype, "optim_wrapper.dtype")
        self.loss_scaler = scaler_for(torch.device("cpu"))
        self._scale_update_param = None
