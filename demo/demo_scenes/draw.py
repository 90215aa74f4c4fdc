"""Draw a small data set of procedural scenes, in the layout of a well-known one.

    python tools/make_demo_data.py --layout coco --out data/demo/coco

Scenes show textured objects that overlap in front of a wall, in a few seconds and without any
download. The same options give the same files; a scene depends on --seed, its split and its number
alone, so that more scenes leave the earlier scenes as they were.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from demo_scenes.bdd100k import write_bdd100k
from demo_scenes.cityscapes import write_cityscapes
from demo_scenes.coco import write_coco
from demo_scenes.metagraspnet import write_metagraspnet
from demo_scenes.mtan import write_cityscapes_mt, write_nyuv2
from demo_scenes.nyud import write_nyud, write_nyud_png
from demo_scenes.pascal import KINDS, write_pascal
from demo_scenes.scene import MIN_SIDE, Scene, draw_scene
from demo_scenes.things import OBJECTS

Layout = Callable[[Path, str, Iterable[Scene]], None]
"""Writer of one split: the data set's folder, ``"train"`` or ``"val"``, its scenes."""

LAYOUTS: dict[str, Layout] = {
    "bdd100k": write_bdd100k,
    "cityscapes": write_cityscapes,
    "cityscapes_mt": write_cityscapes_mt,
    "coco": write_coco,
    "metagraspnet": write_metagraspnet,
    "nyud": write_nyud,
    "nyud_png": write_nyud_png,
    "nyuv2": write_nyuv2,
    "pascal": write_pascal,
}

_KINDS: dict[str, Sequence[str]] = {"pascal": KINDS}
"""Categories of objects, where a layout has others than the usual ones."""

_SPLITS = ("train", "val")
_MANIFEST = "demo.json"


def main(argv: Sequence[str] | None = None) -> None:
    """Draw what the command line asks for, unless the same data are already there."""
    parser = _parser()
    args = parser.parse_args(argv)
    args.out = args.out or Path("data/demo") / args.layout
    problem = _problem(args)
    if problem:
        parser.error(problem)

    out = args.out.resolve()
    manifest = {
        "layout": args.layout,
        "train": args.train,
        "val": args.val,
        "size": list(args.size),
        "seed": args.seed,
        "code": _code_hash(),
    }
    if _read_manifest(out) == manifest:
        print(f"{args.out} already holds these scenes; left as it is")
        return
    try:
        _write(out, LAYOUTS[args.layout], manifest)
    except OSError as error:
        sys.exit(f"--out {args.out}: cannot write there: {error}")
    print(f"drew {args.train} training and {args.val} validation scenes into {args.out}")


def _write(out: Path, layout: Layout, manifest: Mapping[str, Any]) -> None:
    """Draw the scenes that a manifest describes, and put them in the place of a folder."""
    width, height = manifest["size"]
    out.parent.mkdir(parents=True, exist_ok=True)
    # Draw aside and move into place when complete, so that a run that is stopped leaves nothing
    # that looks finished, and no file of an earlier, larger data set stays behind.
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as aside:
        root = Path(aside) / out.name
        root.mkdir()
        kinds = _KINDS.get(manifest["layout"], tuple(OBJECTS))
        for split in _SPLITS:
            seeds = ([manifest["seed"], _SPLITS.index(split), i] for i in range(manifest[split]))
            layout(root, split, _scenes(seeds, (height, width), kinds))
        (root / _MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        if out.exists():
            shutil.rmtree(out)
        root.rename(out)


def _parser() -> argparse.ArgumentParser:
    description, _, details = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description,
        epilog=details,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--layout", choices=sorted(LAYOUTS), default="coco", help="(default coco)")
    parser.add_argument(
        "--out",
        type=Path,
        help="folder to write; demo scenes in it are replaced (default data/demo/LAYOUT)",
    )
    parser.add_argument("--train", type=int, default=64, help="training scenes (default 64)")
    parser.add_argument("--val", type=int, default=16, help="validation scenes (default 16)")
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        default=(320, 240),
        metavar=("WIDTH", "HEIGHT"),
        help="of the images, in pixels (default 320 240)",
    )
    parser.add_argument("--seed", type=int, default=0, help="another one, other scenes (default 0)")
    return parser


def _problem(args: argparse.Namespace) -> str | None:
    """Name the first fault of the options, None if there is none."""
    for option in ("train", "val"):
        if getattr(args, option) < 1:
            return f"--{option} {getattr(args, option)}: must be at least 1"
    if args.seed < 0:
        return f"--seed {args.seed}: must not be negative"
    if min(args.size) < MIN_SIDE:
        width, height = args.size
        return f"--size {width} {height}: both sides must be at least {MIN_SIDE} pixels"
    # Never remove files that this script did not write.
    if args.out.exists() and not (args.out / _MANIFEST).is_file():
        if not args.out.is_dir():
            return f"--out {args.out}: is a file; name a folder"
        if any(args.out.iterdir()):
            return (
                f"--out {args.out}: holds other data (there is no {_MANIFEST} in it); "
                "name a new or an empty folder"
            )
    return None


def _scenes(
    seeds: Iterable[Sequence[int]], size: tuple[int, int], kinds: Sequence[str]
) -> Iterator[Scene]:
    for seed in seeds:
        yield draw_scene(np.random.default_rng(seed), size, kinds)


def _code_hash() -> str:
    """Digest the drawing code, so that data from an older version are drawn anew."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:16]


def _read_manifest(out: Path) -> object:
    """Read the arguments that drew a folder, None if there is no record."""
    try:
        return json.loads((out / _MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
