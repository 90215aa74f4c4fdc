"""The picture of gradient angles without and with task allocation."""

from commands import SMALL, TWO_STEPS, run


def test_draws_all_three(coco, tmp_path):
    out = tmp_path / "angles.png"
    words = [SMALL, "--steps", "3", "--out", str(out), *TWO_STEPS]
    log = run("tools/analysis/allocation_angles.py", *words, coco=coco)
    assert out.read_bytes().startswith(b"\x89PNG")
    lines = [line for line in log.splitlines() if ": tasks " in line]
    assert [line.split(":")[0] for line in lines] == ["all tasks", "STA", "ISTA"]
