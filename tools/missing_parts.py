"""Name the files that a new method or data set still lacks.

    python tools/missing_parts.py

The folders are compared with each other; CONTRIBUTING.md says what the files are for.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

# Folders of the package that hold methods, each with its files that are no methods.
METHODS = {
    "aggregation": {"__init__", "bargaining", "base", "memory", "solvers"},
    "weighting": {"__init__", "base", "indicators"},
    "regularization": {"__init__", "base", "penalty"},
}


def missing_parts(root: Path) -> Iterator[str]:
    """Find the files that are missing.

    Args:
        root: Folder of the repository.

    Yields:
        A line for each file that is missing or has to name the method or data set.
    """
    for kind, others in METHODS.items():
        for path in sorted((root / "mtl_plugins" / kind).glob("*.py")):
            if path.stem not in others:
                yield from _of_method(root, kind, path)
    for folder in sorted(path for path in (root / "configs").iterdir() if path.is_dir()):
        if folder.name not in ("_base_", "detectron2"):
            yield from _of_data_set(root, folder.name)


def _of_method(root: Path, kind: str, path: Path) -> Iterator[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    classes = [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
    wanted = {
        f"configs/_base_/mtl/{path.stem}.py": "configs/_base_/mtl/*.py",
        f"configs/detectron2/mtl/{path.stem}.yaml": "configs/detectron2/mtl/*.yaml",
        f"tests/{kind}/test_{path.stem}.py": f"tests/{kind}/*.py",
        "docs/methods.md": "docs/methods.md",
    }
    for file, anywhere in wanted.items():
        texts = [p.read_text(encoding="utf-8") for p in root.glob(anywhere)]
        if not any(name in text for name in classes for text in texts):
            yield f"{file}: nothing there names {' or '.join(classes)} of {path.relative_to(root)}"


def _of_data_set(root: Path, name: str) -> Iterator[str]:
    if not (root / "configs" / name / "README.md").is_file():
        yield f"configs/{name}/README.md: missing; layout of the data, commands, what was seen"
    wanted = {"docs/data.md": "docs/data.md", f"tests/tools/test_{name}.py": "tests/**/*.py"}
    for file, anywhere in wanted.items():
        texts = (p.read_text(encoding="utf-8") for p in root.glob(anywhere))
        if not any(name in text for text in texts):
            yield f"{file}: nothing there names {name}"


def main() -> None:
    """Check the repository that this file is in."""
    lines = list(missing_parts(Path(__file__).resolve().parents[1]))
    sys.exit("\n".join(lines) if lines else None)


if __name__ == "__main__":
    main()
