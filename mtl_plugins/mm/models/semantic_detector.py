"""Detection and semantic segmentation on one neck, from labels that may be partial."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from mmdet.models.detectors import BaseDetector
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample, SampleList
from mmengine.dist import get_world_size
from mmengine.structures import InstanceData, PixelData
from mmseg.structures import SegDataSample
from torch import Tensor
from torch.nn import functional as F

from mtl_plugins.mm.allocation import scaled, select
from mtl_plugins.mm.models.crowds import pass_over
from mtl_plugins.mm.models.losses import share_of_images
from mtl_plugins.mm.models.partial_preprocessor import SOURCES
from mtl_plugins.mm.models.task_norms import TaskNorms, refuse_lost_norms
from mtl_plugins.mm.structures import IGNORED
from mtl_plugins.registry import suggest


@MODELS.register_module()
class SemanticDetector(BaseDetector):
    """Single-stage detector and semantic segmentation head that share backbone and neck.

    Each image is trained for the labels that its data sample has: ``gt_instances``, ``gt_sem_seg``,
    ``pseudo_instances`` and ``pseudo_sem_seg`` (a teacher's). A head goes over the images that have
    labels for the head's task, and each source of labels has a separate loss, normalised over the
    images with labels of that source (paper A, eq. 9). A label that no image has gives no loss. In
    distributed training, a process whose images lack a label with a weight takes part with zeros,
    since heads may communicate.

    The area of ``ignored_instances``, crowds among them, is no background: the heads of FCOS,
    RetinaNet, ATSS and GFL learn nothing from places with the centre in this area and in no
    labelled box. Other heads get the ignored boxes as from MMDetection, and a warning says so.

    The losses are ``loss_<source>_<task>_<term>`` with the sources ``gt`` and ``pseudo``, the tasks
    ``det`` and ``seg`` and the terms of the heads, such as ``loss_pseudo_det_centerness``.

    Args:
        backbone: Config of a backbone of MMDetection.
        neck: Config of a neck of MMDetection, the outputs of which go to both heads.
        bbox_head: Config of a dense head of MMDetection, such as ``FCOSHead``; None for
            segmentation alone.
        semantic_head: Config of a decode head of MMSegmentation, such as ``mmseg.FPNHead``; None
            for detection alone.
        source_weights: Factor of each source; labels of a source that is not named are not used.
        task_weights: Factor of the losses of ``det`` and ``seg``; 1 for a task that is not named.
        train_cfg: Training settings of ``bbox_head``.
        test_cfg: Test settings of ``bbox_head``, and ``seg_threshold``: pixels whose most probable
            class has a probability below ``seg_threshold`` are predicted as 255, no class.
        data_preprocessor: Config of a preprocessor, such as :class:`PartialDataPreprocessor`.
        task_norm: Settings of batch norms of each task's own, ``det`` and ``seg``, see
            :class:`~mtl_plugins.mm.models.task_norms.TaskNorms`; ``dict()`` for those of backbone
            and neck. The trunk then runs once a task, in training and in prediction.
        init_cfg: Config of the initial weights, as for any MMEngine module.

    Raises:
        ValueError: No head, or weights of an unknown source or task.
    """

    def __init__(
        self,
        backbone: Mapping[str, Any],
        neck: Mapping[str, Any],
        bbox_head: Mapping[str, Any] | None = None,
        semantic_head: Mapping[str, Any] | None = None,
        source_weights: Mapping[str, float] | None = None,
        task_weights: Mapping[str, float] | None = None,
        train_cfg: Mapping[str, Any] | None = None,
        test_cfg: Mapping[str, Any] | None = None,
        data_preprocessor: Mapping[str, Any] | None = None,
        task_norm: Mapping[str, Any] | None = None,
        init_cfg: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(data_preprocessor=data_preprocessor, init_cfg=init_cfg)
        self.source_weights = {"gt": 1.0} if source_weights is None else dict(source_weights)
        self.task_weights = {"det": 1.0, "seg": 1.0} | dict(task_weights or {})
        _check_keys("model.source_weights", self.source_weights, SOURCES)
        _check_keys("model.task_weights", self.task_weights, ("det", "seg"))
        if bbox_head is None and semantic_head is None:
            raise ValueError("model: has neither a bbox_head nor a semantic_head")
        self.backbone = MODELS.build(backbone)
        self.neck = MODELS.build(neck)
        self.test_cfg = dict(test_cfg or {})
        self.bbox_head: Any = bbox_head and MODELS.build(
            {**bbox_head, "train_cfg": train_cfg, "test_cfg": test_cfg}
        )
        self.semantic_head: Any = semantic_head and MODELS.build(semantic_head)
        self.trains: Callable[[Any, str], bool] = lambda sample, loss: True
        """Tells whether a sample trains the losses with a prefix or, without a sample, whether the
        forward pass is about them; task allocation replaces this."""
        heads = {"det": self.bbox_head, "seg": self.semantic_head}
        self._tasks = [task for task, head in heads.items() if head]
        self.task_norms = TaskNorms(self, self._tasks, task_norm, self.extract_feat)

    @property
    def optional_losses(self) -> list[str]:
        """Return the patterns of the losses that a batch may lack."""
        return [f"loss_{source}_{task}_*" for task in self._tasks for source in self.source_weights]

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        refuse_lost_norms(self, [k[len(prefix) :] for k in state_dict if k.startswith(prefix)])
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def extract_feat(self, batch_inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the neck's outputs, each ``[N, C, H_l, W_l]``, of images ``[N, 3, H, W]``."""
        return self.neck(self.backbone(batch_inputs))

    def _forward(
        self, batch_inputs: Tensor, batch_data_samples: SampleList | None = None
    ) -> tuple[Any, ...]:
        """Return the raw outputs of each head."""
        heads = {"det": self.bbox_head, "seg": self.semantic_head}
        return tuple(heads[task](x) for task, x in self._passes(batch_inputs, self._tasks))

    def _passes(self, inputs: Tensor, tasks: Iterable[str]) -> Iterator[tuple[str, Any]]:
        """Yield each task with its features: of one pass for all, or of a pass with its norms."""
        x = None
        for task in filter(self.task_norms.serve, tasks):
            with self.task_norms.of(task):
                if x is None or self.task_norms:
                    x = self.extract_feat(inputs)
                yield task, x

    def loss(self, batch_inputs: Tensor, batch_data_samples: SampleList) -> dict[str, Tensor]:
        """Return the losses of the labels that the images have.

        Args:
            batch_inputs: Images, ``[N, 3, H, W]``.
            batch_data_samples: ``N`` samples; the semantic maps are ``[1, H, W]``.

        Returns:
            Scalars by name, and the pixel accuracies (per cent) of MMSegmentation's heads.
        """
        kinds = {"det": "instances", "seg": "sem_seg"}
        wanted = [
            task
            for task in self._tasks
            if any(self.trains(None, f"loss_{source}_{task}_") for source in self.source_weights)
        ]
        losses: dict[str, Tensor] = {}
        for task, x in self._passes(batch_inputs, wanted):
            losses |= self._losses(x, batch_data_samples, task, kinds[task])
        return losses

    def _losses(
        self, x: Sequence[Tensor], samples: SampleList, task: str, kind: str
    ) -> dict[str, Tensor]:
        """Return the losses of one head, by name.

        Args:
            x: Outputs of the neck, each ``[N, C, H_l, W_l]``.
            samples: Data samples of all ``N`` images.
            task: Name of the task, ``"det"`` or ``"seg"``.
            kind: Name of the task's labels in a data sample, without the source.
        """
        head = self.bbox_head if task == "det" else self.semantic_head
        loss_of = self._det_loss if task == "det" else self._seg_loss
        labelled = {
            source: [
                i
                for i, sample in enumerate(samples)
                if f"{source}_{kind}" in sample and self.trains(sample, f"loss_{source}_{task}_")
            ]
            for source in self.source_weights
        }
        takes_part = get_world_size() > 1
        seen = sorted({i for chosen in labelled.values() for i in chosen}) or [0] * takes_part
        if not seen:
            return {}
        # The head runs once, since all sources share the outputs.
        outputs = head(_of(x, seen, len(samples)))
        losses: dict[str, Any] = {}
        for source, chosen in labelled.items():
            factor: Any = self.source_weights[source] * self.task_weights[task]
            targets = [samples[i] for i in chosen]
            labels = [sample.get(f"{source}_{kind}") for sample in targets]
            if not chosen and takes_part:
                chosen, factor, targets = seen[:1], 0.0, [samples[seen[0]]]
                labels = [_no_labels(targets[0], x[0].device)[kind]]
            if not chosen:
                continue
            if task == "seg" and takes_part:
                factor = factor * share_of_images(len(labelled[source]), x[0])
            rows = [seen.index(i) for i in chosen]
            terms = loss_of(_of(outputs, rows, len(seen)), targets, labels)
            accuracies = {name: terms.pop(name) for name in list(terms) if "loss" not in name}
            losses |= {f"{source}_{name}": value for name, value in accuracies.items()}
            losses |= {
                f"loss_{source}_{task}_{name.removeprefix('loss_')}": value
                for name, value in scaled(terms, factor).items()
            }
        return losses

    def _det_loss(
        self, outputs: Any, samples: SampleList, labels: Sequence[InstanceData]
    ) -> dict[str, Any]:
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        crowds: Any = [
            sample.get("ignored_instances") if one is sample.get("gt_instances") else None
            for sample, one in zip(samples, labels, strict=True)
        ]
        metas = [sample.metainfo for sample in samples]
        if None in crowds:
            crowds = None
        elif any(len(crowd) for crowd in crowds):
            outputs = (pass_over(self.bbox_head, outputs[0], labels, crowds), *outputs[1:])
        return self.bbox_head.loss_by_feat(*outputs, list(labels), metas, crowds)

    def _seg_loss(
        self, outputs: Tensor, samples: SampleList, labels: Sequence[PixelData]
    ) -> dict[str, Tensor]:
        maps = [PixelData(data=one.sem_seg.long()) for one in labels]
        return self.semantic_head.loss_by_feat(
            outputs, [SegDataSample(gt_sem_seg=one) for one in maps]
        )

    def predict(
        self, batch_inputs: Tensor, batch_data_samples: SampleList, rescale: bool = True
    ) -> SampleList:
        """Predict boxes and semantic maps.

        Args:
            batch_inputs: Images, ``[N, 3, H, W]``.
            batch_data_samples: ``N`` samples.
            rescale: Whether predictions have the size of the image's file.

        Returns:
            The samples, with ``pred_instances`` (``bboxes`` ``[n, 4]``, ``scores``, ``labels``) and
            ``pred_sem_seg.sem_seg`` ``[1, H, W]``.
        """
        for task, x in self._passes(batch_inputs, self._tasks):
            if task == "det":
                boxes = self.bbox_head.predict(x, batch_data_samples, rescale=rescale)
                batch_data_samples = self.add_pred_to_datasample(batch_data_samples, boxes)
                continue
            for logits, sample in zip(self.semantic_head(x), batch_data_samples, strict=True):
                classes = self._classes(logits[None], sample, rescale)
                sample.pred_sem_seg = PixelData(sem_seg=classes)
        return batch_data_samples

    def _classes(self, logits: Tensor, sample: DetDataSample, rescale: bool) -> Tensor:
        """Return the class of each pixel, ``[1, H, W]``, of logits ``[1, C, h, w]``."""
        how = {"mode": "bilinear", "align_corners": self.semantic_head.align_corners}
        logits = F.interpolate(logits, size=sample.batch_input_shape, **how)
        height, width = sample.img_shape[:2]
        logits = logits[..., :height, :width]
        if rescale:
            logits = F.interpolate(logits, size=sample.ori_shape[:2], **how)
        threshold = self.test_cfg.get("seg_threshold", 0.0)
        if not threshold:
            return logits.argmax(1)
        probability, classes = logits.softmax(1).max(1)
        return torch.where(probability < threshold, IGNORED, classes)


def _of(values: Any, chosen: Sequence[int], total: int) -> Any:
    """Return the part of features or outputs that belongs to the ``chosen`` of ``total`` images."""
    if list(chosen) == list(range(total)):
        return values
    return values[chosen] if isinstance(values, Tensor) else select(values, chosen)


def _no_labels(sample: DetDataSample, device: torch.device) -> dict[str, Any]:
    """Return the labels, by kind, of an image without any object or labelled pixel."""
    boxes = torch.zeros(0, 4, device=device)
    classes = torch.zeros(0, dtype=torch.long, device=device)
    unlabelled = torch.full((1, *sample.batch_input_shape), IGNORED, device=device)
    return {
        "instances": InstanceData(bboxes=boxes, labels=classes),
        "sem_seg": PixelData(sem_seg=unlabelled),
    }


def _check_keys(key: str, weights: Mapping[str, float], known: Iterable[str]) -> None:
    for name in weights:
        if name not in known:
            raise ValueError(f"{key}: there is no {name!r}; {suggest(name, list(known))}")
