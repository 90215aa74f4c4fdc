"""Cross-stitch networks: one network a task, whose feature maps are combined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.model import BaseModule, ModuleDict
from mmseg.models.backbones import ResNet
from mmseg.registry import MODELS
from torch import Tensor, nn

from mtl_plugins.mm.models.segnet import BATCH_NORM, SegNet, check_tasks, pool, unpool
from mtl_plugins.mm.models.task_features import TaskFeatures


@MODELS.register_module()
class CrossStitchSegNet(BaseModule):
    """SegNets whose maps are summed after every stage (https://arxiv.org/abs/1604.03539).

    The form is that of https://github.com/lorenmt/mtan: a unit has one weight for each task, 1 at
    first, and the weighted sum is the next input of every task. The paper has a matrix of weights
    instead, see :class:`CrossStitchBackbone`. Each task pools and unpools by its own maxima.
    The names of the units' weights have ``stitch`` in them, for MMEngine's ``custom_keys``.

    Args:
        tasks: Names of the tasks.
        in_channels: Number of channels of the image.
        channels: Number of channels of each stage of an encoder. The decoder mirrors them.
        convs: Number of convolutions of each stage.
        norm_cfg: Config of the normalisations.
        init_cfg: Config of the initialisation of each SegNet; Xavier's uniform rule unless given.

    Raises:
        ValueError: ``tasks`` is empty or names a task twice, or ``channels`` and ``convs`` differ
            in length.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        in_channels: int = 3,
        channels: Sequence[int] = (64, 128, 256, 512, 512),
        convs: Sequence[int] = (2, 2, 3, 3, 3),
        norm_cfg: dict[str, Any] = BATCH_NORM,
        init_cfg: dict[str, Any] | list[dict[str, Any]] | None = None,
    ) -> None:
        tasks = check_tasks(tasks, "model.backbone.tasks")
        super().__init__()
        init_cfg = init_cfg or {"type": "Xavier", "layer": "Conv2d", "distribution": "uniform"}
        self.networks = ModuleDict(
            {task: SegNet(in_channels, channels, convs, norm_cfg, init_cfg) for task in tasks}
        )
        self.stitch_encoder = nn.Parameter(torch.ones(len(channels) - 1, len(tasks)))
        self.stitch_decoder = nn.Parameter(torch.ones(len(channels), len(tasks)))

    def forward(self, x: Tensor) -> TaskFeatures:
        """Return a map ``[N, channels[0], H, W]`` for each task, of images ``[N, C, H, W]``."""
        networks = list(self.networks.values())
        networks[0].check_size(x)
        # A unit is between two stages; the sum behind the encoder belongs to the decoder.
        units = iter([*self.stitch_encoder, *self.stitch_decoder])

        def stitch(maps: Sequence[Tensor]) -> Tensor:
            return torch.stack([w * m for w, m in zip(next(units), maps, strict=True)]).sum(0)

        pools = []
        for stages in zip(*(network.encoder for network in networks), strict=True):
            fulls = [stage(x) for stage in stages]
            pooled, indices = zip(*map(pool, fulls), strict=True)
            pools.append((indices, fulls))
            x = stitch(pooled)
        maps: list[Tensor] = []
        for stages in zip(*(network.decoder for network in networks), strict=True):
            if maps:
                x = stitch(maps)
            indices, fulls = pools.pop()
            maps = [
                stage(unpool(x, index, full))
                for stage, index, full in zip(stages, indices, fulls, strict=True)
            ]
        return TaskFeatures({task: (m,) for task, m in zip(self.networks, maps, strict=True)})


@MODELS.register_module()
class CrossStitchBackbone(BaseModule):
    """ResNets with a cross-stitch unit after every stage (https://arxiv.org/abs/1604.03539).

    A unit gives each task the sum of all tasks' maps, each channel of each map with a weight of
    its own: ``alpha`` for the task's own map at first, ``beta`` for another's.
    https://github.com/SimonVandenhende/Multi-Task-Learning-PyTorch starts from trained single-task
    networks, which a backbone's ``init_cfg=dict(type="Pretrained", checkpoint=...,
    prefix="backbone.")`` loads, and trains the units at 100 times the learning rate, which
    ``paramwise_cfg=dict(custom_keys={"stitch": dict(lr_mult=100)})`` does.

    Args:
        backbones: Config of each task's backbone, by the task's name: ``ResNet`` of MMSegmentation,
            or a class derived from it. Their stages must have the same channels.
        alpha: First weight of a task's own map.
        beta: First weight of another task's map; published are 0.9 and 0.1 for two tasks, 0.8 and
            0.05 for five.
        init_cfg: Config of the initialisation of the whole.

    Raises:
        ValueError: ``backbones`` is empty, or a backbone is no ``ResNet`` or differs in its stages.
            See also :meth:`init_weights`.
    """

    def __init__(
        self,
        backbones: Mapping[str, dict[str, Any]],
        alpha: float = 0.9,
        beta: float = 0.1,
        init_cfg: dict[str, Any] | list[dict[str, Any]] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.networks = ModuleDict({task: MODELS.build(cfg) for task, cfg in backbones.items()})
        stages: list[int] = []
        for task, network in self.networks.items():
            if not isinstance(network, ResNet):
                raise ValueError(
                    f"model.backbone.backbones.{task}: expected a ResNet of MMSegmentation or a "
                    f"class derived from it, got {type(network).__name__}"
                )
            found = [
                network.block.expansion * network.base_channels * 2**stage
                for stage in range(network.num_stages)
            ]
            if found != (stages := stages or found):
                raise ValueError(
                    f"model.backbone.backbones.{task}: expected stages of {stages} channels as the "
                    f"first task has, got {found}"
                )
        if not stages:
            raise ValueError("model.backbone.backbones: expected a config for each task, got none")
        weights = beta + (alpha - beta) * torch.eye(len(self.networks))
        self.stitch = nn.ParameterList(
            weights[..., None].repeat(1, 1, channels) for channels in stages
        )

    def init_weights(self) -> None:
        """Initialise as MMEngine does, and check that each checkpoint had weights to load.

        Raises:
            ValueError: A backbone's checkpoint has none of its weights, which MMEngine only warns
                of: a whole model's names begin with a prefix.
        """
        files = {task: _checkpoint(network) for task, network in self.networks.items()}
        before = {t: [p.clone() for p in self.networks[t].parameters()] for t in files if files[t]}
        again = self.is_init
        super().init_weights()
        for task, values in before.items():
            loaded = zip(self.networks[task].parameters(), values, strict=True)
            if not again and all(map(torch.equal, *zip(*loaded, strict=True))):
                raise ValueError(
                    f"model.backbone.backbones.{task}.init_cfg: {files[task]} has none of the "
                    "backbone's weights; expected names such as 'layer1.0.conv1.weight', or "
                    "prefix='backbone.' for the checkpoint of a whole model"
                )

    def forward(self, x: Tensor) -> TaskFeatures:
        """Return each task's maps of its backbone's ``out_indices``, of images ``[N, C, H, W]``."""
        maps = {task: _stem(network, x) for task, network in self.networks.items()}
        features: dict[str, tuple[Tensor, ...]] = dict.fromkeys(maps, ())
        for stage, weights in enumerate(self.stitch):
            for task, network in self.networks.items():
                maps[task] = getattr(network, network.res_layers[stage])(maps[task])
            stacked = torch.stack(list(maps.values()))
            for row, (task, network) in zip(weights, self.networks.items(), strict=True):
                maps[task] = (row[:, None, :, None, None] * stacked).sum(0)
                if stage in network.out_indices:
                    features[task] = (*features[task], maps[task])
        return TaskFeatures(features)


def _checkpoint(network: BaseModule) -> str | None:
    """Return the checkpoint that the network's ``init_cfg`` names."""
    config = network.init_cfg
    for part in [config] if isinstance(config, dict) else config or []:
        if "checkpoint" in part:
            return part["checkpoint"]
    return None


def _stem(network: ResNet, x: Tensor) -> Tensor:
    """Return the map before the first stage, which MMSegmentation's ``forward`` keeps to itself."""
    x = network.stem(x) if network.deep_stem else network.relu(network.norm1(network.conv1(x)))
    return network.maxpool(x)
