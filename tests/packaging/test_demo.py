"""What ``make demo`` says of its own numbers."""

import shlex
from pathlib import Path

from commands import ROOT

import demo
from mtl_plugins.mm.train import parse_args


def test_a_small_difference_is_called_noise():
    pair = {"mean": -0.004, "seeds": 1, "differs": False}
    said = demo.verdict({"against_sum": [{**pair, "mean": 0.001}, pair]})
    assert "0.004 AP, is noise: one seed, 16 images" in said
    said = demo.verdict({"against_sum": [{**pair, "seeds": 3, "differs": True}]})
    assert "may be more than chance on these images: 3 seeds" in said


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
