"""Draw the predictions of a Detectron2 model on the first images of its test set.

python -m mtl_plugins.d2.draw --images 4 --config-file mine.yaml MODEL.WEIGHTS W OUTPUT_DIR OUT
"""

import os
import sys

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.engine import DefaultPredictor
from detectron2.utils.visualizer import Visualizer

from mtl_plugins.d2.train_net import argument_parser, setup

SCORE = 0.3
"""Least score of a drawn object."""


def main() -> None:
    """Draw what the command line says, to OUTPUT_DIR, under the names of the images."""
    parser = argument_parser()
    parser.add_argument("--images", type=int, default=4, help="number of images")
    args = parser.parse_args()
    cfg = setup(args)
    name = cfg.DATASETS.TEST[0]
    images = DatasetCatalog.get(name)[: args.images]
    predict = DefaultPredictor(cfg)
    for entry in images:
        image = read_image(entry["file_name"], format=cfg.INPUT.FORMAT)
        found = predict(image)
        rgb = image[:, :, ::-1] if cfg.INPUT.FORMAT == "BGR" else image
        drawn = Visualizer(rgb, MetadataCatalog.get(name))
        if "sem_seg" in found:
            drawn.draw_sem_seg(found["sem_seg"].argmax(0).cpu())
        if "instances" in found:
            objects = found["instances"].to("cpu")
            drawn.draw_instance_predictions(objects[objects.scores > SCORE])
        stem = os.path.splitext(os.path.basename(entry["file_name"]))[0]
        drawn.output.save(os.path.join(cfg.OUTPUT_DIR, f"{stem}.jpg"))


if __name__ == "__main__":
    sys.path.insert(0, os.getcwd())
    main()
