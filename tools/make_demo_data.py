"""Draw a small data set of procedural scenes; the code is in ``demo/demo_scenes``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "demo"))

from demo_scenes.draw import LAYOUTS, main  # noqa: E402

__all__ = ["LAYOUTS", "main"]

if __name__ == "__main__":
    main()
