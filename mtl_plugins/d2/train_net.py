"""Train or evaluate from a config, with Detectron2's own arguments, ``--mtl`` and ``--import``.

mtl-train-net --import my_data --config-file mine.yaml --mtl pcgrad
"""

import argparse
import logging
import os
import sys
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from detectron2 import _C
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, get_cfg
from detectron2.data import MetadataCatalog
from detectron2.engine import default_argument_parser, default_setup
from detectron2.engine.hooks import EvalHook
from detectron2.evaluation import (
    CityscapesInstanceEvaluator,
    CityscapesSemSegEvaluator,
    COCOEvaluator,
    COCOPanopticEvaluator,
    DatasetEvaluator,
    DatasetEvaluators,
    LVISEvaluator,
    PascalVOCDetectionEvaluator,
    SemSegEvaluator,
    verify_results,
)
from detectron2.modeling import GeneralizedRCNNWithTTA
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch import nn

from mtl_plugins.d2 import MTLTrainer, add_mtl_config, launch, merge_options
from mtl_plugins.d2.data import missing_data
from mtl_plugins.d2.overlay import lay_over

logger = logging.getLogger("detectron2.train_net")


class Trainer(MTLTrainer):
    """Trainer that evaluates each of Detectron2's own data sets as Detectron2 does."""

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, folder: str = "inference"
    ) -> DatasetEvaluator:
        out = os.path.join(cfg.OUTPUT_DIR, folder)
        kind = MetadataCatalog.get(dataset_name).evaluator_type
        single = {
            "cityscapes_instance": CityscapesInstanceEvaluator,
            "cityscapes_sem_seg": CityscapesSemSegEvaluator,
            "pascal_voc": PascalVOCDetectionEvaluator,
        }
        if kind == "lvis":
            return LVISEvaluator(dataset_name, output_dir=out)
        if kind in single:
            return single[kind](dataset_name)
        evaluators: list[DatasetEvaluator] = []
        if kind in ("sem_seg", "coco_panoptic_seg"):
            evaluators.append(SemSegEvaluator(dataset_name, output_dir=out))
        if kind in ("coco", "coco_panoptic_seg"):
            fast = hasattr(_C, "COCOevalEvaluateImages")  # without a compiler, the Python one
            evaluators.append(COCOEvaluator(dataset_name, output_dir=out, use_fast_impl=fast))
        if kind == "coco_panoptic_seg":
            if find_spec("panopticapi") is not None:
                evaluators.append(COCOPanopticEvaluator(dataset_name, out))
            else:
                logger.warning("no panoptic quality, for want of panopticapi")
        if not evaluators:
            raise NotImplementedError(f"DATASETS.TEST: no evaluator is for the type {kind!r}")
        return DatasetEvaluators(evaluators)

    @classmethod
    def test_with_tta(cls, cfg: CfgNode, model: nn.Module) -> dict[str, Any]:
        """Evaluate with test-time augmentation, for some R-CNN models."""
        names = cfg.DATASETS.TEST
        evaluators = [cls.build_evaluator(cfg, name, "inference_TTA") for name in names]
        results = cls.test(cfg, GeneralizedRCNNWithTTA(cfg, model), evaluators)
        return {f"{key}_TTA": value for key, value in results.items()}


def setup(args: argparse.Namespace) -> CfgNode:
    """Return the config of a command line, and set the logs up.

    Raises:
        SystemExit: The command line is wrong.
    """
    for name in getattr(args, "modules", ()):
        try:
            import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise
            raise SystemExit(f"--import: there is no module {name!r} here or installed") from error
    cfg = get_cfg()
    add_mtl_config(cfg)
    cfg.merge_from_file(args.config_file)
    if getattr(args, "mtl", None):
        lay_over(cfg, args.mtl)
    try:
        merge_options(cfg, args.opts)
    except (KeyError, ValueError) as error:
        raise SystemExit(error.args[0]) from error
    cfg.freeze()
    default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="mtl_plugins")
    return cfg


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of Detectron2's arguments, of methods, and of modules of the user's."""
    parser = default_argument_parser()
    parser.add_argument(
        "--mtl",
        metavar="NAME",
        help="lay configs/detectron2/mtl/NAME.yaml over the config, or several as NAME+NAME, with "
        "options as NAME:KEY=VALUE; mtl-train --list prints the methods",
    )
    parser.add_argument(
        "--import",
        dest="modules",
        metavar="MODULE",
        action="append",
        default=[],
        help="import a module that registers data sets or models; may be repeated",
    )
    return parser


def run(args: argparse.Namespace) -> Any:
    """Train or evaluate, in one of the processes."""
    cfg = setup(args)
    if problem := missing_data(cfg, ("TEST",) if args.eval_only else ("TRAIN", "TEST")):
        raise SystemExit(problem)
    if args.eval_only:
        model = Trainer.build_model(cfg)
        checkpointer = DetectionCheckpointer(model, save_dir=cfg.OUTPUT_DIR)
        checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        results = Trainer.test(cfg, model)
        if cfg.TEST.AUG.ENABLED:
            results |= Trainer.test_with_tta(cfg, model)
        if comm.is_main_process():
            verify_results(cfg, results)
        return results
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    if cfg.TEST.AUG.ENABLED:
        trainer.register_hooks([EvalHook(0, lambda: Trainer.test_with_tta(cfg, trainer.model))])
    return trainer.train()


def main() -> None:
    """Run the command line, in as many processes as it says."""
    arguments = argument_parser().parse_args()
    sys.path.insert(0, os.getcwd())  # as ``python SCRIPT`` adds the folder of the script
    launch(
        run,
        arguments.num_gpus,
        num_machines=arguments.num_machines,
        machine_rank=arguments.machine_rank,
        dist_url=arguments.dist_url,
        args=(arguments,),
    )


if __name__ == "__main__":
    main()
