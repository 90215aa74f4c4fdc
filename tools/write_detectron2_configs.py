"""Write configs/detectron2/mtl/<method>.yaml from configs/_base_/mtl/<method>.py.

    python tools/write_detectron2_configs.py

Overlays without a method (a level, an allocation) differ between the frameworks, and are written by
hand.
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


def as_text(value: Any) -> str:
    """Write one value: yacs knows no dicts, so that a dict is text in YAML's flow style."""
    if isinstance(value, Mapping):
        flow = yaml.safe_dump(dict(value), default_flow_style=True, sort_keys=False, width=1000)
        return f'"{flow.strip()}"'
    return f'"{value}"' if isinstance(value, str) else yaml.safe_dump(value).split("\n")[0]


def method_configs() -> Iterator[tuple[str, str]]:
    """Yield the name and the text of each file."""
    for path in sorted(PYTHON.glob("*.py")):
        wrapper = runpy.run_path(str(path))["optim_wrapper"]
        lines = [line for line in path.read_text().splitlines() if line.startswith("#")]
        lines.append("MTL:")
        for part in (part for part in PARTS if part in wrapper):
            method = dict(wrapper[part])
            if "name" in method:  # yacs would not tell the key from NAME
                method = {"type": method}
            lines.append(f"  {part.upper()}:")
            for key, value in method.items():
                lines.append(f"    {'NAME' if key == 'type' else key.upper()}: {as_text(value)}")
        if "level" in wrapper:
            lines.append(f"  LEVEL: {as_text(wrapper['level'])}")
        if set(wrapper) & set(PARTS):
            yield f"{path.stem}.yaml", "\n".join(lines) + "\n"


def main() -> None:
    for name, text in method_configs():
        (YAML / name).write_text(text)
        print(YAML / name)


if __name__ == "__main__":
    main()
