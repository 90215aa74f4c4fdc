"""Look for missing and malformed files in a folder of dense prediction's data.

    python tools/check_dense_data.py --layout nyud data/NYUD_MT

All files of the splits train and val have to be there; a few of each are opened. Training does the
same before its first step.
"""

from __future__ import annotations

import argparse
import sys

LAYOUTS = {
    "nyuv2": "MTANNYUv2Dataset",
    "cityscapes_mt": "MTANCityscapesDataset",
    "cityscapes": "CityscapesDenseDataset",
    "nyud": "NYUDMTDataset",
    "pascal": "PASCALMTDataset",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", help="folder of the data set")
    parser.add_argument("--layout", choices=LAYOUTS, required=True, help="kind of the data set")
    args = parser.parse_args()
    from mtl_plugins.mm.data_check import data_problem

    for split in ("train", "val"):
        dataset = {"type": LAYOUTS[args.layout], "data_root": args.root, "split": split}
        dataset["pipeline"] = [{"type": "LoadMultiTask"}]
        if problem := data_problem({"train_dataloader": {"dataset": dataset}}):
            sys.exit(problem.replace("train_dataloader.dataset", split, 1))
        print(f"{split}: every file is there, and those that were opened are sound")


if __name__ == "__main__":
    main()
