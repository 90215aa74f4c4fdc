"""``mtl-compare`` on a Detectron2 config and drawn images: the table is that of the logs."""

from __future__ import annotations

import json
import subprocess
import sys

from commands import ROOT, run
from small import NARROW, SMALL

OPTIONS = ["SOLVER.MAX_ITER=20", "SOLVER.STEPS=(15,)", "MODEL.ROI_HEADS.SCORE_THRESH_TEST=0.0"]
OPTIONS += ["INPUT.MIN_SIZE_TRAIN=(48,)", "INPUT.MIN_SIZE_TEST=48", "TEST.DETECTIONS_PER_IMAGE=20"]
OPTIONS += ["MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE=16", "MODEL.RPN.POST_NMS_TOPK_TRAIN=20"]
OPTIONS += [f"{key}={value!r}" for key, value in zip(NARROW[::2], NARROW[1::2], strict=True)]


def test_one_run_of_the_plain_sum(coco, tmp_path):
    script = ROOT / "tools" / "dataset_converters" / "detectron2_coco.py"
    subprocess.run([sys.executable, script, coco, tmp_path / "data" / "coco"], check=True)
    out = tmp_path / "out"
    printed = run(
        *("tools/compare.py", str(SMALL), "--seeds", "1", "--pictures", "1"),
        *("--work-dir", str(out), "--cfg-options", *OPTIONS),
        coco=coco,
        DETECTRON2_DATASETS=str(tmp_path / "data"),
    )
    lines = (out / "sum" / "0" / "metrics.json").read_text().splitlines()
    logged = [json.loads(line) for line in lines]
    evaluation = next(record for record in logged if "bbox/AP" in record)
    (found,) = json.loads((out / "results.json").read_text())["runs"]
    for name in ("bbox/AP", "segm/AP"):
        assert found["metrics"][name] == evaluation[name]
    assert found["seconds_per_iteration"] == next(r["time"] for r in logged if "time" in r)
    assert not [name for name in found["metrics"] if "rcnn" in name or "rpn" in name]
    assert "segm/AP ↑ (mask)" in printed
    assert "data:image/jpeg" in (out / "report.html").read_text()
