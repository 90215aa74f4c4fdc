"""Write configs/detectron2/mtl/<method>.yaml from configs/_base_/mtl/<method>.py.

    python tools/write_detectron2_configs.py

Those in folders (as_published/REPOSITORY) as well, unless they clip: Detectron2 clips each
parameter by itself. Overlays without a method (a level, an allocation) differ between the
frameworks, and are written by hand.
"""

from __future__ import annotations

import runpy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

CONFIGS = Path(__file__).parents[1] / "configs"
PYTHON, YAML = CONFIGS / "_base_" / "mtl", CONFIGS / "detectron2" / "mtl"
PARTS = ("aggregator", "weighting", "regularizer")
OPTIONS = ("level", "heads", "scale")


def as_text(value: Any) -> str:
    """Write one value: yacs knows no dicts, so that a dict is text in YAML's flow style."""
    if isinstance(value, Mapping):
        flow = yaml.safe_dump(dict(value), default_flow_style=True, sort_keys=False, width=1000)
        return f'"{flow.strip()}"'
    return f'"{value}"' if isinstance(value, str) else yaml.safe_dump(value).split("\n")[0]


def method_configs() -> Iterator[tuple[str, str]]:
    """Yield the name and the text of each file."""
    for path in sorted(PYTHON.rglob("*.py")):
        config = runpy.run_path(str(path))
        wrapper = config["optim_wrapper"]
        if not set(wrapper) & set(PARTS) or "clip_grad" in wrapper:
            continue
        lines = [line for line in path.read_text().splitlines() if line.startswith("#")]
        lines.append("MTL:")
        for part in (part for part in PARTS if part in wrapper):
            method = dict(wrapper[part])
            if "name" in method:  # yacs would not tell the key from NAME
                method = {"type": method}
            lines.append(f"  {part.upper()}:")
            for key, value in method.items():
                lines.append(f"    {'NAME' if key == 'type' else key.upper()}: {as_text(value)}")
        for key in (key for key in OPTIONS if key in wrapper):
            lines.append(f"  {key.upper()}: {as_text(wrapper[key])}")
        if sampler := config.get("train_dataloader", {}).get("batch_sampler"):
            lines.append("  ALLOCATION:")
            lines.append(f"    NAME: {as_text(sampler['type'].removesuffix('BatchSampler'))}")
            lines.append(f"    TASKS_PER_SAMPLE: {sampler['tasks_per_sample']}")
        yield f"{path.relative_to(PYTHON).with_suffix('')}.yaml", "\n".join(lines) + "\n"


def main() -> None:
    for name, text in method_configs():
        (YAML / name).parent.mkdir(parents=True, exist_ok=True)
        (YAML / name).write_text(text)
        print(YAML / name)


if __name__ == "__main__":
    main()
