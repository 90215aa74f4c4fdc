"""What ``make demo`` says of its own numbers."""

import shlex
from pathlib import Path

from commands import ROOT

import demo
from mtl_plugins.mm.train import parse_args


def test_a_small_difference_is_called_noise():
    scores = [
        {"detection": {"coco/bbox_mAP": 0.310}, "mask": {"coco/segm_mAP": mask}}
        for mask in (0.300, 0.304)
    ]
    assert "0.004 AP, is noise: one seed, 16 images" in demo.verdict(*scores)


def test_the_next_three_commands_can_be_typed():
    lines = demo.next_commands(Path("data/demo/coco")).splitlines()
    assert len(lines) == 3
    listed, small, standard = (shlex.split(line, comments=True) for line in lines)
    assert listed[1:] == ["--list"]
    for command in (small[1:], standard):
        args = parse_args(command[1:])
        assert (ROOT / args.config).is_file()
        names = args.mtl.split("+")
        assert all((ROOT / f"configs/_base_/mtl/{name}.py").is_file() for name in names)
