"""Evaluates a checkpoint: MMDetection's own ``tools/test.py``, with our parts registered."""

import runpy
from pathlib import Path

import mmdet

import mtl_plugins.mm  # noqa: F401

if __name__ == "__main__":
    # MMDetection installs its tools next to its modules, for mim.
    script = Path(mmdet.__file__).parent / ".mim" / "tools" / "test.py"
    runpy.run_path(str(script), run_name="__main__")
