"""Compare the heads of a model with the labels and classes of the data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mtl_plugins.mm.data_check.sets import no_comma

if TYPE_CHECKING:
    from torch import nn


def class_count_problem(
    model: nn.Module, metainfo: Mapping[str, Any], key: str = "train_dataloader.dataset"
) -> str | None:
    """Look for heads that have another number of classes than the data.

    MMDetection's ``NumClassCheckHook`` finds no semantic head, and takes panoptic and
    class-agnostic ones for wrong.

    Args:
        model: Model that is trained, also in a wrapper for several processes.
        metainfo: Metainfo of the data set; without ``classes`` nothing is known.
        key: Config key of the data set, for the message.

    Returns:
        The problem, in which all these heads are named; None if there is none.
    """
    from mmdet.models.roi_heads.mask_heads import FusedSemanticHead
    from mmseg.models.decode_heads.decode_head import BaseDecodeHead

    from mtl_plugins.mm.optim.model import unwrapped

    model = unwrapped(model)
    classes = metainfo.get("classes")
    if classes is None or hasattr(model, "language_model"):  # classes are words of a prompt
        return None
    if isinstance(classes, str):
        return no_comma(key, classes)
    wrong: list[str] = []
    named = classes
    for name, module in model.named_modules():
        parts = name.split(".")
        count = getattr(module, "num_classes", None)
        # A head of dense prediction names its label; its decoder below it does not.
        owners = [model.get_submodule(".".join(parts[: i + 1])) for i in range(len(parts))]
        field = next((f for o in owners if isinstance(f := getattr(o, "field", None), str)), None)
        if (
            not isinstance(count, int)
            or parts[0] in ("", "backbone", "neck")
            or "rpn_head" in parts
            or "loss" in parts[-1]
            or isinstance(module, FusedSemanticHead)
            or (getattr(module, "class_agnostic", False) and field is None)
        ):
            continue
        known, attribute = [classes], "num_classes"
        if hasattr(module, "num_stuff_classes"):
            attribute = "num_things_classes + num_stuff_classes"
            count = module.num_things_classes + module.num_stuff_classes
        elif field not in (None, "sem_seg"):
            names = f"{field}_classes"
            known = [metainfo[names]] if names in metainfo else []
        elif parts[-1] == "semantic_head":
            known = [metainfo[name] for name in ("seg_classes",) if name in metainfo]
        elif "thing_classes" in metainfo and not isinstance(module, BaseDecodeHead):
            known = [metainfo["thing_classes"], classes]
        if known and count not in map(len, known):
            place = "".join(f"[{part}]" if part.isdigit() else f".{part}" for part in parts)
            wrong.append(f"model{place}.{attribute} is {count}")
            named = known[0]
    if not wrong:
        return None
    return (
        f"{', '.join(wrong)}, but {key} has {len(named)} classes: {', '.join(named)}. Set the "
        "former to that number, or metainfo.classes of all data sets to the classes of the model"
    )


def unlabelled_task(model: nn.Module, dataset: Any, key: str) -> str | None:
    """Look for heads of dense prediction that no data set has labels for.

    Args:
        model: Model that is trained, also in a wrapper for several processes.
        dataset: Data set, also a concatenation or repetition of such.
        key: Config key of the data set, for the message.

    Returns:
        The problem; None if there is none, or a data set is not of dense prediction.
    """
    from mtl_plugins.mm.datasets import DenseDataset
    from mtl_plugins.mm.models import MultiTaskSegmentor
    from mtl_plugins.mm.models.task_heads import field_of
    from mtl_plugins.mm.optim.model import unwrapped

    model = unwrapped(model)
    sets = [dataset]
    while any(hasattr(one, "datasets") or hasattr(one, "dataset") for one in sets):
        inner = (getattr(one, "datasets", [getattr(one, "dataset", one)]) for one in sets)
        sets = [one for ones in inner for one in ones]
    if not isinstance(model, MultiTaskSegmentor) or not all(
        isinstance(one, DenseDataset) for one in sets
    ):
        return None
    fields = {name for one in sets for name in one.fields}
    for task, head in model.heads.items():
        if field_of(head) not in fields:
            return (
                f"model.heads.{task}: nothing would train it, since {key} has no "
                f"{field_of(head)!r}, but {', '.join(sorted(fields))}; add it to the fields of the "
                "data set, or remove the head"
            )
    return None
