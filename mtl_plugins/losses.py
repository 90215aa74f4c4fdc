"""Losses and parameters as a training script hands them over, and errors that say what to do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from mtl_plugins.nodes import behind

_DONATED = (
    "the model was compiled so that it can be run back once, and here it is run back once a task: "
    "set torch._functorch.config.donated_buffer = False before its first forward pass"
)


def scalars(losses: Mapping[str, Tensor | float]) -> dict[str, Tensor]:
    """Check that every loss is a scalar; plain numbers become constants.

    Raises:
        ValueError: A loss has several elements.
        TypeError: A loss is no tensor and no number.
    """
    found: dict[str, Tensor] = {}
    for name, loss in losses.items():
        if isinstance(loss, (int, float)):
            loss = torch.tensor(float(loss))
        if not isinstance(loss, Tensor):
            raise TypeError(
                f"losses: {name!r} is a {type(loss).__name__}, expected a scalar tensor or a number"
            )
        if loss.numel() != 1:
            raise ValueError(
                f"losses: {name!r} has the shape {tuple(loss.shape)}, expected a scalar"
            )
        found[name] = loss
    return found


def refuse_hooks(params: Iterable[nn.Parameter]) -> None:
    """Refuse hooks that would take the gradient of one task for the whole one.

    Raises:
        ValueError: A parameter has a hook that is called when its ``.grad`` is accumulated, such as
            that of an optimizer that steps in the backward pass.
    """
    hooked = [p for p in params if getattr(p, "_post_accumulate_grad_hooks", None)]
    if hooked:
        raise ValueError(
            f"params: {len(hooked)} parameters have a hook that is called when .grad is "
            "accumulated (register_post_accumulate_grad_hook, an optimizer in the backward pass). "
            "It would see the gradient of one task at a time; remove it"
        )


def refuse_incomparable(params: Iterable[nn.Parameter]) -> None:
    """Refuse parameters whose gradients have no inner product here.

    Raises:
        ValueError: A parameter that is trained is complex, or a rank holds a part of it alone.
    """
    trained = [p for p in params if p.requires_grad]
    if found := [p for p in trained if p.is_complex()]:
        raise ValueError(
            f"params: {len(found)} parameters are complex, whose gradients are not compared: keep "
            "real ones, and take torch.view_as_complex() of them in the model"
        )
    if found := [p for p in trained if hasattr(p, "device_mesh")]:
        raise ValueError(
            f"params: {len(found)} parameters are sharded over the ranks (fully_shard, tensor "
            "parallelism), and no rank has a whole gradient to compare; use "
            "DistributedDataParallel"
        )


def let_compiled_models_run_back_again() -> None:
    """Have :func:`torch.compile` keep what a second backward pass needs, in models compiled later.

    By default the first pass overwrites activations ("donated buffers"). This also ends PyTorch's
    own check of models that were compiled before, see :func:`refuse_donated_buffers`.
    """
    import torch._functorch.config as config

    if hasattr(config, "donated_buffer"):
        config.donated_buffer = False


def refuse_donated_buffers(losses: Iterable[Tensor]) -> None:
    """Refuse a model that was compiled, and run back, while a pass might overwrite activations.

    Raises:
        RuntimeError: A second pass through its graph would read what the first one overwrote.
    """
    for node in behind(get_gradient_edge(loss).node for loss in losses):
        compiled = getattr(node, "_forward_cls", None)
        donated = getattr(getattr(compiled, "metadata", None), "bw_donated_idxs", None)
        # Before its first pass, which will keep the graph, a model can still do without.
        if donated and getattr(compiled, "compiled_bw", None) is not None:
            raise RuntimeError(_DONATED)


@contextmanager
def explained() -> Iterator[None]:
    """Say what to do about errors of PyTorch that come from running back several times."""
    try:
        yield
    except RuntimeError as error:
        if "donated buffer" in str(error):
            raise RuntimeError(_DONATED) from error
        raise
