"""A device that is not there: tensors that say they are elsewhere, with their values on the CPU.

What would fail on a CUDA device fails here, such as mixed devices, and every time that the host
would wait is noted. ``meta`` stands for the device, since autograd runs it on the CPU.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

from mtl_plugins import transfer

DEVICE = torch.device("meta")
aten = torch.ops.aten
# The host reads values, or needs them to know a shape.
READS = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal", "is_nonzero"}
# A CPU scalar is an argument of a kernel elsewhere, but here has to be on the device.
NO_SCALARS = {"stack", "cat", "mm", "addmm", "addmm_"}


class Away(Tensor):
    """A tensor on the device."""

    values: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> Away:
        self = Tensor._make_wrapper_subclass(
            cls,
            values.shape,
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device=DEVICE,
        )
        self.values = values
        return self

    def __repr__(self, **kwargs: Any) -> str:
        return f"Away({self.values})"

    def tolist(self) -> Any:
        return self.cpu().tolist()  # PyTorch has none for subclasses

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _on_device(func, args, kwargs or {}, [])


def _on_device(func: Any, args: Any, kwargs: dict[str, Any], waits: list[str]) -> Any:
    name = func.overloadpacket.__name__
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    away = [x for x in tensors if isinstance(x, Away)]
    here = [x for x in tensors if not isinstance(x, Away)]
    if any(x.device == DEVICE for x in here):
        raise RuntimeError(
            f"{name}: torch.tensor(..., device=...) is a copy that the host waits for"
        )
    to = kwargs.get("device")
    moves = name in ("_to_copy", "copy_")
    if moves and (here or (to is not None and torch.device(to) != DEVICE)):
        waits.append("copy")  # pageable memory: in both directions the host waits
    elif name in READS and away:
        waits.append(name)
    elif name in ("index", "index_put", "index_put_", "_index_put_impl_") and away:
        indices = [i for i in args[1] if i is not None]
        if any(not isinstance(i, Away) for i in indices):
            waits.append("index of the CPU")
        if any(i.dtype == torch.bool for i in indices):
            waits.append("index by a mask")
    elif away and any(x.ndim or name in NO_SCALARS for x in here):
        raise RuntimeError(f"{name}: tensors on the CPU and on the device")
    inner, options = tree_map_only(Away, lambda x: x.values, (args, kwargs))
    if to is not None and torch.device(to) == DEVICE:
        options = {**options, "device": "cpu"}
    result = func(*inner, **options)
    if torch.Tag.inplace_view in func.tags:  # of the tensor itself, too
        with no_dispatch():
            func(*args, **kwargs)
    if func._schema.is_mutable and func._schema.arguments[0].alias_info is not None:
        return None if result is None else args[0]
    stays = (away and (to is None or name == "empty_like")) or (
        to is not None and torch.device(to) == DEVICE
    )
    if name == "_local_scalar_dense" or not stays or (to and torch.device(to) != DEVICE):
        return result
    return tree_map(lambda x: Away(x) if isinstance(x, Tensor) else x, result)


class Waits(TorchDispatchMode):
    """Notes when the host waits for the device.

    Attributes:
        places: Kind and line of the code of each.
    """

    def __init__(self) -> None:
        super().__init__()
        self.places: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = tree_leaves((args, kwargs))
        to = kwargs.get("device")
        if not any(isinstance(x, Away) for x in tensors) and (
            to is None or torch.device(to) != DEVICE
        ):
            return func(*args, **kwargs)
        waits: list[str] = []
        result = _on_device(func, args, kwargs, waits)
        self.places += [f"{kind} in {_place()}" for kind in waits]
        return result


def _place() -> str:
    frames = [f for f in traceback.extract_stack() if "/mtl_plugins/" in f.filename]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "the model"


@contextmanager
def pretending() -> Iterator[Waits]:
    """Note waits in what is run inside; copies that are asynchronous on CUDA are none."""

    def to_host(copy: transfer.HostCopy, tensor: Tensor) -> None:
        copy._done = None
        copy._copy = tensor.values.clone() if isinstance(tensor, Away) else tensor

    def to_device(values: Tensor, device: torch.device) -> Tensor:
        return Away(values) if device == DEVICE else values

    def autocast(device_type: str, *args: Any, **kwargs: Any) -> Any:
        return real("cpu" if device_type == DEVICE.type else device_type, *args, **kwargs)

    real = torch.autocast
    with (
        mock.patch.object(torch, "autocast", autocast),
        mock.patch.object(transfer.HostCopy, "__init__", to_host),
        mock.patch.object(transfer, "_send", to_device),
        Waits() as waits,
    ):
        yield waits


def send(model: nn.Module) -> nn.Module:
    """Move a model to the device, with its values."""
    for module in model.modules():
        for name, p in module._parameters.items():
            if p is not None:
                module._parameters[name] = nn.Parameter(Away(p.detach().clone()), p.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = Away(buffer.clone())
    return model


def fetched(tensor: Tensor | None) -> Tensor | None:
    """Return the values of a tensor on the device."""
    return tensor.values if isinstance(tensor, Away) else tensor
