"""Evaluate a checkpoint: the framework's own ``tools/test.py``, with the parts of this package."""

import runpy
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from mmengine.config import Config

from mtl_plugins.mm.runner import close_group


def main() -> None:
    """Run the command line; ``mtl_plugins.mm`` has been imported with the package."""
    runpy.run_path(str(_script(sys.argv[1:])), run_name="__main__")
    close_group()


def _script(arguments: Sequence[str]) -> Path:
    """Find the script of the framework that the config is for; MMDetection's is for all others.

    Raises:
        SystemExit: ``--out`` is given, which MMSegmentation's script cannot do with a list of
            metrics.
    """
    config = next((path for path in arguments if path.endswith(".py") and Path(path).is_file()), "")
    cfg = Config.fromfile(config) if config else Config()
    scope = cfg.get("default_scope")
    saves = any(text.split("=")[0] == "--out" for text in arguments)
    if scope == "mmseg" and saves and isinstance(cfg.get("test_evaluator"), list):
        raise SystemExit(
            "--out: MMSegmentation saves the predictions of one IoUMetric alone, test_evaluator "
            "is a list; add dict(type='DumpResults', out_file_path='results.pkl') to it instead"
        )
    package = find_spec("mmseg" if scope == "mmseg" else "mmdet")
    assert package is not None and package.origin is not None
    # Both install their tools next to their modules, for mim.
    return Path(package.origin).parent / ".mim" / "tools" / "test.py"


if __name__ == "__main__":
    main()
