"""Evaluate a checkpoint: MMDetection's own ``tools/test.py``, with the parts of this package."""

import runpy
from pathlib import Path

import mmdet


def main() -> None:
    """Run the command line; ``mtl_plugins.mm`` has been imported with the package."""
    # MMDetection installs its tools next to its modules, for mim.
    script = Path(mmdet.__file__).parent / ".mim" / "tools" / "test.py"
    runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    main()
