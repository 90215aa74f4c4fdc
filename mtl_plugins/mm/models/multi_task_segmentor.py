"""Segmentation, depth, normals and other maps from one trunk, with MMSegmentation's parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from mmengine.dist import get_world_size
from mmengine.structures import PixelData
from mmseg.models.segmentors.base import BaseSegmentor
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from mmseg.utils import add_prefix
from torch import Tensor, nn

from mtl_plugins.mm.allocation import scaled
from mtl_plugins.mm.models.dense_heads import DenseHead
from mtl_plugins.mm.models.dense_inference import Maps, check_test_cfg, original, slide
from mtl_plugins.mm.models.losses import share_of_images
from mtl_plugins.mm.models.multi_task_preprocessor import check_preprocessor
from mtl_plugins.mm.models.task_features import TaskFeatures
from mtl_plugins.mm.models.task_heads import (
    build_auxiliary_heads,
    build_heads,
    check_tasks,
    field_of,
    has_decoder,
    loss_names,
)
from mtl_plugins.mm.models.task_norms import TaskNorms, refuse_lost_norms
from mtl_plugins.mm.models.task_trunk import OwnLayers, refuse_lost_weights, rotations_of
from mtl_plugins.mm.structures import FIELDS
from mtl_plugins.registry import suggest, under

Config = Mapping[str, Any]


@MODELS.register_module()
class MultiTaskSegmentor(BaseSegmentor):
    """Any number of heads for dense prediction on one backbone and neck.

    An image trains a task if its data sample has the task's label and, with STA or ISTA, if the
    task is one of the image's. Other images pass neither the head nor the loss of the task, so that
    the losses are those of a batch of the labelled images. A task without an image gives no loss.
    In distributed training, a process without an image of a task takes part with zeros, since heads
    may communicate.

    The losses are ``<task>.loss_*``, those of auxiliary predictions ``<task>.aux_<n>.loss_*`` with
    ``n`` from 0: first the predictions of backbone or neck, then the auxiliary heads'.

    Args:
        backbone: Config of a backbone of MMSegmentation.
        heads: Config of the head of each task, by names of your own: a decode head of
            MMSegmentation for ``gt_sem_seg``, or a :class:`~mtl_plugins.mm.models.DenseHead`.
        neck: Config of a neck; None for none.
        auxiliary_heads: Config, or list of configs, of more heads for the label of a task, by task;
            used in training only.
        rotations: Options of the :class:`~mtl_plugins.rotations.Rotations` between what the tasks
            share and the heads, ``dict()`` or ``dict(size=...)``; None for none.
        task_layers: Names of layers of backbone and neck, such as ``"backbone.layer1.0.conv1"``,
            that each task has for itself. Backbone and neck then run once a task.
        train_cfg: Training settings, which decode heads get.
        test_cfg: ``mode``, ``"whole"`` or ``"slide"``; with ``"slide"`` the ``crop_size`` and the
            ``stride`` of the windows (height, width), in pixels.
        data_preprocessor: Config of a preprocessor, such as :class:`MultiTaskDataPreProcessor`.
        task_norm: Settings of batch norms of each task's own, see
            :class:`~mtl_plugins.mm.models.task_norms.TaskNorms`; ``dict()`` for those of backbone
            and neck. The trunk then runs once a task, in training and in prediction.
        pretrained: Weights of the backbone, as for MMSegmentation's segmentors.
        init_cfg: Config of the initial weights, as for any MMEngine module.

    Attributes:
        trains: Function that tells whether a sample trains the losses with a name, or, without a
            sample, whether the forward pass is about them; task allocation replaces it.

    Raises:
        ValueError: A head does not fit the task or another head, or the settings are unknown.
    """

    def __init__(
        self,
        backbone: Config,
        heads: Mapping[str, Config],
        neck: Config | None = None,
        auxiliary_heads: Mapping[str, Config | Sequence[Config]] | None = None,
        rotations: Config | None = None,
        task_layers: Sequence[str] = (),
        train_cfg: Config | None = None,
        test_cfg: Config | None = None,
        data_preprocessor: Config | None = None,
        task_norm: Config | None = None,
        pretrained: str | None = None,
        init_cfg: Any = None,
    ) -> None:
        super().__init__(data_preprocessor=data_preprocessor, init_cfg=init_cfg)
        if pretrained is not None:
            if backbone.get("pretrained") is not None:
                raise ValueError("model.pretrained: model.backbone.pretrained is set as well")
            backbone = {**backbone, "pretrained": pretrained}
        self.train_cfg = train_cfg
        self.test_cfg = {} if test_cfg is None else test_cfg
        check_test_cfg(self.test_cfg)
        check_tasks(heads, auxiliary_heads or {})
        self.backbone = MODELS.build(backbone)
        if neck is not None:
            self.neck = MODELS.build(neck)
        self.heads = build_heads(heads)
        check_preprocessor(self.data_preprocessor, map(field_of, self.heads.values()))
        self.auxiliary_heads = build_auxiliary_heads(self.heads, auxiliary_heads or {})
        self.trains: Callable[[Any, str], bool] = _all_train
        self.task_norms = TaskNorms(self, list(self.heads), task_norm, self._trunk)
        self.own_layers = OwnLayers(self, task_layers)
        self.rotations = rotations_of(self, rotations)

    @property
    def optional_losses(self) -> list[str]:
        """Return the patterns of the losses that a batch may lack."""
        return [f"{task}.*" for task in self.heads]

    @property
    def representation(self) -> str:
        """Return the path of the module whose output all tasks share, for ``level='feature'``."""
        shares = self.with_neck and not getattr(self.neck, "features_by_task", False)
        return "neck" if shares else "backbone"

    @property
    def out_channels(self) -> int:
        """Refuse test-time augmentation, which asks for the number of classes.

        Raises:
            ValueError: Always: ``SegTTAModel`` merges segmentation alone.
        """
        raise ValueError(
            "tta_model: SegTTAModel merges the predictions of segmentation alone; test "
            f"{type(self).__name__} without --tta"
        )

    def extract_feat(self, inputs: Tensor) -> TaskFeatures | Sequence[Tensor]:
        """Return the features of images ``[N, C, H, W]``, which may differ by task.

        Raises:
            ValueError: There are features by task, but not for all tasks with a decoder.
        """
        x = self.own_layers.alone(self._trunk(inputs))
        if self.rotations is not None:
            with under("model", ("rotations",)):
                x = TaskFeatures(self.rotations(x))
        if isinstance(x, TaskFeatures):
            where = "neck" if self.with_neck else "backbone"
            source = f"model.{where} ({type(getattr(self, where)).__name__})"
            for task in self.own_layers.tasks:
                head = self.heads[task]
                needed = has_decoder(head) or len(self.auxiliary_heads[task])
                if needed and task not in x.features:
                    raise ValueError(
                        f"model.heads.{task}: {source} returns no features for {task!r}; "
                        f"{suggest(task, x.features)}"
                    )
            for task in x.auxiliary:
                if task not in self.heads:
                    raise ValueError(
                        f"{source} returns auxiliary predictions of {task!r}, which is none of "
                        f"model.heads; {suggest(task, self.heads)}"
                    )
        auxiliary = x.auxiliary if isinstance(x, TaskFeatures) else {}
        for task, head in self.heads.items():
            if not (has_decoder(head) or auxiliary.get(task) or len(self.auxiliary_heads[task])):
                raise ValueError(
                    f"model.heads.{task}.decoder: is None, and neither backbone nor neck returns "
                    f"auxiliary predictions of {task!r}, so that nothing would be trained"
                )
        return x

    def _load_from_state_dict(
        self, state_dict: Config, prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        mine = [key[len(prefix) :] for key in state_dict if key.startswith(prefix)]
        refuse_lost_weights(self, mine)
        refuse_lost_norms(self, mine)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _trunk(self, inputs: Tensor) -> Any:
        x = self.backbone(inputs)
        return self.neck(x) if self.with_neck else x

    def _passes(self, inputs: Tensor, tasks: Iterable[str]) -> Iterator[tuple[str, Any]]:
        """Yield each task with its features: of one pass for all, or of a pass with its own parts.

        With norms or layers of its own, a task's head belongs inside of the iteration, too.
        """
        x = None
        for task in filter(self.task_norms.serve, tasks):
            with self.task_norms.of(task), self.own_layers.of(task):
                if x is None or self.task_norms or self.own_layers:
                    x = self.extract_feat(inputs)
                yield task, x

    def encode_decode(self, inputs: Tensor, batch_img_metas: list[dict]) -> Maps:
        """Return the logits ``[N, C, H, W]`` of each task with a decoder for images."""
        decoded = [task for task, head in self.heads.items() if has_decoder(head)]
        return {
            task: self.heads[task].predict(_features(x, task), batch_img_metas, self.test_cfg)
            for task, x in self._passes(inputs, decoded)
        }

    def _forward(self, inputs: Tensor, data_samples: Any = None) -> Maps:
        """Return the raw output of each task with a decoder."""
        decoded = [task for task, head in self.heads.items() if has_decoder(head)]
        return {
            task: self.heads[task](_features(x, task)) for task, x in self._passes(inputs, decoded)
        }

    def loss(self, inputs: Tensor, data_samples: Sequence[SegDataSample]) -> Maps:
        """Return the losses of the labels that the images have, and pixel accuracies (per cent).

        Args:
            inputs: Images, ``[N, C, H, W]``.
            data_samples: ``N`` samples.
        """
        losses: Maps = {}
        wanted = [
            task
            for task, head in self.heads.items()
            if self.trains(None, f"{task}.{loss_names(head)[0]}")
        ]
        for task, x in self._passes(inputs, wanted):
            head = self.heads[task]
            if has_decoder(head):
                losses |= self._losses(task, head, _features(x, task), data_samples, head.loss)
            given = x.auxiliary.get(task, ()) if isinstance(x, TaskFeatures) else ()
            for n, logits in enumerate(given):
                by_logits = _by_logits(head)
                losses |= self._losses(f"{task}.aux_{n}", head, (logits,), data_samples, by_logits)
            for n, more in enumerate(self.auxiliary_heads[task], len(given)):
                name, features = f"{task}.aux_{n}", _features(x, task)
                losses |= self._losses(name, more, features, data_samples, more.loss)
        return losses

    def _losses(
        self,
        prefix: str,
        head: nn.Module,
        x: Sequence[Tensor],
        samples: Sequence[SegDataSample],
        loss: Callable[[Sequence[Tensor], Sequence[SegDataSample], Any], dict[str, Any]],
    ) -> Maps:
        """Return the losses of one prediction over the images that train it.

        Args:
            prefix: Beginning of the losses' names, without the dot.
            head: Head with the label's name.
            x: Features or logits of all ``N`` images.
            samples: ``N`` samples.
            loss: Loss of the features, samples and training settings, such as ``head.loss``.
        """
        truth = FIELDS[field_of(head)].truth
        name = f"{prefix}.{loss_names(head)[0]}"
        chosen = [i for i, s in enumerate(samples) if truth in s and self.trains(s, name)]
        takes_part = get_world_size() > 1
        if not (chosen or takes_part):
            return {}
        rows, targets = chosen or [0], [samples[i] for i in chosen]
        if not chosen:
            targets = [_unlabelled(samples[0], x[0].device, field_of(head))]
        if rows != list(range(len(samples))):
            x = tuple(level[rows] for level in x)
        try:
            terms = add_prefix(loss(x, targets, self.train_cfg), prefix)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise ValueError(
                f"model.heads.{prefix}: only one image of the batch has {truth}, and a batch norm "
                f"of {type(head).__name__} after global pooling needs two; take norm_cfg="
                "dict(type='GN', num_groups=...) for the head, or one without global pooling"
            ) from error
        if not chosen:
            terms = {name: term for name, term in terms.items() if "loss" in name}
        if takes_part:
            share = share_of_images(len(chosen), x[0])
            factors = {n: share if "loss" in n else 1.0 for n in terms}
            terms = {n: scaled({n: term}, factors[n])[n] for n, term in terms.items()}
        return terms

    def predict(
        self, inputs: Tensor, data_samples: list[SegDataSample] | None = None
    ) -> list[SegDataSample]:
        """Predict the map of each task with a decoder.

        Args:
            inputs: Images, ``[N, C, H, W]``.
            data_samples: ``N`` samples; without, predictions have the size of ``inputs``.

        Returns:
            The samples with the predictions of :data:`~mtl_plugins.mm.structures.FIELDS`, at the
            size of the image's file, and ``seg_logits`` of semantic segmentation.
        """
        size = inputs.shape[2:]
        if data_samples is None:
            meta = {"ori_shape": size, "img_shape": size, "pad_shape": size}
            data_samples = [SegDataSample(metainfo=meta) for _ in inputs]
        metas = [dict(sample.metainfo) for sample in data_samples]
        slides = self.test_cfg.get("mode", "whole") == "slide"
        logits = (self.slide_inference if slides else self.encode_decode)(inputs, metas)
        for task, maps in logits.items():
            head = self.heads[task]
            for sample, one in zip(data_samples, maps, strict=True):
                one = original(one, sample.metainfo, head)
                field = FIELDS[field_of(head)]
                if field_of(head) == "sem_seg":
                    one = one.sigmoid() if len(one) == 1 else one
                    sample.set_data({"seg_logits": PixelData(data=one)})
                if isinstance(head, DenseHead):
                    found = head.finish(one)
                elif len(one) == 1:
                    found = (one > head.threshold).to(one)
                else:
                    found = one.argmax(0, keepdim=True)
                sample.set_data({field.prediction: PixelData(data=found)})
        return data_samples

    def slide_inference(self, inputs: Tensor, batch_img_metas: list[dict]) -> Maps:
        """Return the mean logits of each task over the windows of ``test_cfg``."""
        return slide(self.encode_decode, inputs, batch_img_metas, self.test_cfg)


def _features(x: TaskFeatures | Sequence[Tensor], task: str) -> Sequence[Tensor]:
    return x.features[task] if isinstance(x, TaskFeatures) else x


def _by_logits(head: Any) -> Callable[..., dict[str, Any]]:
    def loss(x: Sequence[Tensor], samples: Sequence[SegDataSample], _: Any) -> dict[str, Any]:
        (logits,) = x
        if logits.shape[1] != head.out_channels:
            raise ValueError(
                f"{type(head).__name__} needs predictions of {head.out_channels} channels, got "
                f"{logits.shape[1]} from backbone or neck"
            )
        return head.loss_by_feat(logits, samples)

    return loss


def _all_train(sample: Any, loss: str) -> bool:
    return True


def _unlabelled(sample: SegDataSample, device: torch.device, name: str) -> SegDataSample:
    """Return a sample in which all pixels of a label are unknown."""
    field = FIELDS[name]
    shape = (field.channels, *sample.metainfo["pad_shape"][:2])
    dtype = torch.long if field.kind in ("classes", "binary") else torch.float
    data = torch.full(shape, field.unknown, dtype=dtype, device=device)
    unlabelled = SegDataSample(metainfo=sample.metainfo)
    unlabelled.set_data({field.truth: PixelData(data=data)})
    return unlabelled
