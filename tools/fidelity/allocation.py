"""Train STA, ISTA and the plain sum at equal steps and at equal images (paper B, Tables 1 to 7).

    python tools/fidelity/allocation.py --work-dir work_dirs/allocation

Narrow SegNet for segmentation and depth, drawn scenes in the layout of Cityscapes' small files.
With one of two tasks an image, STA and ISTA take twice the steps to use each label as often.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))

from fidelity.in_forks import train_all  # noqa: E402
from fidelity.judging import Claim, Row, judge, runs_of, schedule, write  # noqa: E402
from make_demo_data import main as draw  # noqa: E402

from mtl_plugins.compare.command import conclude  # noqa: E402
from mtl_plugins.compare.experiments import load  # noqa: E402

CONFIG = str(Path(__file__).parents[2] / "configs/cityscapes_dense/segnet-small_cityscapes-7.py")
COLUMNS = ["seg/mIoU", "depth/abs_err"]  # as paper B
GAPS = (2, 4, 8, 16)
CLAIMS = (
    Claim("STA over FT at equal steps (B Table 4)", "STA, FT's steps"),
    Claim("ISTA over FT at equal steps (B Table 4)", "ISTA, FT's steps"),
    Claim("STA over FT at equal images (B Tables 1, 3)", "STA"),
    Claim("ISTA over FT at equal images (B Tables 1, 3)", "ISTA"),
    Claim("STA over FT+ (B Table 5)", "STA", "FT+"),
    Claim("ISTA over FT+ (B Table 5)", "ISTA", "FT+"),
    Claim("ISTA over STA (B Tables 1 to 3)", "ISTA", "STA"),
    *(Claim(f"ISTA over gap {gap} (B Table 7)", "ISTA", f"gap {gap}") for gap in GAPS),
)


def rows(iters: int) -> dict[str, Row]:
    """Return the rows beside the sum, which trains ``iters`` steps."""
    longer = schedule(2 * iters)
    return {
        "STA, FT's steps": Row("sta"),
        "ISTA, FT's steps": Row("ista"),
        "FT+": Row("sum", longer),
        "STA": Row("sta", longer),
        "ISTA": Row("ista", longer),
        **{f"gap {gap}": Row(f"ista:gap={gap}", longer) for gap in GAPS},
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work-dir", type=Path, required=True, help="folder of data and runs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--iters", type=int, default=80, help="steps of the sum")
    parser.add_argument("--images", type=int, nargs=2, default=(160, 32), help="train, test")
    args = parser.parse_args(arguments)
    folder = args.work_dir.resolve()
    os.environ["CITYSCAPES_MTAN_ROOT"] = str(folder / "data")
    size = ["--train", str(args.images[0]), "--val", str(args.images[1]), "--size", "128", "96"]
    draw(["--layout", "cityscapes_mt", "--out", str(folder / "data"), *size])
    experiment = load(CONFIG, ["sta", "ista:gap=2"], schedule(args.iters))
    runs = runs_of(experiment, rows(args.iters), args.seeds, folder)
    train_all(runs)
    comparison = conclude(experiment, runs, COLUMNS, "gain")
    words = sys.argv[1:] if arguments is None else arguments
    write(comparison, folder, ["python", "tools/fidelity/allocation.py", *words])
    judge(comparison, CLAIMS)


if __name__ == "__main__":
    main()
