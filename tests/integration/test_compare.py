"""``mtl-compare`` as a user types it, on Mask R-CNN: the table is that of the logs."""

from __future__ import annotations

import json

from commands import NARROW, SMALL, TWO_STEPS, run


def test_one_run_of_the_plain_sum(coco, tmp_path):
    options = [*TWO_STEPS[1:], "model.test_cfg.rcnn.score_thr=0.0", "train_cfg.val_interval=2"]
    options += ["model.test_cfg.rcnn.max_per_img=20", "default_hooks.logger.interval=1"]
    assert set(NARROW) <= set(options)
    command = ["tools/compare.py", SMALL, "--seeds", "1", "--pictures", "0"]
    printed = run(*command, "--work-dir", str(tmp_path), "--cfg-options", *options, coco=coco)
    assert "1 runs: 0 done, 1 to do" in printed
    (scalars,) = (tmp_path / "sum" / "0").glob("*/vis_data/scalars.json")
    logged = [json.loads(line) for line in scalars.read_text().splitlines()]
    validation = next(record for record in logged if "coco/bbox_mAP" in record)
    (found,) = json.loads((tmp_path / "results.json").read_text())["runs"]
    for name in ("coco/bbox_mAP", "coco/segm_mAP"):
        # The test and the validation of the last iteration see the same images.
        assert found["metrics"][name] == validation[name]
    times = [record["time"] for record in logged if "loss" in record]
    assert found["seconds_per_iteration"] == times[-1]
    assert found["memory_mib"] > 100.0
    assert "coco/segm_mAP ↑ (mask)" in printed
