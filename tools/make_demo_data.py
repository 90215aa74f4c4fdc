"""Draw a small data set of procedural scenes; the code is in ``demo/demo_scenes``."""

import sys
from pathlib import Path

from mtl_plugins.extras import require

sys.path.insert(0, str(Path(__file__).parents[1] / "demo"))
require("make_demo_data.py", "cv2", "numpy", "PIL", "pycocotools", extra="mm")

from demo_scenes.draw import LAYOUTS, main  # noqa: E402

__all__ = ["LAYOUTS", "main"]

if __name__ == "__main__":
    main()
