"""Training of a number: logs as MMEngine does, and goes on from its checkpoint."""

import json
import os
import sys
import time
from pathlib import Path

folder, name, *rest = sys.argv[1:]
folder = Path(folder)
options = dict(option.split("=") for option in rest if "=" in option)
if name == "--test":
    if "missing" in options:
        metrics = {"coco/bbox_mAP": 0.3}
    else:
        metrics = {"coco/bbox_mAP": 0.3, "coco/segm_mAP": 0.2}
    (folder / "test.json").write_text(json.dumps(metrics))
    sys.exit()
if "fail" in options:
    print("a lot of output\n" * 1000)
    sys.exit("optim_wrapper: there is no option 'agregator'")
checkpoint = folder / "checkpoint"
first = int(checkpoint.read_text()) if checkpoint.is_file() else 0
log = folder / f"{time.time_ns()}_{os.getpid()}" / "vis_data" / "scalars.json"
log.parent.mkdir(parents=True)
last = int(options.get("iterations", 20))
if "per_epoch" in options:
    (folder / "epoch_length.txt").write_text(options["per_epoch"])
for step in range(first + 1, last + 1):
    time.sleep(float(options.get("sleep", 0.0)))
    with log.open("a") as file:
        loss = 1.0 / (step + int(rest[0]))
        record = {"lr": 0.1, "loss": loss, "time": 0.01, "step": step}
        file.write(json.dumps(record) + "\n")
    if step % 5 == 0:
        new = folder / "checkpoint.new"
        new.write_text(str(step))
        new.replace(checkpoint)
